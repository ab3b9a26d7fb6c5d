"""Options, values, flags and verbs in messages and help texts exist."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner import config
from captioner.decoding.options import OPTIONS
from captioner.verbs import VERBS, candidates

PACKAGE = Path(config.__file__).parents[1]
ELSEWHERE = {"data.split"}  # of evaluate, which adds it to the group
HYDRAS = {"--cfg", "--config-dir", "--help", "--hydra-help", "--multirun", "--shell-completion"}


def texts() -> Iterator[tuple[str, str]]:
    """Location and text of every string in the package; replacement fields are NUL."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if isinstance(node, ast.JoinedStr) or isinstance(getattr(node, "value", None), str):
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "\0" for part in parts
                )
                yield f"{path.name}:{getattr(node, 'lineno', 0)}", text


@pytest.fixture(scope="module")
def leaves() -> dict[str, object]:
    """Every value of every option of every group, by its dotted key."""
    import yaml

    leaves: dict[str, object] = candidates._leaves(config.compose())
    for group in config.groups():
        for file in (config.conf_folder() / group).glob("*.yaml") if group != "experiment" else ():
            leaves |= candidates._leaves(yaml.safe_load(file.read_text()), f"{group}.")
    return leaves


def test_every_override_that_is_advised_exists(leaves) -> None:
    groups, options = config.groups(), functools.cache(config.options)
    named = re.compile(rf"(?<![\w./-])((?:{'|'.join(groups)})(?:\.[a-z0-9_]+)*)=([\w.-]*)")
    advised = set()
    for place, text in texts():
        for key, value in named.findall(text):
            advised.add((key, value))
            if key in groups:
                known = not re.fullmatch("[a-z][a-z0-9_]+", value) or value in options(key)
                assert known, f"{place}: {key}={value}"
                continue
            assert key in leaves or key in ELSEWHERE, f"{place}: {key}={value}"
            if key in candidates.TABLES and re.fullmatch("[a-z][a-z0-9_-]+", value):
                assert value in candidates.values(key, ""), f"{place}: {key}={value}"
    assert {("encoder", "efficientnet_lite0"), ("optimizer.lr", "1e-3")} <= advised


def test_every_flag_and_verb_that_is_advised_exists() -> None:
    messages = list(texts())
    flags = {text for _, text in messages if re.fullmatch("--[a-z-]+", text)} | HYDRAS
    flags |= {f"--{prefix}{name.replace('_', '-')}" for name in OPTIONS for prefix in ("", "no-")}
    for place, text in messages:
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text):
            assert flag in flags, f"{place}: {flag}"
        for verb in re.findall(r"(?:^|[:`(] ?|  )captioner ([a-z]+)", text):
            assert verb in VERBS, f"{place}: captioner {verb}"
