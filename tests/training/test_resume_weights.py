"""Starting from the weights of another run: what is inherited, and what is refused."""

import pytest
import torch
from support.warm_starts import inherited

from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.config import compose
from captioner.runs import BEST, LAST
from captioner.training.train import train


def config_of(run, *overrides: str) -> dict:
    given = [
        f"resume_weights={run}",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
        "trainer.limit_train_batches=1",
        "logger.tensorboard=false",
        *overrides,
    ]
    return inherited(given)


def test_groups_of_the_checkpoint_are_inherited_except_for_overrides(run) -> None:
    saved = checkpoint.read(run).config
    config = config_of(run, "decoder.dropout=0.4", "data.root=/elsewhere", "optimizer.lr=0.5")
    assert config["encoder"] == saved["encoder"]
    assert config["tokenizer"] == saved["tokenizer"]
    assert config["decoder"] == {**saved["decoder"], "dropout": 0.4}
    assert config["data"] == {**saved["data"], "root": "/elsewhere"}
    assert config["optimizer"] == {**compose([])["optimizer"], "lr": 0.5}
    assert config["loader"] == compose([])["loader"]


def test_a_run_with_random_weights_inherits_nothing() -> None:
    assert inherited(["seed=3", "run_dir=x"]) == compose(["seed=3", "run_dir=x"])


def test_a_group_or_an_experiment_in_the_overrides_is_used(run) -> None:
    assert config_of(run, "data=flickr8k")["data"] == compose(["data=flickr8k"])["data"]
    config = config_of(run, "experiment=flickr8k_nic")
    assert config["data"] == compose(["experiment=flickr8k_nic"])["data"]
    assert config["decoder"] == checkpoint.read(run).config["decoder"]


def test_training_starts_from_the_weights(run, tmp_path) -> None:
    """With a learning rate of 0 the weights and scores stay those of the best checkpoint."""
    trained = train(config_of(run, "optimizer.lr=0"), tmp_path / "warm")
    before, after = checkpoint.read(run), checkpoint.read(trained.best)
    assert all(torch.equal(before.weights[n], after.weights[n]) for n in before.weights)
    assert after.tokenizer.as_dict() == before.tokenizer.as_dict()
    assert after.transform == before.transform
    assert trained.scores == before.scores


@pytest.mark.parametrize("option", ["resume_weights", "resume"])
def test_a_checkpoint_that_a_training_starts_from_is_read_once(
    tiny, tmp_path, monkeypatch, option: str
) -> None:
    first, more = [*tiny, "trainer.limit_train_batches=1"], []
    assert main(["train", *first, "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}"]) == 0
    source = checkpoint.find(tmp_path / "run", name=LAST if option == "resume" else BEST)
    if option == "resume_weights":
        more = [*first, f"run_dir={tmp_path / 'other'}"]
    read, load = [], torch.load

    def counted(path, *args, **options):
        read.append(path)
        return load(path, *args, **options)

    monkeypatch.setattr(torch, "load", counted)
    assert main(["train", f"{option}={tmp_path / 'run'}", "trainer.max_epochs=2", *more]) == 0
    assert [str(path) for path in read].count(str(source)) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("decoder.hidden_size=23", "does not fit: decoder.hidden_size=23, which has [0-9]+; leave"),
        ("decoder.cell=gru", "does not fit: decoder.cell=gru, which has [a-z]+; leave"),
        ("encoder=test_resnet", "does not fit:"),
        ("tokenizer.min_count=2", "has a vocabulary of its own: leave tokenizer"),
        ("tokenizer=character", "has a vocabulary of its own"),
        ("training.word_vectors=x.txt", "already has an embedding"),
    ],
)
def test_options_that_do_not_fit_the_weights_are_refused_in_one_line(
    run, tmp_path, override: str, message: str
) -> None:
    more = ("encoder.pretrained=false",) if override.startswith("encoder") else ()
    with pytest.raises(ValueError, match=message) as error:
        train(config_of(run, override, *more), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert str(run) in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resume_weights=/nowhere"], "/nowhere: no such run folder or checkpoint"),
        (["resume_weights={run}", "resume={run}"], "exclude each other"),
        (["resume_weights={run}", "objective=sct"], "did you mean scst?"),
    ],
)
def test_the_command_line_prints_errors_in_one_line(
    run, tmp_path, argv, message: str, capsys
) -> None:
    given = [argument.format(run=run) for argument in argv]
    try:
        status = main(["train", *given, f"run_dir={tmp_path / 'x'}"])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
