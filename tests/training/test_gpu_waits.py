"""A training step does not wait for a GPU: nothing in it depends on values that are there.

Tensors on the device "meta" have no values: torch raises if one is read, by item(), tolist(),
bool(), nonzero() or a copy to the CPU. So a step that runs on them waits nowhere.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.decoders import EVERY, B, build, features

from captioner.data.batches import Batch, pad
from captioner.decoding.options import DecodingOptions
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.tokenizers import build_tokenizer
from captioner.training.callbacks import ProgressBar
from captioner.training.module import LitCaptioner
from captioner.training.objectives.cross_entropy import CrossEntropy

META = torch.device("meta")
TOKENIZER = build_tokenizer(["a b c d e f g"], name="word", min_count=1)
NAMES = [name for name in EVERY if "additive" not in name]


def batch() -> Batch:
    """A batch as a data loader returns it."""
    inputs, targets = pad([[4, 5, 6, 7], [8], [9, 10]], TOKENIZER)
    source = Features(*(part.float() for part in features() if part is not None))
    return Batch(source, torch.arange(B), inputs, targets, [])


class Model:
    """A model whose features are given."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.attend = decoder, decoder.attend if decoder.attends else None

    def encode(self, source: Features) -> Features:
        return source

    def __call__(self, *arguments: Any) -> Any:
        return self.decoder(*arguments)


@pytest.fixture
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's autocast does not know the device "meta"."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *unused: False)
    monkeypatch.setattr(torch, "autocast", lambda *unused, **options: nullcontext())


@pytest.mark.usefixtures("_no_autocast")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_nowhere(name: str) -> None:
    decoder = build(name).float().to(META).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.1)
    penalty = 1.0 if decoder.attends else 0.0
    objective = CrossEntropy(TOKENIZER, DecodingOptions(), attention_penalty=penalty)
    model: Any = Model(decoder)
    objective.outcome(model, batch().to(META), 0.5).loss.backward()
    torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
    optimizer.step()
    without = batch().to(META)._replace(lengths=None)
    with pytest.raises((RuntimeError, NotImplementedError)):  # it would wait
        objective.outcome(model, without, 0.5)


def test_lengths_stay_on_the_cpu_and_give_the_same_packing() -> None:
    given = batch()
    moved = given.to(META)
    assert moved.lengths is not None and moved.lengths.tolist() == [5, 2, 3]
    assert moved.targets.device == moved.source.pooled.device == META
    expected = Packing.of((given.targets != IGNORED).sum(1))
    for packing in (given.packing(), given.to(torch.device("cpu")).packing()):
        assert packing.sizes == expected.sizes
        assert all(map(torch.equal, packing[2:], expected[2:]))
    assert moved.packing().sizes == expected.sizes
    assert moved.packing().rows.device == META
    assert given.packing(slice(1, 3), left_out=1).sizes == (2, 1)


def test_a_packing_moves_in_one_piece() -> None:
    packing = Packing.of(torch.tensor([2, 5, 1]))
    moved = Packing(*packing).to(META)
    shapes = [tensor.shape for tensor in moved if isinstance(tensor, torch.Tensor)]
    assert shapes == [(3,), (8,), (8,)]
    assert Packing.of(torch.tensor([2, 5, 1]), torch.device("cpu")).rows.tolist() == list(
        packing.rows
    )


def test_everything_that_is_moved_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    given = batch()
    given.pin_memory()
    tensors = (*given.source, given.rows, given.inputs, given.targets)
    assert sorted(pinned) == sorted(tensor.data_ptr() for tensor in tensors)


def test_the_loss_is_read_when_logs_are_written() -> None:
    trainer = SimpleNamespace(log_every_n_steps=3)
    config = {"training": {"skip_bad_steps": 0}}
    module: Any = SimpleNamespace(global_step=0, trainer=trainer, config=config, _sum=0.0)
    for step in range(2):
        module.global_step = step
        LitCaptioner._require_finite(module, torch.zeros((), device=META))
    module.global_step = 2
    with pytest.raises((RuntimeError, NotImplementedError)):  # it is read now
        LitCaptioner._require_finite(module, torch.zeros((), device=META))
    assert module._sum == 0.0


def test_the_progress_bar_reads_the_loss_when_logs_are_written() -> None:
    read = []

    class Trainer:
        training, log_every_n_steps, global_step = True, 3, 0
        strategy = SimpleNamespace(root_device=META)
        loggers: tuple[Any, ...] = ()

        @property
        def progress_bar_metrics(self) -> dict[str, float]:
            read.append(self.global_step)
            return {"train_loss": float(self.global_step)}

    trainer, bar = Trainer(), ProgressBar()
    for trainer.global_step in range(7):
        values = bar.get_metrics(trainer, None)
        assert values["train_loss"] == trainer.global_step // 3 * 3
    assert read == [0, 3, 6]
    trainer.strategy = SimpleNamespace(root_device=torch.device("cpu"))
    assert bar.get_metrics(trainer, None)["train_loss"] == 6
    assert read == [0, 3, 6, 6]
