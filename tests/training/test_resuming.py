"""Options with resume=RUN: each is either used and recorded, or refused in one line."""

import shutil
from pathlib import Path

import pytest

from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.config import compose
from captioner.training.duration import require_epochs
from captioner.training.resuming import resumed


@pytest.fixture(scope="module")
def saved() -> dict:
    return compose(["experiment=demo", "decoder.cell=gru", "run_dir=runs/x"])


def resume_config(saved: dict, *overrides: str) -> dict:
    return resumed(saved, overrides, run="runs/x", folder=Path("runs/x"))


FIRST = ("experiment=demo", "decoder.cell=gru", "run_dir=runs/x")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        FIRST,
        (*FIRST, "resume=runs/x"),
        ("experiment=demo",),  # the cell of the run stays
        ("optimizer.lr=0.004", "seed=1", "tokenizer=word", "run_dir=./runs/../runs/x"),
        ("decoder.name=show_tell", "resume_weights=null", "hydra.run.dir=."),
    ],
)
def test_values_of_the_run_are_accepted(saved, overrides) -> None:
    assert resume_config(saved, *overrides) == saved


def test_options_that_can_change_are_used(saved) -> None:
    config = resume_config(
        saved,
        *FIRST,
        "trainer.max_epochs=9",
        "trainer.devices=2",
        "callbacks.patience=7",
        "decoding=beam",
        "decoding.beam_size=4",
        "data.root=/else/where",
        "loader.workers=1",
        "logger.csv=false",
        "objective.label_smoothing=0.2",
    )
    assert (config["trainer"]["max_epochs"], config["trainer"]["devices"]) == (9, 2)
    assert config["callbacks"] == {**saved["callbacks"], "patience": 7}
    assert config["decoding"] == {**compose(["decoding=beam"])["decoding"], "beam_size": 4}
    assert config["data"] == {**saved["data"], "root": "/else/where"}
    assert config["objective"] == {**saved["objective"], "label_smoothing": 0.2}
    assert config["decoder"] == saved["decoder"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lr=0.5",
            "optimizer.lr=0.5 cannot be combined with resume=runs/x, which has 0.004",
        ),
        ("optimizer.weight_decay=0.5", "optimizer.weight_decay=0.5 cannot be combined"),
        ("objective=scst", "objective=scst cannot be combined with resume=runs/x, which has cross"),
        ("optimizer=sgd", "optimizer=sgd cannot be combined with resume=runs/x, which has adamw"),
        ("schedule=plateau", "schedule=plateau cannot be combined with resume=runs/x, which has c"),
        ("tokenizer.min_count=2", "tokenizer.min_count=2 cannot be combined"),
        (
            "tokenizer=character",
            "tokenizer=character cannot be combined with*, which has word",
        ),
        ("encoder=efficientnet_lite2", "encoder.* cannot be combined"),
        ("decoder.cell=lstm", "decoder.cell=lstm cannot be combined"),
        ("decoder=up_down", "decoder=up_down cannot be combined"),
        ("data=json", "data.format=json cannot be combined"),
        ("loader.batch_size=3", "loader.batch_size=3 cannot be combined"),
        ("callbacks.monitor=dev_cider", "callbacks.monitor=dev_cider cannot be combined"),
        ("seed=2", "seed=2 cannot be combined"),
        ("experiment=debug", "decoder.* cannot be combined"),
        (
            "run_dir=runs/y",
            "run_dir=runs/y cannot be combined with resume=runs/x, which continues in",
        ),
        ("resume_weights=runs/y", "exclude each other"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs"),
        ("seed=1,2", "several values are for train -m"),
        ("~decoder.regions", "options cannot be deleted"),
    ],
)
def test_options_that_cannot_change_are_refused(saved, override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        resume_config(saved, override)
    before, _, after = message.partition("*")
    assert before in str(error.value) and after in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "text", ["training: {plateau_patience: 1, lr: 0.003}", "schedule: {patience: 1}"]
)
def test_the_error_names_the_choice_that_changes_a_value(tmp_path, text: str) -> None:
    """Neither the first nor the second command sets schedule.patience itself."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    first = ["experiment=mine", "schedule=plateau", "run_dir=runs/x"]
    saved = compose(first, config_dir=tmp_path)
    assert saved["schedule"]["patience"] == 1

    def resume_config(*overrides: str) -> dict:
        return resumed(saved, overrides, run="runs/x", folder=Path("runs/x"), config_dir=tmp_path)

    assert (
        resume_config(*first)
        == resume_config()
        == resume_config("schedule=plateau", "schedule.patience=1")
        == saved
    )
    message = (
        "^schedule=plateau: schedule.patience=2 cannot be combined with resume=runs/x, which has "
        "1; leave schedule=plateau out; when resuming, only"
    )
    with pytest.raises(ValueError, match=message):
        resume_config("schedule=plateau")
    with pytest.raises(ValueError, match=r"^schedule.patience=3 cannot .* has 1; when resuming"):
        resume_config("schedule.patience=3")


def test_a_run_with_resume_weights_keeps_its_inherited_groups(saved) -> None:
    """Giving the experiment again does not replace the groups that came from the weights."""
    start = {**saved, "resume_weights": "/no/longer/there", "decoder": {"name": "show_tell"}}
    config = resume_config(start, "experiment=demo", "resume_weights=/no/longer/there")
    assert config == start


@pytest.mark.reliability("versions")
def test_an_older_run_accepts_an_option_that_it_lacks(saved) -> None:
    old = {**saved, "trainer": {"max_epochs": 6, "precision": "32-true"}}
    assert resume_config(old, "trainer.max_epochs=8")["trainer"] == {
        "max_epochs": 8,
        "precision": "32-true",
    }
    assert resume_config(old, "trainer.accumulate_grad_batches=2")["trainer"] == {
        **old["trainer"],
        "accumulate_grad_batches": 2,
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["resume={run}/checkpoints/best.ckpt"],
            "best.ckpt contains only weights; resume={run} con",
        ),
        (["resume=flickr8k"], "resume_weights=flickr8k starts"),
        (["resume=5"], "5: no such run folder"),
        (["resume="], "resume='' is not accepted; give the run folder to continue"),
        (["-m", "resume=", "seed=1,2"], "resume='' is not accepted; give the run folder"),
        (["resume=flickr8k_ch"], "no such run folder or checkpoint (did you mean flickr8k_cn?)"),
        (["resume=runs/lr=1_typo"], "runs/lr=1_typo: no such run folder"),
        (["-m", "resume={run}"], "continues one run; leave --multirun out"),
        (["resume={run}", "optimizer.lr=5"], "optimizer.lr=5 cannot be combined with resume={run}"),
        (["resume_weights=5"], "5: no such run folder or checkpoint"),
    ],
)
def test_the_command_line_prints_errors_in_one_line(run, argv, message: str, capsys) -> None:
    assert main(["train", *(argument.format(run=run) for argument in argv)]) == 1
    error = capsys.readouterr().err
    assert message.format(run=run) in error and error.count("\n") == 1


def test_the_first_command_with_resume_resumes_a_run_of_a_sweep(
    run, tiny, tmp_path, capsys
) -> None:
    """The folder is named as in a sweep; the configuration contains the changed options."""
    folder = tmp_path / "0_decoder.cell=lstm,seed=1"
    shutil.copytree(run, folder)
    saved = checkpoint.read(folder).config
    more = ["trainer.max_epochs=16", "trainer.limit_train_batches=1", "callbacks.samples=1"]
    given = [f"data.root={saved['data']['root']}", "decoding=beam", "encoder.image_size=64", *more]
    assert main(["train", f"resume={folder}", *given]) == 0
    assert "epoch  16/16" in capsys.readouterr().out
    config = checkpoint.read(folder / "checkpoints" / "last.ckpt").config
    assert config["decoding"]["beam_size"] == 3
    assert config["optimizer"] == saved["optimizer"]
    assert config["callbacks"] == {**saved["callbacks"], "samples": 1}
    assert config["resume"] is None


@pytest.mark.parametrize("folder", ["absent", "another dataset"])
def test_the_data_of_a_run_are_not_drawn_in_another_folder(
    run, tmp_path, capsys, folder: str
) -> None:
    if folder == "another dataset":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "captions.txt").touch()
    before = checkpoint.read(run).config["data"]["root"]
    other = f"data.root={tmp_path / folder}"
    assert main(["train", f"resume={run}", "trainer.max_epochs=16", other]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"data.root='{tmp_path / folder}' has no captions.jsonl; resume={run} continues" in error
    assert f"(data.format=shapes), which were in {before}: leave data.root out" in error
    assert "draw" not in error


def test_a_finished_training_is_refused_before_data_are_read(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr("captioner.training.train", lambda *_, **__: 1 / 0)
    assert main(["train", f"resume={run}", "trainer.max_epochs=3"]) == 1
    error = capsys.readouterr().err
    assert "15 epochs are done, and trainer.max_epochs=3" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"max_epochs": 2}, "2 epochs are done, and .* above 2 to continue"),
        (
            {"max_epochs": 2, "max_steps": 20},
            "done, in 2 .*trainer.max_steps above 20",
        ),
        (
            {"max_epochs": 2, "max_steps": 30},
            "20 steps .* in 2 epochs.* above 2 to continue",
        ),
    ],
)
def test_the_error_names_the_steps_of_a_finished_training(trainer: dict, message: str) -> None:
    progress = {"epoch_progress": {"current": {"processed": 2}}}
    with pytest.raises(ValueError, match=message):
        require_epochs({"global_step": 20, "loops": {"fit_loop": progress}}, trainer)
    require_epochs({"global_step": 20, "loops": {"fit_loop": progress}}, {"max_epochs": 3})
