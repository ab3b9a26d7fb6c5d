"""Sweeps: a combination that cannot be composed is one failed job, not the end of the sweep.

Hydra composes the configuration of a job before it calls the job's function, and stops the whole
sweep if this fails. For such a job ``JobLoader`` composes the defaults and adds the error message.
The job then raises the error itself, under its own number and name, in the process in which the
launcher runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from captioner import old_names
from captioner.config import checked, compose_all, compose_base, has, hydra_loader
from captioner.overrides import Override, quote

REFUSED = "refused"
"""Key of the error message in the configuration of a job that cannot be composed."""


LONGEST = 120
"""Maximum length of a job's name in bytes, without further keys; file systems allow 255."""


class Refusals(Callback):
    """Makes Hydra compose the jobs of a sweep with a JobLoader.

    Args:
        config_dir: a folder with the user's own options.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir

    def on_multirun_start(self, config: DictConfig, **unused: Any) -> None:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        assert isinstance(hydra.config_loader, ConfigLoaderImpl)
        places = hydra.config_loader.config_search_path
        hydra.config_loader = JobLoader(places, self.config_dir)


class JobLoader(ConfigLoaderImpl):
    """Hydra's loader, with two additions: a combination that cannot be composed becomes a job that
    fails, and old names of options in YAML are renamed as for a single run."""

    def __init__(self, config_search_path: Any, config_dir: str | None) -> None:
        super().__init__(config_search_path)
        self.config_dir = config_dir
        self.warn = old_names.WarnOnce()

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        overrides = [old_names.renamed(line, self.warn) for line in sweep_overrides]
        try:
            with suppress(HydraException):
                composed = super().load_sweep_config(master_config, overrides)
                if not old_names.names_in(composed):
                    return composed
            composed = super().load_sweep_config(
                master_config, self._checked(master_config, overrides)
            )
            with open_dict(composed):
                composed.hydra.overrides.task = overrides
        except (HydraException, ValueError) as error:
            composed = super().load_sweep_config(master_config, [])
            with open_dict(composed):
                composed[REFUSED] = str(error).replace("${", "\\${")
        with open_dict(composed):
            composed.hydra.job.override_dirname = _name(master_config, overrides)
        return composed

    def _checked(self, master_config: DictConfig, overrides: Sequence[str]) -> list[str]:
        """The overrides of a job, checked as for a single run: old names in YAML become overrides.

        Raises:
            ValueError: they cannot be composed; the message is one line.
        """
        places = [line for line in master_config.hydra.overrides.hydra if "searchpath" in line]
        changes = checked([*overrides, *places], config_dir=self.config_dir, warn=self.warn)
        compose_all(changes, config_dir=self.config_dir)
        return [str(c.input_line) for c in changes if c.key_or_group != "hydra.searchpath"]


def _name(master_config: DictConfig, overrides: Sequence[str]) -> str:
    """The name that Hydra gives to a job with these overrides."""
    rules = OmegaConf.to_container(master_config.hydra.job.config.override_dirname)
    assert isinstance(rules, dict)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return get_overrides_dirname(parsed, **{str(key): value for key, value in rules.items()})


# Overrides of a sweep -------------------------------------------------------------------------


def sweep_overrides(
    changes: Sequence[Override], config_dir: str | Path | None = None
) -> tuple[list[str], Path]:
    """The overrides that are added to those of a sweep, and the folder of its runs.

    Args:
        changes: overrides, as returned by ``config.checked``.
        config_dir: a folder with the user's own options.

    Returns:
        overrides that set the folder, the names of the jobs and, for a sweeper that searches, that
        the score is maximized; and the folder.

    Raises:
        ValueError: an interval, for a sweeper that accepts only lists.
    """
    hydra = compose_base(changes, config_dir=config_dir).hydra
    named = {change.key_or_group: change for change in changes}
    searches = "direction" in hydra.sweeper
    for change in changes:
        if change.is_sweep_override() and not change.is_discrete_sweep() and not searches:
            raise ValueError(
                f"{change.input_line}: an interval has no list of values to try; write "
                f"{change.key_or_group}=a,b,c, or add hydra/sweeper=optuna, which searches it"
            )
    folder = str(hydra.sweep.dir)
    if "run_dir" in named and "hydra.sweep.dir" not in named:
        folder = str(named["run_dir"].value())
    more = [f"hydra.sweep.dir={quote(folder)}", _names_of_jobs(list(named.values()))]
    own = "null" if config_dir is None else quote(str(config_dir))
    more.append(
        "+hydra.callbacks.refusals={_target_:captioner.training.sweeps.Refusals,config_dir:"
        + own
        + "}"
    )
    if searches and "hydra.sweeper.direction" not in named:
        more.append("hydra.sweeper.direction=maximize")
    return more, Path(folder)


def count_jobs(
    lines: Sequence[str], changes: Sequence[Override], config_dir: str | Path | None = None
) -> int | None:
    """How many jobs a sweep has; None for a search, whose sweeper decides it.

    Args:
        lines: the overrides as Hydra gets them, see `for_each_job`.
        changes: overrides, as returned by ``config.checked``.
        config_dir: a folder with the user's own options.
    """
    sweeper = compose_base(changes, config_dir=config_dir).hydra.sweeper
    if not sweeper._target_.endswith("BasicSweeper"):
        return None
    own = [f"{key}={values}" for key, values in (sweeper.get("params") or {}).items()]
    with hydra_loader() as loader:
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*own, *lines])
        (jobs,) = BasicSweeper.split_arguments(parsed, None)
    return len(jobs)


def for_each_job(changes: Sequence[Override], config_dir: str | Path | None = None) -> list[str]:
    """Overrides as Hydra accepts them in a sweep over groups.

    Before the jobs, Hydra composes the defaults with all overrides that are not sweeps. It refuses
    a key that only another option of a swept group has. Such an override becomes a sweep over one
    value.

    Args:
        changes: overrides, as returned by ``config.checked``.
        config_dir: a folder with the user's own options.
    """
    fixed = [change for change in changes if not change.is_sweep_override()]
    defaults = compose_base(fixed, config_dir=config_dir)
    result = []
    for change in changes:
        line, key = str(change.input_line), change.key_or_group
        sets = not (change.is_add() or change.is_delete())
        absent = "." in key and not key.startswith("hydra") and not has(defaults, key)
        if sets and absent and not change.is_sweep_override():
            line = f"{key}=choice({change.get_value_element_as_str()})"
        result.append(line)
    return result


def _names_of_jobs(changes: Sequence[Override]) -> str:
    """The override that names jobs by the values that differ: no paths, at most LONGEST bytes."""
    left_out, length = [], 0
    for change in changes:
        line = str(change.input_line)
        if change.is_sweep_override() and "/" not in line:
            key = change.get_key_element()
            values = change.sweep_string_iterator() if change.is_discrete_sweep() else ["9" * 20]
            longest = max((len(f"{key}={value},".encode()) for value in values), default=0)
            length += longest
            if length <= LONGEST:
                continue
            length -= longest
        if not change.key_or_group.startswith("hydra"):
            left_out.append(change.key_or_group)
    return f"hydra.job.config.override_dirname.exclude_keys=[{','.join(left_out)}]"
