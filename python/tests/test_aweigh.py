"""Tests of the installed package, with the built-in model: `cargo xtask wheel` runs them.

Plain functions and asserts; `python test_aweigh.py FLAGGED.jsonl` runs all of them, each in a temporary
folder. The file has rows flagged false, as assets/tiny/negatives.jsonl.gz does.
"""

import gzip
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import aweigh

SMALL = dict(model="tiny", max_steps=4, num_samples=2, max_new_tokens=16, max_samples=20, progress=None)


def raises(kind, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def said(*line):
    """What a program prints."""
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def test_the_program_is_installed():
    version = said("aweigh", "--version")
    assert version.startswith(f"aweigh {aweigh.__version__} ("), version
    module = [sys.executable, "-m", "aweigh"]
    assert said(*module, "--version") == version
    wrong = subprocess.run([*module, "generate", "--model", "none-such"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "none-such" in wrong.stderr, wrong


def test_generate():
    model = aweigh.Model("tiny")
    assert model.gpu == aweigh.devices()[0]["name"] or "AWEIGH_GPU" in os.environ
    greedy = dict(temperature=0, max_new_tokens=12)
    one = model.generate("Hello", **greedy)
    assert isinstance(one, str) and one
    # The same alone, among others, as messages, and from the program.
    both = model.generate(["Hello", "My printer is broken."], **greedy)
    assert both[0] == one and len(both) == 2
    assert model.generate([{"role": "user", "content": "Hello"}], **greedy) == one
    line = ["aweigh", "generate", "--model", "tiny", "--prompt", "Hello"]
    figures = json.loads(said(*line, "--temperature", "0", "--max-new-tokens", "12", "--json"))
    assert figures["answers"][0]["completion"] == one
    several = model.generate("Hello", num_samples=3, max_new_tokens=8)
    assert len(several) == 3 and len(set(several)) > 1
    details = model.generate("Hello", details=True, max_new_tokens=3)
    assert details["num_tokens"] == 3 and details["ended"] is False
    assert model.generate([]) == []
    assert model.generate({"role": "user", "content": "Hello"}, **greedy) == one
    assert isinstance(model.generate("Hello", num_samples=None, max_new_tokens=3), str)
    assert "num_samples" in str(raises(aweigh.AweighError, model.generate, "Hello", num_samples=0))
    assert raises(aweigh.AweighError, model.generate, "Hello", seed="x").exit_code == 2
    error = raises(TypeError, model.generate, "Hello", temperatur=1)
    assert "similar argument exists: 'temperature'" in str(error), error
    error = raises(aweigh.AweighError, model.generate, "Hello", max_new_tokens=10**6)
    assert error.exit_code == 2 and error.place == "prompts:1" and "1000000" in error.found, error


def test_score(rows):
    scored = aweigh.score("tiny", rows[:3])
    assert [row["completion"] for row in scored] == [row["completion"] for row in rows[:3]]
    assert all(row["logp"] < 0 and row["num_tokens"] > 1 for row in scored), scored
    with open("rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:3])
    assert aweigh.Model("tiny").score("rows.jsonl") == scored
    lines = said("aweigh", "score", "--model", "tiny", "--data", "rows.jsonl", "--quiet").splitlines()
    assert [json.loads(line) for line in lines] == scored
    with gzip.open("rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:3])
    model = aweigh.Model("tiny", offload=False, no_tuning=False)
    assert model.score("rows.jsonl.gz") == scored
    assert "none.jsonl" in str(raises(aweigh.AweighError, model.score, "none.jsonl"))
    broken = raises(aweigh.AweighError, aweigh.score, "tiny", [{"prompt": 3}])
    assert broken.place.startswith("rows:1"), broken.place


def test_align_writes_an_adapter(rows):
    events = []
    summary = aweigh.align(**{**SMALL, "progress": events.append}, train=rows, output_dir="out/run")
    assert summary["steps"] == 4 and summary["reason"] == "finished", summary
    assert os.path.exists(os.path.join(summary["adapter"], "adapter_model.safetensors"))
    kinds = [event["event"] for event in events]
    assert {"plan", "loaded", "phase", "progress", "step", "evaluation"} <= set(kinds), kinds
    assert [e["metrics"]["global_step"] for e in events if e["event"] == "step"] == [1, 2, 3, 4]
    # The rows are kept beside the folder, so that a run from them can be repeated.
    with open("out/run.train.jsonl", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == rows
    assert aweigh.generate("tiny", "Hello", adapter=summary["adapter"], max_new_tokens=4)
    again = {**SMALL, "output_dir": "out/run"}
    assert "overwrite" in raises(aweigh.AweighError, aweigh.align, **again, train=rows).fix
    # A file of the user's own is not replaced.
    with open("out/free.train.jsonl", "w", encoding="utf-8") as file:
        file.write("mine")
    raises(FileExistsError, aweigh.align, **{**SMALL, "output_dir": "out/free"}, train=rows)


def test_a_stopped_run_is_resumed(rows):
    def stop(event):
        return "stop" if event["event"] == "step" and event["metrics"]["global_step"] == 2 else None

    settings = {**SMALL, "max_steps": 8, "train": rows}
    # The run learns of a step's metrics, and so of the wish, one or two steps later.
    raises(KeyboardInterrupt, aweigh.align, **{**settings, "progress": stop, "output_dir": "stopped"})
    assert aweigh.align(resume="stopped", progress=None)["steps"] == 8
    whole = aweigh.align(**settings, output_dir="whole")
    with open("stopped/adapter/adapter_model.safetensors", "rb") as one:
        with open(os.path.join(whole["adapter"], "adapter_model.safetensors"), "rb") as other:
            assert one.read() == other.read()


def test_finish_ends_with_the_best_state(rows):
    def finish(event):
        return "finish" if event["event"] == "step" else None

    summary = aweigh.align(**{**SMALL, "progress": finish}, train=rows, output_dir="finished")
    assert summary["reason"] == "requested" and summary["steps"] < 4, summary


def test_ctrl_c(rows):
    # A process that was started in the background of a script ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = {**SMALL, "max_steps": 100_000, "train": rows, "output_dir": "interrupted", "no_stop": True}
    started = threading.Event()

    def begun(event):
        if event["event"] == "step":
            started.set()

    def interrupt():
        started.wait(120)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        raises(KeyboardInterrupt, aweigh.align, **{**settings, "progress": begun})
    thread.join()
    assert any("stop rule is off" in str(warning.message) for warning in caught), caught
    assert any(name.startswith("checkpoint-") for name in os.listdir("interrupted"))


def test_wrong_settings(rows):
    to = {**SMALL, "train": rows, "output_dir": "wrong"}
    error = raises(TypeError, aweigh.align, **to, learnin_rate=1)
    assert "similar argument exists: 'learning_rate'" in str(error), error
    error = raises(aweigh.AweighError, aweigh.align, **to, learning_rate=-1)
    assert error.place.startswith("learning_rate") and error.exit_code == 2, error.place
    assert "output_dir" in str(raises(TypeError, aweigh.align, **SMALL, train=rows))
    raises(ZeroDivisionError, aweigh.align, **{**to, "progress": lambda event: 1 / 0})
    assert '"halt"' in str(raises(ValueError, aweigh.align, **{**to, "progress": lambda event: "halt"}))
    assert raises(aweigh.AweighError, aweigh.align, **to, preset="habbit").exit_code == 2
    assert not os.path.exists("wrong")
    # Settings are checked before rows are written.
    raises(aweigh.AweighError, aweigh.align, **{**to, "output_dir": "new/wrong"}, learning_rate=-1)
    assert not os.path.exists("new")
    assert aweigh.align(**{**to, "max_steps": 1}, overwrite=False)["steps"] == 1


def test_peft_loads_the_adapter(rows):
    try:
        import peft
        import safetensors
    except ImportError:
        return "skipped: peft is not installed"
    summary = aweigh.align(**SMALL, train=rows, output_dir="for-peft")
    config = peft.LoraConfig.from_pretrained(summary["adapter"])
    assert config.r > 0 and config.target_modules
    with safetensors.safe_open(os.path.join(summary["adapter"], "adapter_model.safetensors"), "pt") as file:
        assert any("lora_A" in name for name in file.keys())


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        flagged = [json.loads(line) for line in file][:40]
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            begun = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                before = os.getcwd()
                os.chdir(folder)
                skipped = test(*[flagged] * len(inspect.signature(test).parameters))
                os.chdir(before)
            verdict = skipped or f"ok, {time.monotonic() - begun:.1f} s"
            print(f"{name}  {verdict}", flush=True)
