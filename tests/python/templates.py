"""Renders chat templates of released models with transformers, to compare in `cargo test --lib templates`.

The templates belong to others and are not in this repository. llama.cpp's source package has about sixty:

    pip install transformers jinja2
    pip download llama-cpp-python==0.3.36 --no-deps --no-binary :all: && tar xzf llama_cpp_python-*.tar.gz
    python tests/python/templates.py cases.json llama_cpp_python-*/vendor/llama.cpp/models/templates/*.jinja
    AWEIGH_TEMPLATES=$PWD/cases.json cargo test --lib templates -- --ignored --nocapture
"""

import json
import sys
import time
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

USER = {"role": "user", "content": '  What is 2 < 3 & "four"?\n'}
CHATS = {
    "one turn": [USER],
    "system": [{"role": "system", "content": "Be brief.  "}, USER],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nHello, naïve 日本 🙂!"},
        {"role": "user", "content": "Bye\n\nnow"},
    ],
    "no system": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Hello! "},
        {"role": "user", "content": "Bye"},
    ],
    "answered": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
}
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def main():
    now, cases = int(time.time()), []
    for path in map(Path, sys.argv[2:]):
        template = path.read_text()
        for name, messages in CHATS.items():
            prompt = name != "answered"
            try:
                rendered, _ = render_jinja_template(
                    [messages], chat_template=template, add_generation_prompt=prompt, **SPECIALS
                )
                expected = rendered[0]
            except Exception as error:
                print(f"{path.name}, {name}: {error}", file=sys.stderr)
                expected = None
            cases.append(
                {
                    "name": f"{path.name}, {name}",
                    "template": template,
                    "messages": messages,
                    "add_generation_prompt": prompt,
                    "expected": expected,
                }
            )
    Path(sys.argv[1]).write_text(json.dumps({"now": now, "specials": SPECIALS, "cases": cases}))
    print(f"{len(cases)} cases of {len(sys.argv) - 2} templates")


main()
