"""Steps whose loss or gradient is not finite are skipped, counted, and bounded."""

import math

import pytest
import torch

from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.config import compose
from captioner.runs import LAST
from captioner.training.module import LitCaptioner
from captioner.training.objectives import cross_entropy
from captioner.training.train import NonFiniteLoss, train

pytestmark = pytest.mark.reliability("interrupted")

# 24 images of five captions in batches of 20 are 6 steps an epoch.


@pytest.fixture
def explode(monkeypatch):
    """Makes the loss, or only its gradient, infinite or NaN at some steps of a training."""
    original = cross_entropy.cross_entropy

    def arrange(steps: set[int], value: float, *, gradient: bool = False) -> list[int]:
        calls: list[int] = []

        def lose(logits, targets, **options):
            loss = original(logits, targets, **options)
            calls.append(len(calls))
            if calls[-1] not in steps:
                return loss
            return loss + 0 * (logits.sum() * value).detach() if not gradient else Ruin.apply(loss)

        class Ruin(torch.autograd.Function):
            @staticmethod
            def forward(context, loss):
                return loss.clone()

            @staticmethod
            def backward(context, slope):
                return slope * value

        monkeypatch.setattr(cross_entropy, "cross_entropy", lose)
        return calls

    return arrange


def weights(run) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.find(run, name=LAST)).weights


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_bad_step_changes_nothing(
    tiny, tmp_path, monkeypatch, explode, value: float, gradient: bool
) -> None:
    before, after = [], []

    def state(module: LitCaptioner) -> list[torch.Tensor]:
        moments = module.optimizers().optimizer.state.values()
        values = [*module.state_dict().values(), *(t for m in moments for t in m.values())]
        return [tensor.clone() for tensor in values]

    original = LitCaptioner.training_step

    def watched(self, batch, batch_index):
        {3: before, 4: after}.get(self.global_step, []).extend(state(self))
        return original(self, batch, batch_index)

    monkeypatch.setattr(LitCaptioner, "training_step", watched)
    explode({3}, value, gradient=gradient)
    said: list[str] = []
    more = ("training.skip_bad_steps=1", "encoder.trainable=true", "trainer.max_epochs=1")
    run = train(compose([*tiny, *more]), tmp_path / "run", report=said.append)
    assert len(before) > 40 and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    what = "gradient" if gradient else "loss"
    line = f"step 3: the {what} is not finite, skipped (1 of at most 1 steps, training.skip_bad_s"
    assert [text for text in said if text.startswith(line)]
    assert run.ending.endswith("; 1 step was skipped")
    assert all(t.isfinite().all() for t in weights(run.folder).values() if t.is_floating_point())


def test_too_many_bad_steps_stop_a_training_and_are_counted_when_it_resumes(
    tiny, tmp_path, explode, capsys
) -> None:
    explode({2, 4, 5}, math.nan)
    run = tmp_path / "run"
    more = ("training.skip_bad_steps=2", "callbacks.save_every=1")
    assert main(["train", *tiny, *more, f"run_dir={run}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "captioner: error: the loss is not finite at step 5, after 2 skipped steps "
        "(training.skip_bad_steps=2); nothing was overwritten. Lower optimizer.lr"
    )
    assert len(error.splitlines()) == 1
    last = checkpoint.read(checkpoint.find(run, name=LAST)).lightning
    assert last["global_step"] == 5
    assert last["callbacks"]["SkippedSteps"] == {"count": 2}

    explode({0}, math.nan)  # again
    assert main(["train", f"resume={run}"]) == 1
    assert "at step 5, after 2 skipped" in capsys.readouterr().err
    explode({0}, math.nan)
    assert main(["train", f"resume={run}", "training.skip_bad_steps=3"]) == 0
    assert "; 3 steps were skipped" in capsys.readouterr().out


def test_without_the_option_the_first_bad_step_stops_the_training(tiny, tmp_path, explode) -> None:
    explode({2}, math.nan)
    with pytest.raises(NonFiniteLoss, match="the loss is nan at step 2; nothing was overwritten"):
        train(compose(tiny), tmp_path / "run")


def test_a_training_without_bad_steps_is_the_same_with_the_option(tiny, tmp_path) -> None:
    more = ("callbacks.ema=0.9", "trainer.accumulate_grad_batches=2")
    runs = [
        train(compose([*tiny, *more, option]), tmp_path / str(number)).folder
        for number, option in enumerate(("training.skip_bad_steps=0", "training.skip_bad_steps=9"))
    ]
    first, second = map(weights, runs)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_number_below_zero_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="training.skip_bad_steps=-1 is not accepted; choose 0"):
        train(compose([*tiny, "training.skip_bad_steps=-1"]), "unused")
