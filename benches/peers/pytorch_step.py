#!/usr/bin/env python3
"""The common work in PyTorch: a step of a Llama model (forward, loss, gradients), or a square f32 matmul.

Needs torch; transformers for the step; and peft for a step with LoRA. Prints one JSON object.
"""

import argparse
import json
import platform
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a directory in Hugging Face's layout; without it, a matmul")
    parser.add_argument("--lora", type=int, metavar="R", help="train adapters of this rank, not all weights")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--size", type=int, default=1024, help="rows and columns of the matmul's matrices")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()

    import torch

    torch.set_float32_matmul_precision("highest")
    report = {
        "peer": "pytorch",
        "version": torch.__version__,
        "adapter": adapter(torch, args.device),
        "what": "step" if args.model else "matmul",
        "precision": "f32",
    }
    report.update(step(torch, args) if args.model else matmul(torch, args))
    print(json.dumps(report))


def adapter(torch, device):
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return device
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def wait(torch, device):
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device == "mps":
        torch.mps.synchronize()


def clock(torch, args, prepare, work):
    """The first run's seconds, and those of the timed runs after the warm-up. `prepare` is not timed."""
    seconds = []
    for _ in range(max(args.warmup, 1) + args.runs):
        prepare()
        wait(torch, args.device)
        start = time.perf_counter()
        work()
        wait(torch, args.device)
        seconds.append(time.perf_counter() - start)
    return {"first_seconds": seconds[0], "seconds": seconds[max(args.warmup, 1) :]}


def step(torch, args):
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # transformers 5 calls the argument dtype, 4 called it torch_dtype.
    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    model = transformers.LlamaForCausalLM.from_pretrained(args.model, **{name: torch.float32})
    attention = model.config._attn_implementation
    if args.lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=args.lora, lora_alpha=2 * args.lora, target_modules="all-linear")
        model = get_peft_model(model.requires_grad_(False), config)
        model.to(args.device).train()
    else:
        model.to(args.device).train().requires_grad_(True)
    vocabulary = model.config.vocab_size
    ids = torch.tensor([[(7919 * i + 13) % vocabulary for i in range(args.tokens)]], device=args.device)
    kept = {}

    def work():
        # Its loss is the mean over tokens 1 .. T-1.
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        kept["loss"] = loss.detach()

    times = clock(torch, args, lambda: model.zero_grad(set_to_none=True), work)
    gradients = [p.grad for p in model.parameters()]
    squares = sum(g.double().cpu().pow(2).sum().item() for g in gradients if g is not None)
    return {
        "transformers": transformers.__version__,
        "attention": attention,
        "tokens": args.tokens,
        **times,
        "loss": kept["loss"].item(),
        "grad_norm": squares**0.5,
        "trained_parameters": sum(g.numel() for g in gradients if g is not None),
    }


def matrix(torch, n, seed):
    """The same numbers as in src/lib.rs: a multiplicative hash of the index, spread over [-1, 1)."""
    mask = 0xFFFFFFFF
    index = torch.arange(n * n, dtype=torch.int64)
    hashed = ((index + seed) & mask) * 2_654_435_761 & mask
    # A product of two 32-bit numbers overflows int64, so the second factor is split into two halves.
    mixed = hashed ^ (hashed >> 15)
    low, high = mixed * (2_246_822_519 & 0xFFFF), mixed * (2_246_822_519 >> 16)
    bits = (low + ((high & 0xFFFF) << 16)) & mask
    return ((bits >> 8).to(torch.float32) / 8_388_608.0 - 1.0).reshape(n, n)


def matmul(torch, args):
    n = args.size
    a, b = matrix(torch, n, 1), matrix(torch, n, 2)
    left, right = a.to(args.device), b.to(args.device)
    kept = {}

    def work():
        kept["c"] = left @ right

    with torch.no_grad():
        times = clock(torch, args, lambda: None, work)
        error = (kept["c"].cpu().double() - a.double() @ b.double()).abs().max().item()
    return {"size": n, **times, "error": error}


if __name__ == "__main__":
    main()
