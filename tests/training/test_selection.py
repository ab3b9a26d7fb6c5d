"""The ranking of epochs for best.ckpt, kept epochs and patience, also in a moved run folder."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.runs import LAST
from captioner.training.module import LitCaptioner
from captioner.training.schedules import Plateau
from captioner.training.selection import KeptEpochs, Patience, rank
from captioner.training.train import train

NAMES = ("dev_bleu4", "dev_cider", "dev_loss")


@pytest.fixture
def scored(monkeypatch):
    """Replaces the scores of the epochs of a training by given ones."""
    original = LitCaptioner.on_validation_epoch_end

    def give(*by_epoch: tuple[float, float, float]) -> None:
        def end(self):
            original(self)
            self.dev_scores.update(zip(NAMES, by_epoch[self.current_epoch]))

        monkeypatch.setattr(LitCaptioner, "on_validation_epoch_end", end)

    return give


def files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def test_ties_are_broken_by_cider_and_then_by_the_loss() -> None:
    order = [(1, 0, 9), (0, 2, 9), (0, 1, 3), (0, 1, 4)]  # BLEU-4, CIDEr-D, loss: best first
    ranks = [rank(dict(zip(NAMES, scores)), "dev_bleu4") for scores in order]
    assert ranks == sorted(ranks, reverse=True)
    by_cider = [rank(dict(zip(NAMES, scores)), "dev_cider") for scores in order]
    assert sorted(by_cider, reverse=True) == [by_cider[1], by_cider[2], by_cider[3], by_cider[0]]


def test_if_bleu_is_always_zero_cider_and_the_loss_decide(tiny, tmp_path, scored) -> None:
    scored((0, 1, 5), (0, 3, 5), (0, 3, 4), (0, 2, 1), (0, 3, 4), (0, 9, 9))
    options = ("trainer.max_epochs=9", "callbacks.patience=2", "callbacks.keep=2")
    run = train(compose([*tiny, *options]), tmp_path / "run")
    assert run.epoch == 3  # the fourth has the lower loss and the lower CIDEr-D, the fifth is equal
    assert run.ending == "2 validations without a better one (callbacks.patience)"
    assert {name: run.scores[name] for name in NAMES} == dict(zip(NAMES, (0, 3, 4)))
    kept = sorted(path.name for path in (run.folder / "checkpoints").glob("epoch-*"))
    assert kept == ["epoch-03.ckpt", "epoch-05.ckpt"]


def test_a_finished_run_gives_its_ending(tiny, tmp_path, scored) -> None:
    scored((5, 0, 1), (4, 0, 1))
    run = train(compose(tiny), tmp_path / "run")
    assert (run.epoch, run.ending) == (1, "2 epochs are done (trainer.max_epochs)")


@pytest.mark.parametrize(("third", "best"), [((7, 50, 0.1), 1), ((11, 0, 9), 3)])
def test_a_moved_run_keeps_its_best_score(tiny, tmp_path, scored, third, best: int) -> None:
    scored((10, 1, 2), (5, 1, 1), third)
    first = train(compose([*tiny, "callbacks.keep=1"]), tmp_path / "a").folder
    moved = first.rename(tmp_path / "deep" if best == 1 else tmp_path / "b")
    another = shutil.copytree(moved, tmp_path / "a")  # at the old path of the moved folder
    before, weights = files(another), files(moved)["checkpoints/best.ckpt"]

    config = compose([*tiny, "callbacks.keep=1", "trainer.max_epochs=3"])
    last = checkpoint.find(moved, name=LAST)
    run = train(config, moved, resume=last)

    assert run.epoch == best
    assert run.scores["dev_bleu4"] == (10 if best == 1 else 11)
    assert (files(moved)["checkpoints/best.ckpt"] == weights) is (best == 1)
    assert [path.name for path in (moved / "checkpoints").glob("epoch-*")] == [
        f"epoch-{best:02d}.ckpt"
    ]
    assert files(another) == before
    state = checkpoint.read(last).lightning["callbacks"]
    assert str(tmp_path) not in repr({name: state[name] for name in state if name != "RandomState"})


def test_patience_continues_to_count_after_resuming() -> None:
    trainer = SimpleNamespace(sanity_checking=False, should_stop=False)
    first, second = Patience("dev_bleu4", 2), Patience("dev_bleu4", 2)
    for callback, score in ((first, 3.0), (first, 2.0), (second, 2.5)):
        if callback is second:
            second.load_state_dict(first.state_dict())
        scores = {"dev_bleu4": score, "dev_cider": 0.0, "dev_loss": 1.0}
        callback.on_validation_end(trainer, SimpleNamespace(dev_scores=scores))
    assert second.exhausted and trainer.should_stop and not first.exhausted


def test_plateau_uses_the_same_ranking() -> None:
    schedule = Plateau(100, warmup=0, factor=0.5, patience=1)
    for ranking in ((0.0, 1.0, -2.0), (0.0, 2.0, -3.0), (0.0, 2.0, -2.0)):
        schedule.validated(ranking)
    assert schedule.rate(50) == 1
    schedule.validated((0.0, 2.0, -2.0))
    assert schedule.rate(50) == 0.5
    schedule.load_state_dict({"best": 1.5, "worse": 0, "falls": 0})  # as 0.1 wrote it
    schedule.validated((1.4, 9.0, 0.0))
    assert schedule.rate(50) == 0.5


def test_a_checkpoint_without_scores_ranks_last(tiny, tmp_path, scored) -> None:
    """Such a checkpoint is written if there was no validation."""
    scored((0, 0, 9))
    run = train(compose([*tiny, "trainer.max_epochs=1", "callbacks.keep=1"]), tmp_path / "run")
    best = run.folder / "checkpoints" / "epoch-01.ckpt"
    content = checkpoint.read(best).lightning
    content["captioner"]["scores"] = {}
    checkpoint.write(content, best)
    kept = KeptEpochs(run.folder, "dev_bleu4", 1)
    kept.setup()
    assert max(kept.ranks.values()) < rank(dict(zip(NAMES, (0, 0, 99))), "dev_bleu4")
