"""The loops with Triton, compared with the readable loop and torch.nn: on a GPU, or interpreted.

Without a GPU the last test runs the others in a process in which Triton interprets the kernels on
the CPU. Its bfloat16 is cut off instead of rounded, and so is compared with a wider tolerance.
"""

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
from support.peers import peer_of
from torch.nn.utils.rnn import pack_padded_sequence

from captioner.models.packing import Packing
from captioner.models.recurrence import fused
from captioner.models.recurrence.unroll import Recurrence

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = triton.language
triton_loops = importlib.import_module("captioner.models.recurrence.triton_loops")
tanh = importlib.import_module("captioner.models.recurrence.triton_kernels").tanh
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"
runs = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="no GPU; test_all_in_the_interpreter runs it"
)
CELL_NAMES = ("rnn", "gru", "lstm")
FP32 = {"rtol": 1e-5, "atol": 1e-5}
BF16 = 0.04 if INTERPRETED else 0.02
PROFILES = [(1,), (1, 1, 1), (3,), (18, 17, 2, 1)]


@pytest.fixture
def _with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "loop_of", lambda cell, tensor: triton_loops.LOOPS[type(cell)])


def everything(
    ours: Recurrence, sizes: tuple[int, ...], *, fast: bool, half: bool = False
) -> list[torch.Tensor]:
    """Outputs, last state, and gradients of inputs, first state and parameters."""
    ours.fused = fast
    width, hidden = ours.first.of_input.in_features, ours.first.hidden_size
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(ours.first.of_input.weight)

    inputs, weights = draw(sum(sizes), width).requires_grad_(), draw(sum(sizes), hidden)
    state = {name: draw(*zero.shape) for name, zero in ours.zeros(sizes[0]).items()}
    given = [inputs, *(tensor.requires_grad_() for tensor in state.values()), *ours.parameters()]
    with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        outputs, last = ours(inputs, state, sizes=sizes)
    results = [outputs, *last.values()]
    loss = (outputs * weights).sum() + sum(
        tensor.float().square().sum() for tensor in last.values()
    )
    return [*results, *torch.autograd.grad(loss, given)]


@runs
@pytest.mark.usefixtures("_with_triton")
@pytest.mark.parametrize("sizes", PROFILES)
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_equal_to_the_readable_loop(cell: str, sizes: tuple[int, ...]) -> None:
    ours = Recurrence(cell=cell, input_size=7, hidden_size=37, layers=1 + (sizes[0] > 3)).to(DEVICE)
    exact = copy.deepcopy(ours).double()
    pairs = zip(
        everything(ours, sizes, fast=True), everything(exact, sizes, fast=False), strict=True
    )
    for fast, plain in pairs:
        torch.testing.assert_close(fast, plain.float(), **FP32)


@runs
@pytest.mark.usefixtures("_with_triton")
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_equal_to_torch_with_a_packed_sequence(cell: str) -> None:
    lengths = torch.tensor([2, 5, 1, 4, 4])
    packing = Packing.of(lengths)
    ours = Recurrence(cell=cell, input_size=9, hidden_size=20)
    peer = peer_of(cell, ours, 9, 20).float().to(DEVICE)
    ours.to(DEVICE)
    mine = torch.randn(5, 5, 9, device=DEVICE, requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    rows = packing._replace(
        **{n: getattr(packing, n).to(DEVICE) for n in ("order", "rows", "steps")}
    )
    outputs, last = ours(rows.pack(mine), ours.zeros(5), sizes=packing.sizes)
    packed = pack_padded_sequence(theirs, lengths, batch_first=True, enforce_sorted=False)
    expected, final = peer(packed)
    weights = torch.randn_like(outputs)
    (outputs * weights).sum().backward()
    (expected.data * weights).sum().backward()
    torch.testing.assert_close(outputs, expected.data, **FP32)
    final_h = final[0] if cell == "lstm" else final
    torch.testing.assert_close(last["h"], final_h.transpose(0, 1)[rows.order], **FP32)
    torch.testing.assert_close(mine.grad, theirs.grad, **FP32)
    parameters = zip(ours.parameters(), (peer.weight_ih_l0, peer.bias_ih_l0))
    for own, other in parameters:  # in another order of gates
        torch.testing.assert_close(own.grad.norm(), other.grad.norm(), **FP32)


@runs
@pytest.mark.usefixtures("_with_triton")
@pytest.mark.parametrize("cell", CELL_NAMES)
def test_bfloat16_is_near(cell: str) -> None:
    """The error of each result, relative to its norm."""
    ours = Recurrence(cell=cell, input_size=24, hidden_size=45).to(DEVICE)
    exact = everything(ours, (20, 20, 11, 3), fast=False)
    rounded = everything(ours, (20, 20, 11, 3), fast=True, half=True)
    for result, right in zip(rounded, exact, strict=True):
        assert (result.float() - right).norm() < BF16 * right.norm()
    assert cell != "lstm" or rounded[2].dtype == torch.float32  # c


@triton.jit
def tanh_of(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    tl.store(y + place, tanh(tl.load(x + place)))


@runs
def test_tanh_has_no_large_relative_error_near_0() -> None:
    small = torch.logspace(-30, 1.9, 1024)
    x = torch.cat([small, -small, torch.tensor([0.0, torch.inf, -torch.inf, 100.0])])
    x = torch.nn.functional.pad(x, (0, 4096 - len(x))).to(DEVICE)
    y = torch.empty_like(x)
    tanh_of[(1,)](x, y, SIZE=4096)
    torch.testing.assert_close(y, x.double().tanh().float(), rtol=2e-6, atol=0)


POINTERS = {
    "rnn_step": "h weight sums",
    "gru_step": "h weight bias sums running inside out",
    "lstm_step": "h weight sums running memory tanh_memory out",
    "rnn_back": "of_h of_out out of_sums",
    "gru_back": "of_h of_out before gates inside of_sums of_n",
    "lstm_back": "of_h of_c of_out before gates tanh_memory of_sums",
}
"""The arguments of the kernels that are tensors."""


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled for the interpreter")
@pytest.mark.parametrize("name", POINTERS)
def test_kernels_compile_for_an_h100(name: str) -> None:
    """Compiling needs no GPU. States are in float32, everything else in bfloat16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    wide = ("running", "of_c")
    types = {a: "*fp32" if a in wide else "*bf16" for a in POINTERS[name].split()}
    constants = {"H": 37, "TF": "ieee", "WIDE": False, "M": 32, "N": 16, "K": 64}
    if name.endswith("back"):
        constants = {"BLOCK": 512} if name == "rnn_back" else {"H": 37, "BLOCK": 512}
    types["rows" if name.endswith("step") else "count"] = "i32"
    kernel = importlib.import_module("captioner.models.recurrence.triton_kernels").__dict__[name]
    source = ASTSource(
        fn=kernel, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ("mma" in compiled.asm["ptx"]) == name.endswith("step")  # tensor cores


@pytest.mark.skipif(DEVICE != "cpu" or INTERPRETED, reason="the others run in this process")
def test_all_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"19 passed, {len(POINTERS) + 1} skipped" in done.stdout
