"""MIMO-UNet for CPUs and laptops: depthwise-separable convolutions and channel attention.

The frame is that of Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring",
ICCV 2021; separable convolutions after Howard et al., "MobileNets", 2017. No weights are published.
Knows tensors only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks.base import Network, Shapes, zero_parameters
from vdeblur.networks.global_mean import GlobalMean
from vdeblur.networks.layers import keep_variance


class SeparableConv(nn.Sequential):
    """A convolution of each channel by itself, then a 1×1 convolution over the channels.

    (N, in, H, W) → (N, out, H/stride, W/stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        relu: bool = True,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels,
                in_channels,
                kernel,
                stride=stride,
                padding=kernel // 2,
                groups=in_channels,
                bias=False,  # the next one's adds the same
            ),
            nn.Conv2d(in_channels, out_channels, 1),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class SeparableBlock(nn.Module):
    """A residual block: 5×5 depthwise, 1×1, ReLU, 1×1: (N, C, H, W) → the same shape.

    It reaches as far as MIMO-UNet's two 3×3 convolutions. On a CPU it takes as long as two 3×3
    depthwise ones with their 1×1s, and is a layer shorter.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = SeparableConv(channels, channels, kernel=5)
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.last(self.first(x)) + x
        return out


class AttentiveFusion(nn.Module):
    """FAM: features of two neighbouring scales, concatenated, their channels weighed, then mixed.

    The weights come from the means of all channels of both (squeeze and excitation, Hu et al.,
    CVPR 2018), where MIMO-UNet multiplies the two pixel by pixel (equation 2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        both, hidden = 2 * channels, max(channels // 4, 4)
        self.mean = GlobalMean()
        self.weigh = nn.Sequential(
            nn.Conv2d(both, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, both, 1),
            nn.Sigmoid(),
        )
        self.mix = nn.Conv2d(both, channels, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Two (N, C, H, W) → (N, C, H, W)."""
        both = torch.cat([one, other], dim=1)
        out: Tensor = self.mix(both * self.weigh(self.mean(both)))
        return out


class MIMOUNetLite(Network):
    """A U-Net over three scales, each with an input image and an output image.

    base: channels at the finest scale, doubled at each halving. blocks: residual blocks per stage.
    unshuffle: the image is rearranged to 1/unshuffle of its size with unshuffle² times the channels
    first (Shi et al., CVPR 2016, run backwards), which makes the network unshuffle² times cheaper.
    """

    tile_margin = 32

    def __init__(self, *, base: int = 32, blocks: int = 4, unshuffle: int = 4) -> None:
        super().__init__()
        if min(base, blocks, unshuffle) < 1:
            raise ValueError(
                f"base {base}, blocks {blocks}, unshuffle {unshuffle}: at least 1 each"
            )
        image = 3 * unshuffle * unshuffle
        self.base, self.blocks, self.unshuffle = base, blocks, unshuffle
        self.config = {"base": base, "blocks": blocks, "unshuffle": unshuffle}
        # Every list runs from the finest scale to the coarsest.
        widths = [base, 2 * base, 4 * base]

        def stage(width: int) -> nn.Sequential:
            return nn.Sequential(*(SeparableBlock(width) for _ in range(blocks)))

        self.shallow = nn.ModuleList(
            nn.Sequential(SeparableConv(image, c), SeparableConv(c, c, relu=False)) for c in widths
        )
        self.down = nn.ModuleList(SeparableConv(c, 2 * c, stride=2) for c in widths[:-1])
        self.fuse = nn.ModuleList(AttentiveFusion(c) for c in widths[1:])
        self.encoder = nn.ModuleList(stage(c) for c in widths)
        self.up = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in widths[:-1])
        self.join = nn.ModuleList(AttentiveFusion(c) for c in widths[:-1])
        self.decoder = nn.ModuleList(stage(c) for c in widths)
        self.heads = nn.ModuleList(SeparableConv(c, image, relu=False) for c in widths)
        keep_variance(self, SeparableBlock)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return 4 * self.unshuffle

    @property
    def receptive_radius(self) -> int | None:
        """None: channel attention sees the whole picture."""
        return None

    @property
    def activations_per_pixel(self) -> int:
        """Values alive at once in an inference pass, per input pixel.

        Peak resident memory of fp32 passes at 720p on a CPU, rounded up.
        """
        return 13 * self.base // self.unshuffle**2 + 12

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the same shape, restored; not clamped."""
        return x + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """forward(x) − x, as computed before x is added: half precision then rounds no picture.

        (N, 3, H, W) → the same shape; about 0.
        """
        return self._head(self._features(_pyramid(x)), 0)

    def forward_scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) → restored images at 1/4, 1/2 and full size, as training compares them."""
        images = _pyramid(x)
        features = self._features(images)
        full, half, quarter = (images[s] + self._head(features, s) for s in range(3))
        return quarter, half, full

    def start_as_identity(self) -> None:
        """Zero the output heads: an untrained network then returns its input."""
        # Their last convolutions only: behind a depthwise one of zeros too, no gradient would pass.
        for head in self.heads:
            assert isinstance(head, SeparableConv)
            zero_parameters(head[1])

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Width and rearrangement from the first 1×1 convolution, depth by counting the blocks."""
        first = shapes.get("shallow.0.0.1.weight", ())
        blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.0.")}
        if len(first) != 4 or not blocks or "join.0.mix.weight" not in shapes:
            return None
        return {
            "base": first[0],
            "blocks": len(blocks),
            "unshuffle": max(math.isqrt(first[1] // 3), 1),
        }

    def _head(self, features: list[Tensor], scale: int) -> Tensor:
        delta: Tensor = self.heads[scale](features[scale])
        return F.pixel_shuffle(delta, self.unshuffle) if self.unshuffle > 1 else delta

    def _features(self, images: list[Tensor]) -> list[Tensor]:
        """What the heads see, from the finest scale to the coarsest."""
        if self.unshuffle > 1:
            images = [F.pixel_unshuffle(image, self.unshuffle) for image in images]
        shallow = [self.shallow[s](images[s]) for s in range(3)]
        encoded = [self.encoder[0](shallow[0])]
        for s in (1, 2):
            deep = self.down[s - 1](encoded[-1])
            encoded.append(self.encoder[s](self.fuse[s - 1](deep, shallow[s])))
        decoded = [self.decoder[2](encoded[2])]
        for s in (1, 0):
            # The 1×1 convolution goes before the doubling, where it costs a quarter.
            deep = F.interpolate(self.up[s](decoded[0]), scale_factor=2.0)
            decoded.insert(0, self.decoder[s](self.join[s](deep, encoded[s])))
        return decoded


def _pyramid(x: Tensor) -> list[Tensor]:
    """(N, 3, H, W) → itself, its half and its quarter, each pixel the mean of four."""
    half = F.avg_pool2d(x, 2)
    return [x, half, F.avg_pool2d(half, 2)]
