"""Downloads pretrained weights, or reads them from the cache, without long waits for a host."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def torch_cache(url: str) -> Path:
    """The path at which torch.hub stores the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def fetch(create: Callable[[], Any], network: str, url: str, cache: Path) -> Any:
    """Create a network with its weights, without connecting if the cache is sufficient.

    Args:
        create: creates the network; downloads weights that are not in the cache.
        network: its name, for the error.
        url: the source of its weights.
        cache: the file or folder in which they are stored.

    Raises:
        ValueError: the weights are not in the cache and the host does not answer within seconds.
    """
    if cache.exists():
        with _hub_offline():
            try:
                return create()
            except OSError:  # an interrupted download
                pass
    reason = unreachable(url)
    if reason is None:
        try:
            return create()
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
    host = url.split("/")[2]
    raise ValueError(
        f"encoder.network={network}: its weights cannot be downloaded from {host} ({reason}); "
        f"connect once, copy {cache} from a machine that has it, or choose "
        "encoder=efficientnet_lite0, whose weights are installed, or encoder.pretrained=false"
    )


def unreachable(url: str) -> str | None:
    """The reason why a URL does not answer within 5 seconds; None if it answers."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Make huggingface_hub use only its cache; otherwise it retries for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
