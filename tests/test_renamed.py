"""Old names of options: as overrides, in the user's own YAML, in stored configurations."""

import warnings

import pytest

from captioner import config, torch_optimizers
from captioner.renamed import modernized, renamed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("training.lr=0.1", "optimizer.lr=0.1"),
        ("+training.encoder_lr=0.1", "+optimizer.encoder_lr=0.1"),
        ("training.rewards.cider=2", "objective.rewards.cider=2"),
        ("training.rewards={cider:1.0}", "objective.rewards={cider:1.0}"),
        ("training.schedule=linear,cosine", "schedule=linear,cosine"),
        ("++training.schedule=linear", "schedule=linear"),
        ("training.plateau_patience=1", "schedule.patience=1"),
        ("~training.label_smoothing", "~objective.label_smoothing"),
        ("training=scst", "objective=scst"),
        ("training=default,scst", "objective=cross_entropy,scst"),
        ("training.objective=mine:Mine", "objective=mine:Mine"),
    ],
)
def test_an_old_name_is_renamed_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match="is now .* the old name works in this release"):
        assert renamed(old) == new


@pytest.mark.parametrize(
    "line", ["training.unfreeze_at=2", "training=mine", "training.lrx=1", "data.root=training.lr"]
)
def test_other_overrides_stay_as_they_are(line: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert renamed(line) == line


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["training=scst", "training.lr=0.1"], ["objective=scst", "optimizer.lr=0.1"]),
        (["training.schedule=linear"], ["schedule=linear"]),
        (
            ["training.schedule=plateau", "training.plateau_factor=0.1"],
            ["schedule=plateau", "schedule.factor=0.1"],
        ),
    ],
)
def test_old_and_new_names_compose_to_the_same(old: list[str], new: list[str]) -> None:
    same = ["run_dir=x"]
    assert config.compose([*same, *old]) == config.compose([*same, *new])


def test_self_critical_training_has_small_rates_of_its_own() -> None:
    composed = config.compose(["objective=scst"])
    assert (composed["optimizer"]["lr"], composed["optimizer"]["encoder_lr"]) == (5e-5, 1e-6)
    assert composed["schedule"]["name"] == "constant"
    composed = config.compose(["objective=scst", "optimizer=adamw", "schedule=cosine"])
    assert (composed["optimizer"]["lr"], composed["schedule"]["name"]) == (1e-3, "cosine")


OLD = {
    "objective": "cross_entropy",
    "lr": 0.002,
    "encoder_lr": 1e-6,
    "weight_decay": 0.02,
    "warmup": 0.1,
    "schedule": "cosine",
    "plateau_factor": 0.5,
    "plateau_patience": 2,
    "word_vectors": None,
    "freeze_words": False,
    "label_smoothing": 0.2,
}


def test_a_stored_configuration_has_its_options_in_their_groups() -> None:
    assert modernized({"seed": 1, "training": OLD}) == {
        "seed": 1,
        "objective": {"name": "cross_entropy", "label_smoothing": 0.2},
        "optimizer": {"name": "adamw", "lr": 0.002, "encoder_lr": 1e-6, "weight_decay": 0.02},
        "schedule": {"name": "cosine", "warmup": 0.1},
        "training": {"word_vectors": None, "freeze_words": False},
    }


def test_a_stored_plateau_keeps_its_options() -> None:
    schedule = modernized({"training": {**OLD, "schedule": "plateau"}})["schedule"]
    assert schedule == {"name": "plateau", "warmup": 0.1, "factor": 0.5, "patience": 2}


def test_the_oldest_checkpoints_name_no_objective() -> None:
    assert modernized({"training": {"lr": 0.1}})["objective"] == {"name": "cross_entropy"}


def test_a_present_configuration_stays_as_it_is() -> None:
    composed = config.compose(["objective=scst"])
    assert modernized(composed) == composed


def test_old_names_in_yaml_of_a_users_own(tmp_path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /training: scst\n  - _self_\n"
        "training:\n  lr: 0.3\n  samples: 7\n  schedule: plateau\n"
    )
    with pytest.warns(FutureWarning, match="training.lr is now optimizer.lr"):
        composed = config.compose(["experiment=mine"], config_dir=tmp_path)
    assert (composed["objective"]["name"], composed["objective"]["samples"]) == ("scst", 7)
    assert (composed["optimizer"]["lr"], composed["schedule"]["name"]) == (0.3, "plateau")
    assert set(composed["training"]) == set(config.compose()["training"])


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "radam"])
def test_optimizers_of_torch_are_options_by_name(name: str) -> None:
    composed = config.compose([f"optimizer={name}", "optimizer.lr=0.3"])["optimizer"]
    assert (composed["name"], composed["lr"]) == (name, 0.3)
    own = set(torch_optimizers.arguments(torch_optimizers.table()[name]))
    assert own <= set(composed)


def test_a_mistyped_optimizer_gets_one_line() -> None:
    with pytest.raises(ValueError, match="optimizer='rmsprob' is not known.*did you mean rmsprop"):
        config.compose(["optimizer=rmsprob"])
    with pytest.raises(ValueError, match="did you mean optimizer.momentum"):
        config.compose(["optimizer=sgd", "optimizer.momentun=0.9"])
