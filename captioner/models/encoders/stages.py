"""The stages of a network, read off the names of its parameters.

    layer3.0.conv1.weight                  -> layer3                        (ResNet)
    blocks.5.2.conv_pw.weight              -> blocks.5                      (EfficientNet, ViT)
    encoder.layers.encoder_layer_7.ln_1... -> encoder.layers.encoder_layer_7

A stage is named by the parts of a name up to the first that ends with a digit, or by the first part
where none does. What holds no matrix, norms and biases, belongs to the stage before it; what the
network itself holds, such as position embeddings, to the first.
"""

from __future__ import annotations

from itertools import groupby

from torch import nn


def stages(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each stage, in the order of the network: from its stem to its head."""
    found: list[list[nn.Parameter]] = []
    before = None
    for stage, named in groupby(network.named_parameters(), key=lambda one: _stage(one[0])):
        parameters = [parameter for _, parameter in named]
        if found and (before == "" or all(one.ndim < 2 for one in parameters)):
            found[-1] += parameters
        else:
            found.append(parameters)
        before = stage
    return found


def _stage(name: str) -> str:
    parts = name.split(".")[:-1]
    for end, part in enumerate(parts, start=1):
        if part[-1].isdigit():
            return ".".join(parts[:end])
    return parts[0] if parts else ""
