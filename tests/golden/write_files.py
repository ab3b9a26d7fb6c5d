"""Writes one small file of every kind that captioner reads again, with the code of any commit.

    python tests/golden/write_files.py tests/golden/versions/0.1.0

A checkpoint with its optimizer, a bundled model, an evaluation, and where the commit has them a
trace and a table of states. ``expected.json`` has what they give: captions, scores, sums. Run it
for every release: ``tests/test_versions.py`` reads the files of all of them.

The encoder of the checkpoint has weights of five values, so that the file is small when compressed.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import captioner
from captioner.cli import main
from captioner.data.shapes import draw

TINY = (
    "decoder.embedding_size=7",
    "decoder.hidden_size=8",
    "encoder.image_size=32",
    "encoder.precision=fp32",
    "loader.batch_size=20",
    "training.lr=0.05",
    "callbacks.patience=0",
    "decoder.dropout=0.0",
    "trainer.max_epochs=20",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "logger.tensorboard=false",
)
NETWORKS = {
    "checkpoint": ("encoder=test_resnet", "encoder.pretrained=false"),
    "bundle": ("encoder=efficientnet_lite0",),
}


def run(*words: str) -> None:
    """Run a verb; an error stops the script."""
    if main([*words]) != 0:
        raise SystemExit(f"captioner {' '.join(words)} failed")


def fill_with_five_values(module: torch.nn.Module) -> None:
    """Give every weight of an encoder a value that repeats after 7,919 places."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            places = torch.arange(parameter.numel()) % 7919
            values = ((places * places) % 5 - 2) / 2 / parameter[0].numel() ** 0.5
            parameter.data.copy_(values.reshape(parameter.shape))


def use_encoder_of_five_values() -> None:
    """Let timm build networks with such weights."""
    import timm

    create = timm.create_model

    def create_model(*arguments: Any, **options: Any) -> torch.nn.Module:
        network = create(*arguments, **options)
        fill_with_five_values(network)
        return network

    timm.create_model = create_model


def write(target: Path, work: Path) -> None:
    """Train, export and evaluate two small models, and copy their files to the target."""
    target.mkdir(parents=True)
    data = draw(work / "shapes", seed=0, train=24, dev=8, test=6, size=48, progress=False).parent
    photo = target / "photo.png"
    shutil.copy(data / "images" / "test_00000.png", photo)
    use_encoder_of_five_values()
    for name, encoder in NETWORKS.items():
        run("train", *TINY, *encoder, f"data.root={data}", f"run_dir={work / name}")
    last = (work / "checkpoint" / "checkpoints" / "last.ckpt").read_bytes()
    (target / "last.ckpt.gz").write_bytes(gzip.compress(last, mtime=0))
    run("models", "export", str(work / "bundle"), str(target / "bundle"))
    run("evaluate", str(work / "bundle"), "--metrics", "bleu,cider-d,rouge-l")
    (scores,) = (work / "bundle").rglob("scores.json")
    shutil.copytree(
        scores.parent, target / "evaluation", ignore=shutil.ignore_patterns("*.html", "*.png")
    )
    expected = {
        "checkpoint": caption(work / "checkpoint" / "checkpoints" / "last.ckpt", photo),
        "bundle": caption(target / "bundle", photo),
        "scores": json.loads(scores.read_text(encoding="utf-8"))["scores"],
    }
    write_inside(target, photo, work / "bundle", expected)
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


def caption(model: Path, photo: Path) -> list[Any]:
    """The caption of the photo by a small beam, and its log probability."""
    result = captioner.load(model).caption(str(photo), beam_size=2, min_length=4)
    return [result.text, result.log_prob]


def write_inside(target: Path, photo: Path, trained: Path, expected: dict[str, Any]) -> None:
    """Write a trace and a table of states, if this commit has them."""
    model = captioner.load(target / "bundle")
    if not hasattr(model, "trace"):
        return
    trace = model.trace(str(photo), beam_size=2, min_length=4)
    trace.save(target / "trace.safetensors")
    expected["trace"] = [trace.text, trace.log_prob, float(abs(trace["cell.hidden"]).sum())]
    table = target / "states.safetensors"
    run("states", "collect", str(trained), "--output", str(table), "--limit", "2")
    from captioner.inspection.states import StateTable

    states = StateTable.load(table)
    expected["states"] = [states.text(0), float(abs(states.values("cell.hidden", 0)).sum())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CAPTIONER_CACHE"] = str(Path(folder) / "cache")
        write(Path(sys.argv[1]), Path(folder))
