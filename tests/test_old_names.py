"""Old names of options: as overrides, in the user's own YAML, in stored configurations."""

import warnings

import pytest
from omegaconf import OmegaConf

from captioner import config, torch_optimizers
from captioner.old_names import KEPT, modernized, renamed
from captioner.training.train import TrainedRun
from captioner.verbs import train


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
def test_other_overrides_are_unchanged(line: str) -> None:
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


def test_self_critical_training_has_its_own_learning_rates() -> None:
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


def test_a_current_configuration_is_unchanged() -> None:
    composed = config.compose(["objective=scst"])
    assert modernized(composed) == composed


def test_old_names_in_the_users_yaml(tmp_path) -> None:
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


def experiment_folder(tmp_path, text: str):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mix.yaml").write_text(f"# @package _global_\n{text}\n")
    return tmp_path


MIX = "training: {lr: 0.003, label_smoothing: 0.2, schedule: plateau, plateau_patience: 1}"


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("more", "new"),
    [
        ([], ["schedule=plateau", "schedule.patience=1", "optimizer.lr=0.003"]),
        (["optimizer.lr=0.1", "schedule=linear"], ["optimizer.lr=0.1", "schedule=linear"]),
        (["training.lr=0.1"], ["schedule=plateau", "schedule.patience=1", "optimizer.lr=0.1"]),
    ],
)
def test_old_names_in_yaml_compose_as_overrides_before_the_users(tmp_path, more, new) -> None:
    """The groups are complete, and the command line takes precedence."""
    folder = experiment_folder(tmp_path, MIX)
    composed = config.compose(["experiment=mix", "run_dir=x", *more], config_dir=folder)
    assert composed == config.compose(["run_dir=x", "objective.label_smoothing=0.2", *new])


def test_cfg_job_shows_what_old_names_in_yaml_will_train(tmp_path, capsys) -> None:
    folder = experiment_folder(tmp_path, MIX)
    with pytest.warns(FutureWarning, match="training.lr is now optimizer.lr"):
        assert train.run(["--config-dir", str(folder), "experiment=mix", "--cfg", "job"]) == 0
    config = OmegaConf.create(capsys.readouterr().out)
    assert (config.optimizer.lr, config.objective.label_smoothing) == (0.003, 0.2)
    assert config.schedule == {"name": "plateau", "warmup": 0.05, "factor": 0.5, "patience": 1}
    assert set(config.training) == set(KEPT)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("training: {lrr: 0.003}", r"^training.lrr is not an option; .*did you mean optimizer.lr"),
        ("training: {lr: abc}", "optimizer.lr='abc' is not accepted; choose a number"),
        (
            "training: {lr: 0.003}\noptimizer: {lr: 0.004}",
            "training.lr=0.003 and optimizer.lr=0.004 are the old and the new name",
        ),
    ],
)
def test_yaml_with_old_names_is_refused_in_one_line(tmp_path, text: str, says: str) -> None:
    folder = experiment_folder(tmp_path, text)
    with pytest.raises(ValueError, match=says) as error:
        config.compose(["experiment=mix"], config_dir=folder)
    assert "\n" not in str(error.value)


NAMED = [
    "training.label_smoothing",
    "training.lr",
    "training.plateau_patience",
    "training.schedule",
]


LONG = [pytest.mark.slow, pytest.mark.reliability("versions")]


@pytest.fixture
def trained(monkeypatch) -> list[dict]:
    """The configurations that the verb would train."""
    configs: list[dict] = []

    def train_none(composed, folder, *unused, **named) -> TrainedRun:
        configs.append(composed)
        return TrainedRun(folder, folder, {}, "dev_bleu4", 1, "not trained")

    monkeypatch.setattr(train, "_train", train_none)
    return configs


def renamed_by(*overrides: str) -> list[str]:
    """Run the verb; the old names of which it warns, sorted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train.run(overrides) == 0
    said = [str(one.message) for one in caught if one.category is FutureWarning]
    return sorted(line.partition(" is now ")[0] for line in said)


def test_a_run_of_yaml_with_old_names_warns_once_of_each(tmp_path, trained) -> None:
    folder = experiment_folder(tmp_path, MIX)
    assert renamed_by(f"--config-dir={folder}", "experiment=mix", "run_dir=x") == NAMED
    present = ["schedule=plateau", "schedule.patience=1", "objective.label_smoothing=0.2"]
    assert trained == [config.compose(["run_dir=x", "optimizer.lr=0.003", *present])]


@pytest.mark.parametrize(
    ("more", "swept"),
    [
        ([], ("optimizer.lr", [0.1, 0.2])),  # what the command line sets wins
        pytest.param([], ("schedule.patience", [3, 4]), marks=LONG),  # only that schedule has it
        pytest.param(["schedule.patience=5"], ("seed", [1, 2]), marks=LONG),
        pytest.param(["schedule=linear"], ("seed", [1, 2]), marks=LONG),
    ],
)
def test_a_sweep_of_yaml_with_old_names_warns_once_of_each(tmp_path, trained, more, swept) -> None:
    folder = experiment_folder(tmp_path, MIX)
    key, values = swept
    given = [f"--config-dir={folder}", "experiment=mix", f"run_dir={tmp_path / 'sweep'}", *more]
    assert renamed_by("-m", *given, f"{key}={','.join(map(str, values))}") == NAMED
    present = ["schedule=plateau", "schedule.patience=1"] if "schedule=linear" not in more else []
    names = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert names == [f"{number}_{key}={value}" for number, value in enumerate(values)]
    for value, composed in zip(values, trained, strict=True):
        first = ["optimizer.lr=0.003", "objective.label_smoothing=0.2", *present]
        new = [line for line in first if line.partition("=")[0] not in (key, *keys_of(more))]
        same = config.compose([f"run_dir={tmp_path / 'sweep'}", *new, *more, f"{key}={value}"])
        assert composed == same


def keys_of(overrides: list[str]) -> list[str]:
    return [line.partition("=")[0] for line in overrides]


def test_a_sweep_over_experiments_with_old_and_new_names(tmp_path, trained) -> None:
    folder = experiment_folder(tmp_path, MIX)
    text = "# @package _global_\ndefaults: [{override /schedule: linear}]\nseed: 7\n"
    (folder / "experiment" / "new.yaml").write_text(text)
    given = [f"--config-dir={folder}", "experiment=mix,new", f"run_dir={tmp_path / 'sweep'}"]
    assert renamed_by("-m", *given) == NAMED
    assert [one["schedule"]["name"] for one in trained] == ["plateau", "linear"]
    assert [one["optimizer"]["lr"] for one in trained] == [0.003, 0.001]


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
