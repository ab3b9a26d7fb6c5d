"""The equations in numbers give the values of the trace, which are those of torch.nn."""

import math
import re
from typing import Any

import numpy as np
import pytest
from support.decoders import H
from support.traced import model, options, tokenizer, trace

from captioner.inspection.equations import Equation, equations, word_equations
from captioner.models.recurrence.table import CELLS

FUNCTIONS: dict[str, Any] = {
    "s": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "max": max,
    "__builtins__": {},
}


def value_of(stage: str) -> float:
    """A stage, such as "σ(0.31 - 0.12)", computed by Python."""
    assert re.fullmatch(
        r"[-+*(), .\d]*", stage.replace("tanh", "").replace("σ", "").replace("max", "")
    )
    return float(eval(stage.replace("σ", "s"), FUNCTIONS))


def variant(cell: str) -> str:
    return f"show_tell x0 {cell} " if cell in ("rnn", "gru", "lstm") else f"show_tell {cell}"


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_every_stage_has_the_value_of_the_trace(cell: str, step: int) -> None:
    one = model(variant(cell))
    found = trace(one, options(min_length=3))
    for unit in range(H):
        for equation in equations(found, one.decoder, step=step, unit=unit):
            for stage in equation.numbers:
                assert value_of(stage) == pytest.approx(equation.value, abs=4e-4), equation


@pytest.mark.parametrize("name", ["show_tell every lstm ", "show_attend_tell gru dot "])
def test_what_else_enters_the_cell_is_in_the_sum(name: str) -> None:
    one = model(name)
    found = trace(one, options(min_length=3))
    for equation in equations(found, one.decoder, step=1, unit=2):
        assert value_of(equation.numbers[0]) == pytest.approx(equation.value, abs=4e-4)
    with pytest.raises(ValueError, match="step=0 is not accepted; choose 1 to"):
        equations(found, one.decoder, step=0, unit=2)


@pytest.mark.parametrize(
    ("name", "reads"),
    [("show_tell x0 lstm ", "h_2"), ("show_tell x0 gru tied", "u_2"), ("adaptive rnn dot ", "u_2")],
)
def test_the_word_follows_from_the_output_layer(name: str, reads: str) -> None:
    one = model(name)
    found = trace(one, options(min_length=3))
    words = tokenizer().vocabulary.words
    logit, probability = word_equations(found, one.decoder, words, step=2)
    word = found.words[1]
    assert logit.right == f"w_{word} {reads} + b_{word}"
    assert value_of(logit.numbers[0]) == pytest.approx(logit.value, abs=2e-4)
    logits = found["output.logits"][2]
    assert logit.value == pytest.approx(logits[words.index(word)], abs=1e-5)
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert probability.value == pytest.approx(softmax[words.index(word)], abs=1e-5)
    assert probability.value == pytest.approx(math.exp(found.log_probs[1]), abs=1e-5)
    assert word_equations(found, one.decoder, words, step=0) == []


def test_the_lstm_is_that_of_the_textbook() -> None:
    one = model("show_tell x0 lstm ")
    found = trace(one, options(min_length=3))
    lines = equations(found, one.decoder, step=2, unit=4)
    assert [line.left for line in lines] == ["f_2", "i_2", "C~_2", "C_2", "o_2", "h_2"]
    assert [line.right for line in lines] == [
        "σ(W_f [h_1, x_2] + b_f)",
        "σ(W_i [h_1, x_2] + b_i)",
        "tanh(W_C [h_1, x_2] + b_C)",
        "f_2 * C_1 + i_2 * C~_2",
        "σ(W_o [h_1, x_2] + b_o)",
        "o_2 * tanh(C_2)",
    ]
    assert lines[-1].value == found["cell.hidden"][2, 0, 4]
    assert (
        str(Equation("f_2", "σ(x)", ("σ(0.1000)",), 0.52498)) == "f_2  = σ(x) = σ(0.1000) = 0.5250"
    )


def test_layers_and_first_steps() -> None:
    one = model("show_tell x0 gru tied")  # two layers
    found = trace(one, options(min_length=3))
    [r, *_] = equations(found, one.decoder, step=0, unit=1, layer=1)
    assert r.left == "r_0"
    assert r.right == "σ(W_r [h_{-1}, x_0] + b_r)"
    assert value_of(r.numbers[0]) == pytest.approx(found["cell.reset_gate"][0, 1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({"step": 99, "unit": 0}, "step=99 is not accepted; choose 0 to"),
        ({"step": 1, "unit": H}, f"unit={H} is not accepted; choose 0 to {H - 1}"),
        ({"step": 1, "unit": 0, "layer": 1}, "layer=1 is not accepted; choose 0 to 0"),
    ],
)
def test_numbers_out_of_range_are_refused(place: dict[str, int], says: str) -> None:
    one = model("show_tell x0 lstm ")
    with pytest.raises(ValueError, match=says):
        equations(trace(one, options()), one.decoder, **place)


def test_a_transformer_has_no_equations_of_a_cell() -> None:
    one = model("transformer learned True")
    with pytest.raises(ValueError, match="Transformer has no recurrent cell"):
        equations(trace(one, options()), one.decoder, step=1, unit=0)
