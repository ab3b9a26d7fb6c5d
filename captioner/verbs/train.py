"""Train a model: a Hydra application."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captioner.verbs.terminal import print_table, short


def run(argv: Sequence[str]) -> int:
    """A Hydra application: its flags and overrides, see ``captioner train --help``."""
    import hydra

    from captioner import config

    flags = [one for one in argv if one.startswith("-")]
    querying = any(flag in ("-sc", "--shell-completion", "-h", "--help") for flag in flags)
    multirun = any(flag in ("-m", "--multirun") for flag in flags)
    overrides = [one for one in argv if "=" in one and not one.startswith("-")]
    ready = list(argv)
    if not querying:
        fixed = config.checked(overrides)
        ready = [one for one in argv if one not in overrides] + fixed
        ready += _resume_folder(fixed)
        if multirun:
            ready.append(_names_of_runs(fixed))
    sys.argv = ["captioner train", *ready]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises; the command line says it in one line
    failures: list[Exception] = []

    def job(composed: Any) -> float:
        try:
            return _train_job(composed)
        except Exception as error:
            if multirun:
                raise  # Hydra goes on with the others
            failures.append(error)  # past Hydra, which would say more than one line about it
            return math.nan

    hydra.main(str(config.conf_folder()), "config", version_base="1.3")(job)()
    if failures:
        raise failures[0]
    return 0


def _resume_folder(overrides: Sequence[str]) -> list[str]:
    """A resumed run goes on in its own folder."""
    runs = [one.partition("=")[2] for one in overrides if one.startswith("resume=")]
    if not runs or runs[-1] in ("null", ""):
        return []

    from captioner import checkpoint

    return [f"run_dir={checkpoint.run_folder(checkpoint.find(runs[-1], name=checkpoint.LAST))}"]


def _names_of_runs(overrides: Sequence[str]) -> str:
    """Runs of a sweep are named by what differs between them, if that is not a path."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    left_out = [
        one.key_or_group
        for one in parsed
        if not one.is_sweep_override() or "/" in (one.input_line or "")
    ]
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(left_out)}]"


def _train_job(composed: Any) -> float:
    """One training run; returns the monitored score to sweepers."""
    from hydra.core.hydra_config import HydraConfig

    from captioner.config import plain

    config = plain(composed)
    folder = _run_folder(HydraConfig.get(), config["run_dir"])
    return _train(config, folder, list(HydraConfig.get().overrides.task))


def _run_folder(hydra: Any, run_dir: Any) -> Path:
    """The folder of this run: run_dir, or Hydra's for a job of a sweep and for hydra.run.dir."""
    output = Path(hydra.runtime.output_dir)
    if output != Path.cwd():
        return output
    if not isinstance(run_dir, str) or not run_dir.strip():
        raise ValueError(f"run_dir={run_dir!r} is not accepted; name a folder, or leave it out")
    return Path(run_dir)


def _train(config: dict[str, Any], folder: Path, overrides: Sequence[str]) -> float:
    from captioner import checkpoint
    from captioner.config import override
    from captioner.training import inherit, train

    resume = None
    if config["resume"] is not None:
        if any(one.partition("=")[0] == "resume_weights" for one in overrides):
            raise ValueError("resume and resume_weights exclude each other; give one of them")
        resume = checkpoint.find(config["resume"], name=checkpoint.LAST)
        kept = [o for o in overrides if o.partition("=")[0] not in ("resume", "run_dir")]
        config = override(checkpoint.read(resume).config, kept)
        folder = checkpoint.run_folder(resume)
    else:
        config = inherit(config, overrides)
    run = train(config, folder, resume=resume)
    if run.scores:
        print_table(
            f"dev scores of the best checkpoint, epoch {run.epoch}",
            {name: f"{value:.2f}" for name, value in run.scores.items()},
        )
    else:
        print(
            "no dev scores: no validation took place (trainer.check_val_every_n_epoch, "
            "trainer.limit_val_batches); the last checkpoint is taken for the best"
        )
    print(
        f"ended            {run.ending}\n"
        f"run folder       {short(run.folder)}\n"
        f"best checkpoint  {short(run.best)}"
    )
    return run.score
