"""Rewrite MIMO-UNet in fewer operations for inference: the same function, to rounding.

Features that are concatenated only for a convolution are convolved part by part and added up.
Enlarging by nearest neighbors and a 1×1 convolution commute: a coarse part is convolved while it is
small. Subsampling and a 1×1 convolution are one convolution with a stride. A 3×3 and a 1×1
convolution with nothing between them are one 3×3 convolution. With two blocks a stage, that saves
2.7 % of the multiplications, and the concatenations.

Knows tensors and layers only.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks.layers import AsymmetricFusion, BasicConv
from vdeblur.networks.mimo_unet import MIMOUNet


def rewrite(network: nn.Module) -> nn.Module:
    """Return `network` (for inference) in fewer operations; itself if it is no `MIMOUNet`.

    Weights that may still be trained are left alone: products of them would not follow.
    """
    if type(network) is not MIMOUNet or any(p.requires_grad for p in network.parameters()):
        return network
    return RewrittenMIMOUNet(network).eval().requires_grad_(False)


class AddingConv(nn.Module):
    """A convolution, then the addition of another tensor and ReLU, both optional."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(N, in, H, W) and, added, (N, out, H', W') → (N, out, H', W')."""
        out: Tensor = self.conv(x)
        if plus is not None:
            out = out + plus
        return F.relu(out) if self.relu else out


class RewrittenFusion(nn.Module):
    """AFF and the 1×1 convolution after it, which joins the decoder's features with AFF's.

    Args:
        fusion: AFF.
        join: The 1×1 convolution.
        half: Fused at half size, where the finest features are subsampled and the coarsest
            doubled; else at full size, where the two coarser ones are enlarged.
    """

    def __init__(self, fusion: AsymmetricFusion, join: BasicConv, *, half: bool) -> None:
        super().__init__()
        first, last, joined = (
            cast("nn.Conv2d", cast("BasicConv", layer).main[0])
            for layer in (fusion.conv[0], fusion.conv[1], join)
        )
        total = first.in_channels  # base · (1 + 2 + 4)
        fine, middle = total // 7, total // 7 * 3
        assert first.bias is not None
        self.fine = AddingConv(
            _conv(first.weight[:, :fine], first.bias, stride=2 if half else 1), relu=True
        )
        self.middle = AddingConv(_conv(first.weight[:, fine:middle], None))
        self.coarse = AddingConv(_conv(first.weight[:, middle:], None))
        kept = joined.in_channels - last.out_channels
        self.join = AddingConv(_conv(joined.weight[:, :kept], None), relu=True)
        assert last.bias is not None
        assert joined.bias is not None
        mix = joined.weight[:, kept:, 0, 0].double()
        weight = torch.einsum("oi,ijkl->ojkl", mix, last.weight.double())
        bias = joined.bias.double() + mix @ last.bias.double()
        self.last = AddingConv(_conv(weight, bias))
        self.at_half = half

    def forward(self, deep: Tensor, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """Fuse the decoder's features and the encoder's of full, half and quarter size."""
        if self.at_half:
            rest = self.middle(middle, _doubled(self.coarse(coarse)))
        else:
            rest = _doubled(self.middle(middle, _doubled(self.coarse(coarse))))
        fused = self.fine(fine, rest)
        out: Tensor = self.join(deep, self.last(fused))
        return out


class RewrittenMIMOUNet(nn.Module):
    """The correction of a `MIMOUNet`; shares its layers except those it rewrites."""

    def __init__(self, network: MIMOUNet) -> None:
        super().__init__()
        self.size_multiple, factor = network.size_multiple, network.unshuffle
        self.pack = nn.PixelUnshuffle(factor) if factor > 1 else nn.Identity()
        self.unpack = nn.PixelShuffle(factor) if factor > 1 else nn.Identity()
        self.Encoder, self.Decoder = network.Encoder, network.Decoder
        self.feat_extract = network.feat_extract
        self.FAM1, self.SCM1 = network.FAM1, network.SCM1
        self.FAM2, self.SCM2 = network.FAM2, network.SCM2
        fusions = [cast("AsymmetricFusion", fusion) for fusion in network.AFFs]
        joins = [cast("BasicConv", join) for join in network.Convs]
        self.fuse_full = RewrittenFusion(fusions[0], joins[1], half=False)
        self.fuse_half = RewrittenFusion(fusions[1], joins[0], half=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the same shape, restored; not clamped."""
        return x + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """Return `MIMOUNet.correction(x)`: (N, 3, H, W) → the same shape."""
        res1 = self.Encoder[0](self.feat_extract[0](self.pack(x)))
        z = self.FAM2(self.feat_extract[1](res1), self.SCM2(self.pack(x[..., ::2, ::2])))
        res2 = self.Encoder[1](z)
        z = self.FAM1(self.feat_extract[2](res2), self.SCM1(self.pack(x[..., ::4, ::4])))
        res4 = self.Encoder[2](z)
        z = self.feat_extract[3](self.Decoder[0](res4))
        z = self.feat_extract[4](self.Decoder[1](self.fuse_half(z, res1, res2, res4)))
        z = self.feat_extract[5](self.Decoder[2](self.fuse_full(z, res1, res2, res4)))
        out: Tensor = self.unpack(z)
        return out


def _conv(weight: Tensor, bias: Tensor | None, *, stride: int = 1) -> nn.Conv2d:
    """A convolution with weights (out, in, k, k) that keeps the size, or subsamples by a stride."""
    out, channels, kernel, _ = weight.shape
    conv = nn.Conv2d(
        channels, out, kernel, stride=stride, padding=kernel // 2, bias=bias is not None
    )
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            assert conv.bias is not None
            conv.bias.copy_(bias)
    return conv


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0)
