"""The network in the page computes what PyTorch computes; run in a browser, if there is one."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.browser import in_browser, needs_browser
from support.traced import model, options, tokenizer

import captioner
from captioner.inspection.playground import encode_tensor, playground
from captioner.tokenizers import SPACE, CharacterTokenizer
from captioner.tracing.edits import AnyEdit, Set, Zero

SCRIPT = """
const results = {};
const words = (steps) => steps.slice(1).map(({ word, logProb }) => [word, logProb]);
results.plain = pictures.map((_, picture) => {
  change({ picture });
  return runs.map(words);
});
change({ picture: 0 });
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const slider = document.getElementById("value-SITE");
slider.value = 0.25;
slider.dispatchEvent(new Event("input", { bubbles: true }));
results.clamped = runs.map(words);
click(document.getElementById("reset"));
click(document.querySelectorAll("#model-0 .cuts")[2].firstChild);
results.erased = runs.map(words);
results.pressed = document.querySelectorAll('#model-0 .cut[aria-pressed="true"]').length;
click(document.getElementById("reset"));
results.reset = runs.map(words);
click(document.getElementById("first"));
results.none = document.querySelector("#model-0 .caption").textContent;
click(document.getElementById("next"));
results.one = document.querySelector("#model-0 .caption").textContent;
click(document.querySelectorAll("#pictures button")[1]);
results.swapped = runs.map(words);
const second = document.querySelectorAll("#model-0 .word")[1];
second.focus();
click(second);
const active = document.activeElement;
results.focused = active.textContent === second.textContent && active !== second;
results.repeated = document.querySelector("#said p").textContent;
results.chinese = written({ joined: true }, ["狗", "看", "nba", "3", "d"]);
results.hindi = written({ joined: true }, ["ए", "क", "▁", "आ"]);
results.english = written({ joined: false }, ["a", "dog"]);
change({ temperature: 1, seed: 1 });
results.samples = [0, 1, 2, 3, 4, 5, 6, 7].map((seed) => {
  change({ seed });
  return words(runs[0]).map(([word]) => word).join(" ");
});
const place = document.createElement("pre");
place.id = "results";
place.textContent = JSON.stringify(results);
document.body.append(place);
"""


SHOW_RUN = """
const place = document.createElement("pre");
place.id = "results";
const run = runs[0].slice(1).map((step) => [step.word, step.logProb]);
place.textContent = JSON.stringify({ run });
document.body.append(place);
"""


def expected(loaded: Any, photo: Any, edits: Sequence[AnyEdit] = ()) -> list[tuple[str, float]]:
    greedy = {"beam_size": 1, "temperature": 0.0, "max_length": 30, "precision": "fp32"}
    traced = loaded.trace(photo, edits=edits, **greedy)
    return list(zip(traced.words, traced.log_probs))


def assert_same(run: list[list[Any]], words: list[tuple[str, float]]) -> None:
    assert [word for word, _ in run] == [word for word, _ in words]
    np.testing.assert_allclose([p for _, p in run], [p for _, p in words], atol=1e-4)


@needs_browser
def test_the_page_computes_what_pytorch_computes(run, scenes, tmp_path) -> None:
    loaded = captioner.load(run)
    photos = sorted((scenes / "images").glob("test_*.png"))[:2]
    page = playground([loaded], ["LSTM"], photos)
    results = in_browser(page, SCRIPT.replace("SITE", "forget_gate"), tmp_path)
    for photo, [found] in zip(photos, results["plain"]):
        assert_same(found, expected(loaded, photo))
    clamp = Set("cell.forget_gate", 0.25)
    assert_same(results["clamped"][0], expected(loaded, photos[0], [clamp]))
    erased = Zero("cell.previous_memory", step=3)
    assert_same(results["erased"][0], expected(loaded, photos[0], [erased]))
    assert results["pressed"] == 1
    assert results["reset"] == results["plain"][0]
    assert results["none"] == "…"
    assert results["one"] == results["plain"][0][0][0][0]
    assert results["swapped"] == results["plain"][1]
    assert len(set(results["samples"])) > 1
    assert results["focused"]
    assert results["repeated"].startswith("LSTM ")
    assert results["hindi"] == CharacterTokenizer.join(["ए", "क", SPACE, "आ"])
    assert (results["chinese"], results["english"]) == ("狗看nba 3 d", "a dog")


class Fake:
    """A Captioner of a decoder with random weights, whose images are features."""

    def __init__(self, variant: str, **changes: Any) -> None:
        self.model = model(variant, **changes)
        self.models, self.tokenizer = [self.model], tokenizer()


@needs_browser
@pytest.mark.parametrize(
    "variant",
    [f"show_tell {image} {cell} tied" for image, cell in
     (("x0", "rnn"), ("h0", "gru"), ("every", "lstm"), ("merge", "gru"))]
    + ["show_attend_tell lstm additive deep_output", "show_attend_tell gru dot "],
)  # fmt: skip
def test_every_decoder_of_the_page_computes_what_pytorch_computes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.traced import image, trace

    from captioner.inspection import playground as module

    fake = Fake(variant)
    source = image()

    def picture(captioners: Any, photo: Any) -> dict[str, Any]:
        values = encode_tensor(module._read(fake.model.decoder, source))
        return {"name": "a", "source": "data:image/gif;base64,R0lGODlhAQA=", "inputs": [values]}

    monkeypatch.setattr(module, "_picture", picture)
    page = playground([fake], ["random"], ["a.png"])  # type: ignore[list-item]
    results = in_browser(page, SHOW_RUN, tmp_path)
    found = trace(fake.model, options(max_length=30))
    assert_same(results["run"], list(zip(found.words, found.log_probs)))


def test_a_tensor_takes_16_bits_if_they_are_exact_and_32_otherwise() -> None:
    exact, other = torch.randn(5, 7).half().float(), torch.randn(5, 7)
    for tensor, bits, kind in ((exact, 16, "<f2"), (other, 32, "<f4")):
        stored = encode_tensor(tensor)
        values = np.frombuffer(base64.b64decode(stored["bytes"]), kind).reshape(stored["shape"])
        assert stored["bits"] == bits
        assert np.array_equal(values.astype(np.float32), tensor.numpy())


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        ("transformer learned True", "computes ShowTell and ShowAttendTell.*this is Transformer"),
        ("show_tell mgu", "computes the cells rnn, gru, lstm; this is MGU"),
    ],
)
def test_what_the_page_cannot_compute_is_refused(variant: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        playground([Fake(variant)], ["mine"], [])  # type: ignore[list-item]


def test_the_page_of_a_model_has_its_words_and_no_links(run, scenes) -> None:
    loaded = captioner.load(run)
    page = playground([loaded], ["LSTM </script>"], sorted((scenes / "images").glob("*.png"))[:1])
    assert "</script>" not in page.partition('id="data">')[2].partition("</script>")[0]
    assert not re.search(r"(?:src|href)=[\"'](?!data:)\w", page)
    assert all(json.dumps(word) in page for word in loaded.tokenizer.vocabulary.ordinary[:5])
