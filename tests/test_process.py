"""Settings of the process; memory is measured by page faults."""

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
    variables = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    lines = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True
    ).stdout.split()
    return lines[0] == "True", int(lines[1])


@pytest.mark.skipif(not LINUX, reason="only glibc is asked")
def test_freed_memory_is_kept_on_request() -> None:
    is_kept, faults = run(CAPTIONER_KEEP_MEMORY="1")
    assert is_kept
    assert faults < 100
    for setting in ({"CAPTIONER_KEEP_MEMORY": "0"}, {"MALLOC_TOP_PAD_": "65536"}):
        is_kept, faults = run(**{"CAPTIONER_KEEP_MEMORY": "1", **setting})
        assert not is_kept
        assert faults > 10_000


def test_the_allocator_is_unchanged_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    from captioner import process

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(process.ctypes, "CDLL", None)  # fails if it is called
    assert process.keep_memory() is False
    assert process.bound_pools() is False
    process.release_memory()


POOLS = """
import ctypes, os, threading
import captioner

started = threading.Barrier(20)

def use():
    blocks.append(bytearray(100_000))
    started.wait()

blocks = []
threads = [threading.Thread(target=use) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.fdopen.restype = ctypes.c_void_p
stream = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(stream))
libc.fclose(ctypes.c_void_p(stream))
"""


@pytest.mark.skipif(not LINUX, reason="only glibc is asked")
def test_there_are_no_more_pools_of_memory_than_cores_unless_set_by_the_user() -> None:
    def pools(**environment: str) -> int:
        command, variables = [sys.executable, "-c", POOLS], {**os.environ, **environment}
        return subprocess.check_output(command, env=variables, text=True).count("<heap nr=")

    cores = len(os.sched_getaffinity(0))
    assert pools() <= cores
    if cores < 15:
        assert pools(MALLOC_ARENA_MAX="16") > cores


RELEASED = """
import threading, numpy
from captioner.process import release_memory

def resident():  # pages
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

def use():
    parts = [numpy.ones(10_000) for _ in range(200)]  # 16 MB, 3,900 pages
    rest.append(numpy.ones(10_000))  # above them: the pool cannot shrink
    del parts

rest = []
thread = threading.Thread(target=use)
thread.start()
thread.join()
before = resident()
release_memory()
print(before - resident())
"""


@pytest.mark.skipif(not LINUX, reason="only glibc is asked")
def test_freed_memory_is_released_unless_it_is_to_be_kept() -> None:
    def released(**environment: str) -> int:
        command, variables = [sys.executable, "-c", RELEASED], {**os.environ, **environment}
        return int(subprocess.check_output(command, env=variables, text=True))

    assert released() > 3_000
    assert released(CAPTIONER_KEEP_MEMORY="1") < 100


@pytest.mark.reliability("shared objects")
def test_caches_of_onednn_are_bounded_unless_set_by_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from captioner import process

    monkeypatch.setattr(os, "environ", {"LRU_CACHE_CAPACITY": "7"})
    process.bound_caches()
    assert os.environ == {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "7"}


@pytest.mark.reliability("shared objects")
@pytest.mark.parametrize(
    ("given", "set_by_us"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_active_waiting_is_bounded_unless_set_by_the_user(monkeypatch, given, set_by_us) -> None:
    from captioner import process

    monkeypatch.setattr(os, "environ", dict(given))
    process.bound_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == set_by_us


def test_the_command_line_sets_limits_before_torch_loads() -> None:
    program = """
import os, sys
from captioner import cli
try:
    cli.main(["--help"])
except SystemExit:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
"""
    variables = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True
    )
    assert done.stdout.endswith("\n5000 False\n")


@pytest.mark.reliability("shared objects")
@pytest.mark.parametrize(
    ("order", "expected"), [("captioner, torch", "5000"), ("torch, captioner", "None")]
)
def test_the_package_sets_limits_unless_torch_is_loaded(order: str, expected: str) -> None:
    program = f"import os, {order}; print(os.environ.get('GOMP_SPINCOUNT'))"
    settings = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    variables = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


IMPORTED = """
import gc, weakref
from captioner.process import freeze_torch
freeze_torch()
freeze_torch()
{before}

class Cycle:
    def __init__(self):
        self.itself = self

enabled = gc.isenabled()
import torch
assert gc.isenabled() is enabled
frozen = gc.get_freeze_count()
loader = torch.__spec__.loader
assert type(loader).__name__ == "SourceFileLoader" and "exec_module" not in vars(loader)
new = weakref.ref(Cycle())
gc.collect()
assert new() is None and gc.get_freeze_count() == frozen
print(frozen)
"""


@pytest.mark.parametrize("before", ["", "gc.disable()"])
def test_objects_of_torch_are_not_collected_and_later_ones_are(before: str) -> None:
    program = [sys.executable, "-c", IMPORTED.format(before=before)]
    assert int(subprocess.check_output(program, text=True)) > 100_000


def test_a_failed_import_leaves_the_collector_enabled(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("import gc\nassert not gc.isenabled()\n1 / 0\n")
    program = (
        "import gc\nfrom captioner.process import freeze_torch\nfreeze_torch()\n"
        "try:\n    import torch\nexcept ZeroDivisionError:\n    print(gc.isenabled())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, text=True, env=environment) == "True\n"


@pytest.mark.reliability("shared objects")
def test_in_python_the_collector_is_the_callers() -> None:
    program = (
        "import gc, captioner, captioner.api, captioner.cli\n"
        "captioner.cli.main(['models'])\n"
        "import sys; print(gc.get_freeze_count(), gc.isenabled(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.endswith("0 True\n")
