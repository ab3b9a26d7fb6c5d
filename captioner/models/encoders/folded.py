"""A copy of a frozen network that computes the same features faster on a CPU.

In evaluation mode a batch normalization is one scale and one shift per channel, so it can be folded
into the convolution before it:

    act(gamma (W * x - mean) / sqrt(var + eps) + beta) = act(W' * x + b')
    W' = gamma W / sqrt(var + eps)        b' = beta - gamma mean / sqrt(var + eps)

oneDNN computes the remaining convolution with its activation in one pass over the map, also in
bfloat16, with sums in float32. The order of the modules is known for the bundled networks, whose
copies are compared in the tests. That of others is observed while the network encodes an image; the
copy then encodes the same image, and is discarded if its features differ.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
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
"""Passes one image through a network and returns its features."""

Chain = tuple[str, str, str | None]
"""The names of a convolution, of the normalization after it and of the activation after that."""

Keep = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""Returns the folded weights of a dtype from where they are kept, or makes and keeps them."""

# Activations that oneDNN computes with the convolution: their names in oneDNN, and parameters.
_FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


def quick_copy(
    network: nn.Module,
    run: Run,
    *,
    bf16: bool,
    chains: list[Chain] | None = None,
    keep: Keep | None = None,
) -> tuple[nn.Module, torch.dtype]:
    """Make a faster copy of a network for evaluation.

    Args:
        network: in eval mode, on the CPU; it is not changed.
        run: passes the same image through the network or the copy; it casts the image to the dtype
            of the network's parameters.
        bf16: compute in bfloat16.
        chains: what to fold, if it is known; then the copy is not compared.
        keep: where the folded weights are kept, if the chains are known.

    Returns:
        the copy, or the network itself if its copy has other features; and the dtype in which it
        computes, bfloat16 or float32.
    """
    if chains is not None:
        dtype = torch.bfloat16 if bf16 else torch.float32
        keep = keep or _made_now
        weights = keep(str(dtype).removeprefix("torch."), partial(_fold, network, chains, dtype))
        return _folded(network, chains, weights).to(dtype), dtype
    if not bf16 and not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network, torch.float32
    expected, chains = _observe(network, run)
    folded = _folded(network, chains, _fold(network, chains, torch.float32))
    if not _agrees(folded, run, expected, tolerance=1e-3):
        folded = network
    if bf16:
        # Rounding to 8 bits changes features by a few percent, a failure by far more.
        halved = copy.deepcopy(folded).eval().bfloat16()
        if _agrees(halved, run, expected, tolerance=0.3):
            return halved, torch.bfloat16
    return folded, torch.float32


class FusedConv(nn.Module):
    """act(W' * x + b'): a convolution with a normalization folded into it, and an activation.

    Args:
        conv: the convolution; the padding of timm's Conv2dSame depends on the size of its input.
        weight: W', [D, D' / groups, k, k].
        bias: b', [D].
        act: a module whose class is in _FUSED.
    """

    def __init__(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor, act: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = _frozen(weight), _frozen(bias)
        self.act, (self.name, self.numbers) = act, _FUSED[type(act)]
        self.same = type(conv).__name__ == "Conv2dSame"
        self.padding = [0, 0] if self.same else [int(zeros) for zeros in conv.padding]
        self.stride, self.dilation = list(conv.stride), list(conv.dilation)
        self.groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """[B, D', rows, columns] -> [B, D, rows', columns']."""
        weight, padding = self._pad_same(x) if self.same else (self.weight, self.padding)
        if not has_onednn_convolution(x.dtype):
            geometry = (self.stride, padding, self.dilation, self.groups)
            return self.act(F.conv2d(x, weight, self.bias, *geometry))
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

    def _pad_same(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """The kernel and the padding of a Conv2dSame, whose output has ceil(size / stride) values.

        An odd number of zeros is split evenly, with the last one at the bottom or right. Padding a
        large map takes as long as its convolution; so the convolution itself pads all sides
        equally, and the kernel gets a row or column of zeros at the top or left.
        """
        sizes = zip(x.shape[-2:], self.weight.shape[-2:], self.stride)
        down, across = (max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in sizes)
        return F.pad(self.weight, (across % 2, 0, down % 2, 0)), [-(-down // 2), -(-across // 2)]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _observe(network: nn.Module, run: Run) -> tuple[Tensor, list[Chain]]:
    """The features of the image, and the chains of convolution, normalization and activation.

    Two modules are linked if the input of one is the same tensor object that the other returned,
    and each of them ran once.
    """
    names: dict[nn.Module, str] = {module: name for name, module in network.named_modules()}
    kept: list[Any] = []  # so that no other tensor gets the same id
    inputs_of: dict[nn.Module, list[Any]] = {}
    output_of: dict[nn.Module, Any] = {}

    def before(module: nn.Module, inputs: Any) -> None:
        inputs_of.setdefault(module, []).append(_identity(inputs[0] if inputs else None))
        kept.extend(inputs)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        output_of[module] = _identity(output)
        kept.append(output)

    observed = [m for m in names if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, *_FUSED))]
    hooks = [module.register_forward_pre_hook(before) for module in observed]
    hooks += [module.register_forward_hook(after) for module in observed]
    try:
        features = run(network)
    finally:
        for hook in hooks:
            hook.remove()
    input_of = {module: calls[0] for module, calls in inputs_of.items() if len(calls) == 1}
    return features, _chains(names, input_of, output_of)


def _chains(
    names: dict[nn.Module, str], input_of: dict[nn.Module, Any], output_of: dict[nn.Module, Any]
) -> list[Chain]:
    """The chains among modules that ran once, from the identities of their inputs and outputs."""
    convs = {output_of[module]: module for module in input_of if _is_conv(module)}
    acts = {identity: module for module, identity in input_of.items() if type(module) in _FUSED}
    chains = []
    for norm, identity in input_of.items():
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
            continue
        conv = convs.get(identity)
        act = None if _own_act(norm) else acts.get(output_of[norm])
        if conv is not None:
            chains.append((names[conv], names[norm], names[act] if act else None))
    return chains


def _identity(value: Any) -> tuple[int, int] | None:
    """A tensor's id and its number of changes in place: ``x += shortcut`` keeps the id."""
    return (id(value), version(value)) if isinstance(value, Tensor) else None


def _is_conv(module: nn.Module) -> bool:
    """Whether FusedConv can compute a module: torch's Conv2d with zero padding, or Conv2dSame."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    if type(module) is nn.Conv2d:
        return not isinstance(module.padding, str)
    return type(module).__name__ == "Conv2dSame" and module.dilation == (1, 1)


def _own_act(norm: nn.Module) -> nn.Module | None:
    """The activation within timm's BatchNormAct2d."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else None


def _made_now(dtype: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Keep nothing."""
    return make()


def _fold(network: nn.Module, chains: list[Chain], dtype: torch.dtype) -> dict[str, Tensor]:
    """W' and b' of each chain, computed in float64, by the name of its convolution."""
    folded: dict[str, Tensor] = {}
    for conv_name, norm_name, _ in chains:
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        weight, bias = fold(conv, norm)
        folded |= {f"{conv_name}.weight": weight.to(dtype), f"{conv_name}.bias": bias.to(dtype)}
    return folded


def fold(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """W' in channels_last and b', in the dtype of the convolution."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()  # [D]
    shift = -norm.running_mean.double() * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    weight = conv.weight.double() * scale[:, None, None, None]  # [D, D' / groups, k, k]
    dtype = conv.weight.dtype
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), shift.to(dtype)


def _folded(network: nn.Module, chains: list[Chain], weights: dict[str, Tensor]) -> nn.Module:
    """A copy in which each chain is one FusedConv."""
    replaced = [network.get_submodule(name) for chain in chains for name in chain[:2]]
    shared = {id(module): module for module in replaced}  # not copied
    folded = copy.deepcopy(network, shared).eval()  # copies of traced networks lose their mode
    for conv_name, norm_name, act_name in chains:
        conv, norm = folded.get_submodule(conv_name), folded.get_submodule(norm_name)
        own = _own_act(norm)
        act = own or (folded.get_submodule(act_name) if act_name else nn.Identity())
        fits = type(act) in _FUSED
        assert isinstance(conv, nn.Conv2d)
        weight, bias = weights[f"{conv_name}.weight"], weights[f"{conv_name}.bias"]
        fused = FusedConv(conv, weight, bias, act if fits else nn.Identity())
        folded.set_submodule(conv_name, fused)
        folded.set_submodule(norm_name, nn.Identity() if fits or own is None else own)
        if act_name and fits:
            folded.set_submodule(act_name, nn.Identity())
    return folded


def _agrees(network: nn.Module, run: Run, expected: Tensor, *, tolerance: float) -> bool:
    """Whether a network's features equal the expected ones, up to a fraction of their norm."""
    try:
        features = run(network).float()
    except RuntimeError as error:  # an operation or a mix of dtypes that torch does not support
        log.debug("the encoder is not replaced by a quick copy: %s", error)
        return False
    distance = float((features - expected).norm() / expected.norm().clamp_min(1e-12))
    log.debug("features of the quick copy differ by %.2g", distance)
    return distance <= tolerance  # False for nan
