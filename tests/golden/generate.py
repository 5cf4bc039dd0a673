#!/usr/bin/env python3
"""Makes the golden fixtures in this folder from PyTorch, transformers and peft.

The fixtures are committed; this script is only needed to change them. It needs Python 3.11 or later on a CPU:

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
    venv/bin/python tests/golden/generate.py tiny                            # needs nothing else
    venv/bin/python tests/golden/generate.py smollm2 --smollm2 DIR/hf        # DIR made by get_smollm2.sh
    venv/bin/python tests/golden/generate.py stories                         # needs the shared data folder

losses.py makes the fixtures of the losses, families.py those of the families. The shared data folder is
`../shared/data`, seen from the project's root; `--data` names another place.

What comes out
--------------
tiny_untied/ tiny_tied/ tiny_biased/
    config.json, model.safetensors   a random Llama in Hugging Face's layout, f32
    golden.json                      23 token ids, the start of the completion, its log-probs and entropies,
                                     and the loss
    golden.safetensors               `logits` (T, V), and `grad.<parameter>` of the loss for every parameter
smollm2_score.json, smollm2_greedy.json   SmolLM2-135M-Instruct in f32: summed log-probs and greedy tokens
stories260k.json                     the same for stories260K

The values of the tiny models are computed in float64 from the f32 weights. transformers forces parts of a
Llama to float32 (norms, rotary tables). They are replaced by float64 versions here, and the f32 original is
checked against the result. Text of the shared data is never copied: a row is named by file, 1-based line and
field, and its token ids by a hash.
"""

import argparse
import contextlib
import gzip
import json
import math
import pathlib
import re
import sys

import numpy as np
import peft
import safetensors.torch
import torch
import transformers
from transformers.models.llama import modeling_llama

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MADE_WITH = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
BOS, EOS = 1, 2
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# ---------------------------------------------------------------- small helpers


def write_json(path, value):
    """Indented JSON in which a list of numbers stays on one line; floats keep all their digits."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    numbers = re.compile(r"\[\s+([-+\d.eE,\s]+?)\s+\]")
    text = numbers.sub(lambda m: "[" + re.sub(r",\s+", ", ", m.group(1)) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)} ({path.stat().st_size} bytes)")


def write_tensors(path, tensors):
    """Writes tensors as f32; rounding a float64 golden value has a relative error of at most 6e-8."""
    tensors = {name: t.detach().to(torch.float32).contiguous() for name, t in tensors.items()}
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    print(f"wrote {path.relative_to(ROOT)} ({path.stat().st_size} bytes)")


def fnv1a(ids):
    """64-bit FNV-1a over the ids as little-endian u32: tells a tokenizer mismatch from a numerical one."""
    h = 0xCBF29CE484222325
    for byte in np.asarray(ids, dtype="<u4").tobytes():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    return f"{h:016x}"


def token_logps(model, prompt, response):
    """log p of each response token given all before it (R,), and the entropy of each of those rows (R,)."""
    ids = torch.tensor([prompt + response])
    rows = model(ids, logits_to_keep=len(response) + 1).logits[0, :-1].double().log_softmax(-1)
    entropy = -(rows.exp() * rows).sum(-1)
    return rows.gather(1, torch.tensor(response)[:, None])[:, 0], entropy


# ---------------------------------------------------------------- float64 Llama


def inverse_frequencies(config):
    """The rotary frequencies in float64, `default` and `llama3`, written from the formulas."""
    rope = config.rope_parameters
    half = config.head_dim // 2
    freqs = []
    for j in range(half):
        f = rope["rope_theta"] ** (-j / half)
        if rope["rope_type"] == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            turns = rope["original_max_position_embeddings"] * f / (2 * math.pi)
            keep = min(1.0, max(0.0, (turns - low) / (high - low)))
            f = keep * f + (1 - keep) * f / rope["factor"]
        freqs.append(f)
    return torch.tensor(freqs, dtype=torch.float64)


@contextlib.contextmanager
def float64_llama():
    """Replaces transformers' f32-only RMS norm and rotary table by ones that keep the input's dtype."""

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        freqs = inverse_frequencies(self.config)
        assert torch.allclose(
            freqs.float(), self.inv_freq.float(), rtol=1e-6, atol=0
        ), "rotary frequencies differ"
        angle = position_ids[..., None].double() * freqs
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    classes = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaRotaryEmbedding
    saved = [c.forward for c in classes]
    classes[0].forward, classes[1].forward = norm, rotary
    try:
        yield
    finally:
        classes[0].forward, classes[1].forward = saved


def load(path, dtype):
    """A Llama in evaluation mode; loading in f32 first keeps the stored weights exact."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.to(dtype).eval()


# ---------------------------------------------------------------- tiny fixtures

COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "bos_token_id": BOS, "eos_token_id": EOS,
    "hidden_act": "silu", "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
}  # fmt: skip
FIXTURES = {
    # The classic spelling of the configuration.
    "tiny_untied": {"tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None},
    # transformers 5 writes `rope_parameters` and `dtype`; a theta of 1000 shows if they are not read.
    "tiny_tied": {
        "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    },
    # heads × head_dim (96) differs from the width, three query heads share a key head, every projection has a
    # bias, and the eight frequencies use all three branches of llama3 scaling within 23 positions.
    "tiny_biased": {
        "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "hidden_size": 36,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 500.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}  # fmt: skip


def random_weights(config, rng):
    """Names and values of a random Llama: matrices of std 0.3, biases of std 0.2, norms around 1."""
    width, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": (vocab, width)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (width,)
        for name, rows, columns in (("q", q, width), ("k", kv, width), ("v", kv, width), ("o", width, q)):
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (rows, columns)
            if config["attention_bias"]:
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (rows,)
        shapes[layer + "post_attention_layernorm.weight"] = (width,)
        for name, rows, columns in (("gate", ff, width), ("up", ff, width), ("down", width, ff)):
            shapes[f"{layer}mlp.{name}_proj.weight"] = (rows, columns)
            if config["mlp_bias"]:
                shapes[f"{layer}mlp.{name}_proj.bias"] = (rows,)
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    out = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        value = 1 + 0.2 * noise if "norm" in name else (0.2 if name.endswith("bias") else 0.3) * noise
        out[name] = torch.from_numpy(value).float()
    return out


def sft_sequence(model, prompt, response):
    """Minus the mean log-prob of the response's tokens."""
    return -token_logps(model, prompt, response)[0].mean()


def make_tiny(name, changes, seed):
    """One fixture folder: configuration, weights, logits and all gradients of the SFT loss."""
    rng = np.random.default_rng(seed)
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = {**COMMON, **changes}
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", random_weights(config, rng))
    tokens = [BOS] + rng.integers(3, config["vocab_size"], 21).tolist() + [EOS]
    start = 9
    ids = torch.tensor([tokens])
    with torch.no_grad():
        plain = load(folder, torch.float32)(ids).logits[0]
    with float64_llama():
        model = load(folder, torch.float64)
        logits = model(ids).logits[0]
        assert logits.dtype == torch.float64 and (logits - plain).abs().max() < 2e-4, "f32 and f64 disagree"
        logps, entropy = token_logps(model, tokens[:start], tokens[start:])
        loss = -logps.mean()
        loss.backward()
    grads = {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    write_tensors(folder / "golden.safetensors", {"logits": logits, **grads})
    write_json(folder / "golden.json", {
        "made_with": MADE_WITH, "tokens": tokens, "completion_start": start,
        "loss_is": "minus the mean of token_logps; gradients in golden.safetensors are of this loss",
        "loss": loss.item(), "token_logps": logps.tolist(), "token_entropy": entropy.tolist(),
        "inv_freq": inverse_frequencies(model.config).tolist(),
        "f32_transformers_max_logit_difference": (logits - plain).abs().max().item(),
    })  # fmt: skip


def make_all_tiny():
    for seed, (name, changes) in enumerate(FIXTURES.items(), start=11):
        make_tiny(name, changes, seed)


# ---------------------------------------------------------------- real models


def jsonl(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) | {"line": i} for i, line in enumerate(lines, start=1)]


def load_tokenizer(path):
    """tokenizer.json without changes. AutoTokenizer of transformers 5 makes a GPT2Tokenizer here. It drops
    SmolLM2's digit splitting, which changes the ids of some texts with numbers
    (huggingface/transformers#45812)."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(path)


def chat_ids(tokenizer, messages):
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


@torch.no_grad()
def greedy(model, prompt, count, stop):
    """generate(do_sample=False), and the lead of each best logit over the second (small: nearly a tie)."""
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        max_new_tokens=count, eos_token_id=stop, pad_token_id=stop, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    best = [row[0].topk(2).values for row in out.logits]
    return {
        "prompt_ids": prompt, "token_ids": out.sequences[0, len(prompt) :].tolist(),
        "lead_of_best_logit": [round((b[0] - b[1]).item(), 5) for b in best],
    }  # fmt: skip


# An answer whose ids change when the Digits step of SmolLM2's tokenizer.json is left out.
DIGITS_LINE = 94


def score_row(model, tokenizer, row, file, field):
    prompt = chat_ids(tokenizer, row["prompt"])
    response = tokenizer(row[field][0]["content"], add_special_tokens=False)["input_ids"] + [
        tokenizer.eos_token_id
    ]
    return {
        "file": file, "line": row["line"], "field": field, "prompt_tokens": len(prompt),
        "num_tokens": len(response),
        "logp": token_logps(model, prompt, response)[0].sum().item(),
        "prompt_hash": fnv1a(prompt), "response_hash": fnv1a(response),
    }  # fmt: skip


@torch.no_grad()
def make_smollm2(path, data):
    tokenizer = load_tokenizer(path)
    model = load(path, torch.float32)
    prompt_size = lambda row: len(chat_ids(tokenizer, row["prompt"]))
    answer_size = (
        lambda row, field: len(tokenizer(row[field][0]["content"], add_special_tokens=False)["input_ids"]) + 1
    )
    fits = lambda row, *fields: prompt_size(row) <= 120 and all(answer_size(row, f) <= 128 for f in fields)
    pku, benign = "pku_saferlhf_pairs.jsonl.gz", "benign_prompts.jsonl.gz"
    pairs = [r for r in jsonl(data / pku) if r["split"] == "dev" and fits(r, "chosen", "rejected")][:12]
    good = [r for r in jsonl(data / benign) if "completion" in r and fits(r, "completion")][:4]
    digits = next(r for r in jsonl(data / pku) if r["line"] == DIGITS_LINE)
    rows = [score_row(model, tokenizer, r, pku, f) for r in pairs for f in ("chosen", "rejected")]
    rows += [score_row(model, tokenizer, r, benign, "completion") for r in good]
    rows.append(score_row(model, tokenizer, digits, pku, "rejected"))
    write_json(HERE / "smollm2_score.json", {
        "made_with": MADE_WITH,
        "model": "SmolLM2-135M-Instruct as get_smollm2.sh makes it, weights read as f32",
        "rule": "prompt = chat template with its default system message and the generation prompt; response "
            "= the "
        "answer's tokens and <|im_end|>, nothing after it; logp = sum over the response. Rows: the first 12 "
        "dev pairs and the "
        "first 4 benign ones with a completion, whose prompt has at most 120 tokens and answers at most "
        "128; then one "
        "answer whose ids depend on splitting digits as tokenizer.json says",
        "hash": "FNV-1a 64 over the token ids as little-endian u32, hexadecimal", "rows": rows,
    })  # fmt: skip
    questions = ["What is the capital of France?", "Write two sentences about rivers."]
    answers = []
    for text in questions:
        answer = greedy(
            model, chat_ids(tokenizer, [{"role": "user", "content": text}]), 64, tokenizer.eos_token_id
        )
        answers.append({"prompt": text, **answer, "text": tokenizer.decode(answer["token_ids"])})
    write_json(HERE / "smollm2_greedy.json", {
        "made_with": MADE_WITH, "answers": answers,
        "rule": "f32, do_sample=False, at most 64 new tokens, stops after <|im_end|>, which is included",
    })  # fmt: skip


@torch.no_grad()
def make_stories(path):
    tokenizer = load_tokenizer(path)
    model = load(path, torch.float32)
    text = "Once upon a time"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == BOS
    answer = greedy(model, ids, 64, EOS)
    prompt_logps, _ = token_logps(model, ids[:1], ids[1:])
    story_logps, _ = token_logps(model, ids, answer["token_ids"])
    write_json(HERE / "stories260k.json", {
        "made_with": MADE_WITH, "rule": "f32; the prompt is <s> and the text's tokens", "prompt": text,
        **answer,
        "text": tokenizer.decode(answer["token_ids"]),
        "prompt_token_logps": prompt_logps.tolist(), "greedy_token_logps": story_logps.tolist(),
        "prompt_logp": prompt_logps.sum().item(), "greedy_logp": story_logps.sum().item(),
    })  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description="make the golden fixtures; see the head of this file")
    parser.add_argument("parts", nargs="+", choices=["tiny", "smollm2", "stories"])
    parser.add_argument(
        "--smollm2", type=pathlib.Path, help="Hugging Face directory of SmolLM2-135M-Instruct"
    )
    parser.add_argument(
        "--data", type=pathlib.Path, default=ROOT.parent / "shared" / "data", help="shared data folder"
    )
    args = parser.parse_args()
    if "smollm2" in args.parts and not args.smollm2:
        sys.exit("smollm2 needs --smollm2 DIR, the folder with SmolLM2's config.json")
    torch.set_num_threads(2)
    if "tiny" in args.parts:
        make_all_tiny()
    if "smollm2" in args.parts:
        make_smollm2(args.smollm2, args.data)
    if "stories" in args.parts:
        make_stories(args.data / "stories260K")


if __name__ == "__main__":
    main()
