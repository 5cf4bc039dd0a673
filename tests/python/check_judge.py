#!/usr/bin/env python3
"""Compares a judge of `aweigh judge train` with transformers and PEFT.

    python3 tests/python/check_judge.py BASE JUDGE SCORED.jsonl

BASE is the model's directory, JUDGE is the judge's folder, and SCORED.jsonl is what `aweigh judge score
--judge JUDGE --output SCORED.jsonl` wrote. AutoModelForSequenceClassification judges every answer again in
float32, with the adapter loaded by PEFT (or with the judge's own model/), and the probabilities are compared.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers

base, judge, scored = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(base)
whole = judge / "model"
kind = transformers.AutoModelForSequenceClassification
if whole.is_dir():
    model = kind.from_pretrained(whole, dtype=torch.float32)
else:
    model = kind.from_pretrained(base, num_labels=2, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, judge / "adapter")
model.eval()
worst, count = 0.0, 0
for line in open(scored, encoding="utf-8"):
    row = json.loads(line)
    for answer, key in (("chosen", "chosen_harm"), ("rejected", "rejected_harm"), ("completion", "harm")):
        if key not in row:
            continue
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        ids += tokenizer(row[answer][0]["content"], add_special_tokens=False)["input_ids"] + [
            tokenizer.eos_token_id
        ]
        # One text at a time: no padding, and the last token is the one that is read.
        model.config.pad_token_id = -1
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        worst = max(worst, abs(logits.softmax(-1)[1].item() - row[key]))
        count += 1
print(f"{count} answers, probabilities differ by at most {worst:.2e}")
sys.exit(count == 0 or worst > 1e-4)
