"""Compares how Aweigh reads data with what Hugging Face's datasets reads: every form, in every format.

python check_datasets.py AWEIGH FOLDER [FIXTURES]: the program, a folder for the files, and a folder for those
that other tests read. `cargo xtask datasets` calls it.
"""

import json
import subprocess
import sys
from pathlib import Path

from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()

aweigh, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)

USER = 'A "quoted" question,\nwith two lines; ünïcode 🦀'
GOOD, BAD = "Yes,\nof course: {1}", "No; \\n is not a line"


def turn(role, content):
    return {"role": role, "content": content}


def said(speaker, value):
    return {"from": speaker, "value": value}


# Rows of each form, and whether CSV can hold them.
FORMS = {
    "unpaired": ([{"prompt": [turn("user", USER + str(i))], "completion": [turn("assistant", BAD)],
                   "label": i % 2 == 0} for i in range(5)], False),
    "pairs": ([{"prompt": [turn("system", "Be kind."), turn("user", USER)],
                "chosen": [turn("assistant", GOOD)], "rejected": [turn("assistant", BAD + str(i))]}
               for i in range(4)], False),
    "texts": ([{"prompt": USER, "chosen": GOOD, "rejected": BAD + str(i)} for i in range(3)], True),
    "labels": ([{"prompt": USER, "completion": BAD + str(i), "label": bool(i)} for i in range(2)], True),
    "messages": ([{"messages": [turn("user", USER), turn("assistant", GOOD + str(i))]} for i in range(3)],
                 False),
    "sharegpt": ([{"conversations": [said("human", USER), said("gpt", GOOD + str(i))]} for i in range(3)],
                 False),
    "alpaca": ([{"instruction": USER, "input": ["", "more"][i], "output": GOOD} for i in range(2)], True),
    "answers": ([{"question": USER, "answer": GOOD + str(i)} for i in range(2)], True),
}


def text(value):
    """A prompt or an answer, as `aweigh data` shows it without a model."""
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)


def content(value):
    return value if isinstance(value, str) else value[-1]["content"]


def expected(row):
    """(prompt, [(verdict, answer)]) of a row that datasets has read."""
    if "messages" in row:
        return text(row["messages"][:-1]), [("good", row["messages"][-1]["content"])]
    if "conversations" in row:
        names = {"human": "user", "gpt": "assistant"}
        messages = [turn(names[part["from"]], part["value"]) for part in row["conversations"]]
        return text(messages[:-1]), [("good", messages[-1]["content"])]
    if "instruction" in row:
        # Joined as LLaMA-Factory does.
        asked = "\n".join(part for part in (row["instruction"], row["input"]) if part)
        return text([turn("user", asked)]), [("good", row["output"])]
    if "question" in row:
        return text([turn("user", row["question"])]), [("good", row["answer"])]
    if "chosen" in row:
        return text(row["prompt"]), [("good", content(row["chosen"])), ("flagged", content(row["rejected"]))]
    return text(row["prompt"]), [("good" if row["label"] else "flagged", content(row["completion"]))]


def read(path):
    """The rows as Aweigh reads them."""
    line = [aweigh, "data", str(path), "--show", "100", "--json", "--quiet"]
    run = subprocess.run(line, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shown = json.loads(run.stdout)["shown"]
    return [(row["prompt"], [(own["verdict"], own["text"]) for own in row["answers"]]) for row in shown]


compared = 0
for name, (rows, flat) in FORMS.items():
    data = Dataset.from_list(rows)
    files = {"jsonl": ("json", lambda path: data.to_json(path)),
             "json": ("json", lambda path: data.to_json(path, lines=False)),
             "parquet": ("parquet", lambda path: data.to_parquet(path))}
    if flat:
        files["csv"] = ("csv", lambda path: data.to_csv(path, index=False))
    for ending, (builder, write) in files.items():
        path = folder / f"{name}.{ending}"
        write(str(path))
        options = {"keep_default_na": False} if builder == "csv" else {}
        loaded = load_dataset(builder, data_files=str(path), split="train", cache_dir=str(folder / "cache"),
                              **options)
        wanted = [expected(row) for row in loaded]
        found = read(path)
        assert found == wanted, f"{path}: expected {wanted}, found {found}"
        compared += len(wanted)
        print(f"{path.name}: {len(wanted)} rows")
if len(sys.argv) > 3:
    Dataset.from_list(FORMS["pairs"][0]).to_parquet(str(Path(sys.argv[3]) / "pairs.parquet"))
print(f"{compared} rows are the same")
