"""Configuration: compose ``conf/``, check values against signatures, suggest near misses.

Hydra composes plain YAML into one plain dict. Every group contains the arguments of one component.
Their names and types are checked against the signature of the component, and then they are passed
as keyword arguments. Nothing in a configuration names code: components are chosen from tables.

Importing this package imports neither torch nor Hydra.
"""

from __future__ import annotations

from captioner.config.composition import (
    checked,
    compose,
    compose_all,
    compose_base,
    override,
    plain,
    to_yaml,
)
from captioner.config.keys import has
from captioner.config.loading import conf_folder, groups, hydra_loader, options
from captioner.config.values import (
    Config,
    arguments,
    check_range,
    make,
    pick,
    require_plain,
    unknown,
    unknown_key,
)

__all__ = [
    "Config",
    "arguments",
    "check_range",
    "checked",
    "compose",
    "compose_all",
    "compose_base",
    "conf_folder",
    "groups",
    "has",
    "hydra_loader",
    "make",
    "options",
    "override",
    "pick",
    "plain",
    "require_plain",
    "to_yaml",
    "unknown",
    "unknown_key",
]
