"""Several devices: two processes compute the same as one, and both end if one is killed."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import two_ranks
from support.forked_ranks import forked_ranks
from support.moments import finish, start

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.data.loaders import RankBatches
from captioner.data.samplers import Bucketed, InOrder
from captioner.data.shapes import draw
from captioner.runs import LAST
from captioner.training import ranks
from captioner.training.callbacks import ImageMatters
from captioner.training.saving import WholeFiles
from captioner.training.schedules import ENDLESS
from captioner.training.train import train
from captioner.training.trainer import (
    TrainerOptions,
    build_trainer,
    optimizer_steps,
    require_end,
)


class Items:
    """A dataset whose batches are the requested indices, with captions of different lengths."""

    lengths = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5)

    def __getitem__(self, key):
        return two_ranks.batch_of(key)

    def counts(self, place: int) -> tuple[int, int, int]:
        return self.lengths[place] + 1, 1, 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_of_all_ranks_are_the_batches_of_one_process(count: int) -> None:
    order = Bucketed(Items.lengths, 4, seed=3, pool=1)
    order.set_epoch(5)
    keys = list(order)
    assert sorted(chain.from_iterable(places for _, places in keys)) == list(range(11))
    parts = [RankBatches(Items(), rank, count) for rank in range(count)]
    for key in keys:
        batches = [part[key] for part in parts]
        real = [batch for batch in batches if batch.share.words < float("inf")]
        placed = dict(pair for batch in real for pair in zip(batch.share.places, batch.records))
        assert [placed[place] for place in range(len(key[1]))] == key[1]
        own = [[key[1][place] for place in batch.share.places] for batch in batches]
        words = [sum(Items.lengths[item] + 1 for item in items) for items in own]
        # Each rank divides its sum by share.words: their mean is that of the whole batch.
        mean = sum(n / batch.share.words for n, batch in zip(words, batches)) / count
        assert mean == pytest.approx(1)
        assert sum(len(items) / b.share.images for items, b in zip(own, batches)) == count


def test_a_rank_without_items_adds_nothing_to_the_loss() -> None:
    share = RankBatches(Items(), 1, 2)[0, [7]].share
    assert share.words == share.captions == share.images == float("inf")


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("images", "limit"), [(17, None), (16, None), (17, 3), (1, None), (3, 1)])
def test_dev_batches_are_distributed_in_turn_and_put_in_order_again(
    count: int, images: int, limit: int | None
) -> None:
    whole = [places for _, places in InOrder(images, 4, limit=limit)]
    if limit is None:
        assert list(chain.from_iterable(whole)) == list(range(images))
    assert images == 1 or all(len(places) > 1 for places in whole)
    parts = [list(InOrder(images, 4, rank=rank, ranks=count, limit=limit)) for rank in range(count)]
    assert len({len(part) for part in parts}) == 1
    interleaved = ranks.interleave([[places for _, places in part] for part in parts])
    assert [places for places in interleaved if places] == whole


def test_a_single_dev_image_has_no_shuffled_loss(tiny, tmp_path) -> None:
    root = draw(tmp_path / "scenes", train=4, dev=1, test=1, size=32, progress=False).parent
    config = compose([*tiny, f"data.root={root}"])
    run = train(config, tmp_path / "run")
    assert "dev_loss" in run.scores
    assert "dev_loss_shuffled" not in run.scores
    trainer = SimpleNamespace(
        sanity_checking=False, current_epoch=3, callback_metrics={"dev_loss": 1, "dev_distinct": 0}
    )
    ImageMatters().on_validation_end(trainer, None)  # no warning


# Two processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tiny, tmp_path_factory) -> Path:
    """The folder of the runs in ``two_ranks.CASES``, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    log = folder / "log"
    with forked_ranks(run=lambda command: two_ranks.main(folder, tiny)):
        assert finish(start(lambda: two_ranks.main(folder, tiny), log)) == 0, log.read_text()
    # Five trainings, each printed by one process.
    assert log.read_text().count("parameters to learn") == 5
    assert (folder / "after").read_text() == "once\n"
    return folder


@pytest.mark.reliability("processes")
@pytest.mark.parametrize("name", ["cross_entropy", "scst"])
def test_two_processes_train_as_one_does(tiny, two_processes, tmp_path, name: str) -> None:
    alone = two_ranks.run(name, tiny, tmp_path)
    both = torch.load(two_processes / f"{name}.pt")
    assert len(alone) == len(both) > 1
    assert max(g.abs().max() for g in alone[0].values()) > 1e-3
    for one, two in zip(alone, both):
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[key], two[key], atol=1e-6, rtol=0) for key in one)
    single, several = (checkpoint.read(path / name) for path in (tmp_path, two_processes))
    assert single.scores == several.scores  # of the same weights, to the bit
    samples = [(path / name / "samples.jsonl").read_text() for path in (tmp_path, two_processes)]
    assert samples[0] == samples[1]


@pytest.mark.reliability("processes")
def test_two_processes_resume_exactly(two_processes) -> None:
    whole, cut = (
        checkpoint.read(two_processes / name / "checkpoints" / "last.ckpt").lightning
        for name in ("whole", "cut")
    )
    assert whole["global_step"] == cut["global_step"] > 8
    assert all(torch.equal(t, cut["state_dict"][name]) for name, t in whole["state_dict"].items())
    moments = (one["optimizer_states"][0]["state"] for one in (whole, cut))
    for one, two in zip(*(states.values() for states in moments)):
        assert all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(two[k])) for k in one)
    first, second = (one["callbacks"]["RandomState"] for one in (whole, cut))
    assert torch.equal(first["torch"], second["torch"])
    assert torch.equal(first["others"][0]["torch"], second["others"][0]["torch"])
    assert not torch.equal(first["torch"], first["others"][0]["torch"])
    averages = (one["callbacks"]["WeightAverage"]["average"] for one in (whole, cut))
    assert all(torch.equal(a, b) for a, b in zip(*(one.values() for one in averages)))


@pytest.mark.reliability("processes")
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the other process in /proc")
def test_if_a_process_is_killed_the_other_ends_with_one_line(tiny, tmp_path) -> None:
    """Of two processes that are started as a user starts them; ``test_ranks`` has other signals."""
    several = ("trainer.devices=2", "trainer.max_epochs=9999", "callbacks.patience=0")
    options = [*tiny, *several, f"run_dir={tmp_path / 'run'}"]
    first = subprocess.Popen(
        [sys.executable, "-m", "captioner", "train", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        text=True,
    )
    samples = tmp_path / "run" / "samples.jsonl"  # of the first epoch
    until = time.monotonic() + 240
    while not samples.is_file() and first.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 1
    lines = [line for line in errors.splitlines() if "hardly depend" not in line]
    assert len(lines) == 1
    assert all(part in lines[0] for part in ("rank 1", "SIGKILL"))
    assert f"resume={tmp_path / 'run'}" in lines[0]


SCRIPT = """
import sys
from pathlib import Path
import captioner
from captioner.config import compose
from captioner.training.train import train
if __name__ == "__main__":
    folder, *overrides = sys.argv[1:]
    train(compose(overrides), Path(folder), report=print)
    print("trained once", flush=True)
"""


@pytest.mark.slow
@pytest.mark.reliability("processes")
def test_torchrun_and_a_script_train_as_one_process_does(tiny, tmp_path) -> None:
    options = [*tiny, "trainer.max_epochs=1", "decoder.dropout=0", "trainer.precision=32-true"]
    train(compose(options), tmp_path / "one")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    python = [sys.executable]
    torchrun = [*python, *"-m torch.distributed.run --standalone --nproc-per-node 2".split()]
    commands = {
        "torchrun": [*torchrun, "-m", "captioner", "train", f"run_dir={tmp_path / 'torchrun'}"],
        "script": [*python, "script.py", str(tmp_path / "script"), "trainer.devices=2"],
    }
    for name, command in commands.items():
        ended = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stdout.count("parameters to learn") == 1
        assert ended.stdout.count("trained once") == (name == "script")
        alone, both = (
            checkpoint.read(checkpoint.find(tmp_path / folder, name=LAST)).lightning
            for folder in ("one", name)
        )
        assert alone["global_step"] == both["global_step"] == 6
        for key, weight in alone["state_dict"].items():
            torch.testing.assert_close(weight, both["state_dict"][key], atol=2e-4, rtol=0)


# Lightning's options ----------------------------------------------------------------------------


def trainer_of(tmp_path: Path, **options):
    given = {"accelerator": "cpu", "precision": "32-true", **options}
    return build_trainer(TrainerOptions(**given), tmp_path, [], [], WholeFiles())


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, 9),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": 70}, 30),
        ({"max_epochs": -1, "max_steps": 70}, 70),
        ({"max_epochs": -1}, ENDLESS),
        ({"max_epochs": 3, "limit_train_batches": 4}, 12),
        ({"max_epochs": 3, "limit_train_batches": 0.5, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 3, "overfit_batches": 2}, 6),
        ({"max_epochs": 3, "fast_dev_run": True}, 1),
        ({"max_epochs": 3, "fast_dev_run": 2}, 2),
        ({"max_epochs": 3, "devices": 2}, 30),
    ],
)
def test_optimizer_steps_of_a_training(tmp_path, options, steps: int) -> None:
    assert optimizer_steps(10, trainer_of(tmp_path, **options)) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "gpux"}, "trainer.accelerator='gpux' is not known; choose auto, cpu, gpu"),
        ({"devices": 0}, "trainer.devices=0 is not accepted; choose a number from 1"),
        ({"devices": "foo"}, "trainer.devices='foo' is not accepted; choose a number from 1"),
        ({"num_nodes": 0}, "trainer.num_nodes=0 is not accepted; choose 1 or more"),
        ({"gradient_clip_val": -1}, "trainer.gradient_clip_val=-1 is not accepted; choose a num"),
    ],
)
def test_impossible_devices_are_refused_with_the_name_of_the_option(
    tmp_path, options, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        trainer_of(tmp_path, **options)


def test_a_missing_gpu_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match="trainer.accelerator=gpu is not available: .* auto or cpu"
    ):
        trainer_of(tmp_path, accelerator="gpu")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "schedule=cosine and schedule.warmup=0.05"),
        (["schedule=constant"], "schedule.warmup=0.05 needs"),
        (
            ["schedule=constant", "schedule.warmup=0", "objective.scheduled_sampling=0.2"],
            "objective.scheduled_sampling=0.2 needs",
        ),
    ],
)
def test_a_training_without_a_limit_refuses_options_that_need_its_length(
    options, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        require_end(compose(["trainer.max_epochs=-1", *options]), ENDLESS)
    endless = ["trainer.max_epochs=-1", "schedule=plateau", "schedule.warmup=0"]
    require_end(compose(endless), ENDLESS)


def test_max_steps_ends_a_training_with_a_validation(tiny, tmp_path) -> None:
    run = train(compose([*tiny, "trainer.max_steps=2"]), tmp_path / "run")  # an epoch has 6
    assert "dev_cider" in run.scores
    last = checkpoint.read(checkpoint.find(run.folder, name=LAST))
    assert last.lightning["global_step"] == 2
