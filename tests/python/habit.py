#!/usr/bin/env python3
"""The runs behind the table of docs/figures.md: D2O on a habit of a model, in PyTorch with PEFT.

    python tests/python/habit.py prompts --model DIR --data DIR --output DIR
    python tests/python/habit.py sample --model DIR --data DIR/train.jsonl --output pool.jsonl \\
        --num-samples 4 --temperature 1 --top-p 1 --seed 7
    python tests/python/habit.py rows --data pool.jsonl --rule REGEX --output rows.jsonl
    python tests/python/habit.py split --data rows.jsonl --good DIR/good-eval.jsonl --output DIR
    python tests/python/habit.py train --model DIR --data rows.jsonl --good DIR/good.jsonl --rule REGEX \\
        --output adapter --seed 1
    python tests/python/habit.py sample --model DIR --adapter adapter --data DIR/held.jsonl \\
        --output after.jsonl
    python tests/python/habit.py rate --data after.jsonl --rule REGEX
    python tests/python/habit.py score --model DIR --adapter adapter --good DIR/good.jsonl --rule REGEX

`prompts` chooses single-turn questions of HH-RLHF of at most 60 tokens (360 for rows, 160 held out), and from
self-instruct 120 ordinary instructions, and 60 and 24 with good answers. `rows` writes, for each prompt with
answers of both kinds, one flagged answer and up to two anchors; `aweigh align --train rows.jsonl` reads it
too. `split` writes DIR/train.jsonl and DIR/eval.jsonl for `aweigh align`: 24 rows by chance are held out,
without their anchors, beside 24 good answers. `train` prints the perplexity of the good answers after, and
how it changed; `score` does so for any adapter, one of `aweigh align` too.

Versions: torch 2.15.0, transformers 5.24.0, peft (see tests/golden/generate.py).
"""

import argparse
import gzip
import json
import math
import os
import random
import re

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from twin import Model, read, text, write


def groups(model, rows, most, key):
    return [(model.prompt(r["prompt"]), [model.answer(x, most) for x in key(r)]) for r in rows]


def sums(model, some):
    """The log-prob of each answer, by group."""
    return [torch.stack([tokens.sum() for tokens in row]) for row in model.log_probs(some)]


def perplexity(model, options):
    """The perplexity of the good answers: of all, of those without the habit and of those with it."""
    rows = read(options.good)
    good = groups(model, rows, 400, lambda r: [r["completion"]])
    with torch.no_grad():
        logps = [(sums(model, [group])[0].item(), len(group[1][0])) for group in good]
    shown = [habit(options)(text(r["completion"])) for r in rows] if options.rule else [False] * len(rows)

    def of(kind):
        chosen = [x for x, has in zip(logps, shown) if kind is None or has == kind]
        return math.exp(-sum(x for x, _ in chosen) / sum(n for _, n in chosen)) if chosen else math.nan

    return of(None), of(False), of(True)


def change(before, after):
    return ", ".join(f"{a:.3f} ({100 * (a / b - 1):+.1f}%)" for b, a in zip(before, after))


def habit(options):
    rule = re.compile(options.rule, re.I)
    return lambda answer: bool(rule.search(answer))


def train(options):
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    model = Model(options.model)
    rows = groups(model, read(options.data), options.max, lambda r: [*r["anchors"], r["completion"]])
    before = perplexity(model, options)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model.lm = get_peft_model(model.lm, lora)
    weights = [p for p in model.lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, options.learning_rate, weight_decay=0)
    left = []
    for step in range(options.max_steps or math.ceil(len(rows) / 4)):
        if not left:
            left = list(range(len(rows)))
            random.shuffle(left)
        batch = [rows[left.pop()] for _ in range(min(4, len(left)))]
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, (step + 1) / 3)
        with torch.no_grad(), model.lm.disable_adapter():
            reference = sums(model, batch)
        ratios = [now - then for now, then in zip(sums(model, batch), reference)]
        margins = [options.beta * r[:-1].mean() - options.alpha * r[-1] for r in ratios]
        loss = torch.stack([F.softplus(-z) for z in margins]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.lm.save_pretrained(options.output)
    print("perplexity of all, without and with the habit:", change(before, perplexity(model, options)))


def score(options):
    before = perplexity(Model(options.model), options)
    after = perplexity(Model(options.model, options.adapter), options)
    print("perplexity of all, without and with the habit:", change(before, after))


def rate(options):
    """The share of answers with the habit, with its bootstrap interval over prompts."""
    answers = [text(r["completion"]) for r in read(options.data)]
    found = [habit(options)(answer) for answer in answers]
    rng, n = random.Random(1), len(found)
    shares = sorted(sum(rng.choices(found, k=n)) / n for _ in range(2000))
    words = [answer.lower().split() for answer in answers]
    pairs = [pair for w in words for pair in zip(w, w[1:])]
    print(
        f"{100 * sum(found) / n:.1f}% [{100 * shares[50]:.0f}, {100 * shares[1949]:.0f}] of {n},"
        f" {sum(map(len, words)) / n:.1f} words, distinct-2 {len(set(pairs)) / max(1, len(pairs)):.3f}"
    )


def sample(options):
    model, rows = Model(options.model, options.adapter), read(options.data)
    prompts = [row["prompt"] for row in rows for _ in range(options.num_samples)]
    how = {"temperature": options.temperature, "top_p": options.top_p}
    answers = model.sample(prompts, options.max, options.seed, **how)
    said = [[{"role": "assistant", "content": answer}] for answer in answers]
    write(options.output, [{"prompt": p, "completion": c} for p, c in zip(prompts, said)])


def prompts(options):
    model, rng = Model(options.model), random.Random(0)
    os.makedirs(options.output, exist_ok=True)

    def short(name):
        with gzip.open(os.path.join(options.data, name + ".jsonl.gz"), "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        found = {text(r["prompt"]).strip(): r for r in found if len(r["prompt"]) == 1}
        found = [r for words, r in found.items() if len(model.tokenizer(words).input_ids) <= 60]
        rng.shuffle(found)
        return found

    def save(name, found, keys=("prompt",)):
        write(os.path.join(options.output, name + ".jsonl"), [{k: r[k] for k in keys} for r in found])

    asks = [r for r in short("hh_helpful_pairs") if text(r["prompt"]).strip().endswith("?")]
    save("train", asks[:360])
    save("held", asks[360:520])
    orders = short("benign_prompts")
    good = [r for r in orders if len(text(r.get("completion", [{"content": ""}]))) > 60][:84]
    save("good", good[:60], ("prompt", "completion"))
    save("good-eval", good[60:], ("prompt", "completion"))
    save("ordinary", [r for r in orders if r not in good][:120])


def rows(options):
    has, by_prompt, out = habit(options), {}, []
    for row in read(options.data):
        by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row["completion"])
    for prompt, answers in by_prompt.items():
        flagged = [a for a in answers if has(text(a))]
        anchors = [a for a in answers if not has(text(a)) and text(a).strip()]
        if flagged and anchors:
            row = {"prompt": json.loads(prompt), "completion": flagged[0], "label": False}
            out.append({**row, "anchors": anchors[:2]})
    write(options.output, out)
    print(f"{len(out)} rows of {len(by_prompt)} prompts")


def split(options):
    found = read(options.data)
    random.Random(0).shuffle(found)
    held = [{key: r[key] for key in ("prompt", "completion", "label")} for r in found[:24]]
    for row in read(options.good)[:24]:
        held.append({"prompt": row["prompt"], "completion": row["completion"], "label": True})
    write(os.path.join(options.output, "train.jsonl"), found[24:])
    write(os.path.join(options.output, "eval.jsonl"), held)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["prompts", "sample", "rows", "split", "train", "score", "rate"])
    for name in ["model", "data", "good", "rule", "adapter", "output"]:
        parser.add_argument(f"--{name}")
    for name, default in [("temperature", 0.9), ("top-p", 0.95), ("alpha", 1.0), ("beta", 1.0)]:
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    for name, default in [("seed", 11), ("max", 40), ("num-samples", 1), ("max-steps", 0)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    commands = [prompts, sample, rows, split, train, score, rate]
    next(command for command in commands if command.__name__ == options.command)(options)


if __name__ == "__main__":
    main()
