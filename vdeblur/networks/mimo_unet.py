"""MIMO-UNet: multi-input, multi-output U-Net for single-image deblurring.

Architecture: Cho, Ji, Hong, Jung, Ko, "Rethinking Coarse-to-Fine Approach in Single Image
Deblurring", ICCV 2021. Parameter names follow the published checkpoints. Knows tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks.base import Network, Shapes, zero_parameters
from vdeblur.networks.layers import (
    AsymmetricFusion,
    BasicConv,
    FeatureAttention,
    ResStage,
    ShallowConv,
)


class MIMOUNet(Network):
    """MIMO-UNet of any width and depth.

    Base 32 with 8 blocks is the published MIMO-UNet, with 20 blocks MIMO-UNet+.

    Args:
        base: Channels at full resolution.
        blocks: Residual blocks per stage.
        unshuffle: Factor by which the image is first reduced in height and width, with unshuffle²
            times the channels (Shi et al., CVPR 2016, in reverse). The network becomes unshuffle²
            times cheaper.
        hidden: Channels inside each residual block, for pruned networks
            (`vdeblur.training.pruning`): the encoder's three stages, then the decoder's from coarse
            to fine. None: as many as the stage has.

    Raises:
        ValueError: The image has too many channels for `base`, or a number is out of range.
    """

    size_divisor = 4  # two halvings; times `unshuffle`
    # Better weights use a larger context: with 32 pixels, seams exceeded half an 8-bit level.
    tile_margin = 48

    def __init__(
        self,
        *,
        base: int = 32,
        blocks: int = 8,
        unshuffle: int = 1,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if min(base, blocks, unshuffle) < 1:
            raise ValueError("base, blocks and unshuffle are 1 or more")
        image = 3 * unshuffle * unshuffle
        if base * 2 <= image:
            raise ValueError(f"base {base} is too narrow for {image} image channels")
        self.base, self.blocks, self.unshuffle = base, blocks, unshuffle
        self.config = {"base": base, "blocks": blocks, "unshuffle": unshuffle}
        c1, c2, c4 = base, base * 2, base * 4
        full = [c for c in (c1, c2, c4, c4, c2, c1) for _ in range(blocks)]
        widths = full if hidden is None else [int(width) for width in hidden]
        if len(widths) != len(full) or min(widths) < 1:
            raise ValueError(f"hidden must be {len(full)} widths of 1 or more, got {hidden}")
        if widths != full:
            self.config["hidden"] = widths
        inner = [widths[i : i + blocks] for i in range(0, len(widths), blocks)]
        self.Encoder = nn.ModuleList(
            ResStage(c, blocks, h) for c, h in zip((c1, c2, c4), inner[:3], strict=True)
        )
        self.feat_extract = nn.ModuleList(
            [
                BasicConv(image, c1, 3),
                BasicConv(c1, c2, 3, stride=2),
                BasicConv(c2, c4, 3, stride=2),
                BasicConv(c4, c2, 4, stride=2, transpose=True),
                BasicConv(c2, c1, 4, stride=2, transpose=True),
                BasicConv(c1, image, 3, relu=False),
            ]
        )
        self.Decoder = nn.ModuleList(
            ResStage(c, blocks, h) for c, h in zip((c4, c2, c1), inner[3:], strict=True)
        )
        self.Convs = nn.ModuleList([BasicConv(c4, c2, 1), BasicConv(c2, c1, 1)])
        self.ConvsOut = nn.ModuleList(
            [BasicConv(c4, image, 3, relu=False), BasicConv(c2, image, 3, relu=False)]
        )
        self.AFFs = nn.ModuleList(AsymmetricFusion(c1 + c2 + c4, c) for c in (c1, c2))
        self.FAM1, self.SCM1 = FeatureAttention(c4), ShallowConv(image, c4)
        self.FAM2, self.SCM2 = FeatureAttention(c2), ShallowConv(image, c2)

    @property
    def size_multiple(self) -> int:
        """Number of pixels that height and width must be multiples of."""
        return self.size_divisor * self.unshuffle

    @property
    def receptive_radius(self) -> int:
        """Largest distance, in rows or columns, between an output pixel and input it depends on.

        A residual block reaches 2 pixels at its scale. With scales 1, 2 and 4 in encoder and
        decoder, that is 28 pixels per block; all other layers together reach 17.
        """
        return self.unshuffle * (28 * self.blocks + 17) + self.unshuffle - 1

    @property
    def activations_per_pixel(self) -> int:
        """Values alive at once in a forward pass per input pixel, measured at 720p, rounded up."""
        return 22 * self.base // self.unshuffle**2 + 24

    def forward(self, x: Tensor) -> Tensor:
        """Restore (N, 3, H, W) RGB in [0, 1]; the result has the same shape and is not clamped."""
        return self._run(x, coarse=False)[-1]

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x, (N, 3, H, W), without adding x first.

        Half precision then does not round the picture itself.
        """
        return self._run(x, coarse=False, add_images=False)[-1]

    def forward_scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the restored pictures of (N, 3, H, W) at 1/4, 1/2 and full size, for training."""
        quarter, half, full = self._run(x, coarse=True)
        return quarter, half, full

    def start_as_identity(self) -> None:
        """Zero the output heads, so that the untrained network returns its input."""
        zero_parameters(*self.ConvsOut, self.feat_extract[5])

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Read base and unshuffle off the first convolution, and count the blocks."""
        first = shapes.get("feat_extract.0.main.0.weight", ())
        blocks = {name.split(".")[3] for name in shapes if name.startswith("Encoder.0.layers.")}
        if len(first) != 4 or not blocks or "SCM1.conv.main.0.weight" not in shapes:
            return None
        base, unshuffle = first[0], math.isqrt(first[1] // 3)
        config: dict[str, Any] = {"base": base, "blocks": len(blocks), "unshuffle": unshuffle}
        hidden = [
            shapes.get(f"{side}.{stage}.layers.{block}.main.0.main.0.weight", (0,))[0]
            for side in ("Encoder", "Decoder")
            for stage in range(3)
            for block in range(len(blocks))
        ]
        widths = [base << level for level in (0, 1, 2, 2, 1, 0) for _ in blocks]
        # A missing block means damage, not pruning.
        return config | ({"hidden": hidden} if hidden != widths and all(hidden) else {})

    def _run(self, x: Tensor, *, coarse: bool, add_images: bool = True) -> list[Tensor]:
        # Nearest-neighbor halving, as published.
        images = [x, F.interpolate(x, scale_factor=0.5)]
        images.append(F.interpolate(images[1], scale_factor=0.5))
        if self.unshuffle > 1:
            packed = [F.pixel_unshuffle(image, self.unshuffle) for image in images]
        else:
            packed = images
        outputs: list[Tensor] = []

        def emit(features: Tensor, scale: int) -> None:
            if self.unshuffle > 1:
                features = F.pixel_shuffle(features, self.unshuffle)
            outputs.append(features + images[scale] if add_images else features)

        res1 = self.Encoder[0](self.feat_extract[0](packed[0]))
        z = self.FAM2(self.feat_extract[1](res1), self.SCM2(packed[1]))
        res2 = self.Encoder[1](z)
        z = self.FAM1(self.feat_extract[2](res2), self.SCM1(packed[2]))
        z = self.Encoder[2](z)

        up2 = F.interpolate(z, scale_factor=2.0)
        fused2 = self.AFFs[1](F.interpolate(res1, scale_factor=0.5), res2, up2)
        fused1 = self.AFFs[0](
            res1, F.interpolate(res2, scale_factor=2.0), F.interpolate(up2, scale_factor=2.0)
        )

        z = self.Decoder[0](z)
        if coarse:
            emit(self.ConvsOut[0](z), 2)
        z = self.feat_extract[3](z)
        z = self.Decoder[1](self.Convs[0](torch.cat([z, fused2], dim=1)))
        if coarse:
            emit(self.ConvsOut[1](z), 1)
        z = self.feat_extract[4](z)
        z = self.Decoder[2](self.Convs[1](torch.cat([z, fused1], dim=1)))
        emit(self.feat_extract[5](z), 0)
        return outputs
