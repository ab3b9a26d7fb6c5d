"""The table of decoders."""

from __future__ import annotations

from captioner.models.decoders.adaptive import Adaptive
from captioner.models.decoders.decoder import Decoder
from captioner.models.decoders.show_attend_tell import ShowAttendTell
from captioner.models.decoders.show_tell import ShowTell
from captioner.models.decoders.transformer import Transformer
from captioner.models.decoders.up_down import UpDown

DECODERS: dict[str, type[Decoder]] = {
    "show_tell": ShowTell,
    "show_attend_tell": ShowAttendTell,
    "up_down": UpDown,
    "adaptive": Adaptive,
    "transformer": Transformer,
}
"""Every decoder by the name that selects it (``decoder.name``)."""
