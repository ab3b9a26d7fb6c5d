"""Traces: equal captions, the textbook's numbers, and edits that do what they say."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.decoders import EVERY, VARIANTS, B, H, build
from support.traced import WORDS, image, model, options, tokenizer, trace, traced
from torch import nn

from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.generation import generate, make_steppers
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Stepper
from captioner.models.features import Features
from captioner.models.recurrence.table import CELLS
from captioner.models.sites import SITES
from captioner.tracing.editing import EditedSteps
from captioner.tracing.edits import (
    Add,
    AnyEdit,
    Reset,
    Set,
    Swap,
    Zero,
    as_text,
    from_dict,
    parse,
    require_edits,
)
from captioner.tracing.recording import Recording
from captioner.tracing.trace import Trace
from captioner.tracing.tracing import trace_generation, trace_reading

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"beam_size": 4},
    "groups": {"beam_size": 4, "groups": 2, "captions": 2},
    "samples": {"temperature": 1.0, "captions": 3, "seed": 5},
    "consensus": {"beam_size": 4, "consensus": 2.0},
    "no repeats": {"beam_size": 3, "no_repeat_word": True, "min_length": 3},
}


def captions(models: Sequence[CaptioningModel], decoding: DecodingOptions) -> list[Hypothesis]:
    steppers = make_steppers(models, decoding)
    sources = [image() for _ in models]
    return generate(models, sources, tokenizer(), decoding, keys=[3], steppers=steppers)[0]


# Equal captions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "variant",
    ["show_tell x0 lstm ", "show_tell merge gru tied", "adaptive two layers, tied"]
    + ["up_down rnn dot ", "transformer learned True", "show_attend_tell lstm_peephole"],
)
def test_a_trace_has_the_caption_of_decoding_to_the_bit(variant: str, strategy: str) -> None:
    one, decoding = model(variant), options(**STRATEGIES[strategy])
    best, *others = captions([one], decoding)
    found = trace(one, decoding, hypotheses=True)
    assert len(found.hypotheses) == len(others)
    for expected, own in zip([best, *others], [found, *found.hypotheses]):
        assert own.log_probs == expected.log_probs
        assert (own.score, own.finished) == (expected.score, expected.finished)
        words = [WORDS[token] for token in expected.tokens]
        assert own.words == (*words, *(["<end>"] if expected.finished else []))
    for own in (found, *found.hypotheses):
        for word, log_prob, pairs in zip(own.words, own.log_probs, own.alternatives):
            assert dict(pairs).get(word, log_prob) == pytest.approx(log_prob, abs=1e-6)
            assert [p for _, p in pairs] == sorted((p for _, p in pairs), reverse=True)


@pytest.mark.parametrize("variant", EVERY)
def test_a_trace_of_a_beam_has_the_values_of_reading_its_words(variant: str) -> None:
    one, decoding = model(variant), options(beam_size=4)
    found = trace(one, decoding)
    tokens = [WORDS.index(word) for word in found.words]
    again = trace_reading(traced([one], decoding), [image()], tokens)
    assert again.words == found.words
    assert again.log_probs == pytest.approx(found.log_probs, abs=1e-4)
    assert set(again.sites) == set(found.sites)
    for site, array in found.sites.items():
        np.testing.assert_allclose(again[site], array, rtol=1e-3, atol=1e-4, err_msg=site)
    known = {name.replace("attention_cell.", "cell.") for name in found.sites}
    assert known - {"cell.kept", "cell.written"} <= set(SITES)


def test_an_ensemble_has_the_sites_of_each_model() -> None:
    models = [model("show_tell x0 lstm "), model("show_attend_tell gru dot ")]
    for average in ("probability", "log_probability"):
        decoding = options(beam_size=3, ensemble=average)
        best, *_ = captions(models, decoding)
        found = trace_generation(traced(models, decoding), [image(), image()], key=3)
        assert found.log_probs == best.log_probs
        assert found["1:cell.memory"].shape == (len(found.reads), 1, H)
        assert "2:attention.weights" in found
        first = [dict(pairs)[word] for word, pairs in zip(found.words[:1], found.alternatives)]
        assert first == pytest.approx(found.log_probs[:1], abs=1e-5)


def test_a_decoder_of_a_user_without_observe_has_its_words_traced() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("show_tell x0 lstm ").float()

        def start(self, features: Features) -> Any:
            return self.inner.start(features)

        def step(self, tokens: torch.Tensor, state: Any) -> Any:
            return self.inner.step(tokens, state)

    plain = Plain().eval()
    recording = Recording(EditedSteps(Stepper(plain.start, plain.step)))
    state = recording.wrapped.start(image())
    logits, _ = recording.wrapped.step(torch.tensor([1]), state)
    assert torch.equal(recording.logits(0, [1])[0], logits[0])


# The textbook's numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_states_are_those_of_torch(cell: str, layers: int) -> None:
    from support.peers import peer_of

    one, decoding = model(f"show_tell x0 {cell} ", layers=layers), options()
    found = trace(one, decoding)
    decoder: Any = one.decoder
    peer = peer_of(cell, decoder.recurrence, decoder.words.embedding_dim, H).float()
    read = torch.tensor([WORDS.index(word) for word in found.reads[1:]])
    with torch.no_grad():
        inputs = torch.cat([torch.from_numpy(found["image.x0"])[None], decoder.words(read)])
        h, _ = peer(inputs[None])
    np.testing.assert_allclose(found["cell.hidden"][:, -1], h[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["output.hidden"][1:], h[0, 1:].numpy(), atol=1e-5)


@pytest.mark.parametrize("cell", [name for name in CELLS if "rnn" not in name])
def test_the_two_parts_of_the_memory_add_up(cell: str) -> None:
    name = f"show_tell x0 {cell} " if cell in ("gru", "lstm") else f"show_tell {cell}"
    found = trace(model(name), options())
    state = "cell.memory" if "cell.memory" in found else "cell.hidden"
    parts = found["cell.kept"] + found["cell.written"]
    np.testing.assert_allclose(parts, found[state], atol=1e-6)
    assert not np.isnan(parts).any()  # step 0, which reads X_0, has all of it
    before = f"cell.previous_{state.partition('.')[2]}"
    assert np.array_equal(found[before][1:], found[state][:-1])
    assert not found[before][0].any()


def test_attention_weights_sum_to_one_and_x_0_has_none() -> None:
    found = trace(model("adaptive lstm additive sentinel"), options())
    weights = found["attention.weights"]
    np.testing.assert_allclose(weights[1:].sum(-1), 1.0, atol=1e-5)
    assert np.isnan(weights[0]).all()


# Edits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "strategy"),
    [(variant, "greedy") for variant in EVERY]
    + [(variant, name) for variant in list(VARIANTS)[::5] for name in ("beam", "samples")],
)
def test_an_edit_to_its_own_value_changes_nothing_to_the_bit(variant: str, strategy: str) -> None:
    one, decoding = model(variant), options(**STRATEGIES[strategy])
    plain = trace(one, decoding)
    derived = ("cell.kept", "cell.written", "attention_cell.kept", "attention_cell.written")
    edits = [Swap(site, image()) for site in plain.sites if site not in derived]
    same = trace(one, decoding, edits)
    assert same.words == plain.words
    assert same.log_probs == plain.log_probs
    for site, array in plain.sites.items():
        assert np.array_equal(same[site], array, equal_nan=True), site


def test_set_to_the_values_of_a_trace_changes_nothing() -> None:
    one = model("show_tell x0 lstm ")
    plain = trace(one, options())
    edits = [
        Set(site, plain[site][step, 0].tolist(), step=step)
        for site in ("cell.forget_gate", "cell.memory", "cell.hidden")
        for step in range(len(plain.reads))
    ]
    same = trace(one, options(), edits)
    assert same.log_probs == plain.log_probs
    assert not same.unapplied


def test_a_gate_at_zero_forgets_that_step_alone() -> None:
    one = model("show_tell x0 lstm ")
    tokens = [4, 5, 6, 2]
    edited = trace_reading(
        traced([one], options(), [Set("cell.forget_gate", 0.0, step=2)]), [image()], tokens
    )
    plain = trace_reading(traced([one], options()), [image()], tokens)
    assert not edited["cell.kept"][2].any()
    np.testing.assert_array_equal(edited["cell.memory"][2], edited["cell.written"][2])
    np.testing.assert_array_equal(edited["cell.memory"][:2], plain["cell.memory"][:2])
    assert edited.log_probs[0] == plain.log_probs[0]
    assert edited.log_probs[1] != plain.log_probs[1]


def test_what_depends_on_a_gate_is_computed_from_its_edit() -> None:
    """r_t acts only through n_t, and i_t = 1 - f_t in a coupled LSTM."""
    edited = trace(model("show_tell x0 gru "), options(), [Set("cell.reset_gate", 0.0)])
    plain = trace(model("show_tell x0 gru "), options())
    assert not np.array_equal(edited["cell.candidate"][1], plain["cell.candidate"][1])
    coupled = trace(model("show_tell lstm_coupled"), options(), [Set("cell.forget_gate", 0.25)])
    assert (coupled["cell.input_gate"] == 0.75).all()


def test_units_steps_and_layers_are_selected() -> None:
    one = model("show_tell x0 lstm tied")  # two layers
    tokens = [4, 5, 6, 2]
    edit = Add("cell.memory", 2.0, step=[1, 3], layer=1, units=[0, 4])
    edited = trace_reading(traced([one], options(), [edit]), [image()], tokens)
    plain = trace_reading(traced([one], options()), [image()], tokens)
    changed = edited["cell.memory"] != edited["cell.kept"] + edited["cell.written"]
    expected = np.zeros_like(changed)
    expected[np.ix_([1, 3], [1], [0, 4])] = True
    assert np.array_equal(changed, expected)
    np.testing.assert_array_equal(edited["cell.memory"][:, 0], plain["cell.memory"][:, 0])


def test_a_lesion_and_a_reset() -> None:
    one = model("show_tell x0 lstm ")
    tokens = [4, 5, 6, 7, 2]
    lesion = traced([one], options(), [Zero("cell.memory", units=[3])])
    edited = trace_reading(lesion, [image()], tokens)
    assert not edited["cell.memory"][:, :, 3].any()
    reset = trace_reading(traced([one], options(), [Reset(every=2)]), [image()], tokens)
    at_zero = [not reset["cell.previous_hidden"][step].any() for step in range(len(reset.reads))]
    assert at_zero == [True, False, False, True, False, True]
    assert not reset["cell.previous_memory"][3].any()


@pytest.mark.parametrize("variant", ["show_tell x0 lstm ", "up_down gru dot "])
def test_a_swap_takes_the_values_of_the_other_image_reading_the_same_words(variant: str) -> None:
    one, tokens = model(variant), [4, 5, 6, 2]
    other = trace_reading(traced([one], options()), [image(1)], tokens)
    edits = [Swap("cell.hidden", image(1), step=2)]
    edited = trace_reading(traced([one], options(), edits), [image()], tokens)
    np.testing.assert_allclose(edited["cell.hidden"][2], other["cell.hidden"][2], atol=1e-6)
    assert not np.allclose(edited["cell.hidden"][1], other["cell.hidden"][1])
    first = next(site for site in other.sites if site.startswith("image."))
    whole = trace_reading(traced([one], options(), [Swap(first, image(1))]), [image()], tokens)
    if variant.startswith("show_tell"):  # X_0 is all that it has of the image
        np.testing.assert_allclose(whole.log_probs, other.log_probs, atol=1e-6)
    beam = trace(one, options(beam_size=4), [Swap("cell.hidden", image(1))])
    words = [WORDS.index(word) for word in beam.words]
    expected = trace_reading(traced([one], options()), [image(1)], words)
    if variant.startswith("show_tell"):
        np.testing.assert_allclose(beam.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Set("cell.forgetgate", 0.0), "not a site of this model.*did you mean cell.forget_gate"),
        (Set("attention.weights", 0.0), "not a site of this model; choose cell.candidate"),
        (Set("cell.memory", 0.0, layer=1), "layer=1 of an edit of cell.memory is not accepted"),
        (Zero("cell.memory", units=[H]), f"units=\\[{H}\\].*0 to {H - 1}"),
        (Set("cell.memory", [1.0, 2.0]), "does not fit.*one for each unit"),
    ],
)
def test_edits_that_do_not_fit_are_refused(edit: AnyEdit, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        trace(model("show_tell x0 lstm "), options(), [edit])


def test_a_transformer_has_no_state_to_reset() -> None:
    with pytest.raises(ValueError, match="Reset needs a recurrent decoder"):
        trace(model("transformer learned True"), options(), [Reset(every=2)])


def test_an_edit_of_a_later_step_is_named() -> None:
    late = Set("cell.memory", 0.0, step=40)
    found = trace(model("show_tell x0 lstm "), options(), [late, Set("cell.hidden", 0.0)])
    assert found.unapplied == (late.as_dict(),)


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("cell.forget_gate@3=0", Set("cell.forget_gate", 0.0, step=(3,))),
        ("cell.memory[17,20-22]/1@2-3,7+=-1.5",
         Add("cell.memory", -1.5, units=(17, 20, 21, 22), layer=1, step=(2, 3, 7))),
        ("cell.memory=1,2,3", Set("cell.memory", [1.0, 2.0, 3.0])),
        ("image.x0=from:my dog.jpg", Swap("image.x0", "my dog.jpg")),
        ("reset=4", Reset(every=4)),
    ],
)  # fmt: skip
def test_edits_are_read_from_text_and_from_json(text: str, edit: AnyEdit) -> None:
    assert parse(text) == edit
    assert parse(as_text(edit.as_dict())) == edit
    plain = edit.as_dict()
    again = from_dict(plain)
    assert again.as_dict() == plain


@pytest.mark.parametrize(
    "text",
    ["cell.memory", "memory=0", "cell.memory@x=0", "cell.memory=much", "reset=often", "reset=0"]
    + ["cell.memory@3-=0", "cell.memory@8-6=0", "cell.memory[20-3]=0"],
)
def test_texts_that_are_no_edit_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write|not accepted") as error:
        parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [-0.1, 1.5, [0.5, 7.0]])
def test_a_gate_is_set_between_0_and_1(value: Any) -> None:
    with pytest.raises(ValueError, match="cell.forget_gate=.* a gate is between 0"):
        Set("cell.forget_gate", value)


def test_one_unit_may_be_given_as_a_number() -> None:
    decoder = model("show_tell x0 lstm ")
    one = trace(decoder, options(), [Zero("cell.memory", units=3)])
    same = trace(decoder, options(), [Zero("cell.memory", units=[3])])
    assert (one["cell.memory"][..., 3] == 0).all()
    assert one.log_probs == same.log_probs


@pytest.mark.parametrize(
    "plain",
    [
        {"edit": "clamp"},
        {"edit": "set", "site": "cell.memory"},
        {"edit": "reset", "each": 3},
        {"edit": "set", "site": 3, "value": 0},
        *(
            {"edit": kind, "site": "cell.memory", "value": value}
            for kind in ("set", "add")
            for value in ("much", None, [1, "2"], [[1.0]], {}, float("nan"), float("inf"))
        ),
    ],
)
def test_json_that_is_no_edit_is_refused(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="edit"):
        from_dict(plain)


# Files --------------------------------------------------------------------------------------------


def test_a_saved_trace_is_the_same(tmp_path: Any) -> None:
    edits = [Zero("cell.memory", units=[1]), Swap("image.x0", image(1))]
    found = trace(model("show_tell x0 lstm "), options(beam_size=3), edits, hypotheses=True)
    again = Trace.load(found.save(tmp_path / "trace.safetensors"))
    assert again.as_dict(sites=True) == found.as_dict(sites=True)
    assert len(again.hypotheses) == len(found.hypotheses) > 0


def test_other_files_are_no_traces(tmp_path: Any) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError, match="no such file"):
        Trace.load(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="is not a trace"):
        Trace.load(tmp_path / "text")
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="but not a trace"):
        Trace.load(tmp_path / "weights")


def test_a_table_has_one_row_per_value() -> None:
    pandas = pytest.importorskip("pandas")
    found = trace(model("show_tell x0 lstm "), options())
    table = found.frame()
    assert len(table) == sum(array.size for array in found.sites.values())
    picked = table.query("site == 'cell.memory' and step == 2 and unit == 4").value
    assert picked.tolist() == [found["cell.memory"][2, 0, 4]]
    assert isinstance(found.frame(["image.x0"]), pandas.DataFrame)


def test_an_unknown_site_names_the_known_ones() -> None:
    found = trace(model("show_tell x0 lstm "), options())
    with pytest.raises(KeyError, match="choose .*cell.memory"):
        found["cell.c"]
    assert B > 1


def test_what_is_no_edit_is_refused() -> None:
    require_edits([Reset(every=2)])
    with pytest.raises(ValueError, match="is not a list"):
        require_edits("cell.memory=0")
    with pytest.raises(ValueError, match="is not an edit; give Set"):
        require_edits(["cell.memory=0"])


def test_a_trace_is_shown_in_one_line() -> None:
    assert re.fullmatch(
        r"<Trace '.*', \d+ sites, \d+ steps>", repr(trace(model("show_tell irnn"), options()))
    )
