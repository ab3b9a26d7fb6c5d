"""Sweeps: a failed job does not end them, job names are short, and searches maximize the score."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.errors import HydraException

from captioner import config
from captioner.cli import main
from captioner.runs import JOBS
from captioner.training.module import LitCaptioner
from captioner.training.sweeps import count_jobs, for_each_job, sweep_overrides

DECODERS = ["adaptive", "show_attend_tell", "show_tell", "transformer", "up_down"]


def prepared(*overrides: str) -> tuple[list[str], Path]:
    return sweep_overrides(config.checked(overrides, several=True))


def test_other_jobs_run_if_one_fails(tiny, tmp_path, capsys) -> None:
    rates = "optimizer.lr=0.01,-1,0.02"
    argv = ["train", "-m", *tiny, "trainer.max_epochs=1", rates, f"hydra.sweep.dir={tmp_path}"]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    table = out.partition("3 jobs, 1 failed, in ")[2].splitlines()[1:]
    assert [line.split()[0] for line in table] == [
        "0_optimizer.lr=0.01",
        "1_optimizer.lr=-1",
        "2_optimizer.lr=0.02",
    ]
    assert "dev_bleu4" in table[0] and "dev_bleu4" in table[2]
    assert "failed: optimizer.lr=-1 is not accepted" in table[1]
    assert err.count("\n") == 1
    assert "captioner: error: 1_optimizer.lr=-1: optimizer.lr=-1 is not accepted" in err
    trained = sorted(path.parent.name for path in tmp_path.glob("*/checkpoints"))
    assert trained == ["0_optimizer.lr=0.01", "2_optimizer.lr=0.02"]
    rows = [json.loads(line) for line in (tmp_path / JOBS).read_text().splitlines()]
    assert [row["job"] for row in rows] == [0, 1, 2]
    assert set(rows[0]["scores"]) > {"dev_bleu4", "dev_cider"}


# Interrupted sweeps -----------------------------------------------------------------------------


@pytest.fixture
def interrupted(monkeypatch):
    """Runs a command that Ctrl-C ends at a step of the job with a learning rate."""
    original = LitCaptioner.training_step

    def run(argv: list[str], lr: float, step: int) -> None:
        def watched(self, batch, batch_index):
            if (self.config["optimizer"]["lr"], self.global_step) == (lr, step):
                raise KeyboardInterrupt
            return original(self, batch, batch_index)

        with monkeypatch.context() as patch:
            patch.setattr(LitCaptioner, "training_step", watched)
            assert main(argv) == 130

    return run


@pytest.mark.reliability("interrupted")
def test_the_same_command_continues_an_interrupted_sweep(
    tiny, tmp_path, capsys, interrupted
) -> None:
    """In its second job, which has trained two steps."""
    folder, rates = tmp_path / "sweep", "optimizer.lr=0.01,0.02,0.03"
    argv = ["train", "-m", *tiny, "trainer.max_epochs=1", rates, f"run_dir={folder}"]
    interrupted(argv, 0.02, 2)
    out, err = capsys.readouterr()
    assert "\n1 of 3 jobs, 0 failed, in " in out
    says = "captioner: error: interrupted: 1 of 3 jobs have ended; the same command continues"
    assert err.splitlines()[-1] == says
    first = (folder / JOBS).read_text()

    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "0_optimizer.lr=0.01: has ended already\n" in out
    assert out.count("has ended already") == 1
    table = out.partition("\n3 jobs, 0 failed, in ")[2].splitlines()[1:]
    assert len(table) == 3 and all("dev_bleu4" in line for line in table)
    lines = (folder / JOBS).read_text()
    assert lines.startswith(first)
    assert [json.loads(line)["job"] for line in lines.splitlines()] == [0, 1, 2]

    assert main(["train", "-m", *tiny, "trainer.max_epochs=1", rates, f"run_dir={tmp_path}/2"]) == 0
    whole = [json.loads(line) for line in (tmp_path / "2" / JOBS).read_text().splitlines()]
    assert [json.loads(line) for line in lines.splitlines()] == whole

    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().out.count("has ended already") == 3
    assert (folder / JOBS).read_text() == lines


@pytest.mark.reliability("interrupted")
@pytest.mark.parametrize(("lr", "ended"), [(0.01, 0), (0.02, 1)])
def test_a_job_that_is_interrupted_before_its_first_step_leaves_no_folder(
    tiny, tmp_path, capsys, interrupted, lr: float, ended: int
) -> None:
    folder = tmp_path / "sweep"
    rates = ["trainer.max_epochs=1", "optimizer.lr=0.01,0.02"]
    interrupted(["train", "-m", *tiny, *rates, f"run_dir={folder}"], lr, 0)
    does = "continues" if ended else "starts the sweep again"
    says = f"interrupted: {ended} of 2 jobs have ended; the same command {does}"
    assert capsys.readouterr().err.splitlines()[-1] == f"captioner: error: {says}"
    assert folder.exists() is bool(ended)
    assert [path.name for path in folder.glob("*_*")] == ["0_optimizer.lr=0.01"][:ended]


@pytest.mark.reliability("interrupted")
def test_a_sweep_without_run_dir_says_how_to_name_its_folder(
    tiny, tmp_path, capsys, monkeypatch
) -> None:
    done = SimpleNamespace(monitor="dev_bleu4", score=1.0, scores={"dev_bleu4": 1.0})

    def train_job(composed, *unused: object) -> SimpleNamespace:
        if composed.seed == 2:
            raise KeyboardInterrupt("terminated (SIGTERM)")
        return done

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("captioner.verbs.train._train_job", train_job)
    assert main(["train", "-m", *tiny, "seed=1,2,3"]) == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "captioner: error: terminated (SIGTERM): 1 of 3 jobs have ended; the same command with "
        f"run_dir=runs/{folder.name} continues"
    )


def test_a_job_with_other_options_than_its_run_has_failed(tiny, tmp_path, capsys) -> None:
    argv = ["train", "-m", *tiny, "trainer.max_epochs=1", "seed=1,2", f"run_dir={tmp_path}"]
    assert main(argv) == 0
    capsys.readouterr()
    assert main([*argv, "optimizer.weight_decay=0.5"]) == 1
    out, err = capsys.readouterr()
    assert "2 jobs, 2 failed, in " in out
    says = f"optimizer.weight_decay=0.5 differs from the run that is in {tmp_path}/0_seed=1, which"
    assert says in err
    assert len((tmp_path / JOBS).read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["seed=1,2,3", "decoder.cell=rnn,gru"], 6),
        (["decoder=glob(*)", "seed=range(1,4)"], 15),
        (["seed=7", "decoder.cell=choice(rnn,gru)"], 2),
        (["experiment=flickr8k_sweep", "seed=1,2"], 8),
    ],
)
def test_the_jobs_of_a_sweep_are_counted_before_they_run(overrides: list[str], count: int) -> None:
    changes = config.checked(overrides, several=True)
    assert count_jobs(for_each_job(changes), changes) == count


# Jobs that cannot be composed --------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Jobs are composed and have a score of 1, without a training."""
    done = SimpleNamespace(monitor="dev_bleu4", score=1.0, scores={"dev_bleu4": 1.0})
    monkeypatch.setattr("captioner.verbs.train._train_job", lambda *unused: done)


@pytest.mark.parametrize(
    ("given", "fails"),
    [
        (["decoder=transformer,show_tell"], {"transformer": "embedding_size"}),
        (["decoder=glob(*)"], {"transformer": "embedding_size"}),
        (["decoder=show_tell,up_down", "+decoder.score=dot"], {"show_tell": "score"}),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_be_composed_is_a_failed_job(
    tiny, tmp_path, capsys, untrained, given: list[str], fails: dict[str, str]
) -> None:
    folder = tmp_path / "sweep"
    assert main(["train", "-m", *tiny, *given, f"hydra.sweep.dir={folder}"]) == 1
    rows = [json.loads(line) for line in (folder / JOBS).read_text().splitlines()]
    assert [row["job"] for row in rows] == list(range(len(rows)))
    names = DECODERS if "glob" in given[0] else given[0].partition("=")[2].split(",")
    assert {row["folder"].rpartition("=")[2] for row in rows} == set(names)
    for row in rows:
        name = row["folder"].rpartition("=")[2]
        if name in fails:
            message = f"decoder.{fails[name]} is not an option; decoder={name} has name, "
            assert row["error"].startswith(message)
            assert not (folder / row["folder"]).exists()
        else:
            assert row["score"] == 1.0
    assert f"{len(rows)} jobs, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        ["decoder=show_tell,up_down", "decoder.nothing=1"],
        ["decoder=transformer", "decoder.cell=rnn,gru"],
        ["training.nothing=1,2"],
    ],
)
def test_an_option_that_no_job_has_is_refused_before_the_sweep(
    tmp_path, capsys, untrained, given: list[str]
) -> None:
    folder = tmp_path / "sweep"
    assert main(["train", "-m", *given, f"hydra.sweep.dir={folder}"]) == 1
    assert "is not an option" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.reliability("interrupted")
def test_a_sweep_that_does_not_start_leaves_no_folder(tmp_path, capsys, monkeypatch) -> None:
    folder = tmp_path / "sweep"

    def broken(*unused: object) -> None:
        folder.mkdir()
        (folder / "multirun.yaml").touch()
        raise HydraException("no launcher today")

    monkeypatch.setattr("captioner.verbs.train._under_hydra", broken)
    assert main(["train", "-m", "seed=1,2", f"hydra.sweep.dir={folder}"]) == 1
    assert "no launcher today" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("experiment", ["demo", "debug"])
def test_these_experiments_compose_with_every_decoder(experiment: str, decoder: str) -> None:
    composed = config.compose([f"experiment={experiment}", f"decoder={decoder}"])["decoder"]
    alone = config.compose([f"decoder={decoder}"])["decoder"]
    assert set(composed) == set(alone)
    assert composed["hidden_size"] == {"demo": 192, "debug": 64}[experiment]
    if decoder == "show_tell":
        assert composed["regions"] == {"demo": 3, "debug": 2}[experiment]


def test_a_glob_becomes_all_options_of_a_group() -> None:
    changes = config.checked(["experiment=debug", "decoder=glob(*)"], several=True)
    names = ",".join(sorted(DECODERS))
    assert [change.input_line for change in changes] == ["experiment=debug", f"decoder={names}"]
    assert sweep_overrides(changes)[0][1].endswith("exclude_keys=[experiment]")
    with pytest.raises(ValueError, match="matches no option of decoder"):
        config.checked(["decoder=glob(x*)"], several=True)


def test_choice_and_range_are_accepted_and_an_interval_is_refused() -> None:
    prepared("decoder.cell=choice(rnn,gru)", "seed=range(1,4)")
    with pytest.raises(ValueError, match="an interval has no list of values.*hydra/sweeper=optuna"):
        prepared("optimizer.lr=interval(1e-4,1e-2)")


def test_a_job_of_many_keys_has_a_short_name() -> None:
    scst = config.compose(["objective=scst"])["objective"]
    keys = [key for key, value in scst.items() if isinstance(value, float)]
    assert len(keys) > 4
    more, _ = prepared("objective=scst", *(f"objective.{key}=0.123456789,0.2" for key in keys))
    (excluded,) = (line for line in more if "exclude_keys" in line)
    kept = [key for key in keys if f"objective.{key}" not in excluded]
    name = ",".join(f"objective.{key}=0.123456789" for key in kept)
    assert 1 < len(kept) < len(keys)
    assert len(name) < 200


def test_run_dir_is_the_folder_of_the_sweep() -> None:
    more, folder = prepared("seed=1,2", "run_dir=runs/数据 (1)")
    assert folder == Path("runs/数据 (1)")
    assert more[0] == "hydra.sweep.dir='runs/数据 (1)'"
    assert prepared("seed=1,2")[1].name.startswith("sweep_")


def test_a_search_maximizes_the_score() -> None:
    if importlib.util.find_spec("optuna") is None:
        with pytest.raises(ValueError, match=r"hydra/sweeper=optuna .* 'captioner\[sweep\]'"):
            config.checked(["hydra/sweeper=optuna"], several=True)
        pytest.skip("hydra-optuna-sweeper is not installed")
    given = ["hydra/sweeper=optuna", "optimizer.lr=interval(1e-4,1e-2)"]
    more, _ = prepared(*given)
    composed = config.compose_all([*config.checked(given, several=True), *more])
    assert composed.hydra.sweeper.direction == "maximize"
    assert "OptunaSweeper" in composed.hydra.sweeper._target_
    minimizing = prepared(*given, "hydra.sweeper.direction=minimize")[0]
    assert not any("direction" in line for line in minimizing)
    assert not any("direction" in line for line in prepared("seed=1,2")[0])
