"""A copy of a frozen network that gives the same features sooner on a CPU.

In evaluation a batch normalisation is one scale and one shift of each channel, so that it can be
folded into the convolution before it, once and for all:

    act(gamma (W * x - mean) / sqrt(var + eps) + beta) = act(W' * x + b')
    W' = gamma W / sqrt(var + eps)        b' = beta - gamma mean / sqrt(var + eps)

What remains, a convolution with its activation, oneDNN computes in one pass over the map, also in
bfloat16, whose products the matrix units of recent processors add up in float32. Which modules
follow each other is not guessed from their names: one image is sent through the network, and a
second one through the copy, which is given up where it says something else.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner.models.torch_internals import (
    has_onednn_convolution,
    onednn_convolution,
    version,
)

log = logging.getLogger(__name__)

Run = Callable[[nn.Module], Tensor]
"""Sends one image through a network and returns its features."""

# Activations that oneDNN computes with the convolution: their names there, and their numbers.
_FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def quick_copy(network: nn.Module, run: Run, *, bf16: bool) -> tuple[nn.Module, torch.dtype]:
    """Make a network quick for evaluation, or leave it where that does not work.

    Args:
        network: in eval mode, on the CPU; it is not changed.
        run: sends the same image through the network or the copy; it casts the image to the type
            of the network's parameters.
        bf16: compute in bfloat16.

    Returns:
        the copy, or the network itself; and the type it computes in, bfloat16 or float32.
    """
    if not bf16 and not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network, torch.float32
    expected, chains = _watched(network, run)
    folded = _folded(network, chains)
    if not _agrees(folded, run, expected, tolerance=1e-3):
        folded = network
    if bf16:
        # Rounding to 8 bits changes features by a few percent; what breaks changes them wholly.
        halved = copy.deepcopy(folded).eval().bfloat16()
        if _agrees(halved, run, expected, tolerance=0.3):
            return halved, torch.bfloat16
    return folded, torch.float32


class FusedConv(nn.Module):
    """act(W' * x + b'): a convolution, the normalisation folded into it, and an activation.

    Args:
        conv: the convolution; timm's Conv2dSame pads by the size of its input.
        norm: the normalisation after it, in eval mode.
        act: a module whose class is in _FUSED.
    """

    def __init__(self, conv: nn.Conv2d, norm: Any, act: nn.Module) -> None:
        super().__init__()
        scale = (norm.running_var.double() + norm.eps).rsqrt()  # [D]
        shift = -norm.running_mean.double() * scale
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        if norm.affine:
            scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
        weight = conv.weight.double() * scale[:, None, None, None]  # [D, D' / groups, k, k]
        self.weight = _frozen(weight.to(conv.weight).contiguous(memory_format=torch.channels_last))
        self.bias = _frozen(shift.to(conv.weight))
        self.act, (self.name, self.numbers) = act, _FUSED[type(act)]
        self.same = type(conv) is not nn.Conv2d
        self.padding = [0, 0] if self.same else [int(one) for one in conv.padding]
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, D', rows, columns] -> [B, D, rows', columns']."""
        weight, padding = self._around(x) if self.same else (self.weight, self.padding)
        if not has_onednn_convolution(x.dtype):
            where = (self.stride, padding, self.dilation, self.groups)
            return self.act(F.conv2d(x, weight, self.bias, *where))
        return onednn_convolution(
            x,
            weight,
            self.bias,
            padding=padding,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.name,
            numbers=self.numbers,
        )

    def _around(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The kernel and the padding of a Conv2dSame, whose output has ceil(size / stride) values.

        An odd number of zeros goes half around the map, and one more below and at the right. To
        pad a large map costs as much as its convolution; so it is padded alike on all sides by the
        convolution itself, with a kernel that has a row or column of zeros above or at the left.
        """
        sizes = zip(x.shape[-2:], self.weight.shape[-2:], self.stride)
        down, across = (max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sizes)
        return F.pad(self.weight, (across % 2, 0, down % 2, 0)), [-(-down // 2), -(-across // 2)]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _watched(network: nn.Module, run: Run) -> tuple[Tensor, list[tuple[str, str, str | None]]]:
    """What a network says of the image, and its chains of convolution, norm and activation.

    Modules are linked where one is given the very tensor that the one before has returned, and
    each of them ran once.
    """
    names: dict[nn.Module, str] = {module: name for name, module in network.named_modules()}
    kept: list[Any] = []  # so that no other tensor is given the same id
    given: dict[nn.Module, list[Any]] = {}
    returned: dict[nn.Module, Any] = {}

    def before(module: nn.Module, inputs: Any) -> None:
        given.setdefault(module, []).append(_state(inputs[0] if inputs else None))
        kept.extend(inputs)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        returned[module] = _state(output)
        kept.append(output)

    watched = [m for m in names if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, *_FUSED))]
    hooks = [module.register_forward_pre_hook(before) for module in watched]
    hooks += [module.register_forward_hook(after) for module in watched]
    try:
        found = run(network)
    finally:
        for hook in hooks:
            hook.remove()
    once = [module for module, calls in given.items() if len(calls) == 1]
    convs = {returned[module]: module for module in once if _is_conv(module)}
    acts = {given[module][0]: module for module in once if type(module) in _FUSED}
    chains = []
    for norm in once:
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        conv = convs.get(given[norm][0])
        act = None if _own_act(norm) else acts.get(returned[norm])
        if conv is not None:
            chains.append((names[conv], names[norm], names[act] if act else None))
    return found, chains


def _state(value: Any) -> tuple[int, int] | None:
    """Which tensor, and how often it was changed in place: x += shortcut stays the same tensor."""
    return (id(value), version(value)) if isinstance(value, Tensor) else None


def _is_conv(module: nn.Module) -> bool:
    """A convolution as FusedConv computes it: of torch with zeros around, or timm's Conv2dSame."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    if type(module) is nn.Conv2d:
        return not isinstance(module.padding, str)
    return type(module).__name__ == "Conv2dSame" and module.dilation == (1, 1)


def _own_act(norm: nn.Module) -> nn.Module | None:
    """The activation that timm's BatchNormAct2d holds."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else None


def _folded(network: nn.Module, chains: list[tuple[str, str, str | None]]) -> nn.Module:
    """A copy in which each chain is one FusedConv."""
    folded = copy.deepcopy(network).eval()  # torchvision's graphs forget the mode
    for conv_name, norm_name, act_name in chains:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        own = _own_act(norm)
        act = own or (folded.get_submodule(act_name) if act_name else nn.Identity())
        fits = type(act) in _FUSED
        assert isinstance(conv, nn.Conv2d)
        fused = FusedConv(conv, norm, act if fits else nn.Identity())
        folded.set_submodule(conv_name, fused)
        folded.set_submodule(norm_name, nn.Identity() if fits or own is None else own)
        if act_name and fits:
            folded.set_submodule(act_name, nn.Identity())
    return folded


def _agrees(network: nn.Module, run: Run, expected: Tensor, *, tolerance: float) -> bool:
    """Whether a network's features are the expected ones, up to a share of their length."""
    try:
        found = run(network).float()
    except RuntimeError as error:  # an operation or a mix of types that torch does not have
        log.debug("the encoder stays as it is: %s", error)
        return False
    distance = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
    log.debug("features of the quick encoder differ by %.2g", distance)
    return distance <= tolerance  # False for nan
