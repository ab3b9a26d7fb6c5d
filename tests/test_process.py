"""Memory that stays: what the kernel is asked for, counted in page faults."""

import os
import subprocess
import sys

import pytest

LINUX = sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names
PROGRAM = """
import resource, numpy
from captioner.process import keep_memory
print(keep_memory())
numpy.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    numpy.ones(8_000_000)  # 64 MB, 15,600 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[bool, int]:
    given = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    lines = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, check=True
    ).stdout.split()
    return lines[0] == "True", int(lines[1])


@pytest.mark.skipif(not LINUX, reason="only glibc is asked")
def test_freed_memory_is_kept_where_it_is_asked_for() -> None:
    kept, faults = run(CAPTIONER_KEEP_MEMORY="1")
    assert kept
    assert faults < 100
    for setting in ({"CAPTIONER_KEEP_MEMORY": "0"}, {"MALLOC_TOP_PAD_": "65536"}):
        kept, faults = run(**{"CAPTIONER_KEEP_MEMORY": "1", **setting})
        assert not kept
        assert faults > 10_000


def test_elsewhere_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    from captioner import process

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(process.ctypes, "CDLL", None)  # would fail if it were asked
    assert process.keep_memory() is False


def test_what_onednn_keeps_is_bounded_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from captioner import process

    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    process.bound_caches()
    assert os.environ == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "7"}


@pytest.mark.parametrize(
    ("given", "set_by_us"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_waiting_is_bounded_unless_the_user_says(monkeypatch, given, set_by_us) -> None:
    from captioner import process

    monkeypatch.setattr(os, "environ", dict(given))
    process.bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == set_by_us


def test_the_command_line_does_so_before_torch_loads() -> None:
    program = """
import os, sys
from captioner import cli
try:
    cli.main(["--help"])
except SystemExit:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""
    given = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=given, capture_output=True, text=True
    )
    assert done.stdout.endswith("\n5000 False\n")
