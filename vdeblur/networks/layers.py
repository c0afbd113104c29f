"""Blocks shared by the network families. Knows tensors only.

Submodule names (`main`, `layers`, `merge`, `conv`) are those of the published checkpoints, so that
their state dicts load as they are; `tests/networks/test_parity.py` holds the outputs to the
originals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BasicConv(nn.Module):
    """A convolution or transposed convolution, then ReLU.

    (N, in, H, W) → (N, out, H/stride, W/stride), or transposed (N, out, H·stride, W·stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        relu: bool = True,
        transpose: bool = False,
    ) -> None:
        super().__init__()
        if transpose:
            # A 4×4 stride-2 transposed convolution doubles the size exactly with padding 1.
            conv: nn.Module = nn.ConvTranspose2d(
                in_channels, out_channels, kernel, stride=stride, padding=kernel // 2 - 1
            )
        else:
            conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
        self.main = nn.Sequential(conv, nn.ReLU(inplace=True)) if relu else nn.Sequential(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H', W')."""
        out: Tensor = self.main(x)
        return out


class ResBlock(nn.Module):
    """Two 3×3 convolutions and a skip: (N, C, H, W) → the same shape.

    hidden: channels between the two, where pruning has left fewer than C.
    """

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = channels if hidden is None else hidden
        self.main = nn.Sequential(
            BasicConv(channels, hidden, 3), BasicConv(hidden, channels, 3, relu=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.main(x) + x
        return out


class ResStage(nn.Module):
    """`blocks` residual blocks in a row: the EBlock and the DBlock of MIMO-UNet.

    hidden: the inner width of each block, where it is not `channels`.
    """

    def __init__(self, channels: int, blocks: int, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        widths = [channels] * blocks if hidden is None else hidden
        self.layers = nn.Sequential(*(ResBlock(channels, width) for width in widths))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.layers(x)
        return out


class ShallowConv(nn.Module):
    """SCM: features of a downsampled input image, concatenated with that image (section 3.1)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.main = nn.Sequential(
            BasicConv(in_channels, quarter, 3),
            BasicConv(quarter, half, 1),
            BasicConv(half, half, 3),
            BasicConv(half, out_channels - in_channels, 1),
        )
        self.conv = BasicConv(out_channels, out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) → (N, out, H, W)."""
        out: Tensor = self.conv(torch.cat([x, self.main(x)], dim=1))
        return out


class FeatureAttention(nn.Module):
    """FAM: encoder features weighed by the shallow features of the same scale (equation 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.merge = BasicConv(channels, channels, 3, relu=False)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Two (N, C, H, W) → (N, C, H, W)."""
        out: Tensor = deep + self.merge(deep * shallow)
        return out


class AsymmetricFusion(nn.Module):
    """AFF: the features of all encoder scales, resized to one, fused (equation 3)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            BasicConv(in_channels, out_channels, 1),
            BasicConv(out_channels, out_channels, 3, relu=False),
        )

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Three tensors of one size, `in_channels` together → (N, out, H, W)."""
        out: Tensor = self.conv(torch.cat([fine, middle, coarse], dim=1))
        return out


def keep_variance(network: nn.Module, block: type[nn.Module]) -> None:
    """Initialize a network's convolutions so that features keep their variance.

    See He et al., ICCV 2015. With PyTorch's default each convolution shrinks the variance
    threefold, so that little of the picture reaches the heads of a deep network, and training
    stalls at first.

    Args:
        network: the network.
        block: class of its residual blocks, whose convolution `last` is scaled so that each adds
            little at first.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in network.modules():
        if isinstance(layer, block):
            with torch.no_grad():
                layer.get_parameter("last.weight").mul_(0.3)
