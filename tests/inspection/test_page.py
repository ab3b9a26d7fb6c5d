"""The page of a trace: complete, self-contained, and safe."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
from support.browser import in_browser, needs_browser
from support.decoders import P
from support.traced import model, options, trace

import captioner
from captioner.inspection.attribution import DEFAULT, attribute, readings
from captioner.inspection.page import cropped, page, write_page
from captioner.tracing.edits import Reset
from captioner.tracing.trace import Trace

VARIANTS = ["show_tell x0 lstm tied", "show_tell merge gru ", "show_tell irnn"]
VARIANTS += ["adaptive lstm additive sentinel", "up_down lstm dot ", "transformer learned True"]


def data(text: str) -> dict:
    """The JSON that the script of a page reads."""
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert block
    return json.loads(block[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_arrays_of_the_page_are_those_of_the_trace(variant: str) -> None:
    found = trace(model(variant), options(min_length=3))
    values = data(page(found, None))
    for site, stored in values["sites"].items():
        numbers = np.frombuffer(base64.b64decode(stored["bytes"]), np.int8).astype(np.float32)
        array = numbers.reshape(found[site].shape) / 127 * stored["scale"]
        first = stored["first"]
        np.testing.assert_allclose(array[first:], found[site][first:], atol=stored["scale"] / 250)
        assert np.isnan(found[site][:first]).all()
    assert values["words"] == list(found.words)
    assert values["log_probs"] == pytest.approx(found.log_probs, abs=1e-4)
    assert values["arrows"] == (["h", "C"] if "cell.memory" in found else ["h"])
    if "attention.weights" in found:
        weights = np.array(values["attention"]["weights"])
        expected = found["attention.weights"]
        expected = expected[:, -1].mean(1) if expected.ndim == 4 else expected
        np.testing.assert_allclose(weights[1:], expected[1:], atol=1e-4)
        assert values["attention"]["side"] == 2


def test_the_page_loads_nothing_and_runs_no_text_of_the_model() -> None:
    found = trace(model("show_tell x0 lstm "), options(min_length=3))
    attack = "</script><script>alert(1)</script><!--"
    text = page(dataclasses.replace(found, text=attack, words=(attack, *found.words[1:])), None)
    assert "<script>alert" not in text
    assert data(text)["words"][0] == attack
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
    assert "default-src 'none'" in text
    assert len(re.findall("<script", text)) == 2


def test_a_caption_in_chinese_is_marked_as_such() -> None:
    found = trace(model("show_tell x0 lstm "), options(min_length=3))
    text = page(dataclasses.replace(found, text="两个男孩", words=("两", *found.words[1:])), None)
    assert '<html lang="zh' in text
    assert "两个男孩" in text


def test_the_photograph_is_cropped_as_the_model_sees_it(run, scenes, tmp_path) -> None:
    photo = sorted((scenes / "images").glob("test_*.png"))[0]
    loaded = captioner.load(run)
    assert (cropped(loaded, photo).width, cropped(loaded, photo).height) == (448, 448)
    path = write_page(loaded, loaded.trace(photo), photo, tmp_path / "page.html")
    assert "data:image/jpeg;base64," in path.read_text(encoding="utf-8")


def test_without_attention_the_page_has_the_attribution_of_each_word(run, scenes, tmp_path) -> None:
    photo = sorted((scenes / "images").glob("test_*.png"))[0]
    loaded = captioner.load(run)
    found = loaded.trace(photo)
    text = write_page(loaded, found, photo, tmp_path / "page.html").read_text(encoding="utf-8")
    shown = data(text)["attribution"]
    assert data(text)["attention"] is None
    vocabulary = loaded.tokenizer.vocabulary
    for question, values, words in zip(
        readings(loaded, photo, found), shown["maps"], shown["words"], strict=True
    ):
        expected = attribute(question, DEFAULT, vocabulary)
        assert values == pytest.approx(expected.map.tolist(), abs=1e-4)
        assert words == pytest.approx(expected.words.sum(), abs=0.01)
        assert len(values) == shown["side"] ** 2


def test_the_page_of_an_edited_trace_has_its_attribution_if_the_edits_are_given(
    run, scenes, tmp_path
) -> None:
    photo = sorted((scenes / "images").glob("test_*.png"))[0]
    loaded, edits = captioner.load(run), [Reset(every=2)]
    edited = loaded.trace(photo, edits=edits)
    path = write_page(loaded, edited, photo, tmp_path / "edited.html")
    assert data(path.read_text(encoding="utf-8"))["attribution"] is None
    path = write_page(loaded, edited, photo, tmp_path / "edited.html", edits=edits)
    shown = data(path.read_text(encoding="utf-8"))["attribution"]
    [*_, last] = readings(loaded, photo, edited, edits=edits)
    expected = attribute(last, DEFAULT, loaded.tokenizer.vocabulary)
    assert shown["maps"][-1] == pytest.approx(expected.map.tolist(), abs=1e-4)


def test_an_ensemble_has_no_page(run, scenes, tmp_path) -> None:
    photo = sorted((scenes / "images").glob("test_*.png"))[0]
    loaded = captioner.load([run, run])
    found: Trace = loaded.trace(photo)
    with pytest.raises(ValueError, match="an ensemble has no page"):
        write_page(loaded, found, photo, tmp_path / "page.html")


SCRIPT = """
const results = {};
const seen = () => ({
  pressed: document.querySelector('#words [aria-pressed="true"]').textContent,
  step: document.querySelector("#step h3").textContent,
  looks: document.getElementById("looks").textContent,
  map: !map.hidden,
  current: [...document.querySelectorAll("#network .current")].length,
  means: gates.map((gate) => gate.mean.textContent),
});
results.first = seen();
buttons[2].dispatchEvent(new MouseEvent("mouseenter"));
results.hovered = seen();
buttons[2].focus();
words.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
results.right = seen();
words.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
results.home = seen();
const strip = gates[0].strip, box = strip.getBoundingClientRect();
choose(1);
strip.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + 1, clientY: box.top + 2 }));
results.unit = document.getElementById("unit").textContent;
results.order = order;
const place = document.createElement("pre");
place.id = "results";
place.textContent = JSON.stringify(results);
document.body.append(place);
"""


def gate(found: Trace) -> np.ndarray | float:
    """How much of the context enters at each step."""
    return found["attention.gate"][1:] if "attention.gate" in found else 1.0


@needs_browser
@pytest.mark.parametrize(
    "variant",
    [
        "show_attend_tell lstm additive deep_output",
        "adaptive lstm additive sentinel",
        "show_tell x0 gru ",
    ],
)
def test_words_are_chosen_by_mouse_and_keyboard(variant: str, tmp_path) -> None:
    found = trace(model(variant), options(min_length=4))
    results = in_browser(page(found, None), SCRIPT, tmp_path)
    clearest = 0
    if "attention.weights" in found:
        weights = found["attention.weights"][1:, :P].max(axis=1)
        clearest = int((weights * gate(found)).argmax())
    assert results["first"]["pressed"] == found.words[clearest]
    for name, step in (("hovered", 2), ("right", 3)):
        seen = results[name]
        assert (
            seen["step"]
            == f"Step {step} reads “{found.reads[step]}” and gives “{found.words[step - 1]}”"
        )
        assert seen["current"] == 1
        first = float(seen["means"][0].removeprefix("mean "))
        site = "cell.forget_gate" if "lstm" in variant else "cell.reset_gate"
        assert first == pytest.approx(found[site][step].mean(), abs=0.01)
    attends = "attention.weights" in found
    assert results["hovered"]["map"] is attends
    assert ("sentinel" in results["hovered"]["looks"]) is ("sentinel" in variant)
    assert results["home"]["pressed"] == found.reads[0]
    assert not results["home"]["map"]
    state = found["cell.memory" if "lstm" in variant else "cell.hidden"][:, -1]
    change = np.abs(np.diff(state, axis=0)).sum(0)
    assert results["order"][0] == change.argmax()
    assert f"unit {results['order'][0]}, step 1" in results["unit"]
