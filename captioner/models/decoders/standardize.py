"""What decoders read of an image: its features standardised, and the grid projected.

Standardising needs statistics of training images, which ``fit`` takes once before training; the
projection learns. What does not learn need not be computed in every epoch: ``whitening_of`` says
what a cache of features may compute once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.models.matmul import Linear

POSITIONS = 20_000
"""From how many positions of training images statistics are taken: their error is below 1 %."""


class Standardise(nn.Module):
    """Features with mean 0 and variance 1, by dimension or by principal component.

        x -> (x - μ) / σ            each of the D dimensions by itself
        x -> (x - μ) V / sqrt(λ)    λ, V: the K largest eigenvalues of the covariance, whitening

    Encoders differ widely in scale, and X_0 would be heard late beside the words where the features
    are small. The statistics are those of training images (``fit``) and do not learn. Features of K
    < D dimensions are principal components already and stay as they are.

    Args:
        feature_size: D.
        components: K, at most D; None takes the dimensions as they are.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feature_size: int, components: int | None) -> None:
        super().__init__()
        self.width = feature_size if components is None else min(components, feature_size)
        self.whitens = components is not None
        self.register_buffer("mean", torch.zeros(feature_size))
        scale = torch.eye(feature_size)[:, : self.width] if self.whitens else torch.ones(self.width)
        self.register_buffer("scale", scale.contiguous())  # [D, K], or [D]

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the statistics from features [n, D] of training images."""
        features = features.double()
        centred = features - features.mean(0)
        self.mean.copy_(features.mean(0))
        if self.whitens:
            values, vectors = torch.linalg.eigh(centred.T @ centred / len(features))  # rising
            values, vectors = values[-self.width :], vectors[:, -self.width :]
            self.scale.copy_(vectors / values.clamp_min(1e-4 * values[-1] + 1e-12).sqrt())
        else:
            variance = centred.square().mean(0)
            self.scale.copy_((variance + 1e-4 * variance.mean() + 1e-12).rsqrt())

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features: [..., D] -> [..., K], or [..., D]; and [..., K] -> [..., K]."""
        if features.shape[-1] == self.width < len(self.mean):
            return features
        if self.whitens:
            return (features - self.mean) @ self.scale
        return torch.addcmul(-self.mean * self.scale, features, self.scale)  # once over all of them


class Positions(nn.Module):
    """The values that a decoder attends to: v_i = W a_i + b for each position of the grid.

    The a_i are standardised. Projected once an image, they have the decoder's own width; since W
    stands before whatever the decoder multiplies a context with, nothing is lost but rank.

    Args:
        feature_size: D.
        components: K, to read each position by its principal components (``Standardise``).
        size: W, width of a value.
        grid: False takes the pooled feature as the only position.
        dropout: share of the W dimensions that training drops from all values of an image, [0, 1).
    """

    def __init__(
        self,
        feature_size: int,
        components: int | None,
        size: int,
        *,
        grid: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if components is not None and components < 1:
            raise ValueError(f"decoder.components={components} is not accepted; choose 1 or more")
        self.grid = grid
        self.standardise = Standardise(feature_size, components)
        self.project = Linear(self.standardise.width, size)
        self.dropout = nn.Dropout(dropout)

    def read(self, features: Features) -> Tensor:
        """The positions as the encoder gives them, [B, P, D].

        Raises:
            ValueError: features without a grid.
        """
        if not self.grid:
            return features.pooled.unsqueeze(1)  # [B, 1, D]
        if features.grid is None:
            raise ValueError("this decoder attends to a grid, and these features have none")
        return features.grid

    def fit(self, features: Features) -> None:
        """Take the statistics from positions of training images, spread evenly over them."""
        positions = self.read(features).flatten(0, 1)  # [B * P, D]
        self.standardise.fit(positions[:: -(-len(positions) // POSITIONS)])

    def forward(self, features: Features) -> Tensor:
        """Values [B, P, W] of images."""
        values = self.project(self.standardise(self.read(features)))
        if not self.training:
            return values
        return values * self.dropout(values.new_ones(len(values), 1, values.shape[2]))


def whitening_of(decoder: Decoder) -> Standardise | None:
    """What reduces grids to half their width or less, before whatever of the decoder learns."""
    for part in decoder.modules():
        if isinstance(part, Positions) and part.grid:
            found = part.standardise
            return found if 2 * found.width <= len(found.mean) else None
    return None


def with_image(rows: Tensor, image: Tensor) -> Tensor:
    """Add to rows [R, W] what their images add, [B, W]: K = R / B rows of each, side by side."""
    return (rows.unflatten(0, (len(image), -1)) + image.unsqueeze(1)).flatten(0, 1)
