"""Old names of options in a user's YAML, as overrides with the present names.

The overrides come before those of the command line, which therefore win, and choose whole options
of a group: ``training.schedule: plateau`` in YAML gives the configuration of ``schedule=plateau``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from captioner import parts, renamed
from captioner.overrides import Override, quote

_PLATEAU = ("schedule.factor", "schedule.patience")  # in 0.1 every schedule had them


def old_options(composed: Any) -> dict[str, Any]:
    """The options of the group ``training`` under old names: dotted new key -> (old key, value).

    Args:
        composed: an OmegaConf tree.

    Raises:
        ValueError: the name of an option that exists neither now nor before.
    """
    from omegaconf import OmegaConf

    group = composed.get("training")
    training = OmegaConf.to_container(group) if OmegaConf.is_dict(group) else {}
    assert isinstance(training, dict)
    result: dict[str, Any] = {}
    for name in set(training) - set(renamed.KEPT):
        old = f"training.{name}"
        if old not in renamed.NAMES and not _has_own_objective(composed, training):
            raise _unknown(old)
        new = renamed.NAMES.get(old, f"objective.{name}")
        for path, value in _leaves(training[name]):
            result[new + path] = (old + path, value)
    return dict(sorted(result.items(), key=lambda item: ("." in item[0], item[0])))


def require_one_name(
    options: dict[str, Any], composed: Any, compose_choice: Callable[[str], Any]
) -> None:
    """Refuse a YAML that gives an option different values under its old and its new name.

    Args:
        options: as returned by `old_options`.
        composed: the configuration that has them.
        compose_choice: composes ``group=option`` alone.

    Raises:
        ValueError: names both.
    """
    from omegaconf import OmegaConf

    choices = {key.partition("@")[0]: name for key, name in composed.hydra.runtime.choices.items()}
    for new, (old, value) in options.items():
        group = new.partition(".")[0]
        present = OmegaConf.select(composed, new)
        if new == group or present is None or present == value:
            continue
        if present != OmegaConf.select(compose_choice(f"{group}={choices[group]}"), new):
            raise ValueError(
                f"{old}={value} and {new}={present} are the old and the new name of one option; "
                f"remove {old}"
            )


def translated(options: dict[str, Any], changes: Sequence[Override]) -> list[str]:
    """The overrides that set options under their present names; warns of each old name.

    Args:
        options: as returned by `old_options`.
        changes: overrides of the command line; what they set is left out.
    """
    named = {change.key_or_group for change in changes}
    for new, (old, _) in options.items():
        renamed.warn_of(old, new)
    return [
        f"{new}={value if '.' not in new else _as_typed(value)}"
        for new, (_, value) in options.items()
        if new not in named
    ]


def choices(options: Mapping[str, Any]) -> list[str]:
    """The overrides that choose options of groups, of those in `old_options`."""
    return [f"{new}={value}" for new, (_, value) in options.items() if "." not in new]


def is_unused(key: str, composed: Any) -> bool:
    """Whether an option is one of ``schedule=plateau`` and another schedule is chosen."""
    return key in _PLATEAU and key.partition(".")[2] not in composed.schedule


def deletions(options: dict[str, Any]) -> list[str]:
    """The overrides that delete the old names, as Hydra takes them."""
    return sorted({f"~{'.'.join(old.split('.')[:2])}" for old, _ in options.values()})


def _has_own_objective(composed: Any, training: dict[Any, Any]) -> bool:
    present = (composed.get("objective") or {}).get("name")
    return any(parts.is_own(name) for name in (training.get("objective"), present))


def _unknown(old: str) -> ValueError:
    near = difflib.get_close_matches(old, renamed.NAMES, n=1, cutoff=0.8)
    hint = f" (did you mean {renamed.NAMES[near[0]]}?)" if near else ""
    return ValueError(f"{old} is not an option; training has {', '.join(renamed.KEPT)}{hint}")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{path}.{name}")


def _as_typed(value: Any) -> str:
    """A value of YAML as Hydra reads it in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quote(value) if isinstance(value, str) and "${" not in value else str(value)
