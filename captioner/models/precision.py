"""Whether a device has instructions for bfloat16, and which precision ``auto`` selects.

A device with instructions for products of bfloat16 computes these two to ten times as fast as
products of float32. A device without them emulates bfloat16, which takes up to 20 times as long as
float32. So that no configuration depends on hardware, ``auto`` selects bf16 if the device has the
instructions (CUDA devices from compute capability 8.0 on, processors with AMX or AVX512-BF16) and
fp32 otherwise. The resolved precision is printed and stored when a run starts. A precision that the
user sets explicitly is used on any device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch

from captioner.config import unknown
from captioner.models.torch_internals import processor_multiplies_bf16

log = logging.getLogger(__name__)

AUTO, FP32, BF16 = "auto", "fp32", "bf16"
PRECISIONS = ("auto", "fp32", "bf16")

TRAINER = {FP32: "32-true", BF16: "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's names of the precisions of training."""
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's short names for the same."""

# oneDNN can be limited to an instruction set; these have no vectors of 512 bits, or no bfloat16.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
BELOW_AVX512 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2")
_WITHOUT_BF16 = (*BELOW_AVX512, "avx512_core", "avx512_core_vnni")


def multiplies_bf16(device: str = "cpu") -> bool:
    """Whether a device ("cpu", "cuda", "mps") has instructions for products of bfloat16.

    Instruction sets that ONEDNN_MAX_CPU_ISA or ATEN_CPU_CAPABILITY exclude do not count.
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device == "cpu"
        and processor_multiplies_bf16()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and instructions() not in _WITHOUT_BF16
    )


def multiplies_in_tf32() -> bool:
    """Whether torch may use TF32 for products of float32 on CUDA."""
    precision = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if precision is None:  # torch before 2.9
        return bool(torch.backends.cuda.matmul.allow_tf32)
    if precision == "none":  # then the setting of all operations holds
        precision = getattr(torch.backends, "fp32_precision", "none")
    return bool(precision == "tf32")


def instructions() -> str:
    """The instruction set to which the user limits oneDNN, in lower case; "" if there is none."""
    return next((os.environ[name].lower() for name in _LIMITS if os.environ.get(name)), "")


def resolve(precision: str, device: str = "cpu") -> str:
    """A precision on a device: "auto" becomes "fp32" or "bf16", others are unchanged."""
    if precision != AUTO:
        return precision
    return BF16 if multiplies_bf16(device) else FP32


def resolve_trainer(precision: int | str, device: str) -> str:
    """Lightning's name for a precision on a device.

    Args:
        precision: "auto", "32-true", "bf16-mixed", "16-mixed", or Lightning's 32, 16 and "bf16".
        device: "cpu", "cuda" or "mps".

    Raises:
        ValueError: another precision, or float16 on a CPU, where Lightning would use bfloat16.
    """
    name = SHORT.get(str(precision), str(precision))
    accepted = [AUTO, *TRAINER.values()]
    if device == "cpu":
        accepted.remove(TRAINER["fp16"])
        if name == TRAINER["fp16"]:
            raise ValueError(
                f"trainer.precision={precision!r} needs a GPU, and this training runs on the "
                f"CPU; choose {', '.join(accepted)}"
            )
    if name not in accepted:
        raise unknown("trainer.precision", precision, accepted)
    return TRAINER[resolve(AUTO, device)] if name == AUTO else name


def stored(precision: str, option: str, device: str = "cpu") -> str:
    """The precision to use instead of that in a checkpoint: fp32 if bf16 would be emulated.

    Args:
        precision: the precision in the checkpoint.
        option: the name of the option, for the warning.
        device: the type of the device that computes.
    """
    if precision != BF16 or multiplies_bf16(device):
        return precision
    log_once(
        f"{option}: the model was trained with bf16, which this {_noun(device)} would emulate; "
        "fp32 is used instead, which changes results slightly"
    )
    return FP32


def warn_if_emulated(
    option: str, precision: str, device: str = "cpu", write: Callable[[str], object] = log.warning
) -> None:
    """Warn once if bfloat16 is set explicitly and the device emulates it."""
    if precision in (BF16, TRAINER[BF16]) and not multiplies_bf16(device):
        log_once(
            f"{option}={precision} is emulated on this {_noun(device)}, which takes up to 20 times "
            f"as long; {option}=auto computes in float32 here",
            write,
        )


def log_once(line: str, write: Callable[[str], object] = log.warning) -> None:
    """Log a line once per process."""
    if line not in _logged:
        _logged.add(line)
        write(line)


_logged: set[str] = set()


def device_of(accelerator: str) -> str:
    """The type of device that Lightning uses for the name of an accelerator."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _noun(device: str) -> str:
    return "processor" if device == "cpu" else "GPU"
