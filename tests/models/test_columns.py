"""The encoder that reads columns, compared with torch.nn.LSTM."""

import pytest
import torch
from torch import nn

from captioner.models.encoders.columns import FEATURE_SIZE
from captioner.models.encoders.libraries import build_encoder

S = 6


def test_features_are_those_of_torch() -> None:
    encoder = build_encoder(library="columns", network="lstm", image_size=S)
    gray = torch.randint(256, (3, S, S), dtype=torch.uint8)
    pooled, grid = encoder(gray.unsqueeze(1).expand(-1, 3, -1, -1))
    theirs = nn.LSTM(S, FEATURE_SIZE, batch_first=True)
    cell = encoder.backbone.first
    with torch.no_grad():  # theirs has the gates in the order i, f, C~, o, and two biases
        for name, own in (
            ("weight_ih_l0", cell.of_input.weight),
            ("weight_hh_l0", cell.of_hidden.weight),
            ("bias_ih_l0", cell.of_input.bias),
        ):
            f, i, candidate, o = own.chunk(4)
            getattr(theirs, name).copy_(torch.cat([i, f, candidate, o]))
        theirs.bias_hh_l0.zero_()
        expected, _ = theirs(gray.transpose(1, 2) / 255)  # [B, P, D]
    torch.testing.assert_close(grid, expected)
    torch.testing.assert_close(pooled, expected.mean(1))


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"encoder\.network='lsmt' is not known.*did you mean lstm"
    ):
        build_encoder(library="columns", network="lsmt")
