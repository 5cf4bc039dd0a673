#!/usr/bin/env python3
"""Makes losses.json, losses/ and tiny_tied/adapter from PyTorch, peft and TRL.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 trl==1.16.0 safetensors==0.8.0 numpy
    venv/bin/python tests/golden/losses.py

What comes out
--------------
tiny_tied/adapter/                    a LoRA adapter in PEFT's layout with A and B both non-zero
losses.json                           the batch, the reference log-probs, and ten AdamW steps of every method,
                                      each as full fine-tuning and as LoRA, on tiny_tied
losses/<method>_<full|lora>.safetensors
                                      the first step's gradients before clipping, one tensor for each
                                      trainable tensor

Everything is computed in float64 by the formulas below. For six methods that TRL has, TRL itself also
computes the loss, every gradient and its metrics, in its own f32. The policy is then the model with its
adapter merged, and the reference is the model without it. `trl` in losses.json has the differences, and this
script fails where they are too large.
"""

import itertools
import json
import tempfile
import types

import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
import trl
from datasets import Dataset
from generate import (
    COMMON,
    EOS,
    BOS,
    HERE,
    MADE_WITH,
    PROJECTIONS,
    float64_llama,
    load,
    token_logps,
    write_json,
    write_tensors,
)
from tokenizers import Tokenizer, models
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

STEPS = 10
OPTIMIZER = {
    "name": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
    "weight_decay_on": "every trainable tensor, norms and embeddings included", "schedule": "constant",
    "clip_grad_norm": 1.0, "steps": STEPS,
}  # fmt: skip
# The constants of each method, under the names of `aweigh align`.
METHODS = {
    "sft": {}, "ga": {}, "ul": {}, "dpo": {"beta": 0.1}, "cdpo": {"beta": 0.1, "label_smoothing": 0.1},
    "ipo": {"beta": 0.2}, "hinge": {"beta": 0.1}, "slic": {"delta": 60.0, "sft_weight": 0.5},
    "simpo": {"beta": 2.0, "gamma": 1.0}, "orpo": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5}, "npo": {"beta": 0.1},
    "simnpo": {"beta": 0.3, "gamma": 0.5}, "d2o": {"alpha": 0.1, "beta": 0.1},
    "d2o_floor": {"alpha": 0.1, "beta": 0.1, "negative_floor": 0.5},
    "d2o_marked": {"alpha": 0.1, "beta": 0.1, "marked": True},
    "d2o_sft": {"alpha": 0.1, "beta": 0.1, "retain": "sft", "retain_weight": 0.7},
    "d2o_kl": {"alpha": 0.1, "beta": 0.1, "retain": "kl", "retain_weight": 1.0},
}  # fmt: skip
DEFINITIONS = {
    "logp": "sum over the response's tokens, prompt tokens never count; a bar is the mean over them",
    "batch": "every step uses the whole batch of four groups; the loss is the mean over groups, of kto over "
        "the eight answers",
    "sft, ga": "minus the mean token logp of `chosen`; plus that of `negative`",
    "ul": "- mean over the tokens of `negative` of log(1 - p)",
    "dpo": "-log sigmoid(z), z = beta * ((chosen - ref chosen) - (negative - ref negative)); cdpo with "
        "label_smoothing",
    "ipo": "(bar of chosen's ratio - bar of negative's ratio - 1 / (2 beta))^2",
    "hinge, slic": "max(0, 1 - z); max(0, delta - (chosen - negative)) + sft_weight * sft",
    "simpo, orpo": "-log sigmoid(beta * (bar chosen - bar negative) - gamma); sft - beta log sigmoid(log "
        "odds ratio)",
    "kto": "weight * (1 - sigmoid(beta * (ratio - kl))), of negatives weight * (1 - sigmoid(beta * (kl - "
        "ratio))); kl = mean ratio of "
    "each prompt with the answer before it in chosen, negative, chosen, .. (the first with the last), at "
    "least 0, without gradient",
    "npo, simnpo": "-(2/beta) log sigmoid(-beta * ratio of negative); -(2/beta) log sigmoid(-beta * bar "
        "negative - gamma)",
    "d2o": "-log sigmoid(beta * mean_i(anchor_i - ref anchor_i) - alpha * (negative - ref negative)), K = 3",
    "d2o_marked": "d2o with weighted log-probs, of policy and reference: those of anchor i times 1.5, 1, "
        "0.5, those of token t of negative times (1, 0, 0.5)[t mod 3]",
    "d2o_floor": "d2o, with negative - ref negative of at least -negative_floor",
    "d2o_sft, d2o_kl": "d2o plus retain_weight * the mean over groups of the retain loss of the first "
        "anchor: minus its mean token logp; the mean over tokens of e^d - 1 - d, d = logp - logp before the "
        "first step",
    "reference": "fixed; full: the model before the first step; lora: the base model with the adapter off",
    "adapter_logps_at_start": "the policy of a lora run before its first step (a full run starts at the "
        "reference)",
    "losses": "loss before each step; `loss_after` after the last; `grad_norms` before clipping",
    "gradients": "losses/<run>.safetensors: of the first step, before clipping, f32 roundings of float64 "
        "values",
    "lora": "r 4, lora_alpha 8 (scale 2), dropout 0, all seven projections, start values in "
        "tiny_tied/adapter",
    "trl": "the largest differences of TRL's loss, gradients and metrics",
}


def make_batch(rng):
    """Four groups of uneven lengths: prompts and responses down to one token, and one cut sample (no EOS)."""
    lengths = [  # prompt, three anchors, negative, chosen
        (7, (5, 9, 2), 6, 8),
        (3, (1, 6, 4), 4, 3),
        (12, (11, 3, 7), 1, 5),
        (1, (2, 2, 8), 10, 1),
    ]

    def response(n, ends=True):
        ids = rng.integers(3, COMMON["vocab_size"], n).tolist()
        return ids[:-1] + [EOS] if ends else ids

    batch = []
    for number, (prompt, anchors, negative, chosen) in enumerate(lengths):
        batch.append({
            "prompt": [BOS] + rng.integers(3, COMMON["vocab_size"], prompt - 1).tolist(),
            "anchors": [response(n, ends=(number, i) != (2, 0)) for i, n in enumerate(anchors)],
            "negative": response(negative), "chosen": response(chosen),
        })  # fmt: skip
    return batch


def kto_pairs(batch):
    """Prompt, answer, whether it is good, and the answer before it."""
    rows = [(g["prompt"], g[key], key == "chosen") for g in batch for key in ("chosen", "negative")]
    return [(prompt, answer, good, rows[i - 1][1]) for i, (prompt, answer, good) in enumerate(rows)]


def group_logps(model, group):
    """Summed log-probs of one group's responses, each scored in its own forward pass; and the weighted sums
    of `d2o_marked`."""
    tokens = lambda response: token_logps(model, group["prompt"], response)[0]
    anchors, negative = [tokens(a) for a in group["anchors"]], tokens(group["negative"])
    marks = torch.tensor([1.0, 0.0, 0.5], dtype=negative.dtype).repeat(len(negative))[: len(negative)]
    return {
        "anchors": torch.stack([a.sum() for a in anchors]),
        "negative": negative.sum(), "chosen": tokens(group["chosen"]).sum(),
        "marked_anchors": torch.stack([w * a.sum() for w, a in zip((1.5, 1.0, 0.5), anchors)]),
        "marked_negative": (marks * negative).sum(),
    }  # fmt: skip


def references(model, batch):
    """Log-probs under a fixed reference: those of the groups, and those of KTO's mismatched answers."""
    with torch.no_grad():
        others = [token_logps(model, prompt, other)[0].sum() for prompt, _, _, other in kto_pairs(batch)]
        return [group_logps(model, group) for group in batch], torch.stack(others)


def kto_loss(model, batch, reference, beta, desirable_weight, undesirable_weight):
    groups, ref_others = reference
    with torch.no_grad():
        others = [token_logps(model, prompt, other)[0].sum() for prompt, _, _, other in kto_pairs(batch)]
        kl = (torch.stack(others) - ref_others).mean().clamp(min=0)
    losses = []
    for group, ref in zip(batch, groups):
        policy = group_logps(model, group)
        losses.append(desirable_weight * (1 - torch.sigmoid(beta * (policy["chosen"] - ref["chosen"] - kl))))
        losses.append(
            undesirable_weight * (1 - torch.sigmoid(beta * (kl - policy["negative"] + ref["negative"])))
        )
    return torch.stack(losses).mean(), {"kl": kl.item()}


def retained_logps(model, batch):
    """Token log-probs of each group's first anchor, which the retain term keeps."""
    return [token_logps(model, group["prompt"], group["anchors"][0])[0] for group in batch]


def retain_loss(form, now, start):
    """The retain term of a batch, from token log-probs now and before the first step."""
    of = {"sft": lambda now, _: -now, "kl": lambda now, start: torch.expm1(now - start) - (now - start)}[form]
    return torch.stack([of(n, s).mean() for n, s in zip(now, start)]).mean()


def batch_loss(method, model, batch, reference, start=None):
    """The loss of a batch and what is logged beside it."""
    c = types.SimpleNamespace(**METHODS[method])
    if method == "kto":
        return kto_loss(model, batch, reference, **METHODS[method])
    softplus, losses, margins = F.softplus, [], []
    for group, ref in zip(batch, reference[0]):
        tokens = lambda key: token_logps(model, group["prompt"], group[key])[0]
        if method in ("sft", "ga", "ul"):
            key = "chosen" if method == "sft" else "negative"
            of = tokens(key)
            losses.append(
                {"sft": -of.mean(), "ga": of.mean(), "ul": -torch.log(-torch.expm1(of)).mean()}[method]
            )
            continue
        policy = group_logps(model, group)
        ratio = {k: policy[k] - ref[k] for k in policy}
        bar = {k: policy[k] / len(group[k]) for k in ("chosen", "negative")}
        if method in ("dpo", "cdpo", "hinge"):
            z = c.beta * (ratio["chosen"] - ratio["negative"])
            eps = getattr(c, "label_smoothing", 0.0)
            hinge = torch.relu(1 - z)
            losses.append(hinge if method == "hinge" else (1 - eps) * softplus(-z) + eps * softplus(z))
        elif method.startswith("d2o"):
            which = "marked_" if hasattr(c, "marked") else ""
            anchors, negative = ratio[which + "anchors"].mean(), ratio[which + "negative"]
            held = negative.clamp(min=-getattr(c, "negative_floor", torch.inf))
            losses.append(softplus(c.alpha * held - c.beta * anchors))
            z = c.beta * anchors - c.alpha * negative
        elif method == "ipo":
            off = ratio["chosen"] / len(group["chosen"]) - ratio["negative"] / len(group["negative"])
            losses.append((off - 1 / (2 * c.beta)) ** 2)
            z = c.beta * (ratio["chosen"] - ratio["negative"])
        elif method == "slic":
            z = policy["chosen"] - policy["negative"]
            losses.append(torch.relu(c.delta - z) - c.sft_weight * bar["chosen"])
        elif method == "simpo":
            z = c.beta * (bar["chosen"] - bar["negative"])
            losses.append(softplus(c.gamma - z))
        elif method == "orpo":
            odds = lambda x: x - torch.log(-torch.expm1(x))
            z = c.beta * (bar["chosen"] - bar["negative"])
            losses.append(-bar["chosen"] + c.beta * softplus(odds(bar["negative"]) - odds(bar["chosen"])))
        elif method == "npo":
            z = -c.beta * ratio["negative"]
            losses.append(2 / c.beta * softplus(-z))
        elif method == "simnpo":
            z = -c.beta * bar["negative"]
            losses.append(2 / c.beta * softplus(c.gamma - z))
        margins.append(z)
    logged = {"z": torch.stack(margins).mean().item()} if margins else {}
    loss = torch.stack(losses).mean()
    if hasattr(c, "retain"):
        loss = loss + c.retain_weight * retain_loss(c.retain, retained_logps(model, batch), start)
    return loss, logged


# ---------------------------------------------------------------- TRL


def tokenizer():
    """A tokenizer, which TRL's trainers require although the rows are token ids already."""
    words = {f"t{i}": i for i in range(COMMON["vocab_size"])}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")),
        bos_token="t1",
        eos_token="t2",
        pad_token="t0",
    )


class Rows:
    """Rows of token ids, taken as they are."""

    def _prepare_dataset(self, dataset, *_args, **_more):
        return dataset


class Dpo(Rows, trl.DPOTrainer):
    pass


class Kto(Rows, trl.KTOTrainer):
    pass


def trained(trainer, config, rows, policy, reference, **settings):
    """TRL's loss of all rows as one batch, on `policy` in training mode, and its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        args = config(
            output_dir=folder, report_to="none", per_device_train_batch_size=len(rows), use_cpu=True,
            bf16=False,
            gradient_checkpointing=False, max_length=None, **settings,
        )  # fmt: skip
        data = Dataset.from_list(rows)
        it = trainer(
            model=policy, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer()
        )
        it.model.train()
        loss = it.compute_loss(it.model, it.data_collator(rows))
        return loss, {k: v[-1] for k, v in it._metrics["train"].items()}


def pair_batch(batch):
    """The batch as CPO's and ORPO's trainers collate it: prompt and answer, labels -100 outside answers."""
    out = {}
    for ours, theirs in (("chosen", "chosen"), ("negative", "rejected")):
        rows = [g["prompt"] + g[ours] for g in batch]
        longest = max(map(len, rows))
        fill = lambda rows, value: torch.tensor([row + [value] * (longest - len(row)) for row in rows])
        out[f"{theirs}_input_ids"] = fill(rows, 0)
        out[f"{theirs}_attention_mask"] = fill([[1] * len(row) for row in rows], 0)
        out[f"{theirs}_labels"] = fill([[-100] * len(g["prompt"]) + g[ours] for g in batch], -100)
    return out


def bare(trainer, **settings):
    """A trainer that is used for its loss only."""
    it = object.__new__(trainer)
    accelerator = types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x)
    common = {
        "accelerator": accelerator,
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "aux_loss_enabled": False,
    }
    it.__dict__.update(common | settings)
    return it


def trl_loss(method, policy, reference, batch):
    c = METHODS[method]
    if method in ("dpo", "ipo", "hinge"):
        rows = [
            {"prompt_ids": g["prompt"], "chosen_ids": g["chosen"], "rejected_ids": g["negative"]}
            for g in batch
        ]
        kind = {"dpo": "sigmoid"}.get(method, method)
        return trained(Dpo, trl.DPOConfig, rows, policy, reference, loss_type=[kind], **c)
    if method == "kto":
        rows = [
            {"prompt_ids": prompt, "completion_ids": answer, "label": good, "KL_completion_ids": other}
            for prompt, answer, good, other in kto_pairs(batch)
        ]
        return trained(Kto, trl.KTOConfig, rows, policy, reference, **c)
    if method == "simpo":
        it = bare(
            CPOTrainer,
            loss_type="simpo",
            beta=c["beta"],
            simpo_gamma=c["gamma"],
            label_smoothing=0.0,
            alpha=0.0,
            cpo_alpha=0.0,
        )
        return it.get_batch_loss_metrics(policy, pair_batch(batch))
    # TRL's ORPO also imitates the prompt, and averages over the batch's tokens. So only its odds term is
    # used, and SFT is added here.
    it = bare(ORPOTrainer, beta=c["beta"])
    bars = [
        [token_logps(policy, g["prompt"], g[key])[0].mean() for g in batch] for key in ("chosen", "negative")
    ]
    chosen, rejected = (torch.stack(bar) for bar in bars)
    losses, up, down, ratio, odds = it.odds_ratio_loss(chosen, rejected)
    metrics = {
        "rewards/chosen": up.mean().item(), "rewards/rejected": down.mean().item(),
        "nll_loss": -chosen.mean().item(),
        "log_odds_ratio": ratio.item(), "log_odds_chosen": odds.item(),
    }  # fmt: skip
    return -chosen.mean() - losses.mean(), metrics


def merged(dtype):
    """The model with its adapter merged: a policy that is not its reference."""
    model = peft.PeftModel.from_pretrained(
        load(HERE / "tiny_tied", dtype), HERE / "tiny_tied" / "adapter"
    ).to(dtype)
    model = model.merge_and_unload()
    model.requires_grad_(True)
    return model


def against_trl(method, batch):
    """Compares TRL's loss and gradients with ours, and fails if they differ. Also returns TRL's metrics."""
    policy, reference = merged(torch.float32), load(HERE / "tiny_tied", torch.float32)
    loss, metrics = trl_loss(method, policy, reference, batch)
    loss.backward()
    with float64_llama():
        ours = merged(torch.float64)
        expected, _ = batch_loss(
            method, ours, batch, references(load(HERE / "tiny_tied", torch.float64), batch)
        )
        expected.backward()
    size = max(p.grad.abs().max().item() for p in ours.parameters())
    theirs = dict(policy.named_parameters())
    apart = max((theirs[n].grad - p.grad).abs().max().item() for n, p in ours.named_parameters())
    difference = abs(loss.item() - expected.item())
    assert difference < 1e-5 * max(1, abs(expected.item())) and apart < 2e-5 * max(1, size), (
        method,
        difference,
        apart,
        size,
    )
    keep = ("rewards/", "logps/", "kl", "nll_loss", "log_odds")
    return {
        "loss": loss.item(), "loss_difference": difference, "gradient_difference": apart,
        "largest_gradient": size,
        "metrics": {k: v for k, v in metrics.items() if k.startswith(keep)},
    }  # fmt: skip


# ---------------------------------------------------------------- runs


def lora_model(base):
    config = peft.LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=PROJECTIONS
    )
    return peft.get_peft_model(base, config)


def start_model(kind, dtype=torch.float64):
    """The model of a run, and its trainable tensors under the names that a file gives them."""
    model = load(HERE / "tiny_tied", dtype)
    if kind == "lora":
        model = peft.PeftModel.from_pretrained(model, HERE / "tiny_tied" / "adapter", is_trainable=True).to(
            dtype
        )
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert len(named) == (2 * 2 * 7 if kind == "lora" else 2 + 2 * 9)
    return model, named


def make_adapter(folder, rng):
    """Writes the PEFT adapter with explicit A and B, so that a first LoRA gradient reaches both."""
    model = lora_model(load(HERE / "tiny_tied", torch.float32))
    state = peft.get_peft_model_state_dict(model)
    values = {
        n: torch.from_numpy(0.2 * rng.standard_normal(tuple(t.shape))).float() for n, t in state.items()
    }
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "adapter_model.safetensors", values)
    config = model.peft_config["default"].to_dict()
    # to_dict keeps sets and enums, and the base model's path, which is a path of this machine.
    config = json.loads(json.dumps(config, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
    config |= {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
        "peft_type": "LORA",
    }
    write_json(folder / "adapter_config.json", config)


def run(method, kind, batch, reference, dtype=torch.float64):
    """Ten AdamW steps; returns the record and the first step's gradients."""
    model, named = start_model(kind, dtype)
    optimizer = torch.optim.AdamW(named.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    record, gradients, logs = {"losses": [], "grad_norms": []}, {}, []
    with torch.no_grad():
        start = retained_logps(model, batch)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, logged = batch_loss(method, model, batch, reference, start)
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in named.items()}
        record["losses"].append(loss.item())
        record["grad_norms"].append(torch.nn.utils.clip_grad_norm_(named.values(), 1.0).item())
        logs.append(logged)
        optimizer.step()
    with torch.no_grad():
        record["loss_after"] = batch_loss(method, model, batch, reference, start)[0].item()
    for key in logs[0]:
        record[key] = [log[key] for log in logs]
    return record, gradients


def make_losses():
    """Makes the batch, the adapter and the runs, each also in plain f32 to show the effect of rounding."""
    rng = np.random.default_rng(29)
    batch = make_batch(rng)
    make_adapter(HERE / "tiny_tied" / "adapter", rng)
    names = list(itertools.product(METHODS, ("full", "lora")))
    with float64_llama():
        reference, adapted = (references(start_model(kind)[0], batch) for kind in ("full", "lora"))
        runs = {name: run(*name, batch, reference) for name in names}
    records = {}
    for (method, kind), (record, gradients) in runs.items():
        f32, f32_gradients = run(method, kind, batch, reference, torch.float32)
        off = lambda key: max(abs(a - b) for a, b in zip(record[key], f32[key]))
        off_gradient = max((g - f32_gradients[n]).abs().max().item() for n, g in gradients.items())
        record["f32_torch_max_difference"] = {
            "losses": off("losses"), "grad_norms": off("grad_norms"), "first_gradients": off_gradient,
        }  # fmt: skip
        write_tensors(HERE / "losses" / f"{method}_{kind}.safetensors", gradients)
        records[f"{method}_{kind}"] = record
    plain = lambda groups: [{k: v.tolist() for k, v in g.items()} for g in groups]
    compared = {
        method: against_trl(method, batch) for method in ("dpo", "ipo", "hinge", "simpo", "orpo", "kto")
    }
    write_json(HERE / "losses.json", {
        "made_with": MADE_WITH | {"trl": trl.__version__}, "fixture": "tiny_tied",
        "adapter": "tiny_tied/adapter",
        "methods": METHODS, "definitions": DEFINITIONS, "optimizer": OPTIMIZER, "batch": batch,
        "reference_logps": plain(reference[0]), "adapter_logps_at_start": plain(adapted[0]), "trl": compared,
        "runs": records,
    })  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(2)
    make_losses()
