"""MIMO-UNet for CPUs and laptops: depthwise-separable convolutions and channel attention.

Follows Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021, with
the separable convolutions of Howard et al., "MobileNets", 2017. No weights are published. Knows
tensors only.
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
    """A depthwise, then a 1×1 convolution: (N, in, H, W) → (N, out, H/stride, W/stride).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the depthwise kernel, odd.
        stride: Stride of the depthwise convolution.
        relu: Whether ReLU follows.
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
                bias=False,  # the bias of the 1×1 convolution has the same effect
            ),
            nn.Conv2d(in_channels, out_channels, 1),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class SeparableBlock(nn.Module):
    """A residual block: 5×5 depthwise, 1×1, ReLU, 1×1: (N, C, H, W) → the same shape.

    It reaches as far as MIMO-UNet's two 3×3 convolutions. On a CPU it takes as long as two 3×3
    separable convolutions, with one layer less.
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
    """FAM: concatenate the features of two adjacent scales, weight their channels, and mix them.

    The weights derive from the means of all channels (squeeze and excitation, Hu et al., CVPR
    2018). MIMO-UNet multiplies the two pixel by pixel instead (equation 2).
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
        """Fuse two tensors of (N, C, H, W) into one."""
        both = torch.cat([one, other], dim=1)
        out: Tensor = self.mix(both * self.weigh(self.mean(both)))
        return out


class MIMOUNetLite(Network):
    """A U-Net over three scales, each with an input image and an output image.

    Args:
        base: Channels at the finest scale, doubled at each halving.
        blocks: Residual blocks per stage.
        unshuffle: Factor by which the image is first reduced in height and width, with unshuffle²
            times the channels (Shi et al., CVPR 2016, in reverse). The network becomes unshuffle²
            times cheaper.

    Raises:
        ValueError: A number is below 1.
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
        # All lists run from the finest scale to the coarsest.
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
        """Number of pixels that height and width must be multiples of."""
        return 4 * self.unshuffle

    @property
    def receptive_radius(self) -> int | None:
        """None, since channel attention depends on the whole picture."""
        return None

    @property
    def activations_per_pixel(self) -> int:
        """Number of values alive at once in an inference pass, per input pixel, rounded up.

        From the peak resident memory of fp32 passes at 720p on a CPU.
        """
        return 13 * self.base // self.unshuffle**2 + 12

    def forward(self, x: Tensor) -> Tensor:
        """Restore (N, 3, H, W) RGB in [0, 1]; the result has the same shape and is not clamped."""
        return x + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x, (N, 3, H, W), without adding x first.

        Half precision then does not round the picture itself.
        """
        return self._head(self._features(_pyramid(x)), 0)

    def forward_scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the restored pictures of (N, 3, H, W) at 1/4, 1/2 and full size, for training."""
        images = _pyramid(x)
        features = self._features(images)
        full, half, quarter = (images[s] + self._head(features, s) for s in range(3))
        return quarter, half, full

    def start_as_identity(self) -> None:
        """Zero the output heads, so that the untrained network returns its input."""
        # Only the last convolution of each: no gradient would pass a depthwise one of zeros, too.
        for head in self.heads:
            assert isinstance(head, SeparableConv)
            zero_parameters(head[1])

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Read base and unshuffle off the first 1×1 convolution, and count the blocks."""
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
        """Return the inputs of the heads, from the finest scale to the coarsest."""
        if self.unshuffle > 1:
            images = [F.pixel_unshuffle(image, self.unshuffle) for image in images]
        shallow = [self.shallow[s](images[s]) for s in range(3)]
        encoded = [self.encoder[0](shallow[0])]
        for s in (1, 2):
            deep = self.down[s - 1](encoded[-1])
            encoded.append(self.encoder[s](self.fuse[s - 1](deep, shallow[s])))
        decoded = [self.decoder[2](encoded[2])]
        for s in (1, 0):
            # The 1×1 convolution precedes the doubling, where it costs a quarter.
            deep = F.interpolate(self.up[s](decoded[0]), scale_factor=2.0)
            decoded.insert(0, self.decoder[s](self.join[s](deep, encoded[s])))
        return decoded


def _pyramid(x: Tensor) -> list[Tensor]:
    """Return (N, 3, H, W), its half and its quarter size, each pixel the mean of four."""
    half = F.avg_pool2d(x, 2)
    return [x, half, F.avg_pool2d(half, 2)]
