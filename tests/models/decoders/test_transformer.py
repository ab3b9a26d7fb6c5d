"""The Transformer, compared with torch's layers with the same weights."""

import pytest
import torch
from torch import nn

from captioner.models.decoders.transformer import Layer, Transformer, sinusoids
from captioner.models.features import Features

B, T, V, D, H, P, HEADS, WIDE = 2, 5, 11, 8, 6, 4, 3, 9


def twin(layer: Layer) -> nn.TransformerDecoderLayer:
    """torch's layer with the weights of ours; the bias of its keys can be anything."""
    peer = nn.TransformerDecoderLayer(
        H, HEADS, WIDE, dropout=0.0, norm_first=True, batch_first=True
    ).double()
    cross = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
    bias = torch.cat([layer.query.bias, torch.randn(H), layer.value.bias])
    pairs = (
        (peer.self_attn.in_proj_weight, layer.of_word.weight),
        (peer.self_attn.in_proj_bias, layer.of_word.bias),
        (peer.multihead_attn.in_proj_weight, cross),
        (peer.multihead_attn.in_proj_bias, bias),
    )
    with torch.no_grad():
        for theirs, mine in pairs:
            theirs.copy_(mine)
        for theirs, mine in (
            (peer.self_attn.out_proj, layer.self_output),
            (peer.multihead_attn.out_proj, layer.cross_output),
            (peer.linear1, layer.wide),
            (peer.linear2, layer.narrow),
            (peer.norm1, layer.self_norm),
            (peer.norm2, layer.cross_norm),
            (peer.norm3, layer.norm),
        ):
            theirs.load_state_dict(mine.state_dict())
    return peer


def shaken(module: nn.Module) -> nn.Module:
    """The module with no parameter at 0 or 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_a_layer_equals_that_of_torch() -> None:
    layer = Layer(hidden_size=H, heads=HEADS, feedforward_size=WIDE, dropout=0.0).double()
    peer, x, memory = twin(shaken(layer)), draw(B, T, H), draw(B, P, H)
    causal = nn.Transformer.generate_square_subsequent_mask(T).double()
    expected = peer(x, memory, tgt_mask=causal, tgt_is_causal=True)
    output, weights = layer(x, memory)
    torch.testing.assert_close(output, expected)
    middle = x + peer._sa_block(peer.norm1(x), causal, None, is_causal=True)
    _, right = peer.multihead_attn(peer.norm2(middle), memory, memory)
    torch.testing.assert_close(weights.mean(1), right)  # torch gives the mean over heads


def test_a_step_equals_the_last_row_of_torchs_layer() -> None:
    """Though neither keys nor values of the image are formed in it."""
    layer = Layer(hidden_size=H, heads=HEADS, feedforward_size=WIDE, dropout=0.0).double()
    peer, x, memory = twin(shaken(layer)), draw(B, T, H), draw(B, P, H)
    past = draw(B, 0, 2 * H)
    for t in range(T):
        causal = nn.Transformer.generate_square_subsequent_mask(t + 1).double()
        expected = peer(x[:, : t + 1], memory, tgt_mask=causal, tgt_is_causal=True)[:, -1]
        output, past = layer.step(x[:, t], memory, past)
        torch.testing.assert_close(output, expected)


def test_the_decoder_is_its_layers_over_scaled_words_and_places() -> None:
    decoder = Transformer(
        vocabulary_size=V, feature_size=D, hidden_size=H, heads=HEADS, layers=2,
        feedforward_size=WIDE, max_words=T, dropout=0.0,
    ).double().eval()  # fmt: skip
    shaken(decoder)
    grid, inputs = draw(B, P, D), torch.randint(V, (B, T))
    memory = grid @ decoder.image.project.weight.T + decoder.image.project.bias
    x = H**0.5 * decoder.words.weight[inputs] + decoder.places.weight
    causal = nn.Transformer.generate_square_subsequent_mask(T).double()
    for layer in decoder.layers:
        x = twin(layer)(x, memory, tgt_mask=causal, tgt_is_causal=True)
    expected = decoder.norm(x) @ decoder.words.weight.T + decoder.output.bias
    torch.testing.assert_close(decoder(Features(grid.mean(1), grid), inputs), expected)


def test_sinusoids_equal_the_equations_of_the_paper() -> None:
    encodings = sinusoids(torch.arange(T), H)
    for place in range(T):
        for i in range(H // 2):
            angle = torch.tensor(place / 10_000 ** (2 * i / H))
            torch.testing.assert_close(encodings[place, 2 * i], angle.sin())
            torch.testing.assert_close(encodings[place, 2 * i + 1], angle.cos())


def test_a_caption_longer_than_the_learned_positions_is_an_error() -> None:
    options = {"vocabulary_size": V, "feature_size": D, "hidden_size": H, "heads": HEADS}
    images = Features(torch.randn(B, D), torch.randn(B, P, D))
    inputs = torch.randint(V, (B, T))
    learned = Transformer(**options, max_words=T - 1)
    with pytest.raises(ValueError, match="only decoder.max_words=4 learned positions"):
        learned(images, inputs)
    state = learned.start(images)
    for tokens in inputs.T[:-1]:
        _, state = learned.step(tokens, state)
    with pytest.raises(ValueError, match="positions=sinusoidal"):
        learned.step(inputs[:, -1], state)
    Transformer(**options, max_words=1, positions="sinusoidal")(images, inputs)
