"""The lens of h_t is the prediction of the decoder; that of C_t is what its docstring says."""

from typing import Any

import numpy as np
import pytest
import torch
from support.decoders import EVERY, H, T, V, build, features
from support.traced import image, model, options, traced

from captioner.inspection.lens import state_log_probs
from captioner.models.features import Features
from captioner.tracing.edits import Add, Reset, Set, Swap, Zero
from captioner.tracing.tracing import trace_reading

ONE_LAYER = [
    *(f"show_tell {place} lstm " for place in ("x0", "h0", "every", "merge")),
    *(f"show_tell lstm_{more}" for more in ("layer_norm", "no_output_tanh", "peephole")),
]


def reading(variant: str, **changes: Any) -> tuple[Any, Features, list[int], dict[str, np.ndarray]]:
    decoder, images = build(variant, **changes), features(1)
    read = torch.randint(V, (T,)).tolist()
    return decoder, images, read, state_log_probs(decoder, images, read)


def states(decoder: Any, images: Features, read: list[int]) -> list[dict[str, torch.Tensor]]:
    """The decoder's own state after each step."""
    found = [decoder.start(images)]
    for token in read:
        found.append(decoder.step(torch.tensor([token]), found[-1])[1])
    return found


@pytest.mark.parametrize("variant", EVERY)
def test_h_of_the_last_layer_is_the_prediction_of_the_decoder(variant: str) -> None:
    decoder, images, read, found = reading(variant)
    [own] = torch.log_softmax(decoder(images, torch.tensor([read])), dim=-1).detach().numpy()
    last = [rows for state, rows in found.items() if state[0] in "hx"][-1]
    np.testing.assert_allclose(last[1:], own, atol=1e-6)  # [T, V]


@pytest.mark.parametrize("variant", ONE_LAYER)
def test_c_is_read_as_if_the_output_gate_were_open(variant: str) -> None:
    decoder, images, read, found = reading(variant)
    cell = decoder.recurrence.first
    for step, state in enumerate(states(decoder, images, read)):
        h = cell.output(state["c"][:, 0])
        if decoder.enters == "merge":
            h = torch.tanh(decoder.merge(h) + state["image.part"])
        wanted = torch.log_softmax(decoder.output(h), dim=1)[0].detach().numpy()
        np.testing.assert_allclose(found["C"][step], wanted, atol=1e-6)


def test_c_is_read_with_the_word_and_the_context_where_the_output_layer_reads_them() -> None:
    decoder, images, read, found = reading("show_attend_tell lstm dot deep_output")
    kept = {}

    def observe(site: str, value: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        kept[site] = value
        return value

    state = decoder.start(images)
    for step, token in enumerate(read, start=1):
        _, state = decoder.step(torch.tensor([token]), state, observe)
        context = kept["attention.gate"] * kept["attention.context"]
        joined = torch.cat([torch.tanh(state["c"][:, 0]), context], dim=1)
        hidden = decoder.words(torch.tensor([token])) + decoder.narrow(joined)
        wanted = torch.log_softmax(decoder.output(hidden), dim=1)[0].detach().numpy()
        np.testing.assert_allclose(found["C"][step], wanted, atol=1e-6)


def test_lower_layers_are_read_through_the_projection_and_the_tied_embedding() -> None:
    decoder, images, read, found = reading("show_tell x0 lstm tied")
    assert list(found) == ["h/0", "h/1", "C/0", "C/1"]
    for step, state in enumerate(states(decoder, images, read)):
        for name, h in (("h/0", state["h"][:, 0]), ("C/0", torch.tanh(state["c"][:, 0]))):
            logits = decoder.narrow(h) @ decoder.words.weight.T + decoder.output.bias
            wanted = torch.log_softmax(logits, dim=1)[0].detach().numpy()
            np.testing.assert_allclose(found[name][step], wanted, atol=1e-6)


def test_layers_of_a_transformer_are_read_through_its_last_norm() -> None:
    decoder, images, read, found = reading("transformer learned True")
    assert list(found) == ["x/0", "x/1"] and np.isnan(found["x/0"][0]).all()
    x = decoder.read(torch.tensor([read]), 0)
    x, _ = decoder.layers[0](x, decoder.image(images))  # [1, T, H]
    assert x.shape[2] == H
    [wanted] = torch.log_softmax(decoder.output(decoder.norm(x)), dim=-1).detach().numpy()
    np.testing.assert_allclose(found["x/0"][1:], wanted, atol=1e-6)


# Edited runs --------------------------------------------------------------------------------------

EDITS = [
    Set("cell.forget_gate", 0.0, step=2),
    Add("cell.memory", 1.5, units=[1, 4], step=[0, 3]),
    Zero("cell.hidden", units=[2], step=4),
    Swap("cell.memory", image(1), step=3),
    Reset(every=2),
]


@pytest.mark.parametrize("edit", EDITS, ids=[edit.kind for edit in EDITS])
@pytest.mark.parametrize("variant", ["show_tell x0 lstm ", "adaptive lstm dot sentinel"])
def test_an_edited_run_is_read(variant: str, edit: Any) -> None:
    """h gives the words of the edited trace; C what its edited memory gives."""
    one, read = model(variant), [1, 5, 7, 4]
    run = trace_reading(traced([one], options(), [edit]), [image()], [*read[1:], 8])
    found = state_log_probs(one.decoder, image(), read, [edit])
    plain = state_log_probs(one.decoder, image(), read)
    assert abs(found["h"][1:] - plain["h"][1:]).max() > 1e-3
    logits = torch.from_numpy(run["output.logits"][1:])
    np.testing.assert_allclose(found["h"][1:], torch.log_softmax(logits, 1), atol=1e-5)
    if variant.startswith("show_tell"):
        decoder: Any = one.decoder
        memory = torch.from_numpy(run["cell.memory"][:, 0])  # [T + 1, H]
        with torch.no_grad():
            wanted = torch.log_softmax(decoder.output(torch.tanh(memory)), dim=1)
        np.testing.assert_allclose(found["C"], wanted, atol=1e-5)


@pytest.mark.parametrize("variant", ["show_tell x0 lstm tied", "up_down gru dot "])
def test_edits_to_own_values_change_no_reading(variant: str) -> None:
    decoder, images, read, plain = reading(variant)
    own = [
        Swap("cell.memory", images) if "lstm" in variant else Swap("cell.update_gate", images),
        Swap("cell.hidden", images, step=2),
        Add("output.hidden", 0.0),
    ]
    found = state_log_probs(decoder, images, read, own)
    assert list(found) == list(plain)
    for name in plain:
        np.testing.assert_array_equal(found[name], plain[name])
