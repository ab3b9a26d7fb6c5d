"""Attention and its decoders, compared with the equations as loops and with torch's cells."""

from typing import Any

import pytest
import torch
from support.peers import torch_order
from torch import Tensor, nn

from captioner.models.decoders.adaptive import Adaptive
from captioner.models.decoders.attention import Attention
from captioner.models.decoders.attention_decoder import Attending
from captioner.models.decoders.show_attend_tell import ShowAttendTell
from captioner.models.decoders.up_down import UpDown
from captioner.models.features import Features
from captioner.models.packing import Packing
from captioner.training.losses import doubly_stochastic

B, T, V, D, E, H, P, A, Q = 2, 5, 11, 8, 7, 6, 4, 3, 10


def features() -> Features:
    grid = torch.randn(B, P, D, dtype=torch.float64)
    return Features(grid.mean(1), grid)


def build(component: Any, **options: Any) -> Any:
    decoder = component(
        vocabulary_size=V,
        feature_size=D,
        embedding_size=E,
        hidden_size=H,
        attention_size=A,
        dropout=0.0,
        **options,
    )
    decoder.double().fit(features())
    return decoder.eval()


def lstm_cell(hidden: Tensor, bias: Tensor, *of_inputs: Tensor) -> nn.LSTMCell:
    """torch's LSTM cell over a concatenation, of whose parts each has its own matrix in ours."""
    inputs = torch.cat(of_inputs, dim=1)
    peer = nn.LSTMCell(inputs.shape[1], hidden.shape[1]).double()
    with torch.no_grad():
        peer.weight_ih.copy_(torch_order("lstm", inputs, hidden.shape[1]))
        peer.weight_hh.copy_(torch_order("lstm", hidden, hidden.shape[1]))
        peer.bias_ih.copy_(torch_order("lstm", bias, hidden.shape[1]))
        peer.bias_hh.zero_()
    return peer


def values_of(decoder: Attending, images: Features) -> Tensor:
    """v_i, one position after the other, from the statistics of the features themselves."""
    positions, project = images.grid.flatten(0, 1), decoder.positions.project
    mean, variance = positions.mean(0), positions.var(0, correction=0)
    std = (variance + 1e-4 * variance.mean()).sqrt()
    values = [project.weight @ ((a - mean) / std) + project.bias for a in positions]
    return torch.stack(values).unflatten(0, (B, P))


def looked(attention: Attention, query: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Additive attention of one row, in the letters of Bahdanau et al."""
    energies = [
        attention.score.weight[0]
        @ torch.tanh(attention.key.weight @ v + attention.key.bias + attention.query.weight @ query)
        for v in values
    ]
    weights = torch.exp(torch.stack(energies))
    weights = weights / weights.sum()
    return sum(w * v for w, v in zip(weights, values)), weights


# Attention ----------------------------------------------------------------------------------------


def test_additive_attention_equals_its_equation() -> None:
    attention = Attention(query_size=Q, value_size=H, size=A, score="additive").double()
    query, values = torch.randn(B, Q).double(), torch.randn(B, P, H).double()
    context, weights = attention(query, attention.remember(values))
    for row in range(B):
        expected, right = looked(attention, query[row], values[row])
        torch.testing.assert_close(context[row], expected)
        torch.testing.assert_close(weights[row], right)


def test_dot_attention_equals_that_of_torch() -> None:
    attention = Attention(query_size=Q, value_size=H, size=A, score="dot").double()
    query, values = torch.randn(B, Q).double(), torch.randn(B, P, H).double()
    context, _ = attention(query, attention.remember(values))
    sought = query @ attention.query.weight.T
    expected = nn.functional.scaled_dot_product_attention(sought[:, None], values, values)
    torch.testing.assert_close(context, expected[:, 0])


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_a_sentinel_equals_an_additional_value(score: str) -> None:
    """With the keys' matrix for its own it is as if it stood among the positions."""
    attention = Attention(query_size=Q, value_size=H, size=A, score=score, sentinel=True).double()
    if score == "additive":
        attention.sentinel_key.load_state_dict(attention.key.state_dict())
    query, values = torch.randn(B, Q).double(), torch.randn(B, P, H).double()
    expected, right = attention(query, attention.remember(values))
    positions, sentinel = attention.remember(values[:, :-1]), values[:, -1]
    context, weights = attention(query, positions, sentinel)
    torch.testing.assert_close(context, expected)
    torch.testing.assert_close(weights, right)


def test_attention_selects_the_value_of_the_query() -> None:
    attention = Attention(query_size=H, value_size=H, size=A, score="dot").double()
    values = 50 * torch.eye(H, dtype=torch.float64)[None, :P]
    with torch.no_grad():
        attention.query.weight.copy_(torch.eye(H))
    context, weights = attention(values[:, 2], attention.remember(values))
    torch.testing.assert_close(weights[0], torch.eye(P, dtype=torch.float64)[2])
    torch.testing.assert_close(context, values[:, 2])


# Decoders -----------------------------------------------------------------------------------------


@torch.no_grad()
def test_show_attend_tell_equals_its_equations_with_torchs_cell() -> None:
    decoder, images, inputs = build(ShowAttendTell), features(), torch.randint(V, (B, T))
    decoder.fit(images)
    cell, values = decoder.recurrence.first, values_of(decoder, images)
    peer = lstm_cell(
        cell.of_hidden.weight, cell.of_input.bias, cell.of_input.weight, decoder.of_context.weight
    )
    h, c = torch.tanh(decoder.first(values.mean(1))).split(H, dim=1)
    logits, weights = decoder.attend(images, inputs)
    for t in range(T):
        word = decoder.words.weight[inputs[:, t]]
        looks = [looked(decoder.attention, h[row], values[row]) for row in range(B)]
        gate = 1 / (1 + torch.exp(-(h @ decoder.gate.weight.T + decoder.gate.bias)))
        z = gate * torch.stack([context for context, _ in looks])
        h, c = peer(torch.cat([word, z], dim=1), (h, c))
        of_h, of_z = decoder.narrow.weight.split(H, dim=1)
        answer = word + h @ of_h.T + z @ of_z.T + decoder.narrow.bias
        expected = answer @ decoder.output.weight.T + decoder.output.bias
        torch.testing.assert_close(logits[:, t], expected)
        torch.testing.assert_close(weights[:, t], torch.stack([one for _, one in looks]))


@torch.no_grad()
def test_up_down_equals_its_equations_with_torchs_cells() -> None:
    decoder, images, inputs = build(UpDown), features(), torch.randint(V, (B, T))
    decoder.fit(images)
    looking, speaking = decoder.looking, decoder.language.first
    values = values_of(decoder, images)
    first = lstm_cell(  # [h2; mean; word]
        looking.of_hidden.weight,
        looking.of_input.bias,
        decoder.of_language.weight,
        decoder.of_mean.weight,
        looking.of_input.weight,
    )
    second = lstm_cell(
        speaking.of_hidden.weight, speaking.of_input.bias, speaking.of_input.weight
    )  # [context; h1]
    h1 = c1 = h2 = c2 = torch.zeros(B, H, dtype=torch.float64)
    logits, weights = decoder.attend(images, inputs)
    for t in range(T):
        word = decoder.words.weight[inputs[:, t]]
        h1, c1 = first(torch.cat([h2, values.mean(1), word], dim=1), (h1, c1))
        looks = [looked(decoder.attention, h1[row], values[row]) for row in range(B)]
        context = torch.stack([one for one, _ in looks])
        h2, c2 = second(torch.cat([context, h1], dim=1), (h2, c2))
        expected = h2 @ decoder.output.weight.T + decoder.output.bias
        torch.testing.assert_close(logits[:, t], expected)
        torch.testing.assert_close(weights[:, t], torch.stack([one for _, one in looks]))


@torch.no_grad()
def test_adaptive_equals_its_equations_with_torchs_cell() -> None:
    """β mixes the sentinel with attention over the positions alone, as the paper writes it."""
    decoder, images, inputs = build(Adaptive), features(), torch.randint(V, (B, T))
    decoder.fit(images)
    cell, values = decoder.recurrence.first, torch.relu(values_of(decoder, images))
    of_cell, of_gate = decoder.of_image.weight.split([4 * H, H])
    peer = lstm_cell(cell.of_hidden.weight, cell.of_input.bias, cell.of_input.weight, of_cell)
    image = torch.relu(values.mean(1) @ decoder.image.weight.T + decoder.image.bias)
    h = c = torch.zeros(B, H, dtype=torch.float64)
    logits, weights = decoder.attend(images, inputs)
    attention = decoder.attention
    for t in range(T):
        word, before = decoder.words.weight[inputs[:, t]], h
        h, c = peer(torch.cat([word, image], dim=1), (h, c))
        gate = decoder.of_word(word) + image @ of_gate.T + before @ decoder.of_hidden.weight.T
        sentinel = torch.sigmoid(gate) * torch.tanh(c)
        for row in range(B):
            context, alpha = looked(attention, h[row], values[row])
            z = torch.log(alpha)  # up to a constant, which the next line takes from the scores
            key = attention.key(values[row, 0]) + attention.query(h[row])
            z = z + attention.score(torch.tanh(key)) - z[0]
            key = attention.sentinel_key(sentinel[row]) + attention.query(h[row])
            beta = torch.softmax(torch.cat([z, attention.score(torch.tanh(key))]), 0)[-1]
            mixed = beta * sentinel[row] + (1 - beta) * context
            expected = (mixed + h[row]) @ decoder.output.weight.T + decoder.output.bias
            torch.testing.assert_close(logits[row, t], expected)
            torch.testing.assert_close(weights[row, t, -1], beta)
            torch.testing.assert_close(weights[row, t, :-1], (1 - beta) * alpha)


# The penalty --------------------------------------------------------------------------------------


def test_the_doubly_stochastic_penalty_equals_its_equation() -> None:
    """mean over captions and positions of (1 - Σ_t α_ti)², real words only."""
    weights = torch.softmax(torch.randn(3, T, P, dtype=torch.float64), dim=-1)
    lengths = [2, 5, 4]
    expected = sum(
        (1 - sum(weights[row, t, i] for t in range(lengths[row]))) ** 2
        for row in range(3)
        for i in range(P)
    ) / (3 * P)
    packing = Packing.of(torch.tensor(lengths))
    torch.testing.assert_close(doubly_stochastic(packing.pack(weights), packing), expected)
    even = torch.full((2 * P, P), 1 / P)  # T = P words that look everywhere alike
    assert doubly_stochastic(even, Packing.of(torch.tensor([P, P]))) < 1e-12
