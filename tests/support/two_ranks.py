"""Trainings by two processes, and by one: the trained weights must be the same."""

from pathlib import Path
from typing import Any

import torch

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.data import datamodule
from captioner.data.batches import Batch
from captioner.runs import LAST
from captioner.training import ranks
from captioner.training.isolation import isolated
from captioner.training.launcher import Launch, start_ranks
from captioner.training.module import LitCaptioner
from captioner.training.saving import WholeFiles
from captioner.training.train import train
from captioner.training.trainer import TrainerOptions, build_trainer

# At a rate of 0 the weights do not change, so every step can be compared. Of 120 captions in
# batches of 7, and of 24 images in batches of 23, the last batch has a single row.
STILL = (
    "optimizer.lr=0",
    "decoder.dropout=0",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
)
CASES = {
    "cross_entropy": (*STILL, "loader.batch_size=7"),
    "scst": (
        "objective=scst",
        *STILL,
        "loader.batch_size=23",
        "objective.samples=3",
        "objective.rewards.rouge_l=1",
        "objective.cross_entropy_weight=0.5",
        "objective.least_distinct=0",
        "objective.most_repeats=100",
        "objective.most_endless=100",
    ),
}
DROPPING = ("decoder.dropout=0.3", "callbacks.save_every=3", "callbacks.ema=0.9")


def run(name: str, tiny: tuple[str, ...], folder: Path) -> list[dict[str, torch.Tensor]]:
    """Train a case; the gradients of every step."""
    steps: list[dict[str, torch.Tensor]] = []

    def watch(self: LitCaptioner, *unused: Any, **named: Any) -> None:
        steps.append(
            {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
        )

    original, size = LitCaptioner.configure_gradient_clipping, datamodule.DEV_BATCH
    LitCaptioner.configure_gradient_clipping = watch  # type: ignore[method-assign]
    datamodule.DEV_BATCH = 3  # 8 images are 3 batches: the second rank has one less
    try:
        train(
            compose([*tiny, *CASES[name], f"trainer.devices={ranks.count()}"]),
            folder / name,
            report=print,
        )
    finally:
        LitCaptioner.configure_gradient_clipping = original  # type: ignore[method-assign]
        datamodule.DEV_BATCH = size
    return steps


def cut_and_resume(tiny: tuple[str, ...], folder: Path) -> None:
    """Train once without and once with a power cut in step 8, from which it is resumed."""
    config = compose([*tiny, *DROPPING, f"trainer.devices={ranks.count()}"])
    train(config, folder / "whole", report=print)
    original = LitCaptioner.training_step

    def crash(self: LitCaptioner, batch: Batch, batch_index: int) -> torch.Tensor:
        if self.global_step == 8:
            raise RuntimeError("power cut")
        return original(self, batch, batch_index)

    LitCaptioner.training_step = crash  # type: ignore[method-assign]
    try:
        train(config, folder / "cut", report=print)
    except RuntimeError as error:
        assert str(error) == "power cut"
    LitCaptioner.training_step = original  # type: ignore[method-assign]
    last = checkpoint.find(folder / "cut", name=LAST)
    train(config, folder / "cut", resume=last, report=print)


def batch_of(key: tuple[int, list[int]]) -> Batch:
    """A batch that has only names."""
    nothing = torch.empty(0)
    return Batch(nothing, nothing, nothing, nothing, list(key[1]))  # type: ignore[arg-type]


def main(folder: Path, tiny: tuple[str, ...]) -> None:
    """Train all cases; the second process is forked, and calls this function as well."""
    with isolated():
        _main(folder, tiny)


def _main(folder: Path, tiny: tuple[str, ...]) -> None:
    options = TrainerOptions(accelerator="cpu", devices=2)
    trainer = build_trainer(options, folder, [], [], WholeFiles())
    with start_ranks(trainer, folder, Launch(["two ranks"], print)):
        for name in CASES:
            steps = run(name, tiny, folder)
            if ranks.first():
                torch.save(steps, folder / f"{name}.pt")
        cut_and_resume(tiny, folder)
    with (folder / "after").open("a") as file:  # the other process does not reach this line
        file.write("once\n")
