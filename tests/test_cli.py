"""The command line: what it prints, where it writes, what it refuses."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import captioner
from captioner.cli import VERBS, main
from captioner.metrics.statistics import Statistics


def fails(capsys: pytest.CaptureFixture, *argv: object, says: str, status: int = 1) -> None:
    """The command ends with a status and one line on standard error."""
    assert main([str(word) for word in argv]) == status
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("captioner: error: ")
    assert says in error


def command(*argv: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "captioner", *map(str, argv)], capture_output=True, text=True
    )


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, captioner.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'hydra', 'numpy', 'PIL', 'nltk', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_every_verb_has_help_with_examples(verb: str, capsys) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--help"])
    assert leaving.value.code == 0
    assert f"captioner {verb}" in capsys.readouterr().out.partition("examples:")[2]


def test_train_has_help_with_examples() -> None:
    done = command("train", "--help")
    assert done.returncode == 0
    assert "captioner train -m experiment=demo decoder.cell=rnn,gru,lstm" in done.stdout
    assert "experiment: debug, demo, flickr8k_attend" in done.stdout


def test_a_run_from_end_to_end(tiny, scenes, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    done = command("train", *tiny, "trainer.max_epochs=1", f"run_dir={run}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"best checkpoint\t{run / 'checkpoints' / 'best.ckpt'}"
    assert not any(line != line.rstrip() or "  " in line for line in lines[-3:])
    assert "BLEU-4" in done.stdout

    metrics = ["--metrics", "bleu,rouge-l,cider-d,diversity"]
    beam = ["decoding=beam", "decoding.beam_size=2"]
    assert main(["evaluate", str(run), "data.split=test", *beam, *metrics]) == 0
    folder = run / "evaluation" / "shapes-test" / "beam2-lp0.7"
    scores = json.loads((folder / "scores.json").read_text())
    named = {"signatures", "signature", "fields"}
    assert set(scores) == {"scores", "format", "version", *named, "missing"}
    assert {"BLEU-4", "ROUGE-L", "CIDEr-D"} <= set(scores["scores"]) == set(scores["signatures"])
    assert "|decoding:beam2-lp0.7|" in scores["signature"]
    assert "|split:test|" in scores["signatures"]["CIDEr-D"]
    statistics = Statistics.load(folder / "statistics.npz")
    for name, value in statistics.scores().items():
        assert value == pytest.approx(scores["scores"][name])
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == list(statistics.images)
    assert len(rows) == 6
    assert set(rows[0]) == {"image", "caption", "log_prob", "references"}
    assert Image.open(folder / "sheet.png").width > 500

    assert main(["train", f"resume={run}", "trainer.max_epochs=2"]) == 0
    assert "epoch   2/2" in capsys.readouterr().out
    fails(capsys, "train", *tiny, f"run_dir={run}", says="already has a run")


def test_multirun_trains_with_each_value(tiny, tmp_path) -> None:
    cells = "decoder.cell=rnn,lstm"
    sweep = ["-m", *tiny, "trainer.max_epochs=1", cells, f"hydra.sweep.dir={tmp_path}"]
    assert main(["train", *sweep]) == 0
    runs = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert [run.name for run in runs] == [
        "0_decoder.cell=rnn",
        "1_decoder.cell=lstm",
    ]
    cells = [captioner.load(run).config["decoder"]["cell"] for run in runs]
    assert cells == ["rnn", "lstm"]


def test_cfg_job_prints_the_configuration() -> None:
    done = command("train", "experiment=demo", "decoder.cell=gru", "--cfg", "job")
    assert done.returncode == 0
    assert "cell: gru" in done.stdout


# caption --------------------------------------------------------------------------------------


@pytest.fixture
def mixed(scenes, tmp_path) -> Path:
    """A folder with two good pictures, one below another folder, and two that are not."""
    pictures = sorted((scenes / "images").glob("test_*.png"))
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "photos" / "a.png").write_bytes(pictures[0].read_bytes())
    (tmp_path / "photos" / "deep" / "b.png").write_bytes(pictures[1].read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_text("I am no photograph")
    (tmp_path / "photos" / "notes.txt").write_text("not looked at")
    return tmp_path / "photos"


def test_captioning_loads_nothing_that_only_training_needs() -> None:
    unwanted = "{'pytorch_lightning', 'hydra'}"
    code = f"import sys, captioner.verbs.caption_files; print({unwanted} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_good_files_are_captioned_and_bad_ones_named(run, mixed, capsys) -> None:
    assert main(["caption", str(mixed), "--model", str(run)]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        str(mixed / "a.png"),
        str(mixed / "deep" / "b.png"),
    ]
    assert "broken.jpg" in err
    assert "1 .txt skipped" in err
    assert err.count("\n") == 2


def test_formats_agree(run, mixed, tmp_path, capsys) -> None:
    paths = [str(mixed / "a.png"), str(mixed / "deep" / "*.png")]
    outputs = {}
    for form in ("text", "json", "csv"):
        assert main(["caption", *paths, "--model", str(run), "--format", form]) == 0
        outputs[form] = capsys.readouterr().out
        file = tmp_path / f"out.{form}"
        arguments = ["caption", *paths, "--model", str(run), "--format", form]
        assert main([*arguments, "--output", str(file)]) == 0
        assert file.read_text(encoding="utf-8") == outputs[form]
    texts = [line.partition(": ")[2] for line in outputs["text"].splitlines()]
    assert [entry["caption"] for entry in json.loads(outputs["json"])] == texts
    rows = list(csv.DictReader(io.StringIO(outputs["csv"])))
    assert [row["caption"] for row in rows] == texts
    assert len(texts) == 2


def test_a_list_on_standard_input(run, mixed, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{mixed / 'a.png'}\n\n"))
    assert main(["caption", "-", "--model", str(run), "--beam-size", "3"]) == 0
    assert capsys.readouterr().out.startswith(str(mixed / "a.png"))


def test_wrong_inputs_get_one_line(run, mixed, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    good = mixed / "a.png"
    fails(capsys, "caption", tmp_path / "empty", "--model", run, says="has no images")
    fails(capsys, "caption", tmp_path / "gone.jpg", "--model", run, says="no such file or folder")
    fails(capsys, "caption", good, "--model", tmp_path / "no", says="no such run folder")
    fails(capsys, "caption", good, "--model", mixed / "notes.txt", says="not a c")
    fails(capsys, "caption", good, "--model", run, "--beam-size", 0, says="beam_size=0")
    fails(capsys, "caption", good, "--model", run, "--beam-size", 9999, says="≥ 1 and ≤ 1,000")
    fails(capsys, "caption", "", "--model", run, says="'' is an empty path; give a file, a folder")
    fails(capsys, "caption", good, "--model", "", says="'' is an empty path; give a run folder")
    contrary = ("--prefix", "a", "--banned-words", "a")
    fails(capsys, "caption", good, "--model", run, *contrary, says="prefix='a' is banned")
    fails(capsys, "caption", good, "--model", run, "--batch-size", 0, says="batch-size=0")
    fails(capsys, "evaluate", run, "data=json", "data.root=/nowhere", says="data.root='/nowhere'")
    fails(capsys, "evaluate", run, "data.split=tset", says="split='tset'")
    fails(capsys, "evaluate", run, "decoding.beam=3", says="did you mean decoding.beam_size")
    fails(capsys, "evaluate", run, "decoding=baem", says="did you mean beam")
    fails(capsys, "evaluate", run, "--metrics", "blue", says="did you mean bleu")
    fails(capsys, "train", "experiment=dmeo", says="did you mean demo")
    fails(capsys, "train", "experimant=demo", says="(did you mean experiment?)")
    fails(capsys, "evaluate", "flikr8k", says="(did you mean flickr8k?)")
    fails(capsys, "train", "traning.lr=1", says="did you mean training")
    fails(
        capsys, "data", "stats", "optimizer.lr=3", says="optimizer.lr=3: changes nothing in a data"
    )
    fails(capsys, "data", "check", "decoder=up_down", says="give data, tokenizer, loader, decoding")
    fails(capsys, "train", "lr=3", says="(did you mean optimizer.lr?)")
    fails(capsys, "train", "max_epoch=3", says="(did you mean trainer.max_epochs?)")
    fails(capsys, "train", "encoder.batch_size=3", says="(did you mean loader.batch_size?)")
    fails(capsys, "evaluate", run, "beam_size=3", says="(did you mean decoding.beam_size?)")
    fails(capsys, "data", "stats", "data=flickr8k", "data.root=/nowhere", says="data.root=")


def test_an_unknown_verb_or_flag_is_a_usage_error(capsys) -> None:
    for argv in (
        ["capshun"],
        ["caption"],
        ["models", "export", "runs/x"],
        ["models", "list", "runs/x"],
        ["models", "eat"],
        ["evaluate"],
        ["data", "eat"],
    ):
        with pytest.raises(SystemExit) as leaving:
            main(argv)
        assert leaving.value.code == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("captioner: error: ")
        assert error.count("\n") == 1
        assert "; see captioner " in error


@pytest.mark.parametrize(
    "line, said",
    [
        ("capshun", "VERB: 'capshun' is not known; choose train, "),
        ("capshun", "(did you mean caption?); see captioner --help"),
        (
            "caption --required-words ,, a.jpg",
            "caption --required-words: ',,' has no words; give words separated by commas",
        ),
        (
            "caption --beam-size zero a.jpg",
            "caption --beam-size: 'zero' is not a whole number",
        ),
        (
            "caption --top-p x a.jpg",
            "caption --top-p: 'x' is not a number; see captioner",
        ),
        (
            "caption --beam-sise 3 a.jpg",
            "--beam-sise is not an option (did you mean --beam-size?)",
        ),
        (
            "caption a.jpg --beam-size",
            "caption --beam-size: needs a value; see captioner",
        ),
        ("caption", "caption: PATH is missing; see captioner caption --help"),
        ("cache clear --yes=3", "cache --yes: takes no value; see captioner cache --help"),
        ("completion bash zsh", "completion: zsh: not expected here; see captioner completion -"),
        ("caption a.jpg --format xlm", "choose text, json, csv; see captioner caption --help"),
        ("caption a.jpg --form", "caption --format: needs a value"),
        ("caption a.jpg --b 3", "caption: --b may be --batch-size, --beam-size"),
        ("evaluate x --split dve", "(did you mean dev?); see captioner evaluate --help"),
        (
            "evaluate x --beam-size 3",
            "--beam-size is not a flag; write decoding.beam_size=3;",
        ),
        (
            "evaluate x --top-p=0.9",
            "--top-p is not a flag; write decoding.top_p=0.9; see",
        ),
        ("compare x --resample 1k", "compare --resamples: '1k' is not a whole number; see"),
        ("cache --older-than long", "cache --older-than: 'long' is not a number; see"),
        ("completion fihs", "(did you mean fish?); see captioner completion --help"),
        ("train --plugin", "train --plugin: needs a value; see captioner train --help"),
        (
            "train --cfg jobb",
            "train --cfg/-c: 'jobb' is not known; choose job, hydra, all",
        ),
        ("train --max-epochs 3", "train: --max-epochs is not a flag; write trainer.max_epochs=3; "),
        ("train --max_epochs=4", "train: --max_epochs is not a flag; write trainer.max_epochs=4; "),
        ("train --seed", "train: --seed is not a flag; write seed=...; see captioner train --help"),
        ("train --experiment demo", "--experiment is not a flag; write experiment=demo; see"),
        (
            "train --decoder=up_down",
            "--decoder is not a flag; write decoder=up_down; see",
        ),
        ("train --data-root photos", "--data-root is not a flag; write data.root=photos; see"),
        ("train --data.root photos", "--data.root is not a flag; write data.root=photos; see"),
        ("train --multirum", "train: --multirum is not an option (did you mean --multirun?); see"),
    ],
)
def test_usage_errors_are_one_line(line, said, capsys) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(line.split())
    out, error = capsys.readouterr()
    assert (leaving.value.code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith("captioner: error: ")
    assert said in error


def test_flags_may_be_before_between_and_after_paths(scenes, tmp_path, capsys) -> None:
    """For the verbs that need no model here; the others use the same parser."""
    root = f"data.root={scenes}"
    messages = set()
    for argv in (["--format", "json", root, "seed=3"], [root, "--format", "json", "seed=3"]):
        assert main(["data", "stats", *argv]) == 0
        messages.add(capsys.readouterr().out)
    assert main(["data", "--format", "json", "stats", root]) == 0
    assert {capsys.readouterr().out} == messages
    assert main(["models", "--json", "list", "--runs", str(tmp_path)]) == 0
    assert {entry["kind"] for entry in json.loads(capsys.readouterr().out)} == {"bundled"}
    rows = [{"image": n, "caption": "a dog runs", "references": ["a dog runs"]} for n in "ab"]
    for name in ("a", "b"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    mine, references = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    messages = set()
    for argv in ([mine, "--metrics", "bleu", references], ["--metrics", "bleu", mine, references]):
        assert main(["score", *argv]) == 0
        messages.add(capsys.readouterr().out)
    assert len(messages) == 1


def test_output_is_not_touched_when_the_model_is_missing(run, mixed, tmp_path, capsys) -> None:
    target = tmp_path / "captions.csv"
    target.write_text("precious")
    arguments = ["caption", mixed / "a.png", "--model", tmp_path / "gone", "--output", target]
    fails(capsys, *arguments, says="no such run folder")
    assert target.read_text() == "precious"


# data -----------------------------------------------------------------------------------------


def test_data_stats_and_check(scenes, capsys) -> None:
    assert main(["data", "stats", f"data.root={scenes}", "--format", "json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["splits"]["train"]["images"] == 24
    assert numbers["splits"]["train"]["captions"] == 120
    assert main(["data", "check", f"data.root={scenes}"]) == 0
    assert main(["data", "stats", f"data.root={scenes}"]) == 0


def test_data_stats_and_check_never_draw(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    draws = "draw the scenes with: captioner data draw data.root="
    for job in ("stats", "check"):
        fails(capsys, "data", job, "data.root=nope", says=f"{draws}nope")
        fails(capsys, "data", job, says=f"{draws}datasets/shapes")
    fails(capsys, "train", "experiment=debug", "data.root=nope", says=draws)
    layout = "another dataset needs its layout as well, such as data=flickr8k"
    fails(capsys, "data", "stats", "data.root=nope", says=layout)
    assert not Path("nope").exists()
    assert not Path("datasets").exists()


@pytest.mark.reliability("damaged files")
def test_data_check_fails_on_a_broken_image(scenes, tmp_path, capsys, monkeypatch) -> None:
    import shutil

    monkeypatch.setenv("COLUMNS", "300")  # otherwise a long path is folded

    root = shutil.copytree(scenes, tmp_path / "shapes")
    victim = root / "images" / "test_00000.png"
    victim.write_bytes(victim.read_bytes()[:200])
    assert main(["data", "check", f"data.root={root}"]) == 1
    assert "test_00000.png" in capsys.readouterr().out


FLAGS = {
    "beam_size": (["--beam-size", "5"], 5),
    "length_penalty": (["--length-penalty", "0.7"], 0.7),
    "length_rule": (["--length-rule", "gnmt"], "gnmt"),
    "early_stopping": (["--no-early-stopping"], False),
    "captions": (["--captions", "3"], 3),
    "no_repeat_word": (["--no-repeat-word"], True),
    "banned_words": (["--banned-words", "a b, c"], ["a b", "c"]),
    "prefix": (["--prefix", "a, b"], "a, b"),
}


def test_every_decoding_option_is_a_flag_and_has_a_help_text(monkeypatch, capsys) -> None:
    from captioner.decoding.options import OPTIONS

    taken = {}
    monkeypatch.setattr(
        "captioner.verbs.caption_files.caption_files",
        lambda paths, **options: taken.update(options),
    )
    for name, (flags, value) in FLAGS.items():
        main(["caption", "x.jpg", *flags])
        assert taken["decoding"] == {name: value}
    main(["caption", "x.jpg"])
    assert taken["decoding"] == {}
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    for name, option in OPTIONS.items():
        assert f"--{name.replace('_', '-')}" in help_text
        assert option.help in help_text


def test_every_decoding_option_is_in_the_documentation() -> None:
    from captioner.decoding.options import OPTIONS

    text = (Path(__file__).parents[1] / "docs" / "decoding.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall("`([a-z_]+)`", row)}
    assert listed >= OPTIONS.keys() - {"ensemble", "precision"}
    assert "`ensemble`" in text and "`precision=bf16`" in text


def test_caption_prints_several_captions_and_violated_options(run, scenes, capsys) -> None:
    photo = str(sorted((scenes / "images").glob("test_*.png"))[0])
    wanted = ["caption", photo, "--model", str(run), "--beam-size", "3", "--captions", "3"]
    assert main(wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{photo}: ") for line in lines)
    assert main([*wanted, "--format", "json"]) == 0
    (caption,) = json.loads(capsys.readouterr().out)
    texts = [
        caption["caption"],
        *(alternative["caption"] for alternative in caption["alternatives"]),
    ]
    assert [f"{photo}: {text}" for text in texts] == lines
    assert main([*wanted, "--format", "csv"]) == 0
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 4
    short = ["--required-words", "three green fish", "--max-length", "2"]
    assert main(["caption", photo, "--model", str(run), *short]) == 0
    assert capsys.readouterr().err == f"captioner: note: {photo}: without 'three green fish'\n"
    fails(
        capsys,
        *("caption", photo, "--model", run, "--prefix", "an elefant"),
        says="prefix='an elefant': the model cannot generate 'elefant'",
    )


def test_evaluate_accepts_several_models_and_several_captions(run, scenes, capsys) -> None:
    overrides = ["data.split=test", "decoding=sample", "decoding.captions=2"]
    assert (
        main(
            [
                "evaluate",
                str(run),
                str(run),
                *overrides,
                "--metrics",
                "bleu,diversity",
                "--format",
                "json",
            ]
        )
        == 0
    )
    files = json.loads(capsys.readouterr().out)["files"]
    folder = Path(files[0]).parent
    assert folder.name.startswith("sample-t1-seed0-n2@ensemble2-")
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert all(len(row["captions"]) == 2 for row in rows)
    assert all(row["captions"][0]["caption"] == row["caption"] for row in rows)


def test_average_writes_a_checkpoint_that_other_verbs_accept(run, scenes, tmp_path, capsys) -> None:
    import shutil

    best = run / "checkpoints" / "best.ckpt"
    copies = [shutil.copy(best, tmp_path / name) for name in ("a.ckpt", "b.ckpt")]
    assert main(["average", *map(str, copies)]) == 0
    assert "averaged a.ckpt, b.ckpt" in capsys.readouterr().out
    photo = str(sorted((scenes / "images").glob("test_*.png"))[0])
    outputs = []
    for model in (best, tmp_path / "average.ckpt"):
        assert main(["caption", photo, "--model", str(model)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    (tmp_path / "link.ckpt").symlink_to("later.ckpt")
    assert main(["average", *map(str, copies), "--output", str(tmp_path / "link.ckpt")]) == 0
    assert (tmp_path / "later.ckpt").read_bytes() == (tmp_path / "average.ckpt").read_bytes()
    fails(capsys, "average", run, says="kept no epochs to average")
    fails(capsys, "average", scenes, says="has no checkpoint; give a run folder")
    fails(capsys, "average", *copies, says="average.ckpt already exists")


def test_a_closed_standard_output_is_an_error_in_one_line() -> None:
    command = f"exec {sys.executable} -m captioner models >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "standard output is closed; send it to a file" in done.stderr
