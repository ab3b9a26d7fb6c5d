"""Gradient flow against finite differences, and Jacobians against the textbook's formulas."""

from typing import Any

import numpy as np
import pytest
import torch
from support.decoders import EVERY, T, V, build, features
from torch import Tensor

from captioner.inspection.gradients import gradient_flow, jacobian, recurrent_norm, spectrum
from captioner.models.packing import IGNORED
from captioner.models.recurrence.cells import LSTM, RNN
from captioner.models.sites import Observe

VARIANTS = ["show_tell x0 rnn ", "show_tell x0 lstm tied", "show_tell h0 gru "]
VARIANTS += ["show_attend_tell lstm dot deep_output", "adaptive gru additive sentinel"]
SITES = {"h": "cell.hidden", "C": "cell.memory"}


def losses(decoder: Any, images: Any, inputs: Tensor, targets: Tensor, observers: Any) -> Tensor:
    """The loss of each step of one caption, [T]."""
    state, result = decoder.start(images, observers[0]), []
    for step, (tokens, wanted) in enumerate(zip(inputs.T, targets.T), start=1):
        logits, state = decoder.step(tokens, state, observers[step])
        result.append(torch.nn.functional.cross_entropy(logits, wanted))
    return torch.stack(result)


def adding(site: str, layer: int, change: Tensor) -> Observe:
    def observe(name: str, value: Tensor, of_layer: int | None = None) -> Tensor:
        return value + change if (name, of_layer) == (site, layer) else value

    return observe


def plain(name: str, value: Tensor, layer: int | None = None) -> Tensor:
    return value


@pytest.mark.parametrize("variant", VARIANTS)
def test_norms_are_those_of_finite_differences(variant: str) -> None:
    decoder, images = build(variant), features(1)
    inputs, targets = torch.randint(V, (1, T)), torch.randint(V, (1, T))
    flow = gradient_flow(decoder, images, inputs, targets, ignored=IGNORED)
    layer = len(decoder.recurrence.cells) - 1
    size, small = decoder.recurrence.first.hidden_size, 1e-6
    for letter in flow.norms:
        for k in (1, 3):
            columns = []
            for unit in range(size):
                change = small * torch.eye(size, dtype=torch.float64)[unit]
                ends = []
                for sign in (1, -1):
                    observers: list[Any] = [plain] * (T + 1)
                    observers[k] = adding(SITES[letter], layer, sign * change)
                    ends.append(losses(decoder, images, inputs, targets, observers))
                columns.append((ends[0] - ends[1]) / (2 * small))
            numeric = torch.stack(columns).norm(dim=0).detach().numpy()  # [T], by t
            for t in range(k, T + 1):
                assert flow.norms[letter][t, k] == pytest.approx(numeric[t - 1], rel=1e-4, abs=1e-9)
        assert np.isnan(flow.norms[letter][1, 2:]).all()


def test_the_gradient_of_x_0_is_that_of_autograd() -> None:
    decoder, images = build("show_tell x0 lstm "), features(1)
    inputs, targets = torch.randint(V, (1, T)), torch.randint(V, (1, T))
    flow = gradient_flow(decoder, images, inputs, targets, ignored=IGNORED)
    x0 = decoder.read_image(images).detach().requires_grad_(True)

    def instead(name: str, value: Tensor, layer: int | None = None) -> Tensor:
        return x0 if name == "image.x0" else value

    result = losses(decoder, images, inputs, targets, [instead] + [plain] * T)
    for t in range(1, T + 1):
        [gradient] = torch.autograd.grad(result[t - 1], x0, retain_graph=True)
        assert flow.image[t] == pytest.approx(float(gradient.norm()), rel=1e-9)


def test_padding_does_not_count() -> None:
    decoder, images = build("show_tell x0 lstm "), features(2)
    inputs, targets = torch.randint(V, (2, T)), torch.randint(V, (2, T))
    targets[1, 3:] = IGNORED
    both = gradient_flow(decoder, images, inputs, targets, ignored=IGNORED)
    first = gradient_flow(
        decoder, images.rows(torch.tensor([0])), inputs[:1], targets[:1], ignored=IGNORED
    )
    np.testing.assert_allclose(both.norms["h"][4:], first.norms["h"][4:], rtol=1e-6)
    assert both.counts.tolist() == [2, 2, 2, 2, 1, 1]


def test_forget_products_are_those_of_the_gates() -> None:
    decoder, images = build("show_tell lstm_no_forget"), features(2)
    inputs, targets = torch.randint(V, (2, T)), torch.randint(V, (2, T))
    flow = gradient_flow(decoder, images, inputs, targets, ignored=IGNORED)
    assert flow.forget is not None
    assert (flow.forget[np.tril_indices(T + 1)][1:] == 1.0).all()
    relative = flow.by_distance("C")
    assert relative[0] == 1.0
    assert (flow.by_distance("f") == 1.0).all()  # nothing is ever forgotten


def test_the_product_of_forget_gates_falls_with_distance() -> None:
    decoder, images = build("show_tell x0 lstm "), features(2)
    inputs, targets = torch.randint(V, (2, T)), torch.randint(V, (2, T))
    flow = gradient_flow(decoder, images, inputs, targets, ignored=IGNORED)
    products = flow.by_distance("f")
    assert products[0] == 1.0
    assert (np.diff(products) < 0).all()
    without = gradient_flow(build("show_tell x0 gru "), images, inputs, targets, ignored=IGNORED)
    with pytest.raises(ValueError, match="no forget gate"):
        without.by_distance("f")


def test_a_transformer_has_no_state_to_follow() -> None:
    decoder = build("transformer learned True")
    inputs = torch.randint(V, (1, T))
    with pytest.raises(ValueError, match="no recurrent cell"):
        gradient_flow(decoder, features(1), inputs, inputs, ignored=IGNORED)


def test_the_jacobian_of_an_rnn_is_that_of_the_textbook_and_keeps_its_bound() -> None:
    cell = RNN(input_size=4, hidden_size=5).double()
    projected, h = torch.randn(15 // 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    after = cell.step(cell.gates(projected[None], {"h": h[None]}), {"h": h[None]})["h"][0]
    expected = torch.diag(1 - after**2) @ cell.of_hidden.weight
    torch.testing.assert_close(jacobian(cell, projected, {"h": h}), expected.detach())
    largest = float(torch.linalg.matrix_norm(cell.of_hidden.weight, ord=2))
    assert spectrum(cell, projected, {"h": h})[0] <= largest * float((1 - after**2).max()) + 1e-12


def test_along_the_memory_an_lstm_has_its_forget_gates() -> None:
    cell = LSTM(input_size=4, hidden_size=5).double()
    projected = torch.randn(20, dtype=torch.float64)
    state = {name: torch.randn(5, dtype=torch.float64) for name in ("h", "c")}
    rows = {name: values[None] for name, values in state.items()}
    f = cell.gates(projected[None], rows).f[0]
    along_c = jacobian(cell, projected, state)[5:, 5:]
    torch.testing.assert_close(along_c, torch.diag(f).detach())


def test_the_factor_of_the_bound_is_the_largest_singular_value() -> None:
    decoder = build("show_tell x0 rnn ")
    weight = decoder.recurrence.cells[-1].of_hidden.weight.detach()
    expected = float(np.linalg.svd(weight.numpy(), compute_uv=False)[0])
    assert recurrent_norm(decoder.recurrence) == pytest.approx(expected)
    assert "show_tell x0 rnn " in EVERY
