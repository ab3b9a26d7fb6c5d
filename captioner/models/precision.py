"""What a device multiplies itself, and what a precision called ``auto`` therefore is there.

A device that has instructions for products of bfloat16 computes two to ten times as many of them
as of float32. One that has none emulates them, and takes up to 20 times as long as in float32. So
no configuration names hardware: ``auto`` is bf16 where the device multiplies it itself, which CUDA
does from compute capability 8.0 on, and a processor with AMX or AVX512-BF16; elsewhere it is fp32.
What it became is said and stored when a run starts. A name that a user gives is obeyed anywhere.
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
"""Lightning's names of those that training knows."""
SHORT = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's short names for the same."""

# oneDNN may be held to an instruction set; these are without vectors of 512 bits, or bfloat16.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
BELOW_AVX512 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2")
_WITHOUT_BF16 = (*BELOW_AVX512, "avx512_core", "avx512_core_vnni")


def multiplies_bf16(device: str = "cpu") -> bool:
    """Whether a device ("cpu", "cuda", "mps") has instructions for products of bfloat16.

    A processor that ONEDNN_MAX_CPU_ISA or ATEN_CPU_CAPABILITY holds to less counts as one that has
    less.
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


def instructions() -> str:
    """The instruction set that the user holds oneDNN to, in small letters; empty where to none."""
    return next((os.environ[name].lower() for name in _LIMITS if os.environ.get(name)), "")


def resolve(precision: str, device: str = "cpu") -> str:
    """What a precision is on a device: "fp32" or "bf16" for "auto", else itself."""
    if precision != AUTO:
        return precision
    return BF16 if multiplies_bf16(device) else FP32


def resolve_trainer(precision: int | str, device: str) -> str:
    """The name that Lightning has for what a precision is on a device.

    Args:
        precision: "auto", "32-true", "bf16-mixed", "16-mixed", or Lightning's 32, 16 and "bf16".
        device: "cpu", "cuda" or "mps".

    Raises:
        ValueError: another precision, or float16 on a processor, where Lightning would take
            bfloat16 instead.
    """
    name = SHORT.get(str(precision), str(precision))
    accepted = [AUTO, *TRAINER.values()]
    if device == "cpu":
        accepted.remove(TRAINER["fp16"])
        if name == TRAINER["fp16"]:
            raise ValueError(
                f"trainer.precision={precision!r} needs a GPU, and this training runs on the "
                f"processor; choose {', '.join(accepted)}"
            )
    if name not in accepted:
        raise unknown("trainer.precision", precision, accepted)
    return TRAINER[resolve(AUTO, device)] if name == AUTO else name


def stored(precision: str, option: str, device: str = "cpu") -> str:
    """What a precision becomes that a checkpoint brings along: fp32 where bf16 is emulated.

    Args:
        precision: as the checkpoint has it.
        option: its name, for the line that says so.
        device: where it is going to be computed.
    """
    if precision != BF16 or multiplies_bf16(device):
        return precision
    tell(
        f"{option}: the model was trained with bf16, which this {_noun(device)} would emulate; "
        "fp32 is taken, which changes results slightly"
    )
    return FP32


def tell_cost(
    option: str, precision: str, device: str = "cpu", say: Callable[[str], object] = log.warning
) -> None:
    """Say once what bfloat16 costs where it is asked for by name and emulated."""
    if precision in (BF16, TRAINER[BF16]) and not multiplies_bf16(device):
        tell(
            f"{option}={precision} is emulated on this {_noun(device)}, which takes up to 20 times "
            f"as long; {option}=auto computes in float32 here",
            say,
        )


def tell(line: str, say: Callable[[str], object] = log.warning) -> None:
    """Say a line once in this process."""
    if line not in _told:
        _told.add(line)
        say(line)


_told: set[str] = set()


def device_of(accelerator: str) -> str:
    """The type of device that Lightning takes for the name of an accelerator."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _noun(device: str) -> str:
    return "processor" if device == "cpu" else "GPU"
