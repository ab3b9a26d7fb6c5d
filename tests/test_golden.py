"""Short trainings of every cell, decoder and objective give what they gave when recorded.

``golden/record.py`` says how a change proves itself equal to the bit; here, on any processor,
numbers may differ by rounding.
"""

import itertools
import json
from pathlib import Path

import pytest
from golden.record import CELLS, record

import captioner
from captioner.checkpoints import checkpoint
from captioner.cli import main
from captioner.models.recurrence.unroll import CELLS as KNOWN

GOLDEN = Path(__file__).parent / "golden" / "golden.json"


def test_every_cell_is_recorded() -> None:
    assert set(CELLS) == set(KNOWN)


FAST = (
    "cell lstm",
    "training layers",
    "training regions",
    "training show_attend_tell",
    "training up_down_gru",
    "training transformer",
    "training sampled",
    "training unfrozen",
    "training scst mixed",
)
"""Trainings for every run; they start from "cell lstm"."""


@pytest.mark.parametrize(
    "others",
    [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.reliability("versions")])],
)
def test_losses_scores_and_captions_have_not_changed(
    tmp_path, record_property, others: bool
) -> None:
    known = json.loads(GOLDEN.read_text(encoding="utf-8"))
    compared, cases = 0, 26 if others else len(FAST)
    wanted = record(tmp_path, lambda name: name == FAST[0] or (name in FAST) != others)
    for name, actual in itertools.islice(wanted, cases):  # not the longer one that follows
        assert actual.keys() == known[name].keys(), name
        for key, values in actual.items():
            if key == "weights":  # checkpoints know weights by these names
                assert values == known[name][key], name
            elif key == "captions":
                assert len(values) == len(known[name][key])
            elif key in ("train_loss", "dev_loss", "dev_loss_shuffled") or key.startswith("lr"):
                assert values == pytest.approx(known[name][key], rel=1e-4), (name, key)
                compared += len(values)
    record_property("cases", cases)
    assert compared > 300 and name.startswith("training scst")


@pytest.mark.reliability("versions")
def test_an_old_checkpoint_loads_and_resumes(tmp_path, scenes) -> None:

    folder = tmp_path / "old"
    (folder / "checkpoints").mkdir(parents=True)
    copy = folder / "checkpoints" / "last.ckpt"
    copy.write_bytes(GOLDEN.with_name("old.ckpt").read_bytes())
    photo = scenes / "images" / "test_00000.png"
    known = json.loads(GOLDEN.with_name("old.json").read_text(encoding="utf-8"))
    caption = captioner.load(copy).caption(str(photo), beam_size=3)
    assert caption.text == known["text"]
    assert caption.log_prob == pytest.approx(known["log_prob"], rel=1e-4)
    more = [f"resume={folder}", f"data.root={scenes}", "trainer.max_epochs=3"]
    assert main(["train", *more]) == 0
    assert checkpoint.read(copy).lightning["global_step"] == 18
