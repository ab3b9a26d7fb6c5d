"""How far a gradient reaches: why memory fades in an RNN and lasts in an LSTM.

The loss of word t is L_t = -log p(word_t). Its gradient with respect to the state after step k,

    g_h(t, k) = |dL_t / dh_k|      g_C(t, k) = |dL_t / dC_k|      g_X(t) = |dL_t / dX_0|

says how much step k can still learn from word t, t - k steps later. In an RNN it passes through the
same matrix at every step, dh_t / dh_{t-1} = diag(1 - h_t^2) W_hh, so that it shrinks by at most

    |dh_t / dh_k|  <=  (|W_hh| max(1 - h^2))^(t - k)        |W_hh|: the largest singular value

(Bengio et al., 1994; Pascanu et al., 2013). In an LSTM there is a second way, along C, where it is
only multiplied by the forget gates: dC_t / dC_k = f_t * f_{t-1} * ... * f_{k+1}, and by nothing
where they are 1 (Hochreiter & Schmidhuber, 1997; Gers et al., 2000).

All gradients are exact, by autograd through the readable step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev

from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.models.recurrence.cells import Cell
from captioner.models.recurrence.unroll import Recurrence

STATES = {"h": "cell.hidden", "C": "cell.memory"}


@dataclass(frozen=True)
class GradientFlow:
    """Norms of gradients, means over captions.

    Attributes:
        norms: for "h", and "C" in an LSTM: [T + 1, T + 1], row t, column k; NaN where k > t, and in
            row 0. Step 0 reads X_0, step t gives word t.
        image: |dL_t / dX_0| (or with respect to what else the decoder reads of the image), [T + 1];
            NaN at step 0.
        forget: the product of forget gates from k + 1 to t, a mean over units, [T + 1, T + 1]; None
            without forget gates.
        counts: how many captions have each step, [T + 1].
    """

    norms: dict[str, np.ndarray]
    image: np.ndarray
    forget: np.ndarray | None
    counts: np.ndarray

    def by_distance(self, state: str) -> np.ndarray:
        """The mean norm for each distance t - k, relative to that at distance 0: [T + 1].

        Args:
            state: "h" or "C"; or "f": the product of forget gates, where there are any.
        """
        norms = self.forget if state == "f" else self.norms[state]
        if norms is None:
            raise ValueError("this cell has no forget gate, so no product of forget gates")
        steps = len(norms)
        means = np.full(steps, np.nan)
        for distance in range(steps):
            pairs = [(t, t - distance) for t in range(1, steps) if t - distance >= 0]
            values = np.array([norms[pair] for pair in pairs if not np.isnan(norms[pair])])
            if len(values):
                means[distance] = values.mean()
        return means / means[0]


def gradient_flow(
    decoder: Decoder, features: Features, inputs: Tensor, targets: Tensor, *, ignored: int
) -> GradientFlow:
    """Measure how far gradients reach.

    Args:
        decoder: recurrent, in evaluation mode.
        features: of B images.
        inputs: what it reads, <start> first: [B, T].
        targets: the next tokens, [B, T].
        ignored: the target of padding.

    Raises:
        ValueError: a decoder without a recurrent cell.
    """
    kept: list[dict[str, Tensor]] = [{}]

    def keep(site: str, value: Tensor, layer: int | None = None) -> Tensor:
        if not value.requires_grad:
            value = value.detach().requires_grad_(True)
        kept[-1][f"{site}/{layer or 0}"] = value
        return value

    losses: list[Tensor] = []
    with torch.enable_grad():
        state = decoder.start(features, keep)
        _add_initial(kept[0], state)
        for tokens, wanted in zip(inputs.T, targets.T):
            kept.append({})
            logits, state = decoder.step(tokens, state, keep)
            exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = torch.nn.functional.cross_entropy(
                exact, wanted, ignore_index=ignored, reduction="none"
            )
            losses.append(loss)  # [B]
    return _flow(kept, losses, targets != ignored)


def _add_initial(kept: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """The state before <start> where no step computed it."""
    for name, site in (("h", "cell.hidden"), ("c", "cell.memory")):
        if name in state and state[name].requires_grad:
            kept.setdefault(f"{site}/{state[name].shape[1] - 1}", state[name])


def _flow(kept: list[dict[str, Tensor]], losses: list[Tensor], real: Tensor) -> GradientFlow:
    steps = len(losses) + 1
    last = max((name for name in kept[1] if name.startswith("cell.hidden")), default=None)
    if last is None:
        raise ValueError("this decoder has no recurrent cell, so no h and C to follow")
    layer = last.rpartition("/")[2]
    names = {
        letter: f"{site}/{layer}" for letter, site in STATES.items() if f"{site}/{layer}" in kept[1]
    }
    image = next(name for name in kept[0] if name.startswith("image."))
    norms = {letter: np.full((steps, steps), np.nan) for letter in names}
    of_image = np.full(steps, np.nan)
    for t, loss in enumerate(losses, start=1):
        rows = real[:, t - 1]
        places = [(letter, k) for letter in names for k in range(t + 1) if names[letter] in kept[k]]
        wanted = [kept[k][names[letter]] for letter, k in places] + [kept[0][image]]
        gradients = torch.autograd.grad(loss.sum(), wanted, retain_graph=True, allow_unused=True)
        for (letter, k), gradient in zip(places, gradients):
            norms[letter][t, k] = _mean_norm(gradient, rows)
        of_image[t] = _mean_norm(gradients[-1], rows)
    counts = np.concatenate([[len(real)], real.sum(0).cpu().numpy()])
    return GradientFlow(norms, of_image, _forget_products(kept, layer, real), counts)


def _mean_norm(gradient: Tensor | None, rows: Tensor) -> float:
    """The mean norm over the captions that have the step."""
    if gradient is None or not bool(rows.any()):
        return 0.0 if gradient is None else float("nan")
    return float(gradient[rows].flatten(1).norm(dim=1).mean())


def _forget_products(kept: list[dict[str, Tensor]], layer: str, real: Tensor) -> np.ndarray | None:
    name = f"cell.forget_gate/{layer}"
    if name not in kept[1]:
        return None
    steps = len(kept)
    products = np.full((steps, steps), np.nan)
    for t in range(1, steps):
        rows = real[:, t - 1]
        product = torch.ones_like(kept[t][name])
        products[t, t] = 1.0
        for k in range(t - 1, -1, -1):
            product = product * kept[k + 1][name].detach()
            products[t, k] = float(product[rows].mean()) if bool(rows.any()) else float("nan")
    return products


# One step -----------------------------------------------------------------------------------------


def jacobian(cell: Cell, projected: Tensor, state: dict[str, Tensor]) -> Tensor:
    """How the state after one step depends on the state before it.

    Args:
        cell: of one layer.
        projected: its W_x x + b, [gates * H].
        state: before the step, [H] each.

    Returns:
        d(h_t, C_t) / d(h_{t-1}, C_{t-1}), [N, N] with N = H, or 2 H with a memory.
    """
    names = list(cell.state_names)

    def step(vector: Tensor) -> Tensor:
        parts = dict(zip(names, vector.unsqueeze(0).chunk(len(names), dim=1)))
        after = cell.step(cell.gates(projected.unsqueeze(0), parts), parts)
        return torch.cat([after[name][0] for name in names])

    return jacrev(step)(torch.cat([state[name] for name in names])).detach()


def spectrum(cell: Cell, projected: Tensor, state: dict[str, Tensor]) -> np.ndarray:
    """The singular values of ``jacobian``, largest first: below 1, what was stored fades."""
    values = torch.linalg.svdvals(jacobian(cell, projected, state))
    return values.cpu().numpy()


def recurrent_norm(recurrence: Recurrence) -> float:
    """|W_hh| of the last layer, the largest singular value: the factor in the bound of an RNN."""
    cell: Any = recurrence.cells[-1]
    return float(torch.linalg.matrix_norm(cell.of_hidden.weight.detach(), ord=2))
