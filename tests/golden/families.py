#!/usr/bin/env python3
"""Makes the golden fixtures in families/ from PyTorch, transformers and peft: a tiny random model per family.

The fixtures are committed; this script is only needed to change them. It needs the packages that the head of
generate.py names and nothing else, on a CPU:

    venv/bin/python tests/golden/families.py                    # every family
    venv/bin/python tests/golden/families.py gemma3 phi3        # some

What comes out, in families/<name>/
-----------------------------------
config.json                  the classic spelling, with the keys that the family's published checkpoints have
config_v5.json               the same model as save_pretrained of transformers 5 writes it
model.safetensors            random weights, f32, under the names that save_pretrained writes; a tied head is
                             not stored
golden.json                  23 token ids, the start of the completion, its log-probs and entropies, the loss,
                             16 greedy tokens, and how much the logits change without a trait of the family
golden.safetensors           `logits` (T, V), and `grad.<parameter>` of the loss for every parameter
adapter/adapter_config.json, adapter/adapter_model.safetensors
                             a LoRA adapter in PEFT's layout on every linear layer of the blocks, A and B both
                             non-zero
adapter/golden.safetensors   `logits` (T, V) with the adapter on, and the gradient of the same loss for each
                             tensor of adapter_model.safetensors, under its name there

Golden values are computed in float64 from the f32 weights, with attn_implementation="eager": the other
kernels of transformers have no soft cap. transformers forces parts of every family to float32 (norms,
softmax, rotary tables). `StaysDouble` undoes that for any family, and `exact_buffers` gives the rotary
frequencies in float64.

This script checks the plain f32 logits; one directional derivative by differences in float64, which fails
where a float32 step is left; that both spellings of the configuration mean the same; that every trait listed
in `matters` changes the logits; and that no greedy token is near a tie.
"""

import argparse
import json
import math
import pathlib
import tempfile

import numpy as np
import peft
import safetensors.torch
import torch
import transformers

from generate import BOS, EOS, HERE, MADE_WITH, greedy, token_logps, write_json, write_tensors

FAMILIES = HERE / "families"
TOKENS, START, PROMPT, NEW = 23, 9, 5, 16
LLAMA_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEOX_LINEAR = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]

# ---------------------------------------------------------------- the families

IDS = {
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 67,
}
COMMON = {
    **IDS, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "attention_dropout": 0.0, "initializer_range": 0.02,
}  # fmt: skip
# Greedy texts of Gemma soon repeat one token, because with scaled and tied embeddings of this size each token
# predicts itself. The seeds are those of the most varied texts among 120.
# As on the Hub, Gemma's files do not say that the embeddings are tied, and name the activation differently.
GEMMA = {k: v for k, v in COMMON.items() if k != "hidden_act"} | {
    "attention_bias": False, "cache_implementation": "hybrid", "head_dim": 16, "pad_token_id": 0,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 12, "sliding_window": 6,
}  # fmt: skip
NEOX = {
    **IDS, "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128,
    "layer_norm_eps": 1e-5, "initializer_range": 0.02, "rotary_emb_base": 10000, "tie_word_embeddings": False,
}  # fmt: skip
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 500.0}
LINEAR_ROPE = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0}

# config: the classic spelling. linear: leaf names of the blocks' linear layers. matters: a trait, and the
# changes to transformers' configuration that switch it off; each must change the logits.
FIXTURES = {
    "llama3": {
        "seed": 101, "linear": LLAMA_LINEAR,
        "config": COMMON | {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 8,
            "attention_bias": False,
            "mlp_bias": False, "pretraining_tp": 1, "tie_word_embeddings": True, "rope_theta": 500.0,
            "rope_scaling": {
                "factor": 4.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
        },
        "matters": {"rope_scaling": {"rope_parameters": DEFAULT_ROPE}},
    },
    "mistral": {
        "seed": 102, "linear": LLAMA_LINEAR,
        "config": COMMON | {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 8,
            "sliding_window": 6,
            "rope_theta": 10000.0, "tie_word_embeddings": False,
        },
        "matters": {
            "sliding_window": {"sliding_window": None}, "sliding_window 5": {"sliding_window": 5},
            "sliding_window 7": {"sliding_window": 7},
        },
    },
    # The window is stated but switched off; the projections of q, k and v have a bias that no key mentions.
    "qwen2": {
        "seed": 103, "linear": LLAMA_LINEAR,
        "config": COMMON | {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_window_layers": 1,
            "rope_theta": 1000000.0, "sliding_window": 32768, "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        "matters": {},
    },
    "qwen3": {
        "seed": 104, "linear": LLAMA_LINEAR,
        "config": COMMON | {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
            "head_dim": 16,
            "max_window_layers": 2, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
            "use_sliding_window": False, "tie_word_embeddings": True,
        },
        "matters": {},
    },
    "smollm3": {
        "seed": 105, "linear": LLAMA_LINEAR,
        "config": COMMON | {
            "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False,
            "layer_types": ["full_attention"] * 4, "max_window_layers": 28, "mlp_bias": False,
            "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4,
            "pad_token_id": 0,
            "pretraining_tp": 2, "rope_scaling": None, "rope_theta": 5000.0, "sliding_window": None,
            "use_sliding_window": False, "tie_word_embeddings": True,
        },
        "matters": {
            "no_rope_layers": {"no_rope_layers": [1, 1, 1, 1]},
            "no_rope_layers inverted": {"no_rope_layers": [0, 0, 0, 1]},
        },
    },
    "gemma2": {
        "seed": 251, "linear": LLAMA_LINEAR,
        "config": GEMMA | {
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh",
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
        },
        "matters": {
            "sliding_window": {"layer_types": ["full_attention"] * 2},
            "sliding_window in the other layer": {"layer_types": ["full_attention", "sliding_attention"]},
            "attn_logit_softcapping": {"attn_logit_softcapping": None},
            "final_logit_softcapping": {"final_logit_softcapping": None},
            "query_pre_attn_scalar": {"query_pre_attn_scalar": 16},
        },
    },
    "gemma3": {
        "seed": 279, "linear": LLAMA_LINEAR,
        "config": GEMMA | {
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "num_hidden_layers": 3, "rope_local_base_freq": 100,
            "rope_theta": 1000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 3,
        },
        "matters": {
            "sliding_window": {"sliding_window": 128},
            "rope_scaling": {"rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
            }},
            "rope_local_base_freq": {"rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
                "full_attention": LINEAR_ROPE,
            }},
            "rope_scaling of full layers only": {"rope_parameters": {
                "sliding_attention": LINEAR_ROPE | {"rope_theta": 100.0}, "full_attention": LINEAR_ROPE,
            }},
            "query_pre_attn_scalar": {"query_pre_attn_scalar": 16},
        },
    },
    "phi3": {
        "seed": 108, "linear": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
        "config": COMMON | {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False,
            "embd_pdrop": 0.0,
            "original_max_position_embeddings": 128, "pad_token_id": 0, "partial_rotary_factor": 0.5,
            "resid_pdrop": 0.0, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 7,
            "tie_word_embeddings": False,
        },
        "matters": {
            "sliding_window": {"sliding_window": None},
            "partial_rotary_factor": {"rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
            }},
        },
    },
    # As on the Hub, n_inner is left out (then it is 4 n_embd), and so is the key for tied embeddings.
    "gpt2": {
        "seed": 109, "linear": ["c_attn", "c_proj", "c_fc"],
        "config": {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
            "attn_pdrop": 0.0, "bos_token_id": BOS, "embd_pdrop": 0.0, "eos_token_id": EOS,
            "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-5, "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2,
            "n_positions": 64,
            "resid_pdrop": 0.0, "vocab_size": 67,
        },
        # The two forms of GELU are close: a check with a tolerance above this value does not tell them apart.
        "matters": {"activation_function": {"activation_function": "gelu"}},
    },
    "gpt_neox": {
        "seed": 110, "linear": NEOX_LINEAR, "config": NEOX | {"rotary_pct": 0.25,
        "use_parallel_residual": True},
        "matters": {
            "use_parallel_residual": {"use_parallel_residual": False},
            "rotary_pct": {"rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
            }},
            "hidden_act": {"hidden_act": "gelu_new"},
        },
    },
    "gpt_neox_sequential": {
        "seed": 111, "linear": NEOX_LINEAR, "config": NEOX | {"rotary_pct": 0.5,
        "use_parallel_residual": False},
        "matters": {
            "use_parallel_residual": {"use_parallel_residual": True},
            "rotary_pct": {"rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
            }},
        },
    },
}  # fmt: skip

# ---------------------------------------------------------------- float64 in any family


class StaysDouble(torch.overrides.TorchFunctionMode):
    """While active, no operation turns float64 tensors into float32, whatever the model's code asks for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            wide = lambda v: torch.float64 if v is torch.float32 else v
            args, kwargs = tuple(map(wide, args)), {k: wide(v) for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor) and out.requires_grad:
            assert out.dtype == torch.float64, f"{func} made {out.dtype}"
        return out


def inverse_frequencies(rope, head_dim):
    """The rotary frequencies in float64 from one set of rope parameters, written from the formulas."""
    turned = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    freqs = []
    for j in range(turned // 2):
        f = rope["rope_theta"] ** (-2 * j / turned)
        if rope["rope_type"] == "linear":
            f /= rope["factor"]
        elif rope["rope_type"] == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            turns = rope["original_max_position_embeddings"] * f / (2 * math.pi)
            keep = min(1.0, max(0.0, (turns - low) / (high - low)))
            f = keep * f + (1 - keep) * f / rope["factor"]
        else:
            assert rope["rope_type"] == "default"
        freqs.append(f)
    return torch.tensor(freqs, dtype=torch.float64)


def frequencies(config):
    """The rotary frequencies by the names of transformers' buffers; empty for a family without rotation."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return {}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if "rope_type" in rope:
        return {"inv_freq": inverse_frequencies(rope, head_dim)}
    return {f"{kind}_inv_freq": inverse_frequencies(rope[kind], head_dim) for kind in rope}


def exact_buffers(model):
    """Puts float64 values where transformers rounds to f32: rotary frequencies, the scale of embeddings."""
    expected = frequencies(model.config)
    left = set(expected)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name == "embed_scale":
                value = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
            elif name in expected:
                value = expected[name]
                left.discard(name)
            else:
                assert name.endswith("original_inv_freq"), f"unknown buffer {name}"
                continue
            assert buffer.shape == value.shape and torch.allclose(
                buffer.double(), value, rtol=1e-6, atol=0
            ), name
            setattr(module, name, value)
    assert not left, f"no buffer for {left}"


def load(folder, dtype, **changes):
    """A model in evaluation mode, its configuration changed; loading in f32 first keeps the weights exact."""
    config = transformers.AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    model = model.to(dtype).eval()
    if dtype == torch.float64:
        exact_buffers(model)
    return model


def completion_loss(model, tokens):
    """The loss, and what it is made of: log-prob and entropy of each token of the completion."""
    logps, entropy = token_logps(model, tokens[:START], tokens[START:])
    return -logps.mean(), logps, entropy


def check_derivative(model, tokens, named, rng):
    """The gradients against a central difference of the float64 loss along one random direction."""
    direction = {n: torch.from_numpy(rng.standard_normal(tuple(p.shape))) for n, p in named.items()}
    slope = sum((p.grad * direction[n]).sum() for n, p in named.items()).item()
    step, losses = 1e-6, []
    with torch.no_grad(), StaysDouble():
        for move in (step, -2 * step, step):
            for n, p in named.items():
                p.add_(move * direction[n])
            losses.append(completion_loss(model, tokens)[0].item())
    measured = (losses[0] - losses[1]) / (2 * step)
    assert abs(measured - slope) < 1e-6 * max(1.0, abs(slope)), f"slope {slope}, measured {measured}"


# ---------------------------------------------------------------- one family


def file_name(model, name):
    """A parameter's name in model.safetensors: transformers 5 still calls GPT-NeoX's head embed_out there."""
    return "embed_out.weight" if model.config.model_type == "gpt_neox" and name == "lm_head.weight" else name


def save_as_transformers_does(folder):
    """What save_pretrained writes for the folder's config.json: the configuration, and shapes by tensor."""
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    with tempfile.TemporaryDirectory() as place:
        model.to(torch.float32).save_pretrained(place)
        config = json.loads((pathlib.Path(place) / "config.json").read_text(encoding="utf-8"))
        again = transformers.AutoConfig.from_pretrained(place).to_dict()
        tensors = safetensors.torch.load_file(pathlib.Path(place) / "model.safetensors")
    config.pop("_name_or_path", None)
    classic = transformers.AutoConfig.from_pretrained(folder).to_dict()
    # Not part of the model: who wrote the file, its path, and the dtype, which GPT-2's file does not state.
    of_model = set(again | classic) - {"transformers_version", "_name_or_path", "dtype"}
    differ = {k: (again.get(k), classic.get(k)) for k in of_model if again.get(k) != classic.get(k)}
    assert not differ, f"the two spellings differ: {differ}"
    shapes = {file_name(model, n): tuple(p.shape) for n, p in model.named_parameters()}
    assert shapes == {n: tuple(t.shape) for n, t in tensors.items()}, "the files have other names"
    return config, shapes


def random_weights(shapes, centre, rng):
    """Matrices of std 0.3, biases of std 0.2, norms around `centre` (0 if the model multiplies by 1 + w)."""
    out = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        is_norm = "norm" in name or ".ln_" in name
        if name.endswith("bias"):
            value = 0.2 * noise
        else:
            value = centre + 0.2 * noise if is_norm else 0.3 * noise
        out[name] = torch.from_numpy(value).float()
    return out


def check_greedy(model, answer):
    """Checks the tokens by one forward pass over the whole text, without the cache of generate."""
    ids, start = answer["prompt_ids"] + answer["token_ids"], len(answer["prompt_ids"])
    with torch.no_grad():
        best = model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
    assert (
        len(answer["token_ids"]) == NEW and best[start - 1 : -1] == answer["token_ids"]
    ), "greedy tokens differ"
    assert (
        min(answer["lead_of_best_logit"]) > 1e-3
    ), f"near a tie, take another seed: {answer['lead_of_best_logit']}"


def make_adapter(folder, linear, tokens, rng):
    """A random adapter for the folder's model, its logits and its gradients."""
    place = folder / "adapter"
    place.mkdir(exist_ok=True)
    base = load(folder, torch.float32)
    conv = any(isinstance(m, transformers.pytorch_utils.Conv1D) for m in base.modules())
    model = peft.get_peft_model(base, peft.LoraConfig(
        r=3, lora_alpha=6, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=linear,
        fan_in_fan_out=conv,
    ))  # fmt: skip
    state = peft.get_peft_model_state_dict(model)
    values = {
        n: torch.from_numpy(0.2 * rng.standard_normal(tuple(t.shape))).float() for n, t in state.items()
    }
    write_tensors(place / "adapter_model.safetensors", values)
    config = model.peft_config["default"].to_dict()
    # to_dict keeps sets and enums, and the base model's path, which is a path of this machine.
    config = json.loads(json.dumps(config, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
    config |= {
        "base_model_name_or_path": None,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
        "peft_type": "LORA",
    }
    write_json(place / "adapter_config.json", config)

    def adapted(dtype):
        return peft.PeftModel.from_pretrained(load(folder, dtype), place, is_trainable=True).to(dtype).eval()

    ids = torch.tensor([tokens])
    with torch.no_grad():
        plain = adapted(torch.float32)(ids).logits[0]
    model = adapted(torch.float64)
    named = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert set(named) == set(values) and all((named[n] == v.double()).all() for n, v in values.items())
    # Every matrix of the base model's blocks has an adapter: the blocks have no other matrices.
    blocks = [n for n, p in model.named_parameters() if p.dim() == 2 and ".0." in n and "lora_" not in n]
    assert blocks and len(values) == 2 * len(blocks) * base.config.num_hidden_layers, blocks
    with StaysDouble():
        logits = model(ids).logits[0]
        loss = completion_loss(model, tokens)[0]
    loss.backward()
    off = (logits - plain).abs().max().item()
    assert logits.dtype == torch.float64 and off < 2e-4, f"f32 and f64 disagree by {off}"
    grads = {n: p.grad.clone() for n, p in named.items()}
    check_derivative(model, tokens, named, rng)
    write_tensors(place / "golden.safetensors", {"logits": logits, **grads})
    return logits, loss.item(), off


def make_family(name, seed, linear, config, matters):
    """One fixture folder; see the head of this file."""
    rng = np.random.default_rng(seed)
    folder = FAMILIES / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    config_v5, shapes = save_as_transformers_does(folder)
    write_json(folder / "config_v5.json", config_v5)
    weights = random_weights(shapes, 0.0 if config["model_type"].startswith("gemma") else 1.0, rng)
    write_tensors(folder / "model.safetensors", weights)
    tokens = [BOS] + rng.integers(3, config["vocab_size"], TOKENS - 2).tolist() + [EOS]
    ids = torch.tensor([tokens])

    model = load(folder, torch.float32)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        plain = model(ids).logits[0]
    answer = greedy(model, tokens[:PROMPT], NEW, None)
    check_greedy(model, answer)
    with torch.no_grad():
        answer["token_logps"] = token_logps(model, answer["prompt_ids"], answer["token_ids"])[0].tolist()

    model = load(folder, torch.float64)
    named = {file_name(model, n): p for n, p in model.named_parameters()}
    assert set(named) == set(weights) and all((named[n] == w.double()).all() for n, w in weights.items())
    with StaysDouble():
        logits = model(ids).logits[0]
        loss, logps, entropy = completion_loss(model, tokens)
    loss.backward()
    off = (logits - plain).abs().max().item()
    assert logits.dtype == loss.dtype == torch.float64 and off < 2e-4, f"f32 and f64 disagree by {off}"
    grads = {n: p.grad.clone() for n, p in named.items()}
    check_derivative(model, tokens, named, rng)
    write_tensors(
        folder / "golden.safetensors", {"logits": logits, **{f"grad.{n}": g for n, g in grads.items()}}
    )

    moved = {}
    for trait, changes in matters.items():
        with torch.no_grad():
            moved[trait] = (load(folder, torch.float32, **changes)(ids).logits[0] - plain).abs().max().item()
        assert moved[trait] > 20 * max(off, 1e-5), f"{trait} hardly matters: {moved[trait]}"
    adapted, adapted_loss, adapted_off = make_adapter(folder, linear, tokens, rng)
    assert (adapted - logits).abs().max() > 0.1, "the adapter hardly matters"
    write_json(folder / "golden.json", {
        "made_with": MADE_WITH, "seed": seed, "tokens": tokens, "completion_start": START,
        "loss_is": "minus the mean of token_logps; gradients in golden.safetensors are of this loss",
        "loss": loss.item(), "token_logps": logps.tolist(), "token_entropy": entropy.tolist(),
        "inv_freq": {n: f.tolist() for n, f in frequencies(model.config).items()},
        "f32_transformers_max_logit_difference": off,
        "adapter_loss": adapted_loss, "adapter_f32_transformers_max_logit_difference": adapted_off,
        "max_logit_change_without": moved,
        "greedy_rule": "f32, do_sample=False, 16 new tokens and their log-probs; no token ends the text",
        "greedy": answer,
    })  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description="make the fixtures of the model families; see the head of this file"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"families; all if none: {', '.join(FIXTURES)}"
    )
    names = parser.parse_args().names
    if unknown := set(names) - set(FIXTURES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    torch.set_num_threads(2)
    for name in names or FIXTURES:
        make_family(name, **FIXTURES[name])
    size = sum(p.stat().st_size for p in FAMILIES.rglob("*") if p.is_file())
    assert size < 3e6, f"{size} bytes in all"
    print(f"{size} bytes in {FAMILIES.name}/")


if __name__ == "__main__":
    main()
