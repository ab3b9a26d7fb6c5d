"""The cells, compared with torch.nn and with the equations of the textbook."""

import pytest
import torch
from support.peers import PEERS, peer_of, torch_order
from torch import nn

from captioner.models.recurrence.cells import LSTM, RNN
from captioner.models.recurrence.table import CELLS
from captioner.models.recurrence.unroll import Recurrence

B, T, E, H = 2, 5, 7, 6


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", PEERS)
def test_equals_torch_in_outputs_and_all_gradients(name: str, layers: int) -> None:
    ours = Recurrence(cell=name, input_size=E, hidden_size=H, layers=layers).double()
    peer = peer_of(name, ours, E, H)
    mine = torch.randn(B, T, E, dtype=torch.float64, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    weights = torch.randn(B, T, H, dtype=torch.float64)

    outputs, state = ours(mine, ours.zeros(B))
    expected, last = peer(theirs)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(outputs, expected)
    last_h = last[0] if name == "lstm" else last
    torch.testing.assert_close(state["h"], last_h.transpose(0, 1))
    if name == "lstm":
        torch.testing.assert_close(state["c"], last[1].transpose(0, 1))
    torch.testing.assert_close(mine.grad, theirs.grad)
    for layer, cell in enumerate(ours.cells):
        for suffix, linear in {"ih": cell.of_input, "hh": cell.of_hidden}.items():
            for part in ("weight", "bias"):
                if getattr(linear, part) is not None:
                    torch.testing.assert_close(
                        torch_order(name, getattr(linear, part).grad, H),
                        getattr(peer, f"{part}_{suffix}_l{layer}").grad,
                    )


@pytest.mark.parametrize("name", CELLS)
def test_gradients_equal_finite_differences(name: str) -> None:
    recurrence = Recurrence(cell=name, input_size=3, hidden_size=2).double()
    inputs = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = tuple(recurrence.parameters())
    for parameter in parameters:  # with biases at 0 a ReLU may stand at its corner
        nn.init.normal_(parameter, std=0.5)

    def run(inputs: torch.Tensor, *unused: torch.Tensor) -> torch.Tensor:
        return recurrence(inputs, recurrence.zeros(2))[0]

    assert torch.autograd.gradcheck(run, (inputs, *parameters))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
def test_a_sequence_equals_repeated_steps(name: str, layers: int) -> None:
    recurrence = Recurrence(cell=name, input_size=E, hidden_size=H, layers=layers).double()
    inputs = torch.randn(B, T, E, dtype=torch.float64)
    state = recurrence.zeros(B)
    steps = []
    for t in range(T):
        output, state = recurrence.step(inputs[:, t], state)
        steps.append(output)
    outputs, last = recurrence(inputs, recurrence.zeros(B))
    torch.testing.assert_close(outputs, torch.stack(steps, dim=1))
    for key in state:
        torch.testing.assert_close(last[key], state[key])


def test_the_lstm_computes_the_textbook_equations() -> None:
    """f, i, C~, o from one matrix each on [h, x], as it is drawn on the blackboard."""
    cell = LSTM(input_size=E, hidden_size=H).double()
    x = torch.randn(B, E, dtype=torch.float64)
    h, c = torch.randn(B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    h_x = torch.cat([h, x], dim=1)
    matrices = torch.cat([cell.of_hidden.weight, cell.of_input.weight], dim=1).split(H)
    (w_f, w_i, w_c, w_o), (b_f, b_i, b_c, b_o) = matrices, cell.of_input.bias.split(H)
    f = torch.sigmoid(h_x @ w_f.T + b_f)
    i = torch.sigmoid(h_x @ w_i.T + b_i)
    candidate = torch.tanh(h_x @ w_c.T + b_c)
    c_next = f * c + i * candidate
    o = torch.sigmoid(h_x @ w_o.T + b_o)
    h_next = o * torch.tanh(c_next)

    gates = cell.gates(cell.project(x), {"h": h, "c": c})
    for got, expected in zip(gates, (f, i, candidate, o)):
        torch.testing.assert_close(got, expected)
    state = cell(x, {"h": h, "c": c})
    torch.testing.assert_close(state["h"], h_next)
    torch.testing.assert_close(state["c"], c_next)


def test_the_rnn_computes_the_textbook_equations() -> None:
    cell = RNN(input_size=E, hidden_size=H)
    x, h = torch.randn(B, E), torch.randn(B, H)
    w_ih, b_ih = cell.of_input.weight, cell.of_input.bias
    w_hh, b_hh = cell.of_hidden.weight, cell.of_hidden.bias
    expected = torch.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
    torch.testing.assert_close(cell(x, {"h": h})["h"], expected)


@pytest.mark.parametrize("name", [name for name in CELLS if name.startswith("lstm")])
def test_the_forget_gate_is_initially_open(name: str) -> None:
    cell = CELLS[name](input_size=E, hidden_size=H)
    bias = cell.bias if name == "lstm_layer_norm" else cell.of_input.bias
    for gate, part in zip(cell.gate_names, bias.split(H), strict=True):
        assert (part == 1).all() if gate == "f" else (part.abs() <= H**-0.5).all()


@pytest.mark.parametrize("name", CELLS)
def test_gates_have_names_and_ranges(name: str) -> None:
    cell = CELLS[name](input_size=E, hidden_size=H)
    state = {name: torch.randn(B, H) for name in cell.state_names}
    gates = cell.gates(cell.project(torch.randn(B, E)), state)
    for gate, value in gates._asdict().items():
        assert value.shape == (B, H)
        if gate not in cell.gate_names:  # not learned: held open, or what f leaves
            assert torch.equal(value, 1 - gates.f if name == "lstm_coupled" else torch.ones(B, H))
        elif gate == "candidate" and name == "irnn":
            assert (value >= 0).all()
        else:
            assert ((value > (-1 if gate == "candidate" else 0)) & (value < 1)).all()
    assert set(cell.gate_names) <= set(gates._fields)


def test_dropout_acts_between_layers_only_while_training() -> None:
    inputs = torch.randn(B, T, E)
    one = Recurrence(cell="lstm", input_size=E, hidden_size=H, layers=1, dropout=0.5)
    torch.testing.assert_close(one(inputs, one.zeros(B))[0], one(inputs, one.zeros(B))[0])
    two = Recurrence(cell="lstm", input_size=E, hidden_size=H, layers=2, dropout=0.5)
    assert not torch.equal(two(inputs, two.zeros(B))[0], two(inputs, two.zeros(B))[0])
    two.eval()
    assert torch.equal(two(inputs, two.zeros(B))[0], two(inputs, two.zeros(B))[0])


def test_layers_must_be_positive() -> None:
    with pytest.raises(ValueError, match="layers=0"):
        Recurrence(cell="rnn", input_size=E, hidden_size=H, layers=0)


@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_memory_fades_in_an_rnn_and_lasts_in_an_lstm(name: str) -> None:
    """How much of the first input reaches the last h: the vanishing gradient."""
    steps = 40
    recurrence = Recurrence(cell=name, input_size=8, hidden_size=32)
    cell = recurrence.cells[0]
    if name == "lstm":  # a forget gate held open, as training can learn it
        nn.init.constant_(cell.of_input.bias[:32], 5.0)
    inputs = torch.randn(4, steps, 8, requires_grad=True)
    outputs, _ = recurrence(inputs, recurrence.zeros(4))
    outputs[:, -1].sum().backward()
    share = inputs.grad[:, 0].norm() / inputs.grad[:, -1].norm()
    assert share < 1e-4 if name == "rnn" else share > 0.05
