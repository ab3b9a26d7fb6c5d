"""The plateau schedule; the others are in test_train."""

import pytest

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.runs import LAST
from captioner.training.schedules import Constant, Plateau
from captioner.training.train import train


def plateau(**options) -> Plateau:
    given = {"warmup": 0.1, "factor": 0.5, "patience": 2, **options}
    return Plateau(100, **given)


def test_the_rate_falls_when_the_score_stops_rising() -> None:
    schedule = plateau()
    rates = []
    for score in (10.0, 12.0, 11.0, 12.0, 11.5, 11.0, 13.0, 12.0, 12.5):
        schedule.validated((score,))
        rates.append(schedule.rate(50))
    # Not better than 12 four times, so it falls twice; then 13; then twice not better than 13.
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert schedule.rate(0) == pytest.approx(1 / 11)  # the warm-up does not change


def test_a_restored_schedule_continues() -> None:
    first, second = plateau(), plateau()
    for score in (3.0, 2.0):
        first.validated((score,))
    second.load_state_dict(first.state_dict())
    for schedule in (first, second):
        schedule.validated((1.0,))
    assert first.rate(50) == second.rate(50) == 0.5


def test_a_constant_rate_does_not_fall() -> None:
    schedule = Constant(100, warmup=0.0)
    for score in (3.0, 2.0, 1.0):
        schedule.validated((score,))
    assert schedule.rate(50) == 1


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"factor": 0.0}, {"patience": 0}])
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ValueError, match=f"schedule.{next(iter(options))}="):
        plateau(**options)


def test_a_training_lowers_its_rate_and_resumes_exactly(
    tiny, tmp_path, cut_short, monkeypatch
) -> None:
    monkeypatch.setattr(
        "captioner.training.module.rank", lambda scores, monitor: (0.0,)
    )  # never better
    options = ("schedule=plateau", "schedule.patience=1", "trainer.max_epochs=4")
    config = compose([*tiny, *options, "callbacks.save_every=5", "callbacks.patience=0"])
    train(config, tmp_path / "whole")
    path = cut_short(config, tmp_path / "cut", 21)
    train(config, tmp_path / "cut", resume=path)
    one, other = (
        checkpoint.read(checkpoint.find(tmp_path / name, name=LAST)).lightning
        for name in ("whole", "cut")
    )
    assert one["schedule"] == other["schedule"]
    assert one["schedule"]["falls"] == 3
    rates = [group["lr"] for group in one["optimizer_states"][0]["param_groups"]]
    assert rates == [g["lr"] for g in other["optimizer_states"][0]["param_groups"]]
    assert all((one["state_dict"][n] == other["state_dict"][n]).all() for n in one["state_dict"])
