"""Aligns small language models away from flagged answers, on any GPU, without CUDA.

    import aweigh

    run = aweigh.align(model="HuggingFaceTB/SmolLM2-135M-Instruct", train="flagged.jsonl", output_dir="run")
    model = aweigh.Model("HuggingFaceTB/SmolLM2-135M-Instruct", adapter=run["adapter"])
    print(model.generate("Who are you?", temperature=0))

Settings are the flags of the program, with underscores: ``aweigh align --help`` lists them. The program
itself is installed too: ``aweigh`` or ``python -m aweigh``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

if sys.platform == "linux" and "XDG_RUNTIME_DIR" not in os.environ:
    # Without a desktop session, Mesa's device-select layer looks for Wayland and prints errors about it.
    os.environ.setdefault("NODEVICE_SELECT", "1")

from . import _aweigh
from ._aweigh import AweighError, __version__

__all__ = ["AweighError", "Model", "align", "devices", "generate", "main", "score", "show", "__version__"]


def _flags(settings: dict[str, Any], switches: tuple[str, ...] = ()) -> list[str]:
    """The settings as flags: ``max_steps=5`` becomes ``--max-steps=5``. None leaves a setting out, and so
    does False for a switch, a flag without a value.
    """
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if name in switches and value is False:
            continue
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append(flag + "=false")
        elif isinstance(value, (list, tuple)):
            flags.append(flag + "=" + ",".join(str(part) for part in value))
        elif value is not None:
            flags.append(f"{flag}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    return flags


def _jsonl(rows: Iterable[dict]) -> str:
    """Rows as JSON Lines: dictionaries, or a Dataset of them."""
    return "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)


def _is_path(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike))


def _beside(output_dir: Any, name: str) -> Path:
    """Where rows that are given as a list are written, so that a run can be resumed and repeated."""
    if output_dir is None:
        raise TypeError(f"{name} is a list of rows, which are kept beside output_dir: give output_dir")
    folder = Path(output_dir).absolute()
    return folder.with_name(f"{folder.name}.{name}.jsonl")


def _write_rows(path: Path, rows: Iterable[dict], overwrite: bool) -> None:
    text = _jsonl(rows).encode()
    if path.exists() and not overwrite and path.read_bytes() != text:
        raise FileExistsError(f"{path} has other rows: remove it, give another output_dir, or overwrite=True")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(text)
    part.replace(path)


def show(event: dict[str, Any]) -> None:
    """The default for ``progress``: prints the phases, held-out metrics and notes of a run to stderr."""
    kind, text = event["event"], None
    if kind == "loaded":
        why = f" ({event['why']})" if event["why"] else ""
        size = f"{event['parameters']:,} parameters"
        text = f"GPU {event['gpu']}, {event['backend']}{why}; model {event['model']}, {size}"
    elif kind == "phase":
        text = f"{event['phase']}: {event['total']}"
    elif kind == "evaluation":
        metrics = event["metrics"]
        step = metrics.get("global_step", 0)
        names = ["eval_completions/unwanted", "eval_rewards/margins", "eval_perplexity"]
        shown = [f"{name.removeprefix('eval_')} {metrics[name]:.3f}" for name in names if name in metrics]
        text = f"held-out at step {step:.0f}: " + "  ".join(shown)
    elif kind == "note":
        text = event["text"]
    if text:
        print(text, file=sys.stderr, flush=True)


def align(
    *, progress: Callable[[dict[str, Any]], str | None] | None = show, **settings: Any
) -> dict[str, Any]:
    """Aligns a model and returns summary.json's content as a dictionary.

    ``settings`` are the flags of ``aweigh align`` with underscores: at least ``model``, ``train`` and
    ``output_dir``, or ``resume`` alone. ``train`` and ``eval`` may also be lists of rows (dictionaries in one
    of TRL's forms, or a Dataset of them); they are written beside ``output_dir`` as
    ``OUTPUT_DIR.train.jsonl``.

    The result also has ``output_dir`` and ``adapter`` (or ``model``, with ``full=True``): the folder of the
    trained weights, which PEFT (or transformers) loads.

    ``progress`` is called with dictionaries whose ``event`` is "plan", "loaded", "resumed", "phase",
    "progress", "step", "evaluation" or "note". It may return "finish", which ends the run with its best
    state, or "stop", which ends it so that ``align(resume=output_dir)`` continues. Ctrl-C does the same as
    "stop". Warnings are given through ``warnings``.

    Raises AweighError for invalid values and files and for failures of the GPU, TypeError for settings that
    do not exist, KeyboardInterrupt if the run was stopped.
    """
    lists = {name: settings[name] for name in ("train", "eval") if settings.get(name) is not None}
    lists = {name: rows for name, rows in lists.items() if not _is_path(rows)}
    for name in lists:
        settings[name] = _beside(settings.get("output_dir"), name)
    flags = _flags(settings, switches=("overwrite",))
    if lists:
        _aweigh.check(flags)
    for name, rows in lists.items():
        _write_rows(settings[name], rows, bool(settings.get("overwrite")))

    def told(text):
        event = json.loads(text)
        if event["event"] == "warning":
            warnings.warn(event["text"], stacklevel=3)
            return None
        return progress(event) if progress else None

    return json.loads(_aweigh.align(flags, told))


class Model:
    """A model on the GPU, with or without an adapter.

    ``model`` is what ``aweigh generate --model`` takes: a directory, a GGUF file, a name on the Hub or
    "tiny". ``settings`` are the other flags of ``aweigh generate`` for the model and the GPU, with
    underscores: ``chat_template``, ``quantize``, ``offload``, ``gpu``, ``backend``, ``precision``,
    ``no_tuning``.
    """

    def __init__(self, model: str | os.PathLike, adapter: Any = None, **settings: Any) -> None:
        settings = {"model": model, "adapter": adapter, **settings}
        self._native = _aweigh.Model(_flags(settings, switches=("offload", "no_tuning")))

    @property
    def gpu(self) -> str:
        """The GPU's name."""
        return self._native.gpu

    def generate(self, prompts: Any, *, raw: bool = False, details: bool = False, **settings: Any) -> Any:
        """Answers one prompt, or a list of prompts, which are decoded together.

        A prompt is a text (a user's message; with ``raw=True`` plain text without the chat template) or a
        list of messages. ``settings`` are the flags of ``aweigh sample`` for sampling: ``temperature``,
        ``top_p``, ``top_k``, ``repetition_penalty``, ``max_new_tokens``, ``seed``,
        ``num_samples``, ``max_prompt_length``, and ``system``, a system message.

        Returns the answer as a text, or a list of them; with ``num_samples`` above 1 a list for each prompt.
        ``details=True`` returns dictionaries with ``completion``, ``num_tokens`` and ``ended`` instead.
        """
        if isinstance(prompts, (str, Mapping)):
            prompts, single = [[prompts] if isinstance(prompts, Mapping) else prompts], True
        else:
            prompts = list(prompts)
            single = bool(prompts) and all(isinstance(part, dict) for part in prompts)
            prompts = [prompts] if single else prompts
        chat = [{"role": "user", "content": p} if isinstance(p, str) and not raw else p for p in prompts]
        rows = [{"prompt": [p] if isinstance(p, dict) else p} for p in chat]
        if not rows:
            return []
        answers = [json.loads(text) for text in self._native.generate(_jsonl(rows), _flags(settings))]
        if not details:
            answers = [[answer["completion"] for answer in each] for each in answers]
        if settings.get("num_samples") in (None, 1):
            answers = [each[0] for each in answers]
        return answers[0] if single else answers

    def score(self, rows: Any, *, max_tokens_per_batch: int | None = None) -> list[dict[str, Any]]:
        """Log-probs of given answers, as ``aweigh score`` computes them.

        ``rows`` are dictionaries in one of TRL's forms, a Dataset of them, or the path of a JSONL file.
        Returns the rows that have answers, each with ``logp`` (in nats) and ``num_tokens``, or
        ``chosen_logp`` and the like for pairs.
        """
        flags = _flags({"max_tokens_per_batch": max_tokens_per_batch})
        given = (None, rows) if _is_path(rows) else (_jsonl(rows), None)
        return [json.loads(line) for line in self._native.score(*given, flags)]


def generate(model: str | os.PathLike, prompts: Any, *, adapter: Any = None, **settings: Any) -> Any:
    """``Model(model, adapter).generate(prompts, **settings)``: opens the model for this call."""
    return Model(model, adapter).generate(prompts, **settings)


def score(
    model: str | os.PathLike, rows: Any, *, adapter: Any = None, **settings: Any
) -> list[dict[str, Any]]:
    """``Model(model, adapter).score(rows, **settings)``: opens the model for this call."""
    return Model(model, adapter).score(rows, **settings)


def devices() -> list[dict[str, Any]]:
    """The GPUs and software adapters of this machine, as ``aweigh devices --json`` lists them."""
    return json.loads(_aweigh.devices())


def main() -> None:
    """Runs the program ``aweigh`` with ``sys.argv`` and exits with its code."""
    sys.exit(_aweigh.main(["aweigh", *sys.argv[1:]]))
