"""How decoders read the features of an image: standardized, and the grid projected.

Standardization needs statistics of training images, which ``fit`` computes once before training;
the projection learns. What does not learn need not be computed in every epoch: ``whitening_of``
gives the part that a cache of features may compute once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.models.matmul import Linear

POSITIONS = 20_000
"""The number of positions of training images for the statistics: their error is below 1 %."""


class Standardize(nn.Module):
    """Gives features mean 0 and variance 1, by dimension or by principal component.

        x -> (x - μ) / σ            each of the D dimensions by itself
        x -> (x - μ) V / sqrt(λ)    λ, V: the K largest eigenvalues of the covariance, whitening

    Encoders differ widely in scale; where features are small, X_0 would at first have little
    influence compared with the words. The statistics are those of training images (``fit``) and do
    not learn. Features of K < D dimensions are principal components already and stay as they are.

    Modules name it ``standardise``: attribute names are keys of checkpoints and stay.

    Args:
        feature_size: D.
        components: K, at most D; None: the dimensions stay.
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
        """Compute the statistics from features [n, D] of training images."""
        features = features.double()
        centered = features - features.mean(0)
        self.mean.copy_(features.mean(0))
        if self.whitens:
            values, vectors = torch.linalg.eigh(centered.T @ centered / len(features))  # ascending
            values, vectors = values[-self.width :], vectors[:, -self.width :]
            self.scale.copy_(vectors / values.clamp_min(1e-4 * values[-1] + 1e-12).sqrt())
        else:
            variance = centered.square().mean(0)
            self.scale.copy_((variance + 1e-4 * variance.mean() + 1e-12).rsqrt())

    def forward(self, features: Tensor) -> Tensor:
        """Standardize features: [..., D] -> [..., K], or [..., D]; and [..., K] -> [..., K]."""
        if features.shape[-1] == self.width < len(self.mean):
            return features
        if self.whitens:
            return (features - self.mean) @ self.scale
        return torch.addcmul(-self.mean * self.scale, features, self.scale)  # in one pass


class Positions(nn.Module):
    """The values that a decoder attends to: v_i = W a_i + b for each position of the grid.

    The a_i are standardized. Projected once per image, the values have the decoder's width; since
    the decoder multiplies a context by matrices anyway, W costs no expressive power except rank.

    Args:
        feature_size: D.
        components: K, to reduce each position to its principal components (``Standardize``).
        size: W, width of a value.
        grid: False: the pooled feature is the only position.
        dropout: share of the W dimensions that are dropped from all values of an image during
            training, [0, 1).
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
        self.standardise = Standardize(feature_size, components)
        self.project = Linear(self.standardise.width, size)
        self.dropout = nn.Dropout(dropout)

    def read(self, features: Features) -> Tensor:
        """The unprojected positions, [B, P, D].

        Raises:
            ValueError: features without a grid.
        """
        if not self.grid:
            return features.pooled.unsqueeze(1)  # [B, 1, D]
        if features.grid is None:
            raise ValueError("this decoder attends to a grid, and these features have none")
        return features.grid

    def fit(self, features: Features) -> None:
        """Compute the statistics from positions of training images, evenly spaced among them."""
        positions = self.read(features).flatten(0, 1)  # [B * P, D]
        self.standardise.fit(positions[:: -(-len(positions) // POSITIONS)])

    def forward(self, features: Features) -> Tensor:
        """Values [B, P, W] of images."""
        values = self.project(self.standardise(self.read(features)))
        if not self.training:
            return values
        return values * self.dropout(values.new_ones(len(values), 1, values.shape[2]))


def whitening_of(decoder: Decoder) -> Standardize | None:
    """The part of a decoder that reduces grids to half their width or less before any learning."""
    for part in decoder.modules():
        if isinstance(part, Positions) and part.grid:
            standardize = part.standardise
            return standardize if 2 * standardize.width <= len(standardize.mean) else None
    return None


def with_image(rows: Tensor, image: Tensor) -> Tensor:
    """Add to each row [R, W] the vector of its image [B, W]; K = R / B consecutive rows each."""
    return (rows.unflatten(0, (len(image), -1)) + image.unsqueeze(1)).flatten(0, 1)
