#!/usr/bin/env python3
"""Checks that Python's peft and transformers read what aweigh wrote, and compute the same log-probs from it.

    aweigh score --model BASE --adapter RUN/adapter ... > scores.jsonl
    python tests/python/check_peft.py RUN BASE --scores scores.jsonl [--merged MERGED]

RUN/adapter is loaded with peft on top of BASE; with --merged, MERGED is also loaded by itself with
AutoModelForCausalLM. Each row of the scores has TRL's fields (`prompt` and `completion`, or `chosen` and
`rejected`), `logp` and `num_tokens`. For a pair, `logp` and `num_tokens` are objects, {"chosen": ..,
"rejected": ..}, or have the field's name before or after their own (`chosen_logp`, `logp_chosen`), or belong
to the one field that the row's `field` names.

A row passes if its number of tokens agrees and its summed log-prob differs by at most --tolerance per token.
The table also shows by how much the adapter changes the row. A check of an adapter that changes nothing would
prove nothing, so that is a failure too: the adapter must change a token's log-prob by more than three times
the difference between the two programs.

Exit status: 0 all rows pass, 1 some do not, 2 the input cannot be used.

Versions this was written with: torch 2.15.0, transformers 5.23.0, peft 0.21.2 (see tests/golden/generate.py).
"""

import argparse
import json
import pathlib
import sys

import peft
import torch
import transformers

FIELDS = ("completion", "chosen", "rejected")


def fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def value_of(row, field, key):
    """What the row says about one of its responses, or None."""
    for name in (f"{field}_{key}", f"{key}_{field}"):
        if name in row:
            return row[name]
    value = row.get(key)
    if isinstance(value, dict):
        return value.get(field)
    present = [f for f in FIELDS if f in row]
    return value if row.get("field", present[0] if len(present) == 1 else None) == field else None


def read_scores(path):
    """(line, row, field, logp, number of tokens) of every scored response in the file."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        scored = [(f, value_of(row, f, "logp"), value_of(row, f, "num_tokens")) for f in FIELDS if f in row]
        scored = [s for s in scored if s[1] is not None]
        if not scored or "prompt" not in row:
            fail(f"{path}:{number}: expected a prompt, a response and its logp, found {sorted(row)}")
        found += [(number, row, *s) for s in scored]
    return found


def encode(tokenizer, row, field):
    """Prompt ids by the chat template (or the plain text's), response ids with the end-of-turn token."""
    if isinstance(row["prompt"], str):
        prompt, text = tokenizer(row["prompt"])["input_ids"], row[field]
        # A tokenizer that puts a space in front of every text must not do so between prompt and answer.
        first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])[0]
        whole = tokenizer(row["prompt"] + text)["input_ids"]
        if first.startswith(("▁", "Ġ")) and whole[: len(prompt)] == prompt:
            return prompt, whole[len(prompt) :] + [tokenizer.eos_token_id]
    else:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        if len(row[field]) != 1:
            fail(f"a {field} of {len(row[field])} messages; only a single assistant message can be checked")
        text = row[field][0]["content"]
    return prompt, tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]


@torch.no_grad()
def logp(model, prompt, response):
    """The summed log-prob of the response."""
    rows = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return rows.gather(1, torch.tensor(response)[:, None]).sum().item()


def load(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def check(rows, columns, tolerances):
    """Prints the table and returns the number of failed rows."""
    heads = "".join(f"{c:>14} off/token" for c in columns)
    print(f"line field       tokens         given{heads}  adapter moves/token")
    failed = 0
    for row in rows:
        off = {c: abs(row[c] - row["given"]) / row["tokens"] for c in columns}
        good = row["tokens"] == row["given_tokens"] and all(off[c] <= tolerances[c] for c in columns)
        failed += not good
        cells = "".join(f"{row[c]:14.4f} {off[c]:9.1e}" for c in columns)
        tokens = str(row["tokens"]) + (
            "" if row["tokens"] == row["given_tokens"] else f"!={row['given_tokens']}"
        )
        print(
            f"{row['line']:4} {row['field']:10} {tokens:>7} {row['given']:13.4f}{cells}"
            f" {(row['adapter'] - row['base']) / row['tokens']:+20.1e}  {'ok' if good else 'FAILED'}"
        )
    return failed


def main():
    parser = argparse.ArgumentParser(
        description="compare aweigh's scores with peft's; see the head of this file"
    )
    parser.add_argument("run", type=pathlib.Path, help="run folder that holds adapter/")
    parser.add_argument("base", type=pathlib.Path, help="Hugging Face folder of the base model")
    parser.add_argument("--scores", type=pathlib.Path, required=True, help="JSONL that `aweigh score` wrote")
    parser.add_argument("--merged", type=pathlib.Path, help="Hugging Face folder of the merged model")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference a token")
    parser.add_argument(
        "--merged-tolerance", type=float, help="the same for --merged (bf16 weights need more)"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    # Not AutoTokenizer: transformers 5 may swap tokenizer.json's pre-tokenizer for its class's own.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(args.base)
    rows = []
    for line, row, field, given, given_tokens in read_scores(args.scores):
        prompt, response = encode(tokenizer, row, field)
        rows.append({
            "line": line, "field": field, "given": given, "given_tokens": given_tokens,
            "tokens": len(response), "ids": (prompt, response),
        })  # fmt: skip
    if not rows:
        fail(f"{args.scores} has no rows")
    model = peft.PeftModel.from_pretrained(load(args.base), args.run / "adapter").eval()
    for row in rows:
        row["adapter"] = logp(model, *row["ids"])
        with model.disable_adapter():
            row["base"] = logp(model, *row["ids"])
    columns = ["adapter"]
    if args.merged:
        merged = load(args.merged)
        columns.append("merged")
        for row in rows:
            row["merged"] = logp(merged, *row["ids"])
    merged_tolerance = args.tolerance if args.merged_tolerance is None else args.merged_tolerance
    failed = check(rows, columns, {"adapter": args.tolerance, "merged": merged_tolerance})
    mean = lambda a, b: sum(abs(r[a] - r[b]) / r["tokens"] for r in rows) / len(rows)
    moved, off = mean("adapter", "base"), mean("adapter", "given")
    print(
        f"{len(rows) - failed} of {len(rows)} rows agree; the adapter moves a token by {moved:.2e} on average"
    )
    if moved <= 3 * off:
        print(
            "FAILED: the adapter moves the model no more than the two programs differ, so this proves nothing"
        )
    sys.exit(1 if failed or moved <= 3 * off else 0)


if __name__ == "__main__":
    main()
