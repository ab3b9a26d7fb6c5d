"""What the scripts of the experiments share: the commit, and runs that are made once.

A finished training is not repeated and an interrupted one is resumed; an evaluation that exists is
not repeated. So a script can be stopped and started again at any time. A script in a folder of its
own imports this file after

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from captioner.runs import LAST, checkpoint_file, find_evaluation, has_ended

HERE = Path(__file__).resolve().parent


def commit() -> str:
    """The commit, with a + if the code has changes that are not committed; or unknown."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:  # no git
            return ""

    name = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--", ":/captioner", ":/conf", ":/experiments/*.py")
    return f"{name}{'+' if changed else ''}" if name else "unknown"


def call(*arguments: str) -> None:
    """Run the command captioner, and exit as it did if it failed."""
    print("captioner", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "captioner", *arguments])
    if done.returncode:
        raise SystemExit(done.returncode)


def trained(run: Path, overrides: Sequence[str]) -> Path:
    """A run folder, trained or resumed if its training is not finished.

    Args:
        run: the folder.
        overrides: of `captioner train`, without run_dir.
    """
    if not has_ended(run):
        started = checkpoint_file(run, LAST).is_file()
        call("train", *([f"resume={run}"] if started else [*overrides, f"run_dir={run}"]))
    return run


def evaluation(run: Path, split: str, label: str | None = None) -> Path | None:
    """The newest evaluation of a run; None if there is none.

    Args:
        run: the folder.
        split: of the data.
        label: of the decoding, such as beam3-lp0.7; None: any.
    """
    try:
        return find_evaluation(run, split=split, decoding=label)
    except FileNotFoundError:
        return None


def evaluate(
    run: Path,
    split: str,
    decoding: str | None = None,
    label: str | None = None,
    metrics: str | None = None,
) -> None:
    """Evaluate a run, if this was not done yet.

    Args:
        run, split, label: as for ``evaluation``.
        decoding: its name in conf/decoding; None: that of the run.
        metrics: as for `captioner evaluate`; None: all.
    """
    if evaluation(run, split, label) is None:
        own = [] if decoding is None else [f"decoding={decoding}"]
        own += [] if metrics is None else ["--metrics", metrics]
        call("evaluate", str(run), f"data.split={split}", *own)
