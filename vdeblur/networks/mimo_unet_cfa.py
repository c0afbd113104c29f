"""MIMO-UNet with cross-scale feature aggregation, for any number of scales.

Follows Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021; each
part states how it differs. No weights are published. Knows tensors only.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks.base import Network, Shapes, zero_parameters
from vdeblur.networks.global_mean import GlobalMean
from vdeblur.networks.layers import BasicConv, keep_variance


class ChannelNorm(nn.Module):
    """Layer normalization over the channels of each pixel: (N, C, H, W) → the same shape.

    As in NAFNet (Chen et al., ECCV 2022). Each pixel is normalized independently, so that a tile
    gives the same result as the whole picture (instance normalization would not), and training does
    not depend on the batch (batch normalization would).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        # Channels-last memory is (N, H, W, C) already, so nothing is copied.
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return x.permute(0, 3, 1, 2)


class NormBlock(nn.Module):
    """A residual block that normalizes its input: x + conv(ReLU(conv(norm(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = BasicConv(channels, channels, 3)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.last(self.first(self.norm(x))) + x
        return out


class Aggregation(nn.Module):
    """Concatenate features of several scales, resized to one size, and convolve them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            BasicConv(in_channels, out_channels, 1),
            BasicConv(out_channels, out_channels, 3, relu=False),
        )

    def forward(self, *features: Tensor) -> Tensor:
        """Map tensors of one size, with `in_channels` in total, to (N, out, H, W)."""
        out: Tensor = self.conv(torch.cat(features, dim=1))
        return out


class Recalibration(nn.Module):
    """Squeeze and excitation (Hu et al., CVPR 2018): weights channels by all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 4, 4)
        self.mean = GlobalMean()
        self.weigh = nn.Sequential(
            BasicConv(channels, hidden, 1), BasicConv(hidden, channels, 1, relu=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = x * self.weigh(self.mean(x))
        return out


class MIMOUNetCFA(Network):
    """MIMO-UNet+ over `scales` scales with aggregation across them.

    `stages`: "full" is the full-resolution output. "fused" is x + Σ w_s · up(Δ_s), where Δ_s is the
    correction of the head at scale s, enlarged to full size, and the weights w_s sum to 1 at each
    pixel. Corrections are fused rather than images, since an enlarged coarse image is blurred.

    Args:
        base: Channels at full resolution, doubled at each halving.
        blocks: Residual blocks per stage.
        scales: Images of the pyramid, including full size; at least 2.

    Raises:
        ValueError: A number is out of range.
    """

    stages: ClassVar[tuple[str, ...]] = ("full", "fused")
    tile_margin = 64

    def __init__(self, *, base: int = 32, blocks: int = 20, scales: int = 3) -> None:
        super().__init__()
        if base < 1 or blocks < 1:
            raise ValueError(f"base {base} and blocks {blocks} must be at least 1")
        if scales < 2:
            raise ValueError(f"scales {scales}: there is nothing to aggregate below 2")
        self.base, self.blocks, self.scales = base, blocks, scales
        self.config = {"base": base, "blocks": blocks, "scales": scales}
        # All lists run from the finest scale to the coarsest.
        widths = [base << scale for scale in range(scales)]

        def stage(width: int) -> nn.Sequential:
            return nn.Sequential(*(NormBlock(width) for _ in range(blocks)))

        self.entries = nn.ModuleList(
            nn.Sequential(BasicConv(3, c, 3), BasicConv(c, c, 3, relu=False)) for c in widths
        )
        self.down = nn.ModuleList(BasicConv(c, 2 * c, 3, stride=2) for c in widths[:-1])
        # The input of a stage: its own entry, the finer stage (except the first) and the coarser
        # scale (except the last).
        self.aggregate = nn.ModuleList(
            Aggregation(c * (1 + (s > 0)) + 2 * c * (s < scales - 1), c)
            for s, c in enumerate(widths)
        )
        self.encoder = nn.ModuleList(stage(c) for c in widths)
        self.skips = nn.ModuleList(Aggregation(sum(widths), c) for c in widths[:-1])
        self.recalibrate = nn.ModuleList(Recalibration(c) for c in widths[:-1])
        self.links = nn.ModuleList(
            nn.ModuleList(BasicConv(wider, c, 1, relu=False) for wider in widths[s + 1 :])
            for s, c in enumerate(widths[:-1])
        )
        self.merge = nn.ModuleList(
            BasicConv(c * (scales - s), c, 1) for s, c in enumerate(widths[:-1])
        )
        self.decoder = nn.ModuleList(stage(c) for c in widths)
        self.heads = nn.ModuleList(nn.Conv2d(c, 3, 1) for c in widths)
        self.weigh = nn.Conv2d(base, scales, 1)
        keep_variance(self, NormBlock)

    @property
    def size_multiple(self) -> int:
        """Number of pixels that height and width must be multiples of."""
        return 1 << (self.scales - 1)

    @property
    def receptive_radius(self) -> int | None:
        """None, since recalibration depends on the whole picture."""
        return None

    @property
    def activations_per_pixel(self) -> int:
        """Number of values alive at once in an inference pass, per input pixel, rounded up.

        From the peak resident memory of fp32 passes at 720p on a CPU with 2 to 4 scales. The peak
        is where the features of all scales meet at full size.
        """
        return self.base * (2 + (5 << self.scales) // 2) + 24

    def forward(self, x: Tensor) -> Tensor:
        """Restore (N, 3, H, W) RGB in [0, 1]; the result has the same shape and is not clamped."""
        return x + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x, (N, 3, H, W), without adding x first.

        Half precision then does not round the picture itself.
        """
        features = self._features(self._pyramid(x))
        if self.stage == "full":
            full: Tensor = self.heads[0](features[0])
            return full
        return self._fuse(self._corrections(features), features[0])

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return `scales` + 1 restored pictures of (N, 3, H, W): coarse to full size, then fused.

        The last two are full size. A loss over all of them trains both the full-resolution head and
        the weights of the fusion, so that one set of weights serves both stages.
        """
        images = self._pyramid(x)
        features = self._features(images)
        corrections = self._corrections(features)
        restored = [image + delta for image, delta in zip(images, corrections, strict=True)]
        return (*restored[::-1], x + self._fuse(corrections, features[0]))

    def start_as_identity(self) -> None:
        """Zero the output heads, so that the untrained network returns its input."""
        zero_parameters(*self.heads)

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Read base off the first convolution, and count blocks and heads (scales)."""
        first = shapes.get("entries.0.0.main.0.weight", ())
        blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.0.")}
        scales = {name.split(".")[1] for name in shapes if name.startswith("heads.")}
        if len(first) != 4 or not blocks or len(scales) < 2 or "weigh.weight" not in shapes:
            return None
        return {"base": first[0], "blocks": len(blocks), "scales": len(scales)}

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        # At one half the bicubic kernel is (−3, 19, 19, −3) / 32 (a = −0.75), low-pass enough to do
        # without antialiasing, which needs ONNX opset 18.
        images = [x]
        for _ in range(self.scales - 1):
            images.append(
                F.interpolate(images[-1], scale_factor=0.5, mode="bicubic", align_corners=False)
            )
        return images

    def _features(self, images: list[Tensor]) -> list[Tensor]:
        """Return the inputs of the heads, from the finest scale to the coarsest."""
        scales = range(self.scales)
        entries = [self.entries[s](images[s]) for s in scales]
        encoded: list[Tensor] = []
        for s in scales:
            seen = [entries[s]]
            if s > 0:
                seen.append(self.down[s - 1](encoded[-1]))
            if s < self.scales - 1:
                seen.append(_resize(entries[s + 1], 1))
            encoded.append(self.encoder[s](self.aggregate[s](*seen)))
        decoded = [self.decoder[-1](encoded[-1])]
        for s in scales[-2::-1]:
            # The AFF of equation 3 over all scales, recalibrated; then all coarser decoder stages.
            skip = self.skips[s](*(_resize(encoded[t], t - s) for t in scales))
            seen = [self.recalibrate[s](skip)]
            for link, coarser in enumerate(decoded):
                # The 1×1 convolution precedes the resizing, where it costs a quarter.
                seen.append(_resize(self.links[s][link](coarser), link + 1))  # type: ignore[index]
            decoded.insert(0, self.decoder[s](self.merge[s](torch.cat(seen, dim=1))))
        return decoded

    def _corrections(self, features: list[Tensor]) -> list[Tensor]:
        return [head(seen) for head, seen in zip(self.heads, features, strict=True)]

    def _fuse(self, corrections: list[Tensor], finest: Tensor) -> Tensor:
        weights = self.weigh(finest).softmax(dim=1)
        fused: Tensor = weights[:, :1] * corrections[0]
        for s, delta in enumerate(corrections[1:], start=1):
            delta = F.interpolate(
                delta, scale_factor=float(1 << s), mode="bicubic", align_corners=False
            )
            fused = fused + weights[:, s : s + 1] * delta
        return fused


def _resize(features: Tensor, doublings: int) -> Tensor:
    """Scale (N, C, H, W) by 2^doublings: bilinear enlargement, reduction to means."""
    if doublings == 0:
        return features
    if doublings < 0:
        return F.avg_pool2d(features, 1 << -doublings)
    return F.interpolate(
        features, scale_factor=float(1 << doublings), mode="bilinear", align_corners=False
    )
