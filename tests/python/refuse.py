#!/usr/bin/env python3
"""The runs behind the figures on refusals in docs/figures.md: the methods on harmful prompts, in PyTorch.

    python tests/python/refuse.py pools --model DIR --data DIR --pools DIR
    python tests/python/refuse.py train --model DIR --pools DIR --output RUN --method d2o --alpha 0.03 ...
    python tests/python/refuse.py measure --model DIR --pools DIR --output RUN --adapter RUN/step-20

The flags of the table in docs/figures.md, in its order:

    --alpha 0.03 --beta 0.1
    --alpha 0.03 --beta 0.1 --retain-rows 16 --retain-tokens 8
    --alpha 0.03 --beta 0.1 --retain-rows 16 --retain-tokens 8 --retain-weight 4
    --alpha 0.03 --beta 0.2 --retain-rows 16 --retain-tokens 8 --answer-tokens 12
    --alpha 0.03 --beta 0.2 --retain-rows 16 --retain-tokens 8 --answer-tokens 12 --retain kl \\
        --retain-weight 4
    --method sft --retain-rows 16 --retain-tokens 8 --answer-tokens 12

and of the longer run:

    --alpha 0.03 --beta 0.1 --retain-rows 8 --retain-tokens 8 --answer-tokens 12 --retain kl --steps 120 \\
        --every 30

and with contrast pairs: the same with --contrast-rows 4 --steps 90. The table of methods, for each --method:

    --retain-rows 8 --retain-tokens 8 --answer-tokens 12 --retain kl --steps 60

`pools` chooses the prompts and samples what all runs share, once. The training prompts are 240 of
PKU-SafeRLHF, half of them questions, with their flagged answer and up to two refusals of the model's own,
given after the four worked ones of assets/refusals.json. The ordinary prompts are 100 questions of HH-RLHF,
100 instructions of self-instruct and the 72 built-in ones that a run retains, each with the model's own
answer. `train` measures on the development split as it goes, and saves the adapter each time. `measure` is
for the test split.

An answer counts as a refusal by the pattern of src/data/rule.rs, which is read from there. The figures, with
the settings, are lines of RUN/figures.jsonl, and the answers are kept beside it. The first table of
docs/figures.md was made when a prompt could still have several rows, and the development split had 24 other
built-in prompts. `--contrast-rows N` adds N pairs a step of an ordinary prompt's own answer and a refusal.

Versions: torch 2.15.0, transformers 5.24.0, peft (see tests/golden/generate.py).
"""

import argparse
import gzip
import json
import math
import os
import random
import re
import time

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from twin import Model, read, text, write

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def rule():
    with open(os.path.join(ROOT, "src/data/rule.rs"), encoding="utf-8") as file:
        source = file.read()
    deed = re.search(r'const DEED: &str = r"(.*?)";', source, re.S)[1]
    pattern = re.search(r'r"\(\?x\)(.*?)"\n', source, re.S)[1].replace("{DEED}", deed)
    pattern = re.compile(pattern, re.I | re.X)
    return lambda answer: bool(pattern.search(answer[:220].replace("\u2019", "'")))


class References:
    """Log-probs under the model without its adapter, which runs with the same pools share."""

    def __init__(self, model, path):
        self.model, self.path, self.known = model, path, {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.known = json.load(file)

    def of(self, groups):
        missing = [group for group in groups if json.dumps(group) not in self.known]
        if missing:
            with torch.no_grad(), self.model.lm.disable_adapter():
                for group, answers in zip(missing, self.model.log_probs(missing)):
                    self.known[json.dumps(group)] = [tokens.tolist() for tokens in answers]
        return [[torch.tensor(tokens) for tokens in self.known[json.dumps(group)]] for group in groups]

    def save(self):
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(self.known, file)


def pools(options):
    refuses, rng = rule(), random.Random(0)
    os.makedirs(options.pools, exist_ok=True)

    def rows(name):
        with gzip.open(os.path.join(options.data, name + ".jsonl.gz"), "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        found = [r for r in found if len(r["prompt"]) == 1 and len(text(r["prompt"])) <= 160]
        rng.shuffle(found)
        # One row a prompt: the same one must not be trained on and measured.
        return list({text(r["prompt"]).strip(): r for r in found}.values())

    def only(found, count, kind=None):
        return [{"prompt": r["prompt"], **({"kind": kind} if kind else {})} for r in found[:count]]

    pku = rows("pku_saferlhf_pairs")
    train = [r for r in pku if r["split"] == "train"]
    asks = [r for r in train if text(r["prompt"]).strip().endswith("?")]
    tells = [r for r in train if not text(r["prompt"]).strip().endswith("?")]
    train = [{k: r[k] for k in ["prompt", "chosen", "rejected"]} for r in asks[:120] + tells[:120]]
    held = [r for r in pku if r["split"] == "dev"]
    orders = rows("harmful_prompts_dev")
    questions = rows("hh_helpful_pairs")
    benign = rows("benign_prompts")
    answered = [r for r in benign if len(text(r.get("completion", [{"content": ""}]))) > 60]
    good, benign = answered[:60], answered[60:] + [r for r in benign if r not in answered]
    built_in = read(os.path.join(ROOT, "assets/ordinary.jsonl"))
    sounds = read(os.path.join(ROOT, "tests/python/sounds_unsafe.jsonl"))
    write(os.path.join(options.pools, "good.jsonl"), good)
    splits = {
        "dev": [(held, 50, "pku"), (orders, 50, "advbench"), (questions, 20, "question")]
        + [(benign, 20, "instruction"), (built_in[3::4], 24, "built-in")],
        "test": [(held[50:], 100, "pku"), (orders[50:], 100, "advbench"), (questions[20:], 40, "question")]
        + [(benign[20:], 40, "instruction"), (sounds, 40, "sounds unsafe")],
    }
    for name, parts in splits.items():
        write(os.path.join(options.pools, name + ".jsonl"), [row for part in parts for row in only(*part)])
    ordinary = only(questions[60:], 100) + only(benign[60:], 100)
    ordinary += [r for i, r in enumerate(built_in) if i % 4 != 3]
    model = Model(options.model)
    own = model.sample([r["prompt"] for r in ordinary], 64, 13)
    answer = lambda words: [{"role": "assistant", "content": words}]
    write(
        os.path.join(options.pools, "ordinary.jsonl"),
        [{**r, "completion": answer(words)} for r, words in zip(ordinary, own) if words.strip()],
    )
    with open(os.path.join(ROOT, "assets/refusals.json"), encoding="utf-8") as file:
        shown = json.load(file)
    drawn = [model.sample([r["prompt"] for r in train], 48, seed, shown) for seed in (21, 22, 23)]
    flat = [words for samples in drawn for words in samples]
    print(f"{sum(map(refuses, flat))} of {len(flat)} answers after worked examples refuse")
    for row, samples in zip(train, zip(*drawn)):
        row["anchors"] = [answer(words) for words in samples if refuses(words)][:2]
    write(os.path.join(options.pools, "harm.jsonl"), [row for row in train if row["anchors"]])
    print(f"{sum(1 for row in train if row['anchors'])} of {len(train)} prompts have anchors")


def measure(model, options, split, adapter, most):
    """The shares of refusals by kind of prompt, and the perplexity of the good answers."""
    refuses, started = rule(), time.time()
    rows = read(os.path.join(options.pools, split + ".jsonl"))
    answers = model.sample([r["prompt"] for r in rows], most, 11)
    figures, words, pairs = {}, 0, set()
    for kind in dict.fromkeys(r["kind"] for r in rows):
        of = [a for a, r in zip(answers, rows) if r["kind"] == kind]
        figures[kind] = [sum(map(refuses, of)), len(of)]
    for answer in answers:
        parts = answer.split()
        words += len(parts)
        pairs.update(zip(parts, parts[1:]))
    items = []
    with torch.inference_mode():
        for row in read(os.path.join(options.pools, "good.jsonl")):
            ids = model.answer(row["completion"], 300)
            tokens = model.log_probs([(model.prompt(row["prompt"]), [ids])])[0][0]
            items.append([tokens.sum().item(), len(ids)])
    figures["perplexity"] = math.exp(-sum(v for v, _ in items) / sum(n for _, n in items))
    figures |= {"items": items, "words": words / len(rows)}
    figures["distinct_2"] = len(pairs) / max(1, words - len(rows))
    figures |= {"split": split, "adapter": adapter, "seconds": time.time() - started}
    figures["settings"] = vars(options)
    os.makedirs(options.output, exist_ok=True)
    texts = [{**r, "completion": a, "refusal": refuses(a)} for r, a in zip(rows, answers)]
    write(os.path.join(options.output, f"{split}-{os.path.basename(adapter)}.jsonl"), texts)
    with open(os.path.join(options.output, "figures.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(figures) + "\n")
    hidden = ("items", "split", "seconds", "settings")
    shown = [f"{k} {v[0]}/{v[1]}" if isinstance(v, list) else f"{k} {v}" for k, v in figures.items()
             if k not in hidden]
    print(split, ", ".join(shown), flush=True)


def train(options):
    torch.manual_seed(options.seed)
    rng = random.Random(options.seed)
    model = Model(options.model)
    harm = read(os.path.join(options.pools, "harm.jsonl"))
    ordinary = read(os.path.join(options.pools, "ordinary.jsonl"))

    def answers(row):
        anchors = [model.answer(a, options.answer_tokens) for a in row["anchors"]]
        flagged, safe = (model.answer(row[key], options.answer_tokens) for key in ("rejected", "chosen"))
        of = {"d2o": [*anchors, flagged], "dpo": [safe, flagged], "sft": anchors}
        return of.get(options.method, [flagged])

    wanted = [(model.prompt(row["prompt"]), answers(row)) for row in harm]
    kept = [(model.prompt(row["prompt"]), [model.answer(row["completion"], options.retain_tokens)])
            for row in ordinary]
    refusals = [model.answer(a, options.answer_tokens) for row in harm for a in row["anchors"]]
    # Pairs of an ordinary prompt's own answer and a refusal.
    pairs = [(model.prompt(row["prompt"]),
              [model.answer(row["completion"], options.answer_tokens), rng.choice(refusals)])
             for row in ordinary] if options.contrast_rows else []
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model.lm = get_peft_model(model.lm, lora)
    weights = [p for p in model.lm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, options.learning_rate, weight_decay=0)
    references, decks = References(model, os.path.join(options.pools, "references.json")), {}

    def deal(name, rows, count):
        """`count` rows of a shuffled deck, which is filled again when it is empty."""
        out = []
        for _ in range(count):
            if not decks.get(name):
                decks[name] = rng.sample(rows, len(rows))
            out.append(decks[name].pop())
        return out

    for step in range(1, options.steps + 1):
        started = time.time()
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, step / 3)
        batch = deal("wanted", wanted, options.rows)
        contrast = deal("pairs", pairs, options.contrast_rows)
        retained = deal("kept", kept, options.retain_rows if options.retain_weight else 0)
        # Rows of one call are padded to the longest: the retained ones are shorter.
        parts = [part for part in (batch, contrast, retained) if part]
        plain = options.method == "sft" and options.retain == "sft" and not pairs
        before = None if plain else [row for part in parts for row in references.of(part)]
        now = [row for part in parts for row in model.log_probs(part)]
        sums = [torch.stack([tokens.sum() for tokens in row]) for row in now]
        ratios = sums if before is None else [
            row - torch.stack([tokens.sum() for tokens in old]) for row, old in zip(sums, before)
        ]
        alpha, beta, losses = options.alpha, options.beta, []
        for row, (_, texts) in zip(ratios[: len(batch)], batch):
            if options.method == "sft":
                losses.append(-row.sum() / sum(map(len, texts)))
            elif options.method == "npo":
                losses.append(-2 / beta * F.logsigmoid(-beta * row[0]))
            elif options.method == "ga":
                losses.append(row[0] / len(texts[0]))
            elif options.method == "dpo":
                losses.append(F.softplus(-beta * (row[0] - row[1])))
            else:
                losses.append(F.softplus(-(beta * row[:-1].mean() - alpha * row[-1])))
        tail = len(batch) + len(contrast)
        losses += [F.softplus(-beta * (row[0] - row[1])) for row in ratios[len(batch) : tail]]
        loss = torch.stack(losses).mean()
        kept_loss = torch.zeros(())
        if retained:
            each = []
            for row, old in zip(now[tail:], before[tail:] if before else retained):
                gain = row[0] - old[0] if options.retain == "kl" else row[0]
                each.append((gain.exp() - 1 - gain if options.retain == "kl" else -gain).mean())
            kept_loss = torch.stack(each).mean()
            loss = loss + options.retain_weight * kept_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        first = sum(row[0].item() for row in ratios[: len(batch)]) / len(batch)
        last = sum(row[-1].item() for row in ratios[: len(batch)]) / len(batch)
        print(
            f"step {step} loss {loss.item():.3f} first {first:.1f} last {last:.1f}"
            f" retain {kept_loss.item():.3f} {time.time() - started:.1f}s",
            flush=True,
        )
        if step % options.every == 0 or step == options.steps:
            adapter = os.path.join(options.output, f"step-{step}")
            model.lm.save_pretrained(adapter)
            model.lm.merge_adapter()
            draws = torch.get_rng_state()
            measure(model, options, "dev", adapter, 32)
            torch.set_rng_state(draws)
            model.lm.unmerge_adapter()
            references.save()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["pools", "train", "measure"])
    for name in ["model", "data", "pools", "output", "adapter"]:
        parser.add_argument(f"--{name}")
    parser.add_argument("--split", default="test")
    parser.add_argument("--method", default="d2o", choices=["d2o", "dpo", "sft", "npo", "ga"])
    parser.add_argument("--retain", default="sft", choices=["sft", "kl"])
    for name, default in [("alpha", 0.03), ("beta", 0.1), ("learning-rate", 2e-4), ("retain-weight", 1.0)]:
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in [("seed", 1), ("steps", 60), ("every", 20), ("rows", 4), ("retain-rows", 4),
                          ("contrast-rows", 0), ("retain-tokens", 64), ("answer-tokens", 64)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    if options.command == "measure":
        measure(Model(options.model, options.adapter), options, options.split, options.adapter or "base", 64)
    else:
        {"pools": pools, "train": train}[options.command](options)


if __name__ == "__main__":
    main()
