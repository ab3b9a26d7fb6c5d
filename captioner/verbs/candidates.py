"""Completions of a word on the command line: verbs, flags, files, models, overrides and values.

argcomplete reads the verb's own parser; other completions are found here by the name and
placeholder of the argument. The shell waits for the result, so nothing here imports torch: the
names in a table such as ``CELLS`` are read from its source (``table_names.py``).
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import BaseCompleter
from argcomplete.lexers import split_line

from captioner import config
from captioner.checkpoints import bundle
from captioner.decoding.options import OPTIONS
from captioner.runs import find_runs
from captioner.verbs import VERBS
from captioner.verbs.table_names import METRICS, names_in

TABLES: dict[str, str] = {
    "callbacks.monitor": "training/callbacks.py:MONITORS",
    "data.format": "data/read.py:DATASETS",
    "data.on_bad_image": "data/read.py:ON_BAD_IMAGE",
    "decoder.cell": "models/recurrence/table.py:CELLS",
    "decoder.image": "models/decoders/show_tell.py:IMAGES",
    "decoder.name": "models/decoders/table.py:DECODERS",
    "decoder.positions": "models/decoders/transformer.py:POSITIONS",
    "decoder.score": "models/decoders/attention.py:SCORES",
    "encoder.library": "models/encoders/libraries.py:ENCODERS",
    "encoder.precision": "models/precision.py:PRECISIONS",
    "tokenizer.name": "tokenizers.py:TOKENIZERS",
    "trainer.profiler": "training/trainer.py:PROFILERS",
    "trainer.accelerator": "training/trainer.py:ACCELERATORS",
    "trainer.strategy": "training/trainer.py:STRATEGIES",
    "objective.baseline": "training/objectives/self_critical.py:BASELINES",
    "objective.name": "training/objectives/table.py:OBJECTIVES",
    "schedule.name": "training/schedules.py:SCHEDULES",
    "--metrics": METRICS,
    "SITE": "inspection/states.py:SITES",
    "--tokenize": "metrics/tokenize.py:TOKENIZE",
}
"""Option -> the table of the names that it accepts, as FILE:NAME in this package."""

ACCEPTED = {
    "data": ("data", "tokenizer", "seed"),
    "evaluate": ("data", "decoding", "loader"),
    "models": ("decoding",),
    "states": ("data", "loader"),
}
"""Verb -> the groups and values that it accepts as overrides; other verbs accept all."""


def complete(top: argparse.ArgumentParser) -> None:
    """Print the completions of the word that the shell asks about, and exit.

    Args:
        top: the parser of ``captioner``; once a verb is named, the parser of the verb is used.
    """
    words = _words()
    if not words or words[0] not in VERBS:
        for action in top._actions:
            if action.dest == "verb":
                action.completer = lambda **_: VERBS  # type: ignore[attr-defined]
        answer(top)
    os.environ["_ARGCOMPLETE"] = "2"  # the verb takes the place of the command
    if words[0] == "train":
        answer(_train_parser())
    importlib.import_module(f"captioner.verbs.{words[0]}").run([])


def answer(parser: argparse.ArgumentParser) -> None:
    """Print the completions of the word by this parser, and exit."""
    argcomplete.autocomplete(
        parser, always_complete_options=False, default_completer=_Candidates(_words())
    )


def _words() -> list[str]:
    """The words after ``captioner`` and before the one to be completed."""
    return split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3][1:]


def _train_parser() -> argparse.ArgumentParser:
    """The parser of ``train``: Hydra's, and --plugin."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.add_argument("--plugin", action="append", metavar="MODULE", help="import it first")
    return parser


# Kinds of candidates ----------------------------------------------------------------------------


class _Candidates(BaseCompleter):
    """Completions of an argument without fixed choices, by its flag, placeholder or name."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def __call__(
        self, *, prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_: Any
    ) -> list[str]:
        in_models = self.words[:1] == ["models"] and not action.option_strings
        if in_models and action.dest != _next_of_models(self.words[1:]):
            return []
        if action.dest == "overrides":
            config_dir = getattr(parsed_args, "config_dir", None)
            return overrides(prefix, self.words, config_dir)
        flag = max(action.option_strings, key=len, default="")
        for key in (flag, f"decoding.{action.dest}", action.metavar, action.dest):
            if key in TABLES or key in KINDS:
                return values(str(key), prefix)
        return []


def _next_of_models(words: Sequence[str]) -> str:
    """The argument of ``captioner models`` that follows these words."""
    after_flags = {place + 1 for place, w in enumerate(words) if w in ("--runs", "--plugin")}
    positional = [w for n, w in enumerate(words) if not w.startswith("-") and n not in after_flags]
    if positional[:1] != ["export"]:
        return "job"
    return ("run", "folder", "overrides")[min(len(positional), 3) - 1]


def values(option: str, prefix: str) -> list[str]:
    """Completions of a value; of several separated by commas, of the last.

    Args:
        option: the option, flag or placeholder.
        prefix: the value so far.
    """
    before, comma, last = prefix.rpartition(",")
    names = names_in(TABLES[option]) if option in TABLES else KINDS[option](last)
    return [f"{before}{comma}{name}" for name in names]


def models(prefix: str) -> list[str]:
    """Bundled models, run folders in runs/, and folders and checkpoints."""
    known = _runs()
    found = (path for path in paths(prefix, (".ckpt",)) if path.rstrip("/") not in known)
    return [*bundle.names(), *known, *found]


def models_or_tables(prefix: str) -> list[str]:
    """What ``models`` completes, and safetensors files."""
    found = models(prefix)
    return [*found, *(path for path in paths(prefix, (".safetensors",)) if path not in found)]


def resumable(prefix: str) -> list[str]:
    """Run folders in runs/, and folders: models with an optimizer to continue with."""
    known = _runs()
    return [*known, *(path for path in folders(prefix) if path.rstrip("/") not in known)]


def _runs() -> list[str]:
    return [str(folder) for folder in find_runs(Path("runs"))]


def folders(prefix: str) -> list[str]:
    """Folders that begin with `prefix`."""
    return paths(prefix, ())


def paths(prefix: str, suffixes: tuple[str, ...] = ("",)) -> list[str]:
    """Folders that begin with `prefix`, each with a slash, and files with one of the suffixes."""
    folder, slash, start = prefix.rpartition("/")
    try:
        entries = list(os.scandir(os.path.expanduser(folder + slash) or "."))
    except OSError:
        return []
    visible = [entry for entry in entries if start or not entry.name.startswith(".")]
    names = [f"{entry.name}/" for entry in visible if entry.is_dir()]
    names += [e.name for e in visible if not e.is_dir() and e.name.endswith(suffixes)]
    return [f"{folder}{slash}{name}" for name in sorted(names)]


def _choices(option: str) -> Callable[[str], list[str]]:
    return lambda prefix: list(OPTIONS[option].choices)


KINDS: dict[str, Callable[[str], list[str]]] = {
    **{f"decoding.{name}": _choices(name) for name, option in OPTIONS.items() if option.choices},
    **dict.fromkeys(("RUN", "resume_weights"), models),
    "RUN_OR_FILE": models_or_tables,
    "resume": resumable,
    **dict.fromkeys(("FILE", "REFERENCES", "PATH"), paths),
    **dict.fromkeys(("data.captions", "training.word_vectors"), paths),
    **dict.fromkeys(("FOLDER", "config_dir", "run_dir", "data.root", "data.images"), folders),
    "loader.cache_folder": folders,
    "trainer.precision": lambda prefix: ["auto", "32-true", "bf16-mixed", "16-mixed"],
    "device": lambda prefix: ["auto", "cpu", "cuda", "mps"],
}
"""Placeholder, argument or option -> the function that completes it."""


# Overrides --------------------------------------------------------------------------------------


def overrides(prefix: str, words: Sequence[str], config_dir: str | None = None) -> list[str]:
    """Completions of an override.

    Args:
        prefix: the word so far.
        words: those before it; the groups chosen in them decide which options exist.
        config_dir: a folder with the user's own options, see ``train --config-dir``.
    """
    key, equals, value = prefix.partition("=")
    if equals:
        return [f"{key}={text}" for text in _complete_value(key, value, words, config_dir)]
    composed = _composed(words, config_dir)
    accepted = ACCEPTED.get(words[0], ()) if words else ()
    options = {k: v for k, v in composed.items() if not accepted or k in accepted}
    if "." in key:
        return [f"{name}=" for name in _leaves(options)]
    groups = [name for name in config.groups(config_dir) if not accepted or name in accepted]
    within = [f"{name}." for name, value in options.items() if isinstance(value, dict)]
    single = [f"{name}=" for name, value in options.items() if not isinstance(value, dict)]
    return [*(f"{name}=" for name in groups), *within, *single]


def _complete_value(
    key: str, prefix: str, words: Sequence[str], config_dir: str | None
) -> list[str]:
    if key in config.groups(config_dir):
        before, comma, _ = prefix.rpartition(",")
        return [f"{before}{comma}{name}" for name in config.options(key, config_dir)]
    if key in TABLES or key in KINDS:
        return values(key, prefix)
    now = _leaves(_composed(words, config_dir)).get(key)
    if isinstance(now, bool):
        return ["true", "false"]
    return [str(now)] if isinstance(now, (int, float, str)) and now != "" else []


def _composed(words: Sequence[str], config_dir: str | None) -> dict[str, Any]:
    """The configuration with the groups of the command line; the default if they do not fit."""
    groups = config.groups(config_dir)
    choices = [word for word in words if word.partition("=")[0] in groups and "," not in word]
    try:
        return config.compose(choices, config_dir=config_dir)
    except ValueError:
        return config.compose()


def _leaves(composed: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    leaves: dict[str, Any] = {}
    for name, value in composed.items():
        inner = isinstance(value, dict)
        leaves |= _leaves(value, f"{group}{name}.") if inner else {f"{group}{name}": value}
    return leaves
