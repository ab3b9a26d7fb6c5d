"""Attribution, against closed forms, Captum, finite differences and relevance written by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.decoders import D, P, V, build, features
from torch import Tensor, nn

from captioner.inspection.attribution import METHODS, attribute, integrated_gradients
from captioner.inspection.attribution_checks import check, curves, rank_correlation
from captioner.inspection.reading import Inputs, Reading, in_float64, randomized
from captioner.models.decoders.standardize import Standardize
from captioner.models.features import Features
from captioner.models.sites import Observe, unobserved
from captioner.tokenizers import Vocabulary
from captioner.tracing.editing import edited
from captioner.tracing.edits import Add, AnyEdit, Reset, Set, Swap, Zero
from captioner.tracing.recording import Recording

VOCABULARY = Vocabulary(words=(*Vocabulary.special, *"abcdefg"))
BEFORE = (1, 5, 7, 4)
RECURRENT = [
    "show_tell x0 lstm tied",
    "show_tell x0 gru ",
    "show_tell h0 rnn tied",
    "show_tell every lstm ",
    "show_attend_tell lstm additive deep_output",
    "show_attend_tell gru dot ",
    "show_attend_tell two layers, tied",
]
OTHERS = [
    "show_tell merge lstm ",
    "adaptive lstm additive sentinel",
    "up_down gru dot ",
    "transformer learned True",
    "transformer sinusoidal False",
]


class Linear(nn.Module):
    """The logits are a linear function of the image and of the words, whose weights grow."""

    attends, uses_grid = False, True

    def __init__(self) -> None:
        super().__init__()
        self.standardise = Standardize(D, None)
        self.words = nn.Embedding(V, 7)
        self.image = nn.Linear(D * P, V)
        self.output = nn.Linear(7, V)

    def start(self, features: Features, observe: Observe = unobserved) -> dict[str, Tensor]:
        assert features.grid is not None
        return {"sum": self.image(features.grid.flatten(1))}

    def step(self, tokens: Tensor, state: dict[str, Tensor], observe: Observe = unobserved) -> Any:
        total = 2 * state["sum"] + self.output(self.words(tokens))
        return total, {"sum": total}


def reading(decoder: Any, **more: Any) -> Reading:
    _, grid = features(1)
    assert grid is not None
    return Reading(in_float64(decoder), Features(grid.mean(1), grid), BEFORE, 8, **more)


def far_from_uniform(variant: str) -> Any:
    decoder = build(variant)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2.0)
    return decoder


def test_all_methods_but_lrp_are_equal_and_complete_for_a_linear_decoder() -> None:
    decoder = Linear()
    one = reading(decoder, score="logit")
    found = {m: attribute(one, m, VOCABULARY) for m in METHODS if m != "lrp"}
    weights = decoder.image.weight[8].double().view(P, D)
    steps = len(BEFORE)
    expected = 2**steps * (weights * (one.inputs.grid[0] - one.baseline.grid[0])).sum(1)
    for attribution in found.values():
        np.testing.assert_allclose(attribution.map, expected.detach(), rtol=1e-9)
        of_word = decoder.output.weight[8].double() @ (one.inputs.words - one.baseline.words)[0].T
        powers = 2.0 ** torch.arange(steps - 1, -1, -1)
        np.testing.assert_allclose(attribution.words, (powers * of_word).detach(), rtol=1e-9)
        assert attribution.error == pytest.approx(0, abs=1e-9)
        assert attribution.reads == ("<start>", "b", "d", "a")


@pytest.mark.parametrize("variant", [*RECURRENT, *OTHERS])
def test_what_is_read_is_what_the_decoder_reads(variant: str) -> None:
    """f(x) is the log probability; integrated gradients are complete; occlusion leaves one out."""
    decoder = far_from_uniform(variant)
    one = reading(decoder)
    with torch.no_grad():
        logits = decoder(one.features, torch.tensor([BEFORE]))[0, -1]
    value = logits.log_softmax(0)[8]
    assert one.values(one.inputs).item() == pytest.approx(value.item(), abs=1e-9)
    smooth = not variant.startswith(("transformer", "adaptive"))  # they have relu
    points, within = (100, 1e-4) if smooth else (1500, 0.05)
    grid, words = integrated_gradients(one, points=points)
    total = one.values(one.inputs) - one.values(one.baseline)
    assert (grid.sum() + words.sum()).item() == pytest.approx(total.item(), abs=within)

    without = one.inputs.grid.clone()
    without[0, 2] = one.baseline.grid[0, 2]
    pooled = without.mean(1)
    with torch.no_grad():
        logits = decoder(Features(pooled, without), torch.tensor([BEFORE]))[0, -1]
    expected = value - logits.log_softmax(0)[8]
    found = attribute(one, "occlusion", VOCABULARY)
    assert found.map[2] == pytest.approx(expected.item(), abs=1e-9)
    assert abs(found.map).min() > 1e-6
    assert abs(found.words[-1]) > 1e-6


@pytest.mark.parametrize("variant", ["show_tell x0 lstm tied", "up_down gru dot "])
def test_gradient_x_input_is_that_of_finite_differences(variant: str) -> None:
    one = reading(far_from_uniform(variant), rather_than=5)
    found = attribute(one, "gradient-x-input", VOCABULARY)
    for place, parts in ((0, found.map), (1, found.words)):
        direction = one.inputs[place] - one.baseline[place]
        for i in range(direction.shape[1]):
            step = torch.zeros_like(direction)
            step[0, i] = 1e-5 * direction[0, i]
            ends = []
            for sign in (1, -1):
                moved = list(one.inputs)
                moved[place] = moved[place] + sign * step
                ends.append(one.values(Inputs(*moved)).item())
            assert parts[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_rather_than_is_the_difference_of_two_words() -> None:
    decoder = far_from_uniform("show_attend_tell lstm dot ")
    one = reading(decoder, rather_than=5)
    dog, cat = (Reading(one.decoder, one.features, BEFORE, w, score="logit") for w in (8, 5))
    for method in METHODS:
        first, second = (attribute(r, method, VOCABULARY) for r in (dog, cat))
        found = attribute(one, method, VOCABULARY)
        assert (found.word, found.rather_than) == ("e", "b")
        np.testing.assert_allclose(found.map, first.map - second.map, atol=1e-9)
        np.testing.assert_allclose(found.words, first.words - second.words, atol=1e-9)


# Relevance ----------------------------------------------------------------------------------------


def relevance_by_hand(decoder: Any, image: Tensor, word: int) -> Tensor:
    """The LRP of Arras et al. of the logit of a show_tell LSTM, backwards step by step.

    Returns:
        the relevance of X_0 and of each word, [T + 1, E].
    """
    cell = decoder.recurrence.first
    W, U, bias = cell.of_input.weight, cell.of_hidden.weight, cell.of_input.bias
    h = c = image.new_zeros(cell.hidden_size)
    steps = []
    for x in (image, *decoder.words(torch.tensor(BEFORE))):
        f, i, z, o = (W @ x + U @ h + bias).chunk(4)
        kept, written = f.sigmoid() * c, i.sigmoid() * z.tanh()
        before, c = h, kept + written
        steps.append((x, before, z, kept, written, c))
        h = o.sigmoid() * c.tanh()
    rows = slice(2 * cell.hidden_size, 3 * cell.hidden_size)  # of the candidate
    of_h, of_c = decoder.output.weight[word] * h, torch.zeros_like(h)
    found = []
    for x, before, z, kept, written, c in reversed(steps):
        of_c = of_c + of_h
        of_z = of_c * written / c
        of_c = of_c * kept / c
        of_h = (U[rows] * before * (of_z / z)[:, None]).sum(0)
        found.append((W[rows] * x * (of_z / z)[:, None]).sum(0))
    return torch.stack(found[::-1])


def test_lrp_is_the_rule_of_arras_by_hand() -> None:
    decoder = far_from_uniform("show_tell x0 lstm ")
    one = reading(decoder, score="logit", word_baseline="zero")
    with torch.no_grad():
        image = decoder.read_image(one.features)[0]
        expected = relevance_by_hand(decoder, image, 8)
        of_image = (
            expected[0] * (image - decoder.image.bias) / image
        ).sum()  # the bias has a share
    found = attribute(one, "lrp", VOCABULARY)
    np.testing.assert_allclose(found.words, expected[1:].sum(1), rtol=1e-6)
    assert found.map.sum() == pytest.approx(of_image.item(), rel=1e-6)


@pytest.mark.parametrize("variant", RECURRENT)
def test_lrp_conserves_relevance_without_biases(variant: str) -> None:
    """All relevance of the logit arrives at the inputs, whatever the cell and the decoder."""
    decoder = far_from_uniform(variant)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    one = reading(decoder, score="logit", word_baseline="zero")
    found = attribute(one, "lrp", VOCABULARY)
    assert found.map.sum() + found.words.sum() == pytest.approx(found.value, rel=1e-6)
    plain = attribute(one, "gradient-x-input", VOCABULARY)
    assert abs(plain.map.sum() + plain.words.sum() - found.value) > 0.01 * abs(found.value)


@pytest.mark.parametrize("variant", OTHERS)
def test_lrp_refuses_decoders_that_it_does_not_know(variant: str) -> None:
    with pytest.raises(ValueError, match="no rule of relevance"):
        attribute(reading(build(variant)), "lrp", VOCABULARY)


# Edits --------------------------------------------------------------------------------------------

SMOOTH = ["show_tell x0 lstm tied", "show_attend_tell gru dot ", "up_down gru dot "]


def other() -> Features:
    """Another image."""
    return Features(*(part + 1 for part in features(1)))  # type: ignore[operator]


def edits_of(variant: str) -> list[AnyEdit]:
    gate = "cell.forget_gate" if "lstm" in variant else "cell.reset_gate"
    return [
        Set(gate, 0.9, step=2, units=[0, 3]),
        Add("cell.hidden", 0.7, step=[1, 3]),
        Swap("cell.candidate", other(), step=3, units=[1]),
    ]


def in_an_edited_run(one: Reading, edits: list[AnyEdit], grid: Tensor) -> Tensor:
    """The logits of the last step, by the recording of a trace: [V]."""
    recording = Recording(edited(one.decoder, edits))
    state = recording.wrapped.start(Features(grid.mean(1), grid))
    for token in BEFORE:
        logits, state = recording.wrapped.step(torch.tensor([token]), state)
    return logits[0]


@pytest.mark.parametrize("variant", SMOOTH)
def test_f_is_the_logit_of_the_edited_run_and_is_attributed_completely(variant: str) -> None:
    decoder, edits = far_from_uniform(variant), edits_of(variant)
    one = reading(decoder, edits=edits, score="logit")
    own = in_an_edited_run(one, edits, one.inputs.grid)[8]
    assert one.values(one.inputs).item() == pytest.approx(own.item(), abs=1e-12)
    assert own.item() != pytest.approx(replace(one, edits=[]).values(one.inputs).item())

    without = one.inputs.grid.clone()
    without[0, 2] = one.baseline.grid[0, 2]
    expected = own - in_an_edited_run(one, edits, without)[8]
    assert attribute(one, "occlusion", VOCABULARY).map[2] == pytest.approx(expected.item())
    grid, words = integrated_gradients(one, points=100)
    difference = one.values(one.inputs) - one.values(one.baseline)
    assert (grid.sum() + words.sum()).item() == pytest.approx(difference.item(), abs=1e-4)


@pytest.mark.parametrize("variant", SMOOTH)
def test_gradients_of_an_edited_run_are_finite_differences(variant: str) -> None:
    one = reading(far_from_uniform(variant), edits=edits_of(variant))
    found = attribute(one, "gradient-x-input", VOCABULARY)
    for place, parts in ((0, found.map), (1, found.words)):
        direction = one.inputs[place] - one.baseline[place]
        step = torch.zeros_like(direction)
        step[0, 1] = 1e-5 * direction[0, 1]
        ends = []
        for sign in (1, -1):
            moved = list(one.inputs)
            moved[place] = moved[place] + sign * step
            ends.append(one.values(Inputs(*moved)).item())
        assert parts[1] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_edits_that_add_nothing_change_no_contribution(method: str) -> None:
    one = reading(far_from_uniform("show_attend_tell lstm dot "))
    nothing = [Add("cell.memory", 0.0), Add("attention.context", 0.0), Add("image.values", 0.0)]
    first = attribute(one, method, VOCABULARY)
    second = attribute(replace(one, edits=nothing), method, VOCABULARY)
    np.testing.assert_array_equal(first.map, second.map)
    np.testing.assert_array_equal(first.words, second.words)
    assert first.value == second.value


def test_the_value_of_the_image_itself_gives_the_same_score_but_hides_the_image() -> None:
    decoder = far_from_uniform("show_tell x0 lstm ")
    one = reading(decoder)
    same = replace(one, edits=[Swap("cell.memory", one.features, step=0),
                               Swap("cell.hidden", one.features, step=0)])  # fmt: skip
    assert one.values(one.inputs).item() == same.values(one.inputs).item()
    assert (attribute(same, "gradient-x-input", VOCABULARY).map == 0).all()


@pytest.mark.parametrize("edits", [
    [Set("cell.forget_gate", 0.3), Set("cell.output_gate", 1.0, units=[2])],
    [Zero("cell.memory", units=[1, 3])],
    [Zero("cell.candidate", step=2)],
    [Reset(every=2)],
])  # fmt: skip
def test_lrp_of_an_edited_run_conserves_relevance_without_biases(edits: list[AnyEdit]) -> None:
    decoder = far_from_uniform("show_tell x0 lstm ")
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    one = reading(decoder, score="logit", word_baseline="zero", edits=edits)
    found = attribute(one, "lrp", VOCABULARY)
    assert found.map.sum() + found.words.sum() == pytest.approx(found.value, rel=1e-6)


@pytest.mark.parametrize(("edit", "says"), [
    (Zero("image.x0"), "replaces all that is read of the image"),
    (Set("output.logits", 0.0, step=4), "the score of word 4"),
    (Zero("output.logits", units=[2, 8]), "the score of word 4"),
])  # fmt: skip
def test_edits_of_what_is_attributed_are_refused(edit: AnyEdit, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        reading(build("show_tell x0 lstm "), edits=[edit])


def test_edits_that_leave_something_to_attribute_are_accepted() -> None:
    for edit in (
        Zero("image.x0", units=[2]),
        Set("output.logits", 0.0, step=3),
        Zero("output.logits", units=[2]),
        Add("output.logits", 1.0),
    ):
        reading(build("show_tell x0 lstm "), edits=[edit])


def test_lrp_refuses_edits_for_which_it_has_no_rule() -> None:
    for edit in (Swap("cell.memory", other(), step=2), Add("cell.candidate", 0.5)):
        with pytest.raises(ValueError, match="no rule of relevance for"):
            attribute(reading(build("show_tell x0 lstm "), edits=[edit]), "lrp", VOCABULARY)


# Checks -------------------------------------------------------------------------------------------


def test_deletion_and_insertion_replace_the_positions_one_by_one() -> None:
    one = reading(far_from_uniform("show_attend_tell lstm dot "))
    found = curves(one, np.array([0.2, 0.9, -1.0, 0.5]), points=99, orders=3)
    x, b = one.inputs.grid, one.baseline.grid
    order = [1, 3, 0, 2]
    for k in range(P + 1):
        grid = x.clone()
        grid[:, order[:k]] = b[:, order[:k]]
        expected = one.values(Inputs(grid, one.inputs.words)).item()
        assert found.deletion[k] == pytest.approx(expected, abs=1e-9)
        grid = b.clone()
        grid[:, order[:k]] = x[:, order[:k]]
        expected = one.values(Inputs(grid, one.inputs.words)).item()
        assert found.insertion[k] == pytest.approx(expected, abs=1e-9)
    assert found.deletion[0] == pytest.approx(found.random_deletion[:, 0])
    assert found.random_insertion.shape == (3, P + 1)
    means = [(curve[1:] + curve[:-1]).mean() / 2 for curve in found.random_deletion]
    area = (found.deletion[1:] + found.deletion[:-1]).mean() / 2
    assert found.deletion_gain == pytest.approx(np.mean(means) - area)


def test_the_best_order_is_better_than_random_orders() -> None:
    """For a linear decoder the contributions are the effects of deletion."""
    one = reading(Linear(), score="logit")
    found = check(one, attribute(one, "occlusion", VOCABULARY))
    assert found.curves.deletion_gain > 0
    assert found.curves.insertion_gain == pytest.approx(found.curves.deletion_gain, rel=0.5)
    assert abs(found.error) < 1e-9
    assert (np.abs(found.correlations) <= 1).all()


def test_rank_correlation_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    source = np.random.default_rng(0)
    a, b = source.integers(0, 6, 30), source.normal(size=30)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(a, a) == pytest.approx(1)
    assert rank_correlation(np.zeros(30), b) == 0


def test_random_weights_are_the_same_numbers_in_another_order() -> None:
    decoder = in_float64(build("show_attend_tell lstm dot "))
    other = randomized(decoder, 3)
    for (name, old), new in zip(decoder.named_parameters(), other.parameters()):
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
        assert old.numel() == 1 or name.endswith("bias") or not torch.equal(old, new)


# What is refused ----------------------------------------------------------------------------------


def test_a_pooled_feature_that_is_not_the_mean_of_the_grid_is_refused() -> None:
    decoder = in_float64(build("show_tell x0 lstm tied"))
    pooled, grid = features(1)
    with pytest.raises(ValueError, match="not the mean of its grid"):
        Reading(decoder, Features(pooled + 1, grid), BEFORE, 8)
    Reading(in_float64(build("up_down gru dot ")), Features(pooled + 1, grid), BEFORE, 8)
    with pytest.raises(ValueError, match="no grid"):
        Reading(decoder, Features(pooled), BEFORE, 8)


def test_unknown_names_are_refused() -> None:
    one = reading(build("show_tell x0 lstm tied"))
    with pytest.raises(ValueError, match="did you mean occlusion"):
        attribute(one, "oclusion", VOCABULARY)
    with pytest.raises(ValueError, match="score='probability' is not known"):
        reading(build("show_tell x0 lstm tied"), score="probability")


# Captum -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Input Tensor")
@pytest.mark.parametrize("variant", ["show_tell x0 lstm tied", "adaptive lstm additive sentinel"])
def test_the_methods_are_those_of_captum(variant: str) -> None:
    captum = pytest.importorskip("captum.attr")
    one = reading(far_from_uniform(variant), word_baseline="zero")

    def score(grid: Tensor, words: Tensor) -> Tensor:
        return one.compute(Inputs(grid, words))

    inputs, baseline = tuple(one.inputs), tuple(one.baseline)
    theirs = captum.IntegratedGradients(score).attribute(inputs, baseline, n_steps=32)
    ours = integrated_gradients(one, points=32)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other.sum(-1)[0])
    masks = (
        torch.arange(P)[None, :, None].expand(1, P, D),
        (P + torch.arange(len(BEFORE))[None, :, None]).expand_as(inputs[1]),
    )
    ablation = captum.FeatureAblation(score)
    theirs = ablation.attribute(inputs, baseline, feature_mask=masks)
    found = attribute(one, "occlusion", VOCABULARY)
    for mine, other in zip((found.map, found.words), theirs):
        np.testing.assert_allclose(mine, other[0, :, 0].numpy(), atol=1e-9)
    theirs = captum.Saliency(score).attribute(inputs, abs=False)
    found = attribute(one, "gradient-x-input", VOCABULARY)
    for mine, gradient, x, b in zip((found.map, found.words), theirs, inputs, baseline):
        np.testing.assert_allclose(mine, ((x - b) * gradient).sum(-1)[0], atol=1e-9)
