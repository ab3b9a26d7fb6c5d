"""Weights from the network: from the cache where it can, in seconds or not at all elsewhere."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def torch_cache(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def fetch(create: Callable[[], Any], network: str, url: str, cache: Path) -> Any:
    """Run create, from the cache where it can; fail in seconds where the host does not answer."""
    if cache.exists():
        with _hub_offline():
            try:
                return create()
            except OSError:  # a download that was broken off
                pass
    reason = unreachable(url)
    if reason is None:
        try:
            return create()
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
    host = url.split("/")[2]
    raise ValueError(
        f"encoder.network={network}: its weights cannot be fetched from {host} ({reason}); "
        f"connect once, copy {cache} from a machine that has it, or take "
        "encoder=efficientnet_lite0, whose weights are installed, or encoder.pretrained=false"
    )


def unreachable(url: str) -> str | None:
    """Ask url for an answer, any answer, within seconds; return why there is none."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Keep huggingface_hub to its cache: it retries for a minute before it gives a host up."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
