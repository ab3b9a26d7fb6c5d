"""A Captioner that threads use first at once, copied, forked, interrupted; the caller's settings.

``tests/checkpoints/test_sharing.py`` and ``tests/test_api.py`` have more of one that is in use.
captioner is imported first: a new process that imports this module needs its guard of torchvision.
"""

import captioner  # noqa: I001
import copy
import gzip
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import pytest
import pytorch_lightning
import torch
from PIL import Image, ImageFile

from captioner.config import compose, make
from captioner.data.datamodule import CaptionDataModule
from captioner.data.read import read_records
from captioner.evaluation.evaluate import evaluate
from captioner.training import LitCaptioner

pytestmark = pytest.mark.reliability("shared objects")
GOLDEN = Path(__file__).parent / "golden" / "versions" / captioner.__version__
PACKAGE = str(Path(captioner.__file__).parent)
PHOTO = str(GOLDEN / "photo.png")
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"beam_size": 3}, {"temperature": 1.0, "seed": 3})


def load() -> Any:
    """A Captioner that nobody has used."""
    return captioner.load(GOLDEN / "bundle", device="cpu")


def captions(model: Any) -> list[Any]:
    return [model.caption(PHOTO, **options) for options in OPTIONS]


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    return captions(load())


# Threads ------------------------------------------------------------------------------------------

JOBS: dict[str, Callable[[Any], list[Any]]] = {
    "caption": captions,
    "trace": lambda model: [model.trace(PHOTO, **OPTIONS[1]).text] and captions(model),
    "pickle": lambda model: captions(pickle.loads(pickle.dumps(model))),
    "deepcopy": lambda model: captions(copy.deepcopy(model)),
    "copy": lambda model: captions(copy.copy(model)),
    "ready": lambda model: model.make_ready() or captions(model),
}


def first_use(expected: list[Any], rounds: int) -> int:
    """Let a thread for each job use a new Captioner at the same moment; the number of cases."""
    wrong = []
    for number in range(rounds):
        model, start = load(), threading.Barrier(2 * len(JOBS))

        def work(name: str, model: Any = model, start: threading.Barrier = start) -> list[Any]:
            start.wait()
            return JOBS[name](model)

        with ThreadPoolExecutor(2 * len(JOBS)) as pool:
            names = [*JOBS] * 2
            results = [pool.submit(work, name) for name in names]
            for name, result in zip(names, results):
                if result.exception() is not None or result.result() != expected:
                    wrong.append((number, name, result.exception()))
    assert not wrong
    return 2 * len(JOBS) * rounds


def test_threads_may_use_it_first_at_the_same_moment(expected, record_property) -> None:
    record_property("cases", first_use(expected, 1))


@pytest.mark.slow
def test_threads_may_use_it_first_at_the_same_moment_many_times(expected, record_property) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads are changed at almost every line
    try:
        record_property("cases", first_use(expected, 4))
    finally:
        sys.setswitchinterval(before)


# Processes ----------------------------------------------------------------------------------------


def answer(model: Any, out: Any) -> None:
    out.put(captions(model))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_another_process_may_use_it(method: str, expected) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    context, model = multiprocessing.get_context(method), load()
    model.caption(PHOTO)
    out = context.Queue()
    process = context.Process(target=answer, args=(model, out))
    process.start()
    try:
        assert out.get(timeout=120) == expected
    finally:
        process.kill()
        process.join()


def in_fork(work: Callable[[], list[Any]], seconds: float = 60) -> Any:
    """What a forked process computes; an error if it does not answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, pickle.dumps(work()))
        finally:
            os._exit(0)
    os.close(writing)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    timer.cancel()
    os.waitpid(child, 0)
    assert content, f"the forked process gave no answer within {seconds} s"
    return pickle.loads(content)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("forks", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_process_may_fork_while_a_thread_uses_it(forks: int, expected, record_property) -> None:
    model, ended = load(), threading.Event()

    def use() -> None:
        while not ended.is_set():
            model._steppers.clear()  # so that locks are held most of the time
            captions(model)

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        try:
            wrong = []
            for number in range(forks):
                time.sleep(0.01 * (number % 7))
                if in_fork(lambda: captions(model)) != expected:
                    wrong.append(number)
        finally:
            ended.set()
        using.result()
    record_property("cases", forks)
    assert not wrong


# Interrupts ---------------------------------------------------------------------------------------


class Interrupting:
    """Raises KeyboardInterrupt before the n-th line of the package that this thread executes."""

    def __init__(self, line: int) -> None:
        self.line, self.count = line, 0

    def __call__(self, frame: FrameType, event: str, unused: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.line:
                raise KeyboardInterrupt
        return self

    def run(self, work: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return work()
        finally:
            sys.settrace(before)


def use(model: Any) -> list[Any]:
    """Caption through all of the public methods."""
    return [*captions(model), model.trace(PHOTO).text, *model.caption_each([PHOTO])]


def lines(model: Any) -> int:
    """How many lines of the package a use executes."""
    counting = Interrupting(0)
    counting.run(lambda: use(model))
    return counting.count


@pytest.mark.parametrize("points", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_it_can_be_used_after_an_interrupt_at_any_line(points: int, record_property) -> None:
    expected, shared = use(load()), load()
    counts = lines(shared), lines(shared)  # at first use, and in use
    assert min(counts) > 1000
    wrong, interrupted, before = [], 0, settings()
    for number in range(points):
        line = 1 + number * counts[number % 2] // points
        model = shared if number % 2 else load()
        try:
            Interrupting(line).run(lambda model=model: use(model))
        except KeyboardInterrupt:
            interrupted += 1
        if use(model) != expected or settings() != before:
            wrong.append(line)
    record_property("cases", interrupted)
    assert not wrong
    assert interrupted > 0.9 * points


# Settings -----------------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    """What belongs to the caller: settings, random states, handlers, filters."""
    return {
        "environment": dict(os.environ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "new threads": ThreadPoolExecutor(1).submit(torch.get_num_threads).result(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "types": (torch.get_default_dtype(), torch.get_default_device()),
        "products": torch.get_float32_matmul_precision(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "checksums": torch.serialization.get_crc32_options(),
        "random": (
            torch.get_rng_state().tolist(),
            numpy.random.get_state()[1].tolist(),
            random.getstate(),
        ),
        "warnings": ([*warnings.filters], warnings.showwarning),
        "signals": {
            number: signal.getsignal(number)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
        },
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "python": (sys.getrecursionlimit(), sys.getswitchinterval(), [*sys.path], os.getcwd()),
        "numpy": numpy.geterr(),
        "pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES),
    }


@pytest.fixture
def unusual() -> Any:
    """Settings that differ from the defaults, so that a reset to a default is seen."""
    threads, options = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    old = signal.signal(signal.SIGTERM, lambda *unused: None)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(options)
    torch.set_float32_matmul_precision(precision)
    signal.signal(signal.SIGTERM, old)


def evaluated(model: Any, scenes: Path) -> None:
    evaluate(
        model,
        data={"format": "shapes", "root": str(scenes)},
        decoding={},
        loader={"cache": False, "cache_folder": None},
        metrics=["bleu", "rouge-l", "cider-d", "diversity"],
        progress=False,
    )


def refused(model: Any, photo: str, **options: Any) -> None:
    with pytest.raises((ValueError, OSError)):
        model.caption(photo, **options)


CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "load": lambda model, scenes: load(),
    "caption": lambda model, scenes: captions(model),
    "trace": lambda model, scenes: model.trace(PHOTO, hypotheses=True, beam_size=2),
    "evaluate": evaluated,
    "an error": lambda model, scenes: refused(model, PHOTO, beam_size=0),
    "no photo": lambda model, scenes: refused(model, "absent.png"),
}


@pytest.mark.parametrize("name", CALLS)
def test_settings_of_the_caller_are_left_as_they_are(name: str, unusual, scenes) -> None:
    model, before = load(), settings()
    CALLS[name](model, scenes)
    assert settings() == before


def test_a_trainer_leaves_the_settings_to_the_caller(unusual, tiny, tmp_path) -> None:
    """Lightning changes nothing but the random state; neither does the module."""
    file = tmp_path / "last.ckpt"
    file.write_bytes(gzip.decompress((GOLDEN / "last.ckpt.gz").read_bytes()))
    module = LitCaptioner.load_from_checkpoint(file)
    config = compose([*tiny])
    data = CaptionDataModule(
        make(read_records, "data", config["data"]),
        module.tokenizer,
        module.model.encoder,
        seed=0,
        grid=False,
        unfreezes=False,
        by_image=False,
        **config["loader"],
    )
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=2,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1,
        default_root_dir=tmp_path,
    )  # fmt: skip
    before = settings()
    trainer.fit(module, data)
    after = settings()
    assert trainer.global_step == 2
    assert {**after, "random": None} == {**before, "random": None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_does_not_depend_on_the_default_type_of_the_caller(dtype, expected) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert captions(load()) == expected
    finally:
        torch.set_default_dtype(before)


def test_a_model_may_be_used_in_any_mode_of_torch(expected) -> None:
    for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            assert captions(load()) == expected
