#!/usr/bin/env python3
"""Compares aweigh with transformers, PEFT and TRL on all fixtures, in both directions: aweigh reads what they
wrote, and they read what aweigh wrote.

    cargo build --release
    python tests/python/oracle.py target/release/aweigh [NAME...]

The models are those under tests/golden (a tiny one of each family) and copies that are written in another
form. Each check prints one line, with the largest relative error of a log-prob:

    score      aweigh's log-probs of given answers, against transformers
    export     the same for the model that `aweigh export` wrote, read by transformers, and again by aweigh
    gguf       the same for the GGUF file in F32, read by transformers if it can, and by aweigh
    adapter    the same with a LoRA adapter, against PEFT
    merged     the same for the adapter merged by `aweigh export`, read by transformers
    trained    an adapter that `aweigh align` trained for two steps, read by PEFT, against `aweigh score`
    trl        DPO for two epochs of five pairs in batches of four, from one adapter: losses, rewards, epochs
               and adapters, against TRL

Exit status: 0 if every error is within 1e-5 of the size (trained steps: 1e-3), else 1.

Versions this was written with: torch 2.15.0, transformers 5.24.0, peft 0.21.2, trl 1.16.0, gguf 0.19.0, on a
CPU.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import peft
import safetensors.torch
import torch
import transformers

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

HERE = pathlib.Path(__file__).resolve().parent.parent / "golden"
EXACT, TRAINED = 1e-5, 1e-3
END = "<end>"
FAILED = []


def run(*arguments, may_fail=False):
    environment = {**os.environ, "XDG_RUNTIME_DIR": tempfile.gettempdir()}
    done = subprocess.run([AWEIGH, *map(str, arguments)], capture_output=True, text=True, env=environment)
    if done.returncode != 0 and not may_fail:
        raise SystemExit(f"aweigh {' '.join(map(str, arguments))}: {done.stderr}")
    return done


def report(name, check, error, allowed=EXACT):
    verdict = "ok" if error <= allowed else "FAILED"
    FAILED.extend([] if error <= allowed else [f"{name} {check}"])
    print(f"{name:28} {check:22} {error:9.1e}  {verdict}", flush=True)


def error_of(found, expected):
    return max(abs(f - e) / max(1.0, abs(e)) for f, e in zip(found, expected, strict=True))


# ---------------------------------------------------------------- models and texts


def tokenizer_json(vocab):
    """A tokenizer of words t0, t1, ... separated by spaces: an id sequence can be written as a text."""
    words = {word(i): i for i in range(vocab)}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "decoder": None,
        "added_tokens": [{"id": 2, "content": END, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False,
                          "special": True}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": word(0)},
    }  # fmt: skip


def folder(source, target, vocab):
    """Makes a complete model folder from a fixture."""
    target.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, target / name)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer_json(vocab)))
    (target / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": END, "pad_token": END, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return target


def rows(vocab):
    """Prompts and answers as ids; 2 ends an answer."""
    ids = lambda seed, n: [3 + (seed * 31 + i * 17) % (vocab - 3) for i in range(n)]
    return [(ids(s, 3 + s % 4), ids(s + 40, 2 + s % 5)) for s in range(8)]


def word(i):
    return END if i == 2 else f"t{i}"


def text(ids):
    return " ".join(word(i) for i in ids)


def logps(model, vocab):
    model = model.to(torch.float32).eval()
    out = []
    for prompt, answer in rows(vocab):
        ids = torch.tensor([prompt + answer + [2]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
        of = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        out.append(of.gather(1, ids[0, len(prompt) :, None]).sum().item())
    return out


def transformers_logps(place, vocab, **more):
    # Only the eager kernel has soft caps. A model without them gives the same with every kernel.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager", **more
    )
    return logps(model, vocab)


def peft_logps(place, adapter, vocab):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager"
    )
    return logps(peft.PeftModel.from_pretrained(model, adapter), vocab)


def aweigh_logps(room, place, vocab, *more):
    data = room / "answers.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": text(p), "completion": " " + text(a)}) + "\n" for p, a in rows(vocab))
    )
    done = run("score", "--model", place, "--data", data, *more, "-q")
    return [json.loads(line)["logp"] for line in done.stdout.splitlines()]


# ---------------------------------------------------------------- copies in other forms


def edited(base, target, config=None, tensors=None):
    """A copy of a model's folder with keys of config.json or tensors changed."""
    shutil.copytree(base, target)
    if config:
        own = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**own, **config}))
    if tensors:
        own = safetensors.torch.load_file(target / "model.safetensors")
        safetensors.torch.save_file(tensors(own), target / "model.safetensors", metadata={"format": "pt"})
    return target


def with_own_head(tensors):
    generator = torch.Generator().manual_seed(5)
    head = tensors["model.embed_tokens.weight"]
    return {**tensors, "lm_head.weight": torch.randn(head.shape, generator=generator) * 0.3}


def in_type(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def with_buffers(tensors):
    return {
        **tensors,
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "model.layers.0.self_attn.masked_bias": torch.tensor(float("-inf")),
    }


def adapters(base, room):
    """Adapters as PEFT writes them, of kinds in which the layers have other ranks or scales."""
    kinds = {
        "rank_pattern": dict(r=4, lora_alpha=6, rank_pattern={"layers.1.self_attn.q_proj": 2, "down_proj": 3},
                             alpha_pattern={r".*\.1\..*": 5, "v_proj": 16}),
        "rslora": dict(r=4, lora_alpha=6, use_rslora=True, alpha_pattern={"up_proj": 2}),
    }  # fmt: skip
    for name, kind in kinds.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, **kind
        )
        torch.manual_seed(3)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(room / name)
        yield name, room / name


# ---------------------------------------------------------------- checks


def check(name, base, vocab, room, adapters_of=()):
    expected = transformers_logps(base, vocab)
    report(name, "score", error_of(aweigh_logps(room, base, vocab), expected))
    run("export", "--model", base, "--output", room / "export", "-q")
    report(name, "export", error_of(transformers_logps(room / "export", vocab), expected))
    report(name, "export, read again", error_of(aweigh_logps(room, room / "export", vocab), expected))
    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    config = json.loads((base / "config.json").read_text())
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if architecture in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        # GGUF files have no tokenizer that splits words at spaces. The tensors are checked with a byte-level
        # tokenizer of the same ids.
        gguf(name, base, vocab, room, expected, scaled=rope.get("rope_type", "default") != "default")
    for kind, adapter in adapters_of:
        with_adapter = peft_logps(base, adapter, vocab)
        report(name, f"{kind}", error_of(aweigh_logps(room, base, vocab, "--adapter", adapter), with_adapter))
        target = room / f"merged-{kind}"
        # In f32: merged weights that are rounded to 16 bits give slightly different results.
        run("export", "--model", base, "--adapter", adapter, "--output", target, "--dtype", "float32", "-q")
        report(name, f"{kind}, merged", error_of(transformers_logps(target, vocab), with_adapter))
    return expected


def gguf(name, base, vocab, room, expected, scaled):
    """Through a GGUF file in F32 and back."""
    letters = edited(base, room / "letters")
    alphabet = sorted(chr(c) for c in range(33, 127))
    names = (alphabet + [a + b for a in alphabet for b in alphabet])[:vocab]
    names[2] = "<|end|>"
    merges = [[n[0], n[1]] for n in names if len(n) == 2]
    (letters / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": 2, "content": names[2], "single_word": False, "lstrip": False,
        "rstrip": False, "normalized": False,
                          "special": True}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
        "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {n: i for i, n in enumerate(names)}, "merges": merges},
    }))  # fmt: skip
    (letters / "tokenizer_config.json").write_text(json.dumps({"eos_token": names[2]}))
    file = room / "model.gguf"
    run("export", "--model", letters, "--output", file, "--dtype", "float32", "-q")
    data = room / "letters.jsonl"
    data.write_text(
        '{"prompt": "Hi there", "completion": "Go on, then"}\n{"prompt": "A", "completion": "b c d"}\n'
    )
    scores = []
    for place in (letters, file):
        done = run("score", "--model", place, "--data", data, "-q", may_fail=place == file)
        if "rope_freqs" in done.stderr:
            # The file has the divisors of the frequencies, but not the settings from which they were made:
            # aweigh knows those of Llama 3 only.
            print(f"{name:28} gguf, read again       refused: rope_freqs of another scaling than Llama 3's")
            return
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        scores.append([json.loads(line)["logp"] for line in done.stdout.splitlines()])
    report(name, "gguf, read again", error_of(scores[1], scores[0]))
    # From GGUF files transformers reads neither scaled rotary positions nor Mistral's windows.
    if not scaled and "Mistral" not in name and "mistral" not in name:
        try:
            found = transformers_logps(str(room), vocab, gguf_file="model.gguf")
        except Exception as reason:  # noqa: BLE001: what transformers cannot read is printed
            print(
                f"{name:28} gguf, transformers     not read by transformers: "
                f"{str(reason).splitlines()[0][:80]}"
            )
            return
        report(name, "gguf, transformers", error_of(found, expected))


def trained(name, base, vocab, room):
    """Two training steps by aweigh; PEFT computes the same log-probs from the saved adapter."""
    data = room / "train.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": text(p), "completion": " " + text(a), "label": False}) + "\n"
            for p, a in rows(vocab)
        )
    )
    out = room / "run"
    run("align", "--model", base, "--train", data, "--method", "npo", "--output-dir", out, "--max-steps", 2,
    "--target-modules",
        "all-linear", "--learning-rate", 0.05, "--no-stop", "-q")  # fmt: skip
    expected = peft_logps(base, out / "adapter", vocab)
    report(name, "trained", error_of(aweigh_logps(room, base, vocab, "--adapter", out / "adapter"), expected))
    moved = error_of(expected, transformers_logps(base, vocab))
    if moved < 1e-3:
        FAILED.append(f"{name} trained: the adapter changes nothing")


def trl(name, base, vocab, room):
    """DPO from one adapter in TRL and in aweigh: five pairs in batches of four, so an epoch has two steps."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    spec = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    start = peft.get_peft_model(model, spec)
    start.save_pretrained(room / "start")
    answers = [answer for _, answer in rows(vocab)]
    pairs = [{"prompt": text(p), "chosen": " " + text(a), "rejected": " " + text(answers[(i + 3) % 8])}
             for i, (p, a) in enumerate(rows(vocab)[:5])]  # fmt: skip
    data = room / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    out = room / "dpo"
    run("align", "--model", base, "--adapter", room / "start", "--train", data, "--method", "dpo",
    "--output-dir", out, "--no-stop",
        "--per-device-train-batch-size", 4, "--learning-rate", 1e-2, "--lr-scheduler-type", "constant",
        "--shuffle=false",
        "--num-train-epochs", 2, "-q")  # fmt: skip
    own = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(base)
    arguments = DPOConfig(
        output_dir=str(room / "trl"), per_device_train_batch_size=4, learning_rate=1e-2,
        lr_scheduler_type="constant", beta=0.1,
        num_train_epochs=2, logging_steps=1, report_to=[], save_strategy="no", max_grad_norm=1.0, bf16=False,
        weight_decay=0.0,
        use_cpu=True, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *_, **__):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=start,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]
    if len(own) != len(theirs):
        FAILED.append(f"{name} trl: {len(own)} steps against {len(theirs)}")
        return
    if os.environ.get("ORACLE_SHOW"):
        for o, t in zip(own, theirs):
            print({n: (round(o[n], 5), t[n]) for n in t if n in o})
    names = [
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "grad_norm",
    ]
    worst = max(
        abs(o[n] - float(t[n])) / max(1.0, abs(float(t[n]))) for o, t in zip(own, theirs) for n in names
    )
    report(name, f"trl, {len(own)} steps", worst, TRAINED)
    report(name, "trl, epochs", max(abs(o["epoch"] - float(t["epoch"])) for o, t in zip(own, theirs)))
    mine = safetensors.torch.load_file(out / "adapter" / "adapter_model.safetensors")
    ours = peft.get_peft_model_state_dict(start)
    worst = max((mine[n] - t.detach().cpu()).abs().max().item() for n, t in ours.items())
    report(name, "trl, the adapter", worst, TRAINED)


def main():
    global AWEIGH
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    AWEIGH = str(pathlib.Path(sys.argv[1]).resolve())
    wanted = sys.argv[2:]
    sources = [
        path.parent
        for path in sorted(HERE.glob("*/config.json")) + sorted(HERE.glob("families/*/config.json"))
    ]
    with tempfile.TemporaryDirectory() as place:
        for source in sources:
            name = source.name
            if wanted and name not in wanted:
                continue
            vocab = json.loads((source / "config.json").read_text())["vocab_size"]
            room = pathlib.Path(place) / name
            base = folder(source, room / "model", vocab)
            own = [("adapter", source / "adapter")] if (source / "adapter").is_dir() else []
            check(name, base, vocab, room, own)
            trained(name, base, vocab, room)
            if name == "tiny_tied":
                patterns = list(adapters(base, room))
                variants = [
                    ("own head", edited(base, room / "own-head", tensors=with_own_head), own),
                    ("bfloat16", edited(base, room / "bf16", tensors=in_type(torch.bfloat16)), own),
                    ("float16", edited(base, room / "f16", tensors=in_type(torch.float16)), own),
                    ("buffers beside", edited(base, room / "buffers", tensors=with_buffers), own),
                    ("patterns", edited(base, room / "patterns"), patterns),
                ]
                for kind, model, of in variants:
                    below = room / f"{kind}, room"
                    below.mkdir()
                    check(f"{name}, {kind}", model, vocab, below, of)
                trl(name, base, vocab, room)
            if name == "gpt2":
                # PEFT corrects a fan_in_fan_out flag that does not fit the model.
                wrong = room / "wrong-flag"
                shutil.copytree(source / "adapter", wrong)
                config = json.loads((wrong / "adapter_config.json").read_text())
                (wrong / "adapter_config.json").write_text(
                    json.dumps({**config, "fan_in_fan_out": not config["fan_in_fan_out"]})
                )
                (room / "flag").mkdir()
                check(f"{name}, wrong flag", base, vocab, room / "flag", [("adapter", wrong)])
    print(f"{len(FAILED)} failed: {', '.join(FAILED)}" if FAILED else "all within their bounds")
    raise SystemExit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
