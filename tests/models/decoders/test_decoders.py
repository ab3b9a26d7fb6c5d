"""All variants of all decoders: forward, step, stepper, packing and decoding agree."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.decoders import ATTENDING, EVERY, SIZES, VARIANTS, B, D, P, T, V, build, features
from torch import nn

from captioner import config
from captioner.decoding.constraints import Phrases
from captioner.decoding.decode import decode
from captioner.decoding.ensemble import together
from captioner.decoding.options import DecodingOptions
from captioner.decoding.search import Hypothesis
from captioner.models.captioning import CaptioningModel
from captioner.models.decoders.decoder import Decoder
from captioner.models.decoders.table import DECODERS
from captioner.models.features import Features
from captioner.models.packing import IGNORED, Packing
from captioner.models.weight_layout import Packed, laid_out
from captioner.training.losses import cross_entropy

WHICH = pytest.mark.parametrize("variant", VARIANTS)
LOOKING = pytest.mark.parametrize("variant", [v for v in VARIANTS if "show_tell" not in v])


def step_by_step(step: Any, state: dict[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    steps = []
    for tokens in inputs.T:
        logits, state = step(tokens, state)
        steps.append(logits)
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("variant", EVERY)
def test_forward_equals_start_and_repeated_step(variant: str) -> None:
    decoder, images, inputs = build(variant), features(), torch.randint(V, (B, T))
    expected = step_by_step(decoder.step, decoder.start(images), inputs)
    torch.testing.assert_close(decoder(images, inputs), expected)
    stepper = decoder.stepper()
    logits_by_step = step_by_step(stepper.step, stepper.start(images), inputs)
    torch.testing.assert_close(logits_by_step, expected)
    other = decoder(images.rows(torch.tensor([1, 2, 0])), inputs)
    assert (other - expected).abs().amax(dim=(1, 2)).min() > 1e-6  # every image is heard


@WHICH
def test_a_stepper_uses_changed_weights(variant: str) -> None:
    decoder, images, inputs = build(variant), features(), torch.randint(V, (B, T))
    stepper = decoder.stepper()
    before = step_by_step(stepper.step, stepper.start(images), inputs)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = step_by_step(decoder.step, decoder.start(images), inputs)
    assert (before - expected).abs().max() > 1e-3
    logits_by_step = step_by_step(stepper.step, stepper.start(images), inputs)
    torch.testing.assert_close(logits_by_step, expected)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_has_the_members_of_the_interface(name: str) -> None:
    decoder = DECODERS[name](vocabulary_size=V, feature_size=D)
    assert isinstance(decoder, Decoder)
    assert decoder.attends is hasattr(decoder, "attend")
    model = CaptioningModel(None, decoder)
    if not decoder.attends:
        with pytest.raises(ValueError, match="has no attention weights"):
            model.attend(features(), torch.randint(V, (B, T)))


@pytest.mark.parametrize("variant", EVERY)
def test_the_stepper_in_bfloat16_equals_the_step_except_for_rounding(variant: str) -> None:
    decoder, inputs = build(variant).float(), torch.randint(V, (B, T))
    images = Features(*(tensor.float() for tensor in features()))
    with torch.inference_mode():
        exact = step_by_step(decoder.step, decoder.start(images), inputs)
        with torch.autocast("cpu", torch.bfloat16):
            stepper = decoder.stepper()
            rounded = step_by_step(stepper.step, stepper.start(images), inputs).float()
            usual = step_by_step(decoder.step, decoder.start(images), inputs).float()
    rounding = max(float((usual - exact).abs().max()), 0.01)
    torch.testing.assert_close(rounded, exact, rtol=0, atol=3 * rounding)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 0)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layers_equal_linear_layers(shape: tuple[int, ...], bias: bool) -> None:
    linear, x = nn.Linear(20, 13, bias=bias), torch.randn(*shape, 40)[..., ::2]
    with torch.autocast("cpu", torch.bfloat16):
        copied = laid_out(nn.Sequential(linear))
        assert isinstance(copied[0], Packed) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
        product = copied(x)
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.float(), linear(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("cell, memory", [("lstm", "c"), ("lstm_peephole", "c"), ("gru", "h")])
@pytest.mark.parametrize("name", ["show_tell", "show_attend_tell"])
def test_memory_is_not_rounded_to_bfloat16(name: str, cell: str, memory: str) -> None:
    options = ATTENDING if "attend" in name else SIZES
    decoder = DECODERS[name](vocabulary_size=V, feature_size=D, **{**options, "cell": cell}).eval()
    images = Features(*(tensor.float() for tensor in features()))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        stepper = decoder.stepper()
        state = stepper.start(images)
        for tokens in torch.randint(V, (T, B)):
            assert state[memory].dtype == torch.float32
            _, state = stepper.step(tokens, state)
    remembered = state[memory]
    assert remembered.dtype == torch.float32
    assert not torch.equal(remembered, remembered.bfloat16().float())


def test_hooks_are_called_by_a_stepper() -> None:
    decoder, seen = build("show_tell x0 lstm ").float(), []
    decoder.output.register_forward_hook(lambda module, given, logits: seen.append(logits.shape))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        stepper = decoder.stepper()
        images = Features(*(tensor.float() for tensor in features()))
        stepper.step(torch.tensor([1, 2, 3]), stepper.start(images))
    assert seen == [(B, V)]


@pytest.mark.parametrize("variant", EVERY)
def test_packed_equals_padded_in_logits_and_gradients(variant: str) -> None:
    decoder, images = build(variant), features()
    inputs, lengths = torch.randint(V, (B, T)), torch.tensor([2, 5, 4])
    targets = torch.randint(V, (B, T)).masked_fill(torch.arange(T) >= lengths[:, None], IGNORED)
    packing = Packing.of(lengths)
    padded = decoder(images, inputs)
    loss = cross_entropy(padded, targets, label_smoothing=0.1)
    learned = tuple(decoder.parameters())
    expected = torch.autograd.grad(loss, learned)
    changed = inputs.masked_fill(targets == IGNORED, 3)
    packed = decoder(images, changed, packing)
    torch.testing.assert_close(packed, packing.pack(padded))
    again = cross_entropy(packed, packing.pack(targets), label_smoothing=0.1)
    for actual, right in zip(torch.autograd.grad(again, learned), expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)


@LOOKING
def test_attention_weights_of_real_words_sum_to_one(variant: str) -> None:
    decoder, images, inputs = build(variant), features(), torch.randint(V, (B, T))
    packing = Packing.of(torch.tensor([2, 5, 4]))
    logits, weights = decoder.attend(images, inputs)
    positions = (P if decoder.uses_grid else 1) + getattr(decoder, "sentinel", False)
    assert weights.shape == (B, T, positions)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, T, dtype=torch.float64))
    torch.testing.assert_close(logits, decoder(images, inputs))
    packed_logits, packed = decoder.attend(images, inputs, packing)
    torch.testing.assert_close(packed_logits, packing.pack(logits))
    torch.testing.assert_close(packed, packing.pack(weights))
    assert (packing.pad(packed)[0, 2:] == 0).all()  # nothing is looked at past a caption's end


@LOOKING
def test_the_order_of_positions_does_not_matter(variant: str) -> None:
    decoder, images, inputs = build(variant), features(), torch.randint(V, (B, T))
    order = torch.tensor([2, 0, 3, 1])
    logits, weights = decoder.attend(images, inputs)
    moved = Features(images.pooled, images.grid[:, order])
    logits_of_moved, of_moved = decoder.attend(moved, inputs)
    torch.testing.assert_close(logits_of_moved, logits)
    if decoder.uses_grid:
        torch.testing.assert_close(of_moved[..., :P], weights[..., :P][..., order])


STRATEGIES = {
    "greedy": {},
    "beam": {"beam_size": 4, "captions": 3},
    "groups": {"beam_size": 4, "groups": 2, "captions": 2},
    "required": {"beam_size": 2},
    "sample": {"temperature": 1.0, "captions": 3},
}
EVERY_WAY = pytest.mark.parametrize("strategy", STRATEGIES)
SOME = pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.startswith("transformer") or "lstm" in v]
)
WIDTHS = {"greedy": (1, 1), "beam": (1, 4), "groups": (2, 4), "required": (6, 12), "sample": (3, 1)}
"""Rows of an image in the first step and in later ones; required phrases may have begun, too."""
Sizes = list[tuple[int, set[int], set[int]]]


def search(
    decoders: Sequence[Any], images: Features, strategy: str, keys: Sequence[int] | None = None
) -> tuple[list[list[Hypothesis]], Sizes]:
    """Hypotheses, and of each step how many rows it read, of images, and of everything else."""
    options = DecodingOptions(max_length=6, **STRATEGIES[strategy])
    steppers = [decoder.stepper() for decoder in decoders]
    starts = [one.start(images) for one in steppers]
    step, state = together([one.step for one in steppers], starts, average="probability")
    sizes: Sizes = []

    def watched(tokens: torch.Tensor, state: Any) -> Any:
        parts: tuple[set[int], set[int]] = (set(), set())
        for name, tensor in state.items():
            parts[not name.startswith("image.")].add(len(tensor))
        sizes.append((len(tokens), *parts))
        return step(tokens, state)

    phrases = Phrases(required=((5,), (6, 7)) if strategy == "required" else ())
    hypotheses = decode(watched, state, start=1, end=2, options=options, phrases=phrases, keys=keys)
    return hypotheses, sizes


def loud(variant: str) -> Any:
    """A decoder whose captions differ."""
    decoder = build(variant)
    with torch.no_grad():
        decoder.output.weight.mul_(5)
    return decoder


def plain_beam(decoders: Sequence[Any], image: Features) -> list[tuple[list[int], list[float]]]:
    """The strategy "beam" as it is written down: no state, every beginning is read anew."""
    live: list[tuple[list[int], list[float]]] = [([], [])]
    ended: list[tuple[list[int], list[float]]] = []
    for _ in range(6):
        candidates = []
        inputs = torch.tensor([[1, *words] for words, _ in live])
        images = image.rows(torch.zeros(len(live), dtype=torch.long))
        p = torch.stack([one(images, inputs)[:, -1].softmax(-1) for one in decoders]).mean(0)
        for (words, values), more in zip(live, p.log().tolist()):
            candidates += [([*words, w], [*values, value]) for w, value in enumerate(more)]
        candidates.sort(key=lambda one: -sum(one[1]))
        ended += [one for one in candidates[:4] if one[0][-1] == 2]
        live = [one for one in candidates if one[0][-1] != 2][:4]
        if len(ended) >= 4:
            break
    return [*sorted(ended, key=lambda one: -sum(one[1])), *live][:3]


@SOME
def test_batched_beam_search_equals_a_plain_search_of_each_image(variant: str) -> None:
    others = ["show_tell every gru ", "transformer learned True", "adaptive lstm dot sentinel"]
    images = features()
    with torch.no_grad():
        for decoders in ([loud(variant)], [loud(name) for name in (variant, *others)]):
            by_image, _ = search(decoders, images, "beam")
            for row, hypotheses in enumerate(by_image):
                expected = plain_beam(decoders, images.rows(torch.tensor([row])))
                for hypothesis, (words, values) in zip(hypotheses[:3], expected, strict=True):
                    assert [*hypothesis.tokens, *([2] if hypothesis.finished else [])] == words
                    assert hypothesis.log_probs == pytest.approx(values, abs=1e-4)


@EVERY_WAY
@SOME
def test_decoding_an_image_does_not_depend_on_its_batch(variant: str, strategy: str) -> None:
    decoder, images = loud(variant), features()
    with torch.no_grad():
        by_image, _ = search([decoder], images, strategy)
        for row, hypotheses in enumerate(by_image):
            (alone,), _ = search([decoder], images.rows(torch.tensor([row])), strategy, keys=[row])
            assert [h.tokens for h in alone] == [h.tokens for h in hypotheses]
            for single, batched in zip(alone, hypotheses):
                assert single.log_probs == pytest.approx(batched.log_probs, abs=1e-5)


@EVERY_WAY
@LOOKING
def test_tensors_of_images_are_not_repeated_for_beams(variant: str, strategy: str) -> None:
    """A search holds it once; samples share it until one of them ends."""
    with torch.no_grad():
        _, sizes = search([loud(variant), loud("show_tell merge gru ")], features(), strategy)
    first, then = WIDTHS[strategy]
    for place, (rows, of_images, rest) in enumerate(sizes):
        (images,) = of_images
        widths = {first} if place == 0 else {first, then} if strategy == "sample" else {then}
        assert rest == {rows} and rows in {images * width for width in widths}
        assert images <= (rows if strategy == "sample" else B)


@EVERY_WAY
@SOME
def test_decoded_captions_have_their_teacher_forced_probabilities(
    variant: str, strategy: str
) -> None:
    """However rows are reordered and repeated, each reads its own image and its own past."""
    decoder, images = loud(variant), features()
    with torch.no_grad():
        by_image, _ = search([decoder], images, strategy)
        for row, hypotheses in enumerate(by_image):
            for one in hypotheses:
                words = [*one.tokens, *([2] if one.finished else [])]
                inputs = torch.tensor([[1, *words[:-1]]])
                logits = decoder(images.rows(torch.tensor([row])), inputs)
                right = logits.log_softmax(-1)[0, range(len(words)), words]
                torch.testing.assert_close(
                    torch.tensor(one.log_probs), right.float(), rtol=1e-4, atol=1e-4
                )


@WHICH
def test_scale_and_shift_of_features_change_nothing(variant: str) -> None:
    decoder, images, inputs = build(variant), features(30), torch.randint(V, (30, T))
    decoder.fit(images)
    expected = decoder(images, inputs)
    scaled = Features(*(100 * one + 7 for one in images))
    decoder.fit(scaled)
    torch.testing.assert_close(decoder(scaled, inputs), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", [v for v in EVERY if "gru" not in v and "rnn" not in v])
def test_bfloat16_is_close_to_float32(variant: str) -> None:
    decoder = build(variant).float()
    images = Features(*(one.float() for one in features()))
    inputs, packing = torch.randint(V, (B, T)), Packing.of(torch.tensor([2, 5, 4]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decoder(images, inputs, packing)
        state = decoder.start(images)
        for tokens in inputs.T[:2]:
            logits, state = decoder.step(tokens, state)
    torch.testing.assert_close(
        rounded.float(), decoder(images, inputs, packing), atol=0.05, rtol=0.1
    )
    torch.testing.assert_close(logits.float(), decoder(images, inputs)[:, 1], atol=0.05, rtol=0.1)
    rounded.float().square().sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in decoder.parameters())


@WHICH
def test_dropout_is_used_in_training_only(variant: str) -> None:
    decoder, images, inputs = build(variant, dropout=0.5), features(), torch.randint(V, (B, T))
    assert torch.equal(decoder(images, inputs), decoder(images, inputs))
    decoder.train()
    packing = Packing.of(torch.tensor([2, 5, 4]))
    first, second = (decoder(images, inputs, packing) for _ in range(2))
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["show_attend_tell", "up_down", "adaptive"])
def test_features_without_a_grid_are_an_error(name: str) -> None:
    decoder = build(f"{name} two layers, tied")
    with pytest.raises(ValueError, match="attends to a grid, and these features have none"):
        decoder.start(Features(features().pooled))


def test_tied_weights_are_one_parameter() -> None:
    for variant, options in VARIANTS.items():
        decoder = build(variant)
        tied = options.get("tie_weights", False)
        assert (decoder.output.weight is decoder.words.weight) is tied
        names = [name for name, _ in decoder.named_parameters()]
        assert ("output.weight" in names) is not tied


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("show_tell", {"image": "x1"}, "decoder.image='x1' is not known; choose x0, h0, every"),
        ("up_down", {"score": "dott"}, "decoder.score='dott' .*did you mean dot"),
        ("up_down", {"components": 0}, "decoder.components=0 is not accepted"),
        ("transformer", {"heads": 7}, "decoder.heads=7 does not divide decoder.hidden_size=512"),
        ("transformer", {"positions": "none"}, "decoder.positions='none' is not known"),
        ("transformer", {"layers": 0}, "decoder.layers=0"),
    ],
)
def test_a_value_out_of_range_is_an_error(name: str, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DECODERS[name](vocabulary_size=V, feature_size=D, **options)


@pytest.mark.parametrize("name", config.options("decoder"))
def test_the_values_in_conf_are_the_defaults(name: str) -> None:
    values = config.compose([f"decoder={name}"])["decoder"]
    defaults = {n: p.default for n, p in config.arguments(DECODERS[name]).items()}
    given = ("vocabulary_size", "feature_size")
    assert values == {"name": name, **{n: v for n, v in defaults.items() if n not in given}}
