"""captioner: image captioning that can be read like a textbook.

    import captioner

    model = captioner.load()  # the bundled model; captioner.load("runs/nic") takes a run
    print(model.caption("photo.jpg").text)

Importing the package is cheap: torch is loaded with the first model.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.api import Captioner

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


class _TorchvisionGuard(importlib.abc.MetaPathFinder):
    """Let torchvision be imported where its compiled operators do not fit the installed torch.

    PyPI's torchvision is linked against the CUDA build of torch. Beside a CPU build its operators
    are missing, and registering their shapes fails with "operator torchvision::nms does not exist"
    (pytorch/vision #8985). Declaring the two schemas first is enough for everything but detection
    and torchvision's own image decoders, neither of which is used here. Where torchvision's library
    loads, nothing is changed.
    """

    _library: Any = None  # kept alive: the schemas are withdrawn with it

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision._meta_registrations" and self._library is None:
            extension = sys.modules.get("torchvision.extension")
            if extension is not None and not extension._has_ops():
                import torch

                self._library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    self._library.define(
                        f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    )
        return None


if not any(isinstance(finder, _TorchvisionGuard) for finder in sys.meta_path):
    sys.meta_path.insert(0, _TorchvisionGuard())


def load(
    path: str | Path | Sequence[str | Path] | None = None, *, device: str = "auto"
) -> Captioner:
    """Load a trained captioner.

    Args:
        path: a run folder, a checkpoint file, or the name of a bundled model; or several, which
            then decode together (their vocabularies must be the same). None takes the bundled model
            "flickr8k". A path wins over a name where it is a file or a folder with a checkpoint.
        device: "auto" (CUDA or MPS where there is one), "cpu", "cuda", "cuda:1", "mps".

    Returns:
        a Captioner; its `caption` method takes paths, bytes, PIL images, arrays or tensors.

    Raises:
        FileNotFoundError: nothing is there, or no model came with this installation.
        ValueError: not a captioner checkpoint, or a damaged one, or one of a newer format.
    """
    from captioner.api import Captioner

    return Captioner.load(path, device=device)
