"""Triton kernels: a whole step of a recurrence, for ``triton_loops.py``.

    *_step      h_{t-1} W_h^T for all gates, the gates and the new state
    *_back      G_t, the gradient of the pre-activations, from ∂h_t and the gates

A program of a step computes M rows of N units: the sums of all gates of a unit are in the same
program, so that its state can follow at once. Sums, gates and states are in float32, whatever the
dtype of the tensors. The equations are those of ``cells.py`` and ``loops.py``.

Arguments are pointers to contiguous tensors of one step, [rows, gates * H] or [rows, H]; H, TF,
WIDE and the sizes of the tiles are constants. TF is "tf32", or "ieee" for exact float32.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """tanh, by its series where the difference 1 - exp(-2 |x|) would lose digits."""
    decay = tl.exp(-2 * tl.abs(x))
    size = (1 - decay) / (1 + decay)
    square = x * x
    series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    return tl.where(tl.abs(x) < 0.125, series, tl.where(x < 0, -size, size))


@triton.jit
def _add_product(sums, x, weight, k, unit, gate: tl.constexpr, H: tl.constexpr,
                 TF: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """sums + x W^T for K columns of one gate: [M, N] [M, K] -> [M, N]."""
    places = weight + (gate * H + unit[None, :]) * H + k[:, None]  # [K, N]
    columns = tl.load(places, mask=(unit[None, :] < H) & (k[:, None] < H), other=0.0)
    if WIDE:  # the interpreter multiplies no bfloat16
        x, columns = x.to(tl.float32), columns.to(tl.float32)
    return tl.dot(x, columns, sums, input_precision=TF)


@triton.jit
def _load_h(h, row, k, rows, H: tl.constexpr):
    """K columns of h: [M, K]."""
    real = (row[:, None] < rows) & (k[None, :] < H)
    return tl.load(h + row[:, None] * H + k[None, :], mask=real, other=0.0)


@triton.jit
def _load(place, real):
    return tl.load(place, mask=real, other=0.0).to(tl.float32)


@triton.jit
def rnn_step(h, weight, sums, rows, H: tl.constexpr, TF: tl.constexpr, WIDE: tl.constexpr,
              M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):  # fmt: skip
    row, unit = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, H, K):
        k = first + tl.arange(0, K)
        x = _load_h(h, row, k, rows, H)
        total = _add_product(total, x, weight, k, unit, 0, H, TF, WIDE)
    real = (row[:, None] < rows) & (unit[None, :] < H)
    place = sums + row[:, None] * H + unit[None, :]
    tl.store(place, tanh(_load(place, real) + total), mask=real)


@triton.jit
def gru_step(h, weight, bias, sums, running, inside, out, rows, H: tl.constexpr,
              TF: tl.constexpr, WIDE: tl.constexpr,
              M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):  # fmt: skip
    row, unit = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    r = tl.zeros((M, N), tl.float32)
    z, product = r, r
    for first in range(0, H, K):
        k = first + tl.arange(0, K)
        x = _load_h(h, row, k, rows, H)
        r = _add_product(r, x, weight, k, unit, 0, H, TF, WIDE)
        z = _add_product(z, x, weight, k, unit, 1, H, TF, WIDE)
        product = _add_product(product, x, weight, k, unit, 2, H, TF, WIDE)
    real = (row[:, None] < rows) & (unit[None, :] < H)
    three, one = row[:, None] * 3 * H + unit[None, :], row[:, None] * H + unit[None, :]
    known = unit < H
    r = tl.sigmoid(r + _load(bias + unit, known)[None, :] + _load(sums + three, real))
    z = tl.sigmoid(z + _load(bias + H + unit, known)[None, :] + _load(sums + three + H, real))
    product = product + _load(bias + 2 * H + unit, known)[None, :]
    n = tanh(_load(sums + three + 2 * H, real) + r * product)
    now = n + z * (_load(running + one, real) - n)
    tl.store(sums + three, r, mask=real)
    tl.store(sums + three + H, z, mask=real)
    tl.store(sums + three + 2 * H, n, mask=real)
    tl.store(inside + one, product, mask=real)
    tl.store(running + one, now, mask=real)
    tl.store(out + one, now, mask=real)


@triton.jit
def lstm_step(h, weight, sums, running, memory, tanh_memory, out, rows, H: tl.constexpr,
               TF: tl.constexpr, WIDE: tl.constexpr,
               M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):  # fmt: skip
    row, unit = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    f = tl.zeros((M, N), tl.float32)
    i, candidate, o = f, f, f
    for first in range(0, H, K):
        k = first + tl.arange(0, K)
        x = _load_h(h, row, k, rows, H)
        f = _add_product(f, x, weight, k, unit, 0, H, TF, WIDE)
        i = _add_product(i, x, weight, k, unit, 1, H, TF, WIDE)
        candidate = _add_product(candidate, x, weight, k, unit, 2, H, TF, WIDE)
        o = _add_product(o, x, weight, k, unit, 3, H, TF, WIDE)
    real = (row[:, None] < rows) & (unit[None, :] < H)
    four, one = row[:, None] * 4 * H + unit[None, :], row[:, None] * H + unit[None, :]
    f = tl.sigmoid(f + _load(sums + four, real))
    i = tl.sigmoid(i + _load(sums + four + H, real))
    candidate = tanh(candidate + _load(sums + four + 2 * H, real))
    o = tl.sigmoid(o + _load(sums + four + 3 * H, real))
    c = f * _load(running + one, real) + i * candidate
    tanh_c = tanh(c)
    tl.store(sums + four, f, mask=real)
    tl.store(sums + four + H, i, mask=real)
    tl.store(sums + four + 2 * H, candidate, mask=real)
    tl.store(sums + four + 3 * H, o, mask=real)
    tl.store(running + one, c, mask=real)
    tl.store(memory + one, c, mask=real)
    tl.store(tanh_memory + one, tanh_c, mask=real)
    tl.store(out + one, o * tanh_c, mask=real)


@triton.jit
def rnn_back(of_h, of_out, out, of_sums, count, BLOCK: tl.constexpr):
    one = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = one < count
    h = _load(out + one, real)
    now = _load(of_h + one, real) + _load(of_out + one, real)
    tl.store(of_sums + one, now * (1 - h * h), mask=real)


@triton.jit
def gru_back(of_h, of_out, before, gates, inside, of_sums, of_n, count, H: tl.constexpr,
              BLOCK: tl.constexpr):  # fmt: skip
    one = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = one < count
    three = one // H * 3 * H + one % H
    r, z = _load(gates + three, real), _load(gates + three + H, real)
    n = _load(gates + three + 2 * H, real)
    now = _load(of_h + one, real) + _load(of_out + one, real)
    of_sum = now * (1 - z) * (1 - n * n)  # of n before its tanh
    of_r = of_sum * _load(inside + one, real) * r * (1 - r)
    of_z = (_load(before + one, real) - n) * now * z * (1 - z)
    tl.store(of_sums + three, of_r, mask=real)
    tl.store(of_sums + three + H, of_z, mask=real)
    tl.store(of_sums + three + 2 * H, of_sum * r, mask=real)
    tl.store(of_n + one, of_sum, mask=real)
    tl.store(of_h + one, now * z, mask=real)


@triton.jit
def lstm_back(of_h, of_c, of_out, before, gates, tanh_memory, of_sums, count, H: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    one = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = one < count
    four = one // H * 4 * H + one % H
    f, i = _load(gates + four, real), _load(gates + four + H, real)
    candidate, o = _load(gates + four + 2 * H, real), _load(gates + four + 3 * H, real)
    tanh_c = _load(tanh_memory + one, real)
    now = _load(of_h + one, real) + _load(of_out + one, real)
    through = _load(of_c + one, real) + now * o * (1 - tanh_c * tanh_c)
    of_f = through * _load(before + one, real) * f * (1 - f)
    tl.store(of_sums + four, of_f, mask=real)
    tl.store(of_sums + four + H, through * candidate * i * (1 - i), mask=real)
    tl.store(of_sums + four + 2 * H, through * i * (1 - candidate * candidate), mask=real)
    tl.store(of_sums + four + 3 * H, now * tanh_c * o * (1 - o), mask=real)
    tl.store(of_c + one, through * f, mask=real)
