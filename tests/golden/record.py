"""Records what short trainings, decodings and scores give, to the last bit.

A change that must not change results is proved by two records that are equal:

    python tests/golden/record.py before.json      # at the commit before
    python tests/golden/record.py after.json       # at the commit after
    cmp before.json after.json

Only what users rely on is used (the command line, ``captioner.load``, files of a run folder), so
one script records any commit. ``tests/test_golden.py`` compares with ``golden.json``; its bits are
those of one processor, so the test allows for rounding. ``old.ckpt`` is a last.ckpt of "cell lstm".
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

import captioner
from captioner.cli import main
from captioner.data.shapes import draw

TINY = (
    "encoder=test_resnet",
    "encoder.pretrained=false",
    "encoder.image_size=32",
    "decoder.hidden_size=24",
    "loader.batch_size=20",
    "training.lr=0.01",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "encoder.precision=fp32",
    "logger.tensorboard=false",
    "callbacks.patience=0",
    "callbacks.progress=false",
)
NARROW = "decoder.embedding_size=16"
CELLS = (
    "lstm rnn gru irnn gru_reset_first mgu lstm_peephole lstm_coupled lstm_no_forget lstm_no_input "
    "lstm_no_output lstm_no_output_tanh lstm_layer_norm"
).split()
TRAININGS: dict[str, tuple[str, ...]] = {
    "layers": (NARROW, "decoder.layers=2", "decoder.dropout=0.3"),
    "tied": ("decoder.embedding_size=24", "decoder.tie_weights=true"),
    "h0": (NARROW, "decoder.image=h0"),
    "every": (NARROW, "decoder.image=every"),
    "merge": (NARROW, "decoder.image=merge"),
    "regions": (NARROW, "decoder.regions=2", "encoder.image_size=96"),
    "show_attend_tell": (NARROW, "decoder=show_attend_tell", "training.attention_penalty=1.0"),
    "adaptive": (NARROW, "decoder=adaptive"),
    "up_down": (NARROW, "decoder=up_down"),
    "up_down_gru": (NARROW, "decoder=up_down", "decoder.cell=gru"),
    "transformer": (
        "decoder=transformer",
        "decoder.heads=4",
        "decoder.layers=2",
        "decoder.feedforward_size=32",
    ),
    "sampled": (NARROW, "training.scheduled_sampling=0.5", "training.label_smoothing=0.0"),
    "plateau": (
        NARROW,
        "training.schedule=plateau",
        "training.plateau_patience=1",
        "trainer.max_epochs=5",
    ),
    "linear": (NARROW, "training.schedule=linear", "trainer.accumulate_grad_batches=2"),
    "averaged": (NARROW, "callbacks.ema=0.9", "callbacks.monitor=dev_cider"),
    "trainable": (NARROW, "encoder.trainable=true"),
    "unfrozen": (NARROW, "training.unfreeze_at=1", "training.unfreeze_stages=1"),
    "characters": (NARROW, "tokenizer=character"),
    "beam": (NARROW, "decoding=beam"),
}
DECODINGS: dict[str, tuple[str, ...]] = {
    "greedy": (),
    "beam": ("decoding=beam",),
    "gnmt": ("decoding=beam", "decoding.length_rule=gnmt", "decoding.early_stopping=false"),
    "diverse": ("decoding=diverse_beam", "decoding.captions=3"),
    "consensus": ("decoding=consensus",),
    "sample": ("decoding=sample", "decoding.seed=3"),
    "top_k": ("decoding=top_k", "decoding.captions=2"),
    "top_p": ("decoding=top_p",),
    "required": ("decoding=beam", "decoding.required_words=[circle]", "decoding.min_length=4"),
    "banned": ("decoding.banned_words=[red]", "decoding.no_repeat_ngram=2", "decoding.prefix=a"),
}


def quietly(*arguments: str) -> str:
    """Run a verb; its standard output."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(list(arguments))
    if status != 0:
        raise RuntimeError(f"captioner {' '.join(arguments)}: {err.getvalue()}")
    return out.getvalue()


def train(folder: Path, *overrides: str) -> dict[str, Any]:
    """Train; the numbers of its logs, the captions it said of dev, the names of its weights."""
    quietly("train", f"run_dir={folder}", *overrides)
    (log,) = folder.glob("logs/csv/*/metrics.csv")
    found: dict[str, list[float]] = {}
    for row in csv.DictReader(log.open(encoding="utf-8")):
        for name, value in row.items():
            if value and name.startswith(("train_", "dev_", "lr")):
                found.setdefault(name, []).append(float(value))
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    names = [name for name in last["state_dict"] if ".encoder." not in name]
    return {**found, "captions": [json.loads(line)["caption"] for line in lines], "weights": names}


def evaluate(*arguments: str) -> dict[str, Any]:
    """Evaluate; scores and captions."""
    told = json.loads(quietly("evaluate", *arguments, "--format", "json"))
    (file,) = (Path(one) for one in told["files"] if one.endswith("captions.jsonl"))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {"scores": told["scores"], "captions": [one["caption"] for one in lines]}


def record(
    folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, Any]]:
    """Each wanted training and all that follows, with what it gives."""
    data = draw(folder / "shapes", seed=0, train=24, dev=8, test=6, size=48, progress=False).parent
    root = f"data.root={data}"
    trainings = {f"cell {cell}": (NARROW, f"decoder.cell={cell}") for cell in CELLS}
    trainings |= {f"training {name}": overrides for name, overrides in TRAININGS.items()}
    for name, overrides in trainings.items():
        if wanted(name):
            yield name, train(folder / name.partition(" ")[2], *TINY, root, *overrides)
    start = ("training=scst", f"resume_weights={folder / 'lstm'}", "training.least_distinct=0")
    rewards = ("training.rewards.bleu4=0.5", "training.cross_entropy_weight=0.2")
    for name, more in {"scst": (), "scst mixed": rewards}.items():
        overrides = (*TINY, root, "training.lr=0.001", NARROW, *start, "training.most_endless=100")
        if wanted(f"training {name}"):
            yield f"training {name}", train(folder / name, *overrides, *more)
    learned = folder / "learned"
    longer = ("encoder=efficientnet_lite0", "encoder.image_size=64", "trainer.max_epochs=12")
    narrow = ("decoder.hidden_size=64", "decoder.embedding_size=48")
    pretrained = [one for one in TINY if not one.startswith("encoder")]
    precise = "encoder.precision=fp32"
    yield "learned", train(learned, *pretrained, root, *longer, *narrow, precise)
    train(folder / "again", *pretrained, root, *longer, *narrow, precise, "seed=2")
    for name, overrides in DECODINGS.items():
        yield f"decoding {name}", evaluate(str(learned), root, *overrides)
    yield "ensemble", evaluate(str(learned), str(folder / "again"), root, "decoding=beam")
    bundled = captioner.load()
    photos = sorted((data / "images").glob("test_*"))[:4]
    for options in ({}, {"beam_size": 3}, {"temperature": 1.0, "seed": 5}):
        said = [bundled.caption(str(one), **options) for one in photos]
        yield f"bundled {options}", [[one.text, one.log_prob] for one in said]


def write(file: Path) -> None:
    """Record everything into a file."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CAPTIONER_CACHE"] = str(Path(folder) / "cache")
        found = {}
        for name, result in record(Path(folder)):
            found[name] = result
            print(name, file=sys.stderr)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
