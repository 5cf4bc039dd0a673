"""Checks a GGUF file that `aweigh export` wrote, in llama.cpp. The file loads, splits texts into the same
tokens as the model's own tokenizer, and gives the same greedy answers as transformers with the model's
directory.

    pip install llama-cpp-cffi transformers torch      # the first brings llama.cpp, built for the CPU
    aweigh export --model DIR --output model.gguf
    python tests/python/check_gguf.py DIR model.gguf [TOLERATED]

Files of 8 bits round the weights: TOLERATED is the number of tokens, out of 3 x 32, that may differ.
"""

import os
import sys

from llama._llama_cpp_cpu import ffi, lib
from transformers import AutoTokenizer

PROMPTS = ["What is the capital of France?", "Write one sentence about the sea.", "How do I boil an egg?"]
TEXTS = PROMPTS + [
    "  two spaces,\n\n\tand a tab",
    "naïve café 日本語 🙂",
    "x = [1, 22, 333]; // don't",
    "<|im_end|> as text?",
]
NEW = 32


def tokens_of(vocab, text, special):
    data = text.encode()
    out = ffi.new("llama_token[]", 512)
    count = lib.llama_tokenize(vocab, data, len(data), out, 512, False, special)
    assert count >= 0, f"{text!r}: {count}"
    return list(out[0:count])


def greedy(model, ids, adapter=None):
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = 512
    # No more threads than cores: others would only wait.
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count()
    context = lib.llama_init_from_model(model, parameters)
    if adapter is not None:
        assert lib.llama_set_adapter_lora(context, adapter, 1.0) == 0
    sampler = lib.llama_sampler_init_greedy()
    vocab, answer, feed = lib.llama_model_get_vocab(model), [], list(ids)
    while len(answer) < NEW:
        data = ffi.new("llama_token[]", feed)
        assert lib.llama_decode(context, lib.llama_batch_get_one(data, len(feed))) == 0
        token = lib.llama_sampler_sample(sampler, context, -1)
        answer.append(token)
        if lib.llama_vocab_is_eog(vocab, token):
            break
        feed = [token]
    lib.llama_sampler_free(sampler)
    lib.llama_free(context)
    return answer


def main():
    import torch
    from transformers import AutoModelForCausalLM

    directory, file = sys.argv[1:3]
    tolerated = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(file.encode(), lib.llama_model_default_params())
    assert model != ffi.NULL, f"llama.cpp does not load {file}"
    vocab = lib.llama_model_get_vocab(model)
    for text in TEXTS:
        expected, found = tokenizer.encode(text, add_special_tokens=False), tokens_of(vocab, text, True)
        assert found == expected, f"{text!r}: llama.cpp has {found}, the tokenizer {expected}"
    wrong = 0
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        inputs = torch.tensor([ids])
        made = reference.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=NEW, do_sample=False
        )
        expected, found = made[0, len(ids) :].tolist(), greedy(model, ids)
        same = next(
            (i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found))
        )
        wrong += max(len(expected), len(found)) - same
        print(f"{prompt} {tokenizer.decode(found)!r}: {same} of {len(expected)} tokens are transformers'")
    assert wrong <= tolerated, f"{wrong} tokens differ"
    print("llama.cpp reads the file as transformers reads the directory")


if __name__ == "__main__":
    main()
