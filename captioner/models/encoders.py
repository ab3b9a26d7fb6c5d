"""The table of encoders, and how one is built by the names of its library and network."""

from __future__ import annotations

from captioner.config import pick
from captioner.models.encoding import Encoder, Features
from captioner.models.pretrained import BundledEncoder, TimmEncoder, TorchvisionEncoder

__all__ = ["ENCODERS", "Encoder", "Features", "build_encoder"]

ENCODERS: dict[str, type[Encoder]] = {
    "bundled": BundledEncoder,
    "timm": TimmEncoder,
    "torchvision": TorchvisionEncoder,
}


def build_encoder(
    *,
    library: str,
    network: str,
    pretrained: bool = True,
    trainable: bool = False,
    image_size: int | None = None,
    crop: float | None = None,
    stage: int | None = None,
    precision: str = "fp32",
    gradient_checkpointing: bool = False,
    initialise: bool = True,
) -> Encoder:
    """Build an encoder by the names of its library and network.

    Args:
        library: a key of ENCODERS.
        network, pretrained, trainable, image_size, crop, stage, precision,
            gradient_checkpointing, initialise: as of Encoder.

    Returns:
        an Encoder, with feature_size and transform.

    Raises:
        ValueError: the library or network is not known, not installed, or its weights cannot be
            fetched.
    """
    return pick(ENCODERS, library, "encoder.library")(
        network=network,
        pretrained=pretrained,
        trainable=trainable,
        image_size=image_size,
        crop=crop,
        stage=stage,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        initialise=initialise,
    )
