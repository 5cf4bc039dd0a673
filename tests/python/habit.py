#!/usr/bin/env python3
"""The runs behind the table of docs/choosing.md: D2O on a habit of a model, in PyTorch with PEFT.

    python tests/python/habit.py sample --model DIR --data prompts.jsonl --output pool.jsonl \\
        --num-samples 4 --temperature 1 --top-p 1 --seed 7
    python tests/python/habit.py rows --data pool.jsonl --rule REGEX --output rows.jsonl
    python tests/python/habit.py train --model DIR --data rows.jsonl --good good.jsonl --output adapter \\
        --seed 1
    python tests/python/habit.py sample --model DIR --adapter adapter --data held.jsonl --output after.jsonl

`rows` writes, for each prompt with answers of both kinds, one flagged answer and up to two anchors; `aweigh
align --train rows.jsonl` reads it too. `train` prints the perplexity of the good answers before and after.
The table's figures come from an earlier form of this file, with the same formulas, seeds and order of rows.
Its data were single-turn questions of HH-RLHF of at most 60 tokens (240 for rows, 160 held out) and, as good
answers, 60 instructions of self-instruct.

Versions: torch 2.15.0, transformers 5.24.0, peft (see tests/golden/generate.py).
"""

import argparse
import json
import math
import random
import re

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


class Texts:
    """A tokenizer with its chat template."""

    def __init__(self, model):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.end = self.tokenizer.eos_token_id

    def prompt(self, messages):
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def answer(self, messages, most):
        ids = self.tokenizer(messages[0]["content"], add_special_tokens=False).input_ids
        return (ids + [self.end])[:most]


def log_probs(model, end, groups):
    """The summed log-probs of each group's answers; a group is a prompt and its answers."""
    pairs = [(prompt, answer) for prompt, answers in groups for answer in answers]
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), end)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(pairs):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        mask[row, : len(prompt) + len(answer)] = 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    sums = []
    for row, (prompt, answer) in enumerate(pairs):
        predicted = logits[row, len(prompt) - 1 : len(prompt) + len(answer) - 1].float()
        sums.append(-F.cross_entropy(predicted, torch.tensor(answer), reduction="sum"))
    return torch.stack(sums).split([len(answers) for _, answers in groups])


def perplexity(model, end, good):
    with torch.no_grad():
        total = sum(log_probs(model, end, [group])[0].item() for group in good)
    return math.exp(-total / sum(len(answers[0]) for _, answers in good))


def train(options):
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    texts = Texts(options.model)
    rows = [
        (texts.prompt(r["prompt"]), [texts.answer(x, options.max) for x in [*r["anchors"], r["completion"]]])
        for r in read(options.data)
    ]
    good = [(texts.prompt(r["prompt"]), [texts.answer(r["completion"], 400)]) for r in read(options.good)]
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    before = perplexity(model, texts.end, good)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, options.learning_rate, weight_decay=0)
    left = []
    for step in range(options.max_steps or math.ceil(len(rows) / 4)):
        if not left:
            left = list(range(len(rows)))
            random.shuffle(left)
        batch = [rows[left.pop()] for _ in range(min(4, len(left)))]
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, (step + 1) / 3)
        with torch.no_grad(), model.disable_adapter():
            reference = log_probs(model, texts.end, batch)
        ratios = [now - then for now, then in zip(log_probs(model, texts.end, batch), reference)]
        margins = [options.beta * r[:-1].mean() - options.alpha * r[-1] for r in ratios]
        loss = torch.stack([F.softplus(-z) for z in margins]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    after = perplexity(model, texts.end, good)
    model.save_pretrained(options.output)
    print(f"perplexity {before:.3f}, then {after:.3f} ({100 * (after / before - 1):+.1f}%)")


def sample(options):
    texts = Texts(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    if options.adapter:
        model = PeftModel.from_pretrained(model, options.adapter).merge_and_unload()
    torch.manual_seed(options.seed)
    out = []
    for row in read(options.data):
        prompt = torch.tensor([texts.prompt(row["prompt"])])
        answers = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=0,
            max_new_tokens=options.max,
            num_return_sequences=options.num_samples,
            pad_token_id=texts.end,
        )
        for ids in answers[:, prompt.shape[1] :]:
            text = texts.tokenizer.decode(ids, skip_special_tokens=True)
            answer = [{"role": "assistant", "content": text}]
            out.append({"prompt": row["prompt"], "completion": answer})
    write(options.output, out)


def rows(options):
    rule, by_prompt, out = re.compile(options.rule, re.I), {}, []
    for row in read(options.data):
        by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row["completion"])
    for prompt, answers in by_prompt.items():
        flagged = [a for a in answers if rule.search(a[0]["content"])]
        anchors = [a for a in answers if not rule.search(a[0]["content"]) and a[0]["content"].strip()]
        if flagged and anchors:
            row = {"prompt": json.loads(prompt), "completion": flagged[0], "label": False}
            out.append({**row, "anchors": anchors[:2]})
    write(options.output, out)
    print(f"{len(out)} rows of {len(by_prompt)} prompts")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["sample", "rows", "train"])
    for name in ["model", "data", "good", "rule", "adapter", "output"]:
        parser.add_argument(f"--{name}")
    for name, default in [("temperature", 0.9), ("top-p", 0.95), ("alpha", 1.0), ("beta", 1.0)]:
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    for name, default in [("seed", 11), ("max", 40), ("num-samples", 1), ("max-steps", 0)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    {"sample": sample, "rows": rows, "train": train}[options.command](options)


if __name__ == "__main__":
    main()
