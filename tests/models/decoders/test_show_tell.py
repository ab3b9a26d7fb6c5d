"""ShowTell: the interface of decoders, and X_0, compared with the equations."""

import pytest
import torch
from support.peers import PEERS, peer_of
from support.small_show_tell import features, show_tell
from torch import nn

from captioner.data.batches import pad
from captioner.decoding.options import DecodingOptions
from captioner.generation import generate, make_steppers
from captioner.models.captioning import CaptioningModel
from captioner.models.features import Features
from captioner.models.packing import IGNORED
from captioner.models.recurrence.table import CELLS
from captioner.tokenizers import build_tokenizer
from captioner.training.losses import cross_entropy

B, T, V, D, E, H = 2, 5, 11, 8, 7, 6


TOKENIZER = build_tokenizer(["a b c d e f g"], name="word", min_count=1)  # V with the special ones


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_forward_equals_start_and_repeated_step(cell: str, layers: int) -> None:
    decoder = show_tell(cell, layers=layers).eval()
    images, inputs = features(), torch.randint(V, (B, T))
    state = decoder.start(images)
    steps = []
    for t in range(T):
        logits, state = decoder.step(inputs[:, t], state)
        steps.append(logits)
    torch.testing.assert_close(decoder(images, inputs), torch.stack(steps, dim=1))


def test_the_image_is_x_0_with_h_and_c_at_zero() -> None:
    """torch's LSTM, fed the projected image and then the words, gives the same logits."""
    decoder = show_tell().eval()
    decoder.fit(features(20))
    cell = decoder.recurrence.cells[0]
    peer = nn.LSTM(E, H, batch_first=True).double()
    f, i, g, o = (cell.of_input.weight.split(H)[k] for k in range(4))
    hf, hi, hg, ho = cell.of_hidden.weight.split(H)
    bf, bi, bg, bo = cell.of_input.bias.split(H)
    with torch.no_grad():
        peer.weight_ih_l0.copy_(torch.cat([i, f, g, o]))
        peer.weight_hh_l0.copy_(torch.cat([hi, hf, hg, ho]))
        peer.bias_ih_l0.copy_(torch.cat([bi, bf, bg, bo]))
        peer.bias_hh_l0.zero_()
    images, inputs = features(), torch.randint(V, (B, T))
    standard = (images.pooled - decoder.standardise.mean) * decoder.standardise.scale
    x_0 = standard @ decoder.image.weight.T + decoder.image.bias
    sequence = torch.cat([x_0[:, None], decoder.words.weight[inputs]], dim=1)
    h, _ = peer(sequence)  # torch starts at zero
    expected = h[:, 1:] @ decoder.output.weight.T + decoder.output.bias
    torch.testing.assert_close(decoder(images, inputs), expected)


@pytest.mark.parametrize("image", ["h0", "every", "merge"])
@pytest.mark.parametrize("cell", PEERS)
@torch.no_grad()
def test_the_image_enters_in_the_selected_place(cell: str, image: str) -> None:
    """torch's recurrence of two layers, given what Tanti et al. describe."""
    decoder = show_tell(cell, image=image, layers=2).eval()
    decoder.fit(features(20))
    images, inputs = features(), torch.randint(V, (B, T))
    standard = (images.pooled - decoder.standardise.mean) * decoder.standardise.scale
    feature = standard @ decoder.image.weight.T + decoder.image.bias
    sequence, begin = decoder.words.weight[inputs], None
    if image == "every":
        sequence = torch.cat([sequence, feature[:, None].expand(B, T, E)], dim=2)
    if image == "h0":  # each layer has a part of its own, and so has c
        parts = [one.view(B, 2, H).transpose(0, 1) for one in feature.tanh().split(2 * H, dim=1)]
        begin = tuple(parts) if cell == "lstm" else parts[0]
    h, _ = peer_of(cell, decoder.recurrence, sequence.shape[2], H)(sequence, begin)
    if image == "merge":
        h = torch.tanh(h @ decoder.merge.weight.T + feature[:, None])
    expected = h @ decoder.output.weight.T + decoder.output.bias
    torch.testing.assert_close(decoder(images, inputs), expected)


@torch.no_grad()
def test_tied_weights_use_the_embedding_as_output() -> None:
    free, tied = show_tell().eval(), show_tell(tie_weights=True).eval()
    tied.load_state_dict(
        {**tied.state_dict(), **free.state_dict(), "output.weight": tied.words.weight}
    )
    images, inputs = features(), torch.randint(V, (B, T))
    free.words.weight.copy_(tied.words.weight)
    free.output.weight.copy_(tied.words.weight @ tied.narrow.weight)
    free.output.bias.copy_(tied.words.weight @ tied.narrow.bias + tied.output.bias)
    torch.testing.assert_close(tied(images, inputs), free(images, inputs))


@pytest.mark.parametrize("components", [None, 3, 50])
def test_features_are_standardized_by_statistics_of_training_images(components: int | None) -> None:
    mixed = torch.randn(400, D, dtype=torch.float64) @ torch.randn(D, D, dtype=torch.float64)
    decoder = show_tell(components=components)
    decoder.fit(Features(100 * mixed + 7))
    standard = decoder.standardise(100 * mixed + 7)
    assert standard.shape == (400, D if components is None else min(components, D))
    torch.testing.assert_close(standard.mean(0), torch.zeros(standard.shape[1]).double())
    covariance = standard.T @ standard / 400
    if components is None:
        torch.testing.assert_close(covariance.diag(), torch.ones(D).double(), rtol=1e-3, atol=0)
    else:
        identity = torch.eye(len(covariance)).double()
        torch.testing.assert_close(covariance, identity, rtol=1e-3, atol=1e-3)
        centred = mixed - mixed.mean(
            0
        )  # the kept part holds the most variance: an SVD says how much
        kept = centred @ torch.linalg.svd(centred, full_matrices=False)[2][: len(covariance)].T
        span = torch.linalg.lstsq(standard, kept).solution
        torch.testing.assert_close(standard @ span, kept, rtol=1e-4, atol=1e-4)


def test_regions_are_concatenated_means_of_the_grid() -> None:
    grid = torch.randn(B, 16, D, dtype=torch.float64)  # 4 x 4 positions
    images = Features(grid.mean(1), grid)
    decoder = show_tell(regions=2).eval()
    squares = grid.unflatten(1, (4, 4))
    corners = [squares[:, r : r + 2, c : c + 2].mean((1, 2)) for r in (0, 2) for c in (0, 2)]
    expected = torch.stack(corners, dim=2).flatten(1)
    torch.testing.assert_close(decoder.read(images), expected)
    assert decoder.uses_grid
    with pytest.raises(ValueError, match="does not fit a grid of 16 positions"):
        show_tell(regions=5).read(images)
    with pytest.raises(ValueError, match="regions=0"):
        show_tell(regions=0)


def test_a_state_is_reordered_by_rows() -> None:
    decoder = show_tell(layers=2).eval()
    images = features(3)
    state = decoder.start(images)
    order = torch.tensor([2, 0, 0, 1])
    moved = {name: tensor[order] for name, tensor in state.items()}
    expected = decoder.start(images.rows(order))
    for name, tensor in expected.items():
        torch.testing.assert_close(moved[name], tensor)


@pytest.mark.parametrize("cell", CELLS)
def test_padding_contributes_nothing_to_the_gradient(cell: str) -> None:
    """Loss and gradients of a padded batch are those of the captions one by one."""
    tokenizer = build_tokenizer(["a b c d e f g"], name="word", min_count=1)
    captions = [[4, 5, 6, 7, 8], [9], [10, 4]]
    decoder, images = show_tell(cell).eval(), features(3)
    inputs, targets = pad(captions, tokenizer)
    logits = decoder(images, inputs)
    together = cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    together.backward()
    gradients = [parameter.grad.clone() for parameter in decoder.parameters()]
    decoder.zero_grad()

    alone = torch.zeros((), dtype=torch.float64)
    for row, caption in enumerate(captions):
        one_inputs, one_targets = pad([caption], tokenizer)
        one = decoder(images.rows(torch.tensor([row])), one_inputs)
        alone = alone + cross_entropy(one, one_targets, label_smoothing=0.1, reduction="sum")
    alone.backward()
    torch.testing.assert_close(together.double(), alone, rtol=1e-6, atol=0)
    for gradient, parameter in zip(gradients, decoder.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_content_of_the_padding_has_no_effect() -> None:
    tokenizer = build_tokenizer(["a b c d e f g"], name="word", min_count=1)
    inputs, targets = pad([[4, 5, 6, 7], [8]], tokenizer)
    decoder, images = show_tell().eval(), features()
    losses = []
    for filler in (tokenizer.vocabulary.pad, 9):
        changed = inputs.clone()
        changed[1, 2:] = filler
        decoder.zero_grad()
        loss = cross_entropy(decoder(images, changed), targets, label_smoothing=0.0)
        loss.backward()
        losses.append((loss.detach(), decoder.output.weight.grad.clone()))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])


def test_inputs_and_targets_are_shifted_by_one() -> None:
    tokenizer = build_tokenizer(["a b c"], name="word", min_count=1)
    words = tokenizer.vocabulary
    inputs, targets = pad([[5, 6], [4, 5, 6]], tokenizer)
    assert inputs.tolist() == [[words.start, 5, 6, words.pad], [words.start, 4, 5, 6]]
    assert targets.tolist() == [[5, 6, words.end, IGNORED], [4, 5, 6, words.end]]


def test_captions_differ_only_by_the_image() -> None:
    decoder = show_tell().eval()
    inputs = torch.randint(V, (1, T)).expand(2, T)
    logits = decoder(features(2), inputs)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    same = decoder(Features(torch.ones(2, D, dtype=torch.float64)), inputs)
    torch.testing.assert_close(same[0], same[1])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_the_stepper_equals_the_step(cell: str, layers: int) -> None:
    decoder = show_tell(cell, layers=layers).eval()
    images, stepper = features(), decoder.stepper()
    state, other = decoder.start(images), stepper.start(images)
    for tokens in torch.randint(V, (T, B)):
        expected, state = decoder.step(tokens, state)
        logits, other = stepper.step(tokens, other)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(other, state)


@pytest.mark.parametrize("cell", CELLS)
def test_decoding_in_bf16_rounds_and_in_fp32_does_not(cell: str) -> None:
    model = CaptioningModel(nn.Identity(), show_tell(cell).float().eval())
    sources = Features(features().pooled.float())
    log_probs = {}
    for precision in ("fp32", "bf16"):
        options = DecodingOptions(beam_size=3, max_length=6, precision=precision)
        for outside in (False, True):  # as in a validation of a training in bf16
            with torch.autocast("cpu", torch.bfloat16, enabled=outside):
                steppers = make_steppers([model], options)
                hypotheses = generate([model], [sources], TOKENIZER, options, steppers=steppers)
            log_probs[precision, outside] = [best[0].log_probs[0] for best in hypotheses]
    assert log_probs["fp32", False] == log_probs["fp32", True]
    assert log_probs["bf16", False] == log_probs["bf16", True] != log_probs["fp32", False]
    assert log_probs["bf16", False] == pytest.approx(log_probs["fp32", False], abs=0.05)
