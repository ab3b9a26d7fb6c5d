"""The table of cells."""

from __future__ import annotations

from captioner.models.recurrence.cells import GRU, LSTM, RNN, Cell
from captioner.models.recurrence.variants import (
    IRNN,
    MGU,
    CoupledLSTM,
    LayerNormLSTM,
    NoForgetLSTM,
    NoInputLSTM,
    NoOutputLSTM,
    NoOutputTanhLSTM,
    PeepholeLSTM,
    ResetFirstGRU,
)

CELLS: dict[str, type[Cell]] = {
    "rnn": RNN,
    "gru": GRU,
    "lstm": LSTM,
    "irnn": IRNN,
    "gru_reset_first": ResetFirstGRU,
    "mgu": MGU,
    "lstm_peephole": PeepholeLSTM,
    "lstm_coupled": CoupledLSTM,
    "lstm_no_forget": NoForgetLSTM,
    "lstm_no_input": NoInputLSTM,
    "lstm_no_output": NoOutputLSTM,
    "lstm_no_output_tanh": NoOutputTanhLSTM,
    "lstm_layer_norm": LayerNormLSTM,
}
"""Every cell by the name that selects it (``decoder.cell``)."""
