"""Sweeps: a combination that cannot be composed is one job that fails, not the end of all.

Hydra composes each job outside of the job's own function, and gives up the whole sweep where one
cannot be. ``JobLoader`` composes the defaults for it instead, with the reason beside them, so that
the job itself says it: in its turn and under its own name, in whatever process a launcher runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from captioner.config import checked, compose_all

REFUSED = "refused"
"""In the configuration of a job that cannot be composed: why not."""


class Refusals(Callback):
    """Makes Hydra compose the jobs of a sweep by a JobLoader.

    Args:
        config_dir: a folder with options of one's own.
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
    """Hydra's loader, for which a combination that cannot be composed is a job that says why."""

    def __init__(self, config_search_path: Any, config_dir: str | None) -> None:
        super().__init__(config_search_path)
        self.config_dir = config_dir

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        except HydraException as error:
            reason = self._reason(master_config, sweep_overrides) or str(error)
            composed = super().load_sweep_config(master_config, [])
            with open_dict(composed):
                composed[REFUSED] = reason.replace("${", "\\${")
                composed.hydra.job.override_dirname = _name(master_config, sweep_overrides)
            return composed

    def _reason(self, master_config: DictConfig, overrides: Sequence[str]) -> str | None:
        places = [one for one in master_config.hydra.overrides.hydra if "searchpath" in one]
        try:
            compose_all(
                checked([*overrides, *places], config_dir=self.config_dir),
                config_dir=self.config_dir,
            )
        except ValueError as error:
            return str(error)
        return None


def _name(master_config: DictConfig, overrides: Sequence[str]) -> str:
    """The name that Hydra gives a job of these overrides."""
    rules = OmegaConf.to_container(master_config.hydra.job.config.override_dirname)
    assert isinstance(rules, dict)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return get_overrides_dirname(parsed, **{str(key): value for key, value in rules.items()})
