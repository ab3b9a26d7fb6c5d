"""The plateau schedule; the others are in test_training."""

import pytest

from captioner.checkpoints import checkpoint
from captioner.config import compose
from captioner.training.schedules import Schedule
from captioner.training.train import train


def plateau(**options) -> Schedule:
    given = {"warmup": 0.1, "factor": 0.5, "patience": 2, **options}
    return Schedule("plateau", 100, **given)


def test_the_rate_falls_when_the_score_stops_rising() -> None:
    schedule = plateau()
    rates = []
    for score in (10.0, 12.0, 11.0, 12.0, 11.5, 11.0, 13.0, 12.0, 12.5):
        schedule.look((score,))
        rates.append(schedule.rate(50))
    # Worse than 12 twice, and twice again; 13 is better; worse than that twice.
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert schedule.rate(0) == pytest.approx(1 / 11)  # the warm-up is left alone


def test_it_goes_on_from_its_state() -> None:
    first, second = plateau(), plateau()
    for score in (3.0, 2.0):
        first.look((score,))
    second.load_state_dict(first.state_dict())
    for schedule in (first, second):
        schedule.look((1.0,))
    assert first.rate(50) == second.rate(50) == 0.5


def test_other_schedules_do_not_mind() -> None:
    schedule = Schedule("constant", 100, warmup=0.0, factor=0.5, patience=1)
    for score in (3.0, 2.0, 1.0):
        schedule.look((score,))
    assert schedule.rate(50) == 1


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"factor": 0.0}, {"patience": 0}])
def test_options_out_of_range_are_refused(options) -> None:
    with pytest.raises(ValueError, match=f"training.plateau_{next(iter(options))}="):
        plateau(**options)


def test_a_training_lowers_its_rate_and_resumes_to_the_bit(
    tiny, tmp_path, cut_short, monkeypatch
) -> None:
    monkeypatch.setattr(
        "captioner.training.module.rank", lambda scores, monitor: (0.0,)
    )  # never better
    options = ("training.schedule=plateau", "training.plateau_patience=1", "trainer.max_epochs=4")
    config = compose([*tiny, *options, "callbacks.save_every=5", "callbacks.patience=0"])
    train(config, tmp_path / "whole")
    path = cut_short(config, tmp_path / "cut", 21)
    train(config, tmp_path / "cut", resume=path)
    one, other = (
        checkpoint.read(checkpoint.find(tmp_path / name, name=checkpoint.LAST)).lightning
        for name in ("whole", "cut")
    )
    assert one["schedule"] == other["schedule"]
    assert one["schedule"]["falls"] == 3
    rates = [group["lr"] for group in one["optimizer_states"][0]["param_groups"]]
    assert rates == [g["lr"] for g in other["optimizer_states"][0]["param_groups"]]
    assert all((one["state_dict"][n] == other["state_dict"][n]).all() for n in one["state_dict"])
