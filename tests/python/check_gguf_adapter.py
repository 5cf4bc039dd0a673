"""Checks a GGUF adapter that `aweigh export --adapter-only` wrote, in llama.cpp: on the model's GGUF file it
gives the same greedy answers as the merged model's file, and other answers than the model alone.

    pip install llama-cpp-cffi transformers torch      # the first brings llama.cpp, built for the CPU
    aweigh export --model DIR --output base.gguf --dtype float32
    aweigh export --model DIR --adapter ADAPTER --output merged.gguf --dtype float32
    aweigh export --model DIR --adapter ADAPTER --adapter-only --output adapter.gguf
    python tests/python/check_gguf_adapter.py DIR base.gguf adapter.gguf merged.gguf [TOLERATED]

At a near tie of two tokens rounding decides: TOLERATED is the number of answers, of 3, that may differ.
"""

import sys

from check_gguf import PROMPTS, greedy
from llama._llama_cpp_cpu import ffi, lib
from transformers import AutoTokenizer


def load(file):
    model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
    assert model != ffi.NULL, f"llama.cpp does not load {file}"
    return model


def main():
    directory, base, adapter, merged = sys.argv[1:5]
    tolerated = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    tokenizer = AutoTokenizer.from_pretrained(directory)
    lib.llama_backend_init()
    base, merged = load(base), load(merged)
    lora = lib.llama_adapter_lora_init(base, adapter.encode())
    assert lora != ffi.NULL, f"llama.cpp does not load {adapter}"
    changed, wrong = 0, 0
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        alone, expected, found = greedy(base, ids), greedy(merged, ids), greedy(base, ids, lora)
        print(f"{prompt} {tokenizer.decode(found)!r}")
        if found != expected:
            print(f"  merged: {tokenizer.decode(expected)!r}")
            wrong += 1
        changed += found != alone
    assert wrong <= tolerated, f"{wrong} answers differ"
    assert changed > 0, "the adapter changes no answer"
    print("llama.cpp answers with the adapter as with the merged model")


main()
