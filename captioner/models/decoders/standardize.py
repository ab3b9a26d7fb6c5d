"""Standardization of the features that decoders read, and projection of the grid.

Standardization uses statistics of training images, which ``fit`` computes once before training; the
projection is trained. A part without trained weights need not be computed again in every epoch:
``whitening_of`` returns the part that the feature cache may compute once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.models.decoders.decoder import Decoder
from captioner.models.features import Features
from captioner.models.matmul import Linear

POSITIONS = 20_000
"""Number of positions from which the statistics are computed: their error is below 1 %."""


class Standardize(nn.Module):
    """Standardizes features to mean 0 and variance 1, per dimension or per principal component.

        x -> (x - μ) / σ            each of the D dimensions separately
        x -> (x - μ) V / sqrt(λ)    whitening: λ, V: the largest eigenvalues of the covariance, and
                                    their eigenvectors

    Encoders differ widely in scale; if features are small, X_0 has at first little influence
    compared with the words. The statistics are computed from training images (``fit``) and are not
    trained. Features with fewer than D dimensions are already principal components and are returned
    unchanged.

    Modules call it ``standardise``: attribute names are keys of checkpoints and must not change.

    Args:
        feature_size: D.
        components: number of principal components, at most D; None: no reduction.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feature_size: int, components: int | None) -> None:
        super().__init__()
        self.width = feature_size if components is None else min(components, feature_size)
        self.whitens = components is not None
        self.register_buffer("mean", torch.zeros(feature_size))
        scale = torch.eye(feature_size, self.width) if self.whitens else torch.ones(self.width)
        self.register_buffer("scale", scale)  # [D, components], or [D]

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Compute the statistics from features [..., D] of training images, one per row."""
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
        """Standardize features: [..., D] -> [..., components], or [..., D]."""
        if features.shape[-1] == self.width < len(self.mean):
            return features
        if self.whitens:
            return (features - self.mean) @ self.scale  # [..., components]
        return torch.addcmul(-self.mean * self.scale, features, self.scale)  # [..., D], in one pass


class Positions(nn.Module):
    """The values to which a decoder attends: v_i = W a_i + b for each position of the grid.

    The a_i are standardized. The values are computed once per image and have the decoder's width.
    The decoder multiplies a context by matrices in any case, so W limits only their rank.

    Args:
        feature_size: D.
        components: number of principal components of a position (``Standardize``); None: all D.
        size: width of a value.
        grid: False: the pooled feature is the only position.
        dropout: probability with which a dimension is dropped from all values of an image during
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
            raise ValueError(
                "this decoder attends to a grid, and these features have none; give features with "
                "a grid, or choose decoder=show_tell"
            )
        return features.grid

    def fit(self, features: Features) -> None:
        """Compute the statistics from evenly spaced positions of training images."""
        positions = self.read(features).flatten(0, 1)  # [B * P, D]
        self.standardise.fit(positions[:: -(-len(positions) // POSITIONS)])

    def forward(self, features: Features) -> Tensor:
        """Values [B, P, size] of images."""
        values = self.project(self.standardise(self.read(features)))  # [B, P, size]
        if not self.training:
            return values
        return values * self.dropout(values.new_ones(len(values), 1, values.shape[2]))


def whitening_of(decoder: Decoder) -> Standardize | None:
    """The standardization of a decoder if it reduces grids to half their width or less."""
    for part in decoder.modules():
        if isinstance(part, Positions) and part.grid:
            standardize = part.standardise
            return standardize if 2 * standardize.width <= len(standardize.mean) else None
    return None


def with_image(rows: Tensor, image: Tensor) -> Tensor:
    """Add to each row [R, width] the vector of its image [B, width]; K = R / B rows per image."""
    return (rows.unflatten(0, (len(image), -1)) + image.unsqueeze(1)).flatten(0, 1)  # [R, width]
