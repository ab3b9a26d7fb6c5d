"""Parsers, tables and messages for all verbs."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from captioner.process import printable
from captioner.verbs.table_names import METRICS, names_in


def fail(message: str, status: int = 1) -> int:
    """Print an error as one line and return the exit status."""
    print("captioner: error: " + printable(" ".join(message.split())), file=sys.stderr)
    return status


def warn(message: str) -> None:
    """Print a warning as one line."""
    print("captioner: warning: " + printable(" ".join(message.split())), file=sys.stderr)


def note(message: str) -> None:
    """Print a note as one line."""
    print("captioner: note: " + printable(message), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser with one-line errors and tab completion; expands ``~/`` if the shell does not.

    Attributes:
        decodes: whether the options of decoding are overrides, ``decoding.beam_size=3``; then they
            are suggested for flags such as ``--beam-size``.
    """

    decodes = False
    _words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        """Print what is wrong as one line and exit with status 2."""
        unknown = re.match(r"unrecognized arguments: --([\w-]+)(?:[= ](\S+))?", message)
        if self.decodes and unknown:
            from captioner.decoding.options import OPTIONS

            name = unknown[1].replace("-", "_")
            if name in OPTIONS:
                override = shlex.quote(f"decoding.{name}={unknown[2] or '...'}")
                message = f"--{unknown[1]} is not a flag; write {override}"
        files = [word for word in self._words if word[:1] == "-" and os.path.lexists(word)]
        if files:
            message = f"{files[0]} begins with -; write {shlex.quote(f'./{files[0]}')}"
        flags = [flag for action in self._actions for flag in action.option_strings]
        usage_error(self.prog, message, flags)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_args(self._prepared(args), namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_intermixed_args(self._prepared(args), namespace)

    def _add_action(self, action: Any) -> Any:
        if action.nargs == "*":
            action.required = False  # otherwise argparse lists it as missing
        return super()._add_action(action)

    def _prepared(self, args: Sequence[str] | None) -> list[str]:
        if "_ARGCOMPLETE" in os.environ:
            from captioner.verbs.candidates import answer

            answer(self)
        # bash does not expand `--output=~/x`, zsh does not expand a completed path
        home = os.path.expanduser("~").replace("\\", r"\\")
        words = sys.argv[1:] if args is None else args
        expanded = [re.sub(r"^(--[\w-]+=)?~(?=/|$)", rf"\g<1>{home}", word) for word in words]
        self._words = expanded
        return expanded


def usage_error(program: str, message: str, flags: Sequence[str] = ()) -> NoReturn:
    """Print what is wrong with a command line as one line, and exit with status 2.

    Args:
        program: as typed, such as "captioner caption".
        message: of argparse, or another.
        flags: that exist; the nearest one is suggested for one that does not.
    """
    verb = program.removeprefix("captioner").strip()
    prefix = f"{verb} " if verb and message.startswith("argument ") else f"{verb}: " if verb else ""
    sys.exit(fail(f"{prefix}{_plain_usage(message, flags)}; see {program} --help", 2))


def _plain_usage(message: str, flags: Sequence[str]) -> str:
    """An error of argparse in the words of the other errors."""
    from captioner.config.values import near_miss

    for pattern, replacement in _USAGE:
        message = re.sub(pattern, replacement, message, flags=re.DOTALL)
    choice = re.search(r"'([^']*)' is not known; choose (.*)", message)
    if choice:
        names = [name.strip("'\"") for name in choice[2].split(", ")]
        return f"{message[: choice.start(2)]}{', '.join(names)}{near_miss(choice[1], names)}"
    unknown_flag = re.fullmatch(r"(-[^\s=]*)\S* is not an option", message)
    return message + (near_miss(unknown_flag[1], flags) if unknown_flag else "")


_USAGE = (
    (r"^argument ", ""),
    (r"invalid int value: ('.*')$", r"\1 is not a whole number"),
    (r"invalid float value: ('.*')$", r"\1 is not a number"),
    (r"invalid choice: ('.*') \(choose from (.*)\)$", r"\1 is not known; choose \2"),
    (r"expected (?:one|at least one) argument$", "needs a value"),
    (r"ignored explicit argument '.*'$", "takes no value"),
    (r"^the following arguments are required: (.*)$", r"\1 is missing"),
    (r"^unrecognized arguments: (-\S+).*$", r"\1 is not an option"),
    (r"^unrecognized arguments: (.*)$", r"\1: not expected here"),
    (r"^ambiguous option: (\S+) could match (.*)$", r"\1 may be \2; write it in full"),
)
"""A pattern for a message of argparse, and the message that replaces it."""


def build_parser(verb: str, description: str, examples: str) -> Parser:
    """The parser of a verb, with examples below the options."""
    return Parser(
        prog=f"captioner {verb}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add --metrics; see ``parse_metrics``."""
    parser.add_argument(
        "--metrics",
        metavar="A,B",
        help=f"of {', '.join(names_in(METRICS))}, or their scores, such as BLEU-4 (default all)",
    )


def add_split(parser: argparse.ArgumentParser, help: str) -> None:
    """Add --split."""
    parser.add_argument("--split", choices=("train", "dev", "test"), help=help)


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add --plugin, for every verb that loads models; see ``plug_in``."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import package.module, which defines classes of your own that the model uses",
    )


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Add --config-dir, for every verb that takes overrides."""
    parser.add_argument(
        "--config-dir", metavar="FOLDER", help="folder with options of your own, as for train"
    )


def plug_in(options: argparse.Namespace) -> None:
    """Import the modules of ``--plugin``."""
    from captioner import parts

    for module in options.plugin:
        parts.plug_in(module)


def parse_metrics(names: str | None) -> list[str]:
    """The metrics of a comma-separated list, or all; an unknown name raises a ValueError."""
    from captioner.metrics import table

    wanted = list(table.METRICS) if names is None else [name.strip() for name in names.split(",")]
    table.named(wanted)
    return wanted


def print_table(title: str, rows: dict[str, str]) -> None:
    """Print names and values under a title."""
    from captioner.verbs.printing import print_rows

    print(title)
    print_rows(list(rows.items()), right=(1,))


def print_json(value: Any) -> int:
    """Print plain data as JSON; returns exit status 0."""
    from captioner.files import to_json

    print(to_json(value, indent=2))
    return 0


def short(path: Path) -> str:
    """A path to print, relative to the current folder if it is in it."""
    try:
        return printable(str(path.resolve().relative_to(Path.cwd())))
    except ValueError:
        return printable(str(path))


def wrote(path: str | Path, created: Path | None = None) -> str:
    """The message about a file that was written.

    Args:
        path: the file.
        created: a folder that was created for it, see ``new_folder``.
    """
    return f"wrote {short(Path(path))}" + (f" (made the folder {created})" if created else "")


TEXTS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", "")
PAGES = (".html", ".htm")


def require_output(
    path: str | Path | None, suffixes: Sequence[str], inputs: Iterable[str | Path] = ()
) -> None:
    """Refuse to replace a file that is something else, before the work starts.

    Args:
        path: of the file to write; None: nothing is written.
        suffixes: that the file may have, in lower case; with TEXTS a new file may have any.
        inputs: files that the command reads.

    Raises:
        ValueError: the file is one of the inputs, or has another suffix.
    """
    if path is None or (Path(path).exists() and not Path(path).is_file()):
        return
    names = ", ".join(suffix for suffix in suffixes if suffix)
    fits = Path(path).suffix.lower() in suffixes
    if not Path(path).exists():
        if not fits and suffixes is not TEXTS:
            raise ValueError(f"{path} would not be a file of this kind; choose a name with {names}")
        return
    if any(Path(given).exists() and os.path.samefile(path, given) for given in inputs):
        raise ValueError(f"{path} is read by this command; write to another file")
    if not fits:
        raise ValueError(
            f"{path} exists, and only a file that ends in {names} would be replaced; choose "
            "another name"
        )


def new_folder(path: str | Path | None) -> Path | None:
    """The topmost folder that writing a file will create outside the current folder."""
    if path is None:
        return None
    missing = [folder for folder in Path(os.path.abspath(path)).parents if not folder.exists()]
    return missing[-1] if missing and not missing[-1].is_relative_to(Path.cwd()) else None
