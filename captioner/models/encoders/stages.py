"""The stages of a network, derived from the names of its parameters.

    layer3.0.conv1.weight                  -> layer3                        (ResNet)
    blocks.5.2.conv_pw.weight              -> blocks.5                      (EfficientNet, ViT)
    encoder.layers.encoder_layer_7.ln_1... -> encoder.layers.encoder_layer_7

The name of a stage is that of a parameter up to the first part that ends with a digit, or its first
part if none does. Modules without matrices, such as normalization layers, belong to the
stage before them. Parameters of the network itself, such as position embeddings, belong to the
first stage.
"""

from __future__ import annotations

from itertools import groupby

from torch import nn


def stages(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each stage, in the order of the network: from its stem to its head."""
    result: list[list[nn.Parameter]] = []
    previous = None
    for stage, named in groupby(network.named_parameters(), key=lambda named: _stage(named[0])):
        parameters = [parameter for _, parameter in named]
        if result and (previous == "" or all(parameter.ndim < 2 for parameter in parameters)):
            result[-1] += parameters
        else:
            result.append(parameters)
        previous = stage
    return result


def _stage(name: str) -> str:
    parts = name.split(".")[:-1]
    for end, part in enumerate(parts, start=1):
        if part[-1].isdigit():
            return ".".join(parts[:end])
    return parts[0] if parts else ""
