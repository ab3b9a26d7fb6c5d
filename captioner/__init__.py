"""captioner: image captioning that can be read like a textbook.

    import captioner

    model = captioner.load()  # the bundled model; captioner.load("runs/nic") takes a run
    print(model.caption("photo.jpg").text)

Importing the package is fast: torch is imported with the first model. Import it before torch, so
that the settings of ``captioner.process`` have an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.process import guard_torchvision, prepare

if TYPE_CHECKING:
    from captioner.api import Captioner

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


prepare()
guard_torchvision()


def load(
    path: str | Path | Sequence[str | Path] | None = None, *, device: str = "auto"
) -> Captioner:
    """Load a trained captioner.

    Args:
        path: a run folder, a checkpoint file, or the name of a bundled model; or several, which
            form an ensemble (their vocabularies must be the same). None loads the bundled model
            "flickr8k". A path takes precedence over a name if it is a file or a folder with a
            checkpoint.
        device: "auto" (CUDA or MPS if available), "cpu", "cuda", "cuda:1", "mps".

    Returns:
        a Captioner; its `caption` method takes paths, bytes, PIL images, arrays or tensors.

    Raises:
        FileNotFoundError: there is no such file, or no bundled model is installed.
        ValueError: it is not a captioner checkpoint, or is damaged or of a newer format.
    """
    from captioner.api import Captioner

    return Captioner.load(path, device=device)
