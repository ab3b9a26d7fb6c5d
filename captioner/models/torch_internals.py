"""The private names of torch that this package uses, each with a fallback.

No other module may use a private name of torch; ``tests/models/test_torch_internals.py`` checks
that, and runs every fallback. To check a new version of torch, only this file has to be read.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# Products and convolutions with oneDNN ------------------------------------------------------------
# torch.compile uses the same operations for its linear and convolution layers on CPUs.


def has_onednn_linear() -> bool:
    """Whether torch has the operation that ``onednn_linear`` needs."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, computed by oneDNN: [rows, input] [output, input] [output] -> [rows, output].

    Args:
        x, weight, bias: with any strides; weight may be the result of ``pack_weight``.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def has_packed_weights() -> bool:
    """Whether torch has the operation that ``pack_weight`` needs."""
    return has_onednn_linear() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def pack_weight(weight: Tensor) -> Tensor:
    """A weight [output, input] in the block layout of oneDNN, only for ``onednn_linear``."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def onednn_multiplies_bf16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor (AVX-512 is needed)."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


def has_onednn_convolution(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes a convolution with its activation in this dtype."""
    has_operation = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    if not torch.backends.mkldnn.is_available() or not has_operation:
        return False
    return dtype != torch.bfloat16 or onednn_multiplies_bf16()


def onednn_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    numbers: list[float],
) -> Tensor:
    """A convolution and its activation in one pass.

    Args:
        activation, numbers: oneDNN's name of the activation, and its parameters.
    """
    geometry = (padding, stride, dilation, groups)
    pointwise = torch.ops.mkldnn._convolution_pointwise
    return pointwise(x, weight, bias, *geometry, activation, numbers, "")


# Gradients of sigmoid and tanh --------------------------------------------------------------------


def sigmoid_backward(gradient: Tensor, y: Tensor, *, out: Tensor) -> None:
    """gradient * y * (1 - y), the gradient of y = sigmoid(x), in one pass as autograd computes it.

    Args:
        out: filled; may be ``gradient``.
    """
    fused = _out_variant("sigmoid_backward")
    if fused is None:
        out.copy_(gradient * (y * (1 - y)))
    else:
        fused(gradient, y, grad_input=out)


def tanh_backward(gradient: Tensor, y: Tensor, *, out: Tensor) -> None:
    """gradient * (1 - y²), the gradient of y = tanh(x), in one pass as autograd computes it.

    Args:
        out: filled; may be ``gradient``.
    """
    fused = _out_variant("tanh_backward")
    if fused is None:
        out.copy_(gradient * (1 - y * y))
    else:
        fused(gradient, y, grad_input=out)


def _out_variant(name: str) -> Any:
    """The overload of an operation of ATen that writes into a given tensor; None without it."""
    return getattr(getattr(torch.ops.aten, name, None), "grad_input", None)


# Whether the operations are observed --------------------------------------------------------------
# If torch does not offer the information, the answer is yes: plain operations of torch are used.


def is_transformed() -> bool:
    """Whether a transformation of torch.func, such as vmap or grad, is active."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return True if active is None else bool(active())


def is_intercepted() -> bool:
    """Whether a mode intercepts functions of torch, or forward-mode gradients are computed."""
    modes = getattr(torch._C, "_is_torch_function_mode_enabled", None)
    dispatch = getattr(torch._C, "_len_torch_dispatch_stack", None)
    level = getattr(forward_ad, "_current_level", None)
    if modes is None or dispatch is None or level is None:
        return True
    return bool(modes()) or dispatch() > 0 or level >= 0 or is_transformed()


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has forward or backward hooks of its own."""
    return any(getattr(module, name, True) for name in _HOOKS)


def forward_hooks(module: nn.Module) -> list[dict[Any, Any]]:
    """The dictionaries with the hooks of a module that are called when it computes."""
    hooks = (getattr(module, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))
    return [of_kind for of_kind in hooks if of_kind is not None]


# Counting changes ---------------------------------------------------------------------------------

_new_numbers = itertools.count(1)


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place, as far as torch counts it.

    0 for a tensor created in ``torch.inference_mode``, whose changes torch does not count. If torch
    has no count, every call returns a new number, so that results that depend on the tensor are
    computed again.
    """
    if tensor.is_inference():
        return 0
    count = getattr(tensor, "_version", None)
    return -next(_new_numbers) if count is None else int(count)


# Kinds of modules and processors ------------------------------------------------------------------


def running_norms() -> tuple[type[nn.Module], ...]:
    """The classes of normalization layers that keep running statistics.

    LayerNorm and GroupNorm keep none.
    """
    base = getattr(nn.modules.batchnorm, "_NormBase", None)
    if base is not None:
        return (base,)
    batch = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return (*batch, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def processor_multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16; False if unknown."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
