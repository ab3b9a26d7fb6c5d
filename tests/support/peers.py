"""The recurrences of torch.nn with the weights of ours."""

from functools import partial

import torch
from torch import nn

from captioner.models.recurrence.unroll import Recurrence

PEERS = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "irnn": partial(nn.RNN, nonlinearity="relu"),
}


# The position of each of our gates in torch's order (torch's LSTM has i, f, g, o).
ORDER = {"rnn": [0], "gru": [0, 1, 2], "lstm": [1, 0, 2, 3], "irnn": [0]}


def torch_order(name: str, stacked: torch.Tensor, hidden: int) -> torch.Tensor:
    """Our stacked parameter in torch's order of gates."""
    parts = stacked.split(hidden)
    return torch.cat([parts[ORDER[name].index(place)] for place in range(len(parts))])


def peer_of(name: str, ours: Recurrence, inputs: int, hidden: int) -> nn.Module:
    """The recurrence of torch.nn with the weights of ours."""
    layers = len(ours.cells)
    peer = PEERS[name](inputs, hidden, num_layers=layers, batch_first=True).double()
    with torch.no_grad():
        for layer, cell in enumerate(ours.cells):
            pairs = {"ih": cell.of_input, "hh": cell.of_hidden}
            for suffix, linear in pairs.items():
                weight = getattr(peer, f"weight_{suffix}_l{layer}")
                weight.copy_(torch_order(name, linear.weight, hidden))
                bias = getattr(peer, f"bias_{suffix}_l{layer}")
                bias_values = linear.bias if linear.bias is not None else torch.zeros_like(bias)
                bias.copy_(torch_order(name, bias_values, hidden))
    return peer
