"""Run all benchmarks one after the other; write the numbers to one file and tables next to it.

    python experiments/benchmarks/run_all.py --flickr8k ~/flickr8k --output mine.json

First a model is trained on Flickr8k with an empty feature cache, for the benchmarks that need a
model; --run uses a trained one. All benchmarks take about 30 minutes on two otherwise idle cores.
The file is written after every part, and parts that are not measured again are kept:

    python experiments/benchmarks/run_all.py --flickr8k ~/flickr8k --output mine.json --only scoring
    python experiments/benchmarks/run_all.py --flickr8k ~/flickr8k --output mine.json \\
        --run runs/quick --only decoding pictures --threads 1 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from paired import HERE, format_table, positive, run_guarded

from captioner.files import write_whole

FILES = ("Flickr8k.token.txt", "Flickr_8k.trainImages.txt", "Flickr_8k.devImages.txt")


class Script(NamedTuple):
    """A benchmark."""

    arguments: tuple[str, ...]
    threads: tuple[int, ...] = (1, 2)
    """Default numbers of threads."""
    rounds: bool = True
    """Whether it has the options --rounds and --threads."""
    keeps_memory: bool = False
    """Whether freed memory is kept, for both sides."""
    needs: str = ""
    """A module or program that it requires."""


ROOT, RUN = "ROOT", "RUN"
SCRIPTS = {
    "whole_training": Script((ROOT, "--run-dir", RUN), (os.cpu_count() or 1,), rounds=False),
    "recurrence": Script(("--flickr8k", ROOT), keeps_memory=True),
    "training_step": Script(("--flickr8k", ROOT), keeps_memory=True),
    "decoding": Script((RUN,)),
    "pictures": Script((RUN, ROOT)),
    "first_caption": Script((ROOT,)),
    "growth": Script((ROOT,), (1,), rounds=False, needs="matplotlib"),
    "scoring": Script(("--flickr8k", ROOT), (1,), needs="java"),
}


def make_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--flickr8k", type=Path, metavar="FOLDER", required=True, help="the folder of Flickr8k"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", required=True)
    parser.add_argument("--run", type=Path, metavar="RUN", help="a run folder of flickr8k_quick")
    parser.add_argument(
        "--only", nargs="+", choices=list(SCRIPTS), metavar="NAME", help=", ".join(SCRIPTS)
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=positive,
        help="for scripts with rounds; default 1 and 2",
    )
    parser.add_argument("--rounds", type=positive, help="1 for a quick test")
    return parser


def main() -> None:
    options = make_arguments().parse_args()
    root, output = options.flickr8k.expanduser().resolve(), options.output.expanduser().resolve()
    if options.run and "whole_training" in (options.only or ()):
        raise ValueError("whole_training creates a run folder; omit --run")
    run = options.run or Path(f"runs/benchmarks-{datetime.now():%Y%m%d-%H%M%S}")
    names = [name for name in SCRIPTS if name in (options.only or SCRIPTS)]
    if options.run and not options.only:
        names.remove("whole_training")  # --run gives the model
    check_input(names, root, options.run, output)
    parts, failed = read_parts(output), []
    work = [
        (name, threads)
        for name in names
        for threads in (SCRIPTS[name].rounds and options.threads) or SCRIPTS[name].threads
    ]
    for number, (name, threads) in enumerate(work, 1):
        title = f"{name}, {threads} thread{'s' * (threads > 1)}"
        print(f"[{number}/{len(work)}] {title}", file=sys.stderr, flush=True)
        places = {ROOT: str(root), RUN: str(run.expanduser().resolve())}
        values = [places.get(argument, argument) for argument in SCRIPTS[name].arguments]
        if options.rounds and SCRIPTS[name].rounds:
            values += ["--rounds", str(options.rounds)]
        part = measure(name, threads, values, output)
        if part is None:
            failed.append(title)
            continue
        parts[title] = part
        whole = {"benchmarks": {t: parts[t] for t in sorted(parts, key=sort_key)}}
        write_whole(output, json.dumps(whole, indent=2) + "\n")
        write_whole(output.with_suffix(".md"), format_page(whole))
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; see above, and repeat them with --only")


def check_input(names: list[str], root: Path, run: Path | None, output: Path) -> None:
    """Check all input before the first benchmark starts."""
    for file in FILES:
        if not (root / file).is_file():
            raise ValueError(f"{root}: contains no {file}; --flickr8k is the folder of the dataset")
    if run and not (run.expanduser() / "checkpoints").is_dir():
        raise ValueError(f"{run}: not a run folder; --run is a folder created by captioner train")
    if not next(root.glob("*/*.jpg"), None):
        raise ValueError(f"{root}: contains no folder of .jpg files; put the photographs there")
    if not run and "whole_training" not in names:
        needing = [name for name in names if RUN in SCRIPTS[name].arguments]
        if needing:
            raise ValueError(f"{needing[0]} needs a model; name a run folder with --run")
    if output.suffix != ".json" or not output.parent.is_dir():
        raise ValueError(f"{output}: --output must be a .json file in an existing folder")
    for needs in filter(None, (SCRIPTS[name].needs for name in names)):
        if not (find_spec(needs) or shutil.which(needs)):
            raise ValueError(
                f"{needs} is not installed; install java and: pip install -e '.[test]'"
            )


def read_parts(output: Path) -> dict[str, Any]:
    """Read the parts that are in the file already."""
    if not output.exists():
        return {}
    try:
        return dict(json.loads(output.read_text(encoding="utf-8"))["benchmarks"])
    except (ValueError, LookupError, TypeError):
        raise ValueError(
            f"{output}: is not an output file of this script; choose another"
        ) from None


def measure(name: str, threads: int, values: list[str], output: Path) -> dict[str, Any] | None:
    """Run a script in a new process and return its results; None if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("CAPTIONER_KEEP_MEMORY", None)
    if SCRIPTS[name].keeps_memory:
        environment["CAPTIONER_KEEP_MEMORY"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        command = [sys.executable, str(HERE / f"{name}.py"), *values]
        done = subprocess.run(
            [*command, "--threads", str(threads), "--json", str(path)], env=environment
        )
        if done.returncode:
            return None
        for figure in path.parent.glob("*.svg"):
            write_whole(output.with_name(f"{output.stem}_{figure.name}"), figure.read_text())
        return dict(json.loads(path.read_text(encoding="utf-8")))


def sort_key(title: str) -> tuple[int, str]:
    """Sort parts in the order of SCRIPTS."""
    name = title.partition(",")[0]
    return list(SCRIPTS).index(name) if name in SCRIPTS else len(SCRIPTS), title


def format_page(whole: Mapping[str, Any]) -> str:
    """All tables in Markdown, each with its conditions."""
    lines = ["# Benchmarks"]
    for title, part in whole["benchmarks"].items():
        rows, about = format_table(part["rows"]), format_about(part["about"])
        lines += ["", f"## {title}", "", rows, "", about]
    return "\n".join(lines) + "\n"


def format_about(about: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in about.items()) + "."


if __name__ == "__main__":
    run_guarded(main)
