"""MPRNet: multi-stage progressive restoration, two U-Nets on patches and a full-resolution stage.

Architecture: Zamir, Arora, Khan, Hayat, Khan, Yang, Shao, "Multi-Stage Progressive Image
Restoration", CVPR 2021. Parameter names follow the published checkpoints. Knows tensors only.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vdeblur.networks.base import Network, Shapes, zero_parameters
from vdeblur.networks.global_mean import GlobalMean

Levels = list[Tensor]  # features at full, half and quarter size


def _conv(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Conv2d:
    """Build a convolution that keeps the size; no convolution of this network has a bias."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)


def _halves(x: Tensor, dim: int) -> list[Tensor]:
    """Split (…, 2d, …) into two of (…, d, …)."""
    # Not chunk(2), since exporters cannot tell the number of its parts for a dynamic size.
    half = x.shape[dim] // 2
    return [x.narrow(dim, 0, half), x.narrow(dim, half, half)]


class _ChannelAttention(nn.Module):
    """Compute a weight for each channel from the means of all channels (figure 3b)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.mean = GlobalMean()
        self.conv_du = nn.Sequential(
            _conv(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            _conv(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the weights of the channels of (N, C, H, W): (N, C, 1, 1), from 0 to 1."""
        out: Tensor = self.conv_du(self.mean(x))
        return out


class _AttentionBlock(nn.Module):
    """CAB: two convolutions, channel attention and a skip connection (figure 3b)."""

    def __init__(self, channels: int, reduction: int, slope: nn.PReLU) -> None:
        super().__init__()
        self.CA = _ChannelAttention(channels, reduction)
        self.body = nn.Sequential(_conv(channels, channels), slope, _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        body = self.body(x)
        return torch.addcmul(x, body, self.CA(body))


class _Halve(nn.Module):
    """Halve the size, then change the channels: (N, in, H, W) → (N, out, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # For even sizes, exactly bilinear halving.
        self.down = nn.Sequential(nn.AvgPool2d(2), _conv(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(x)
        return out


class _Double(nn.Module):
    """Double the size and change the channels: (N, in, H, W) → (N, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False),
            _conv(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        # Published in the opposite order. The two commute, and this order costs a quarter.
        out: Tensor = self.up[0](self.up[1](x))
        return out


class _Encoder(nn.Module):
    """Three levels; `fusion` adds the features of the previous stage (CSFF, section 3.2)."""

    def __init__(
        self, widths: tuple[int, int, int], reduction: int, slope: nn.PReLU, *, fusion: bool
    ) -> None:
        super().__init__()

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(_AttentionBlock(width, reduction, slope) for _ in range(2)))

        one, two, three = widths
        self.encoder_level1, self.encoder_level2 = level(one), level(two)
        self.encoder_level3 = level(three)
        self.down12, self.down23 = _Halve(one, two), _Halve(two, three)
        if fusion:
            self.csff_enc1, self.csff_dec1 = _conv(one, one, 1), _conv(one, one, 1)
            self.csff_enc2, self.csff_dec2 = _conv(two, two, 1), _conv(two, two, 1)
            self.csff_enc3, self.csff_dec3 = _conv(three, three, 1), _conv(three, three, 1)

    def forward(self, x: Tensor, before: tuple[Levels, Levels] | None = None) -> Levels:
        """Encode (N, C, H, W); `before` are the features of the previous encoder and decoder."""
        one = self.encoder_level1(x)
        if before is not None:
            one = one + self.csff_enc1(before[0][0]) + self.csff_dec1(before[1][0])
        two = self.encoder_level2(self.down12(one))
        if before is not None:
            two = two + self.csff_enc2(before[0][1]) + self.csff_dec2(before[1][1])
        three = self.encoder_level3(self.down23(two))
        if before is not None:
            three = three + self.csff_enc3(before[0][2]) + self.csff_dec3(before[1][2])
        return [one, two, three]


class _Decoder(nn.Module):
    """Three levels; skip connections pass a channel attention block (section 3.1)."""

    def __init__(self, widths: tuple[int, int, int], reduction: int, slope: nn.PReLU) -> None:
        super().__init__()

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(_AttentionBlock(width, reduction, slope) for _ in range(2)))

        one, two, three = widths
        self.decoder_level1, self.decoder_level2 = level(one), level(two)
        self.decoder_level3 = level(three)
        self.skip_attn1 = _AttentionBlock(one, reduction, slope)
        self.skip_attn2 = _AttentionBlock(two, reduction, slope)
        self.up21, self.up32 = _Double(two, one), _Double(three, two)

    def forward(self, encoded: Levels) -> Levels:
        """Decode the features of the encoder into features of the same shapes."""
        three = self.decoder_level3(encoded[2])
        two = self.decoder_level2(self.up32(three) + self.skip_attn2(encoded[1]))
        one = self.decoder_level1(self.up21(two) + self.skip_attn1(encoded[0]))
        return [one, two, three]


class _SupervisedAttention(nn.Module):
    """SAM: weights the features of a stage by its image, for the next stage (section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 1)
        self.conv2 = _conv(channels, 3, 1)
        self.conv3 = _conv(3, channels, 1)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Weight features (N, C, H, W) by the restored image of the stage, (N, 3, H, W)."""
        return torch.addcmul(x, self.conv1(x), torch.sigmoid(self.conv3(image)))


class _OriginalResolutionBlock(nn.Module):
    """ORB: channel attention blocks, a convolution and a skip connection (section 3.1)."""

    def __init__(self, channels: int, reduction: int, slope: nn.PReLU, blocks: int) -> None:
        super().__init__()
        layers = [_AttentionBlock(channels, reduction, slope) for _ in range(blocks)]
        self.body = nn.Sequential(*layers, _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + x
        return out


class _OriginalResolution(nn.Module):
    """ORSNet: three blocks at full size; after each, a level of stage 2 is added."""

    def __init__(
        self,
        channels: int,
        widths: tuple[int, int, int],
        reduction: int,
        slope: nn.PReLU,
        blocks: int,
    ) -> None:
        super().__init__()

        def block() -> _OriginalResolutionBlock:
            return _OriginalResolutionBlock(channels, reduction, slope, blocks)

        def far() -> nn.Sequential:
            return nn.Sequential(_Double(three, two), _Double(two, one))

        one, two, three = widths
        self.orb1, self.orb2, self.orb3 = block(), block(), block()
        self.up_enc1, self.up_dec1 = _Double(two, one), _Double(two, one)
        self.up_enc2, self.up_dec2 = far(), far()
        self.conv_enc1, self.conv_dec1 = _conv(one, channels, 1), _conv(one, channels, 1)
        self.conv_enc2, self.conv_dec2 = _conv(one, channels, 1), _conv(one, channels, 1)
        self.conv_enc3, self.conv_dec3 = _conv(one, channels, 1), _conv(one, channels, 1)

    def forward(self, x: Tensor, encoded: Levels, decoded: Levels) -> Tensor:
        """Process (N, C, H, W) with the features of the encoder and decoder of stage 2."""
        x = self.orb1(x)
        x = x + self.conv_enc1(encoded[0]) + self.conv_dec1(decoded[0])
        x = self.orb2(x)
        x = x + self.conv_enc2(self.up_enc1(encoded[1])) + self.conv_dec2(self.up_dec1(decoded[1]))
        x = self.orb3(x)
        x = x + self.conv_enc3(self.up_enc2(encoded[2])) + self.conv_dec3(self.up_dec2(decoded[2]))
        return x


class MPRNet(Network):
    """MPRNet of any width and depth; the defaults are the published deblurring network.

    Stage 1 processes four patches and stage 2 two, as published. The middle rows and columns of the
    picture are edges to them, and their channel means are those of a patch. Within `share_means`
    the input is a tile and is not split again, or seams would show in the middle of each tile.
    Tiles then differ from the whole picture mostly along the middle of the picture.

    Args:
        n_feat: Channels at full resolution.
        scale_unetfeats: Channels added per level of the U-Nets.
        scale_orsnetfeats: Channels added in the last stage.
        num_cab: Attention blocks in each of the three parts of the last stage.
        reduction: Factor by which channel attention reduces the channels.

    Raises:
        ValueError: `reduction` or `num_cab` is out of range.
    """

    stages = ("3", "2", "1")
    tile_margin = 64

    def __init__(
        self,
        *,
        n_feat: int = 96,
        scale_unetfeats: int = 48,
        scale_orsnetfeats: int = 32,
        num_cab: int = 8,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= n_feat:
            raise ValueError(f"reduction {reduction} leaves no channel of {n_feat}")
        if num_cab < 1:
            raise ValueError(f"num_cab {num_cab} must be 1 or more")
        self.config = {
            "n_feat": n_feat,
            "scale_unetfeats": scale_unetfeats,
            "scale_orsnetfeats": scale_orsnetfeats,
            "num_cab": num_cab,
            "reduction": reduction,
        }
        slope = nn.PReLU()  # a single parameter, shared by all blocks
        widths = (n_feat, n_feat + scale_unetfeats, n_feat + 2 * scale_unetfeats)
        last = n_feat + scale_orsnetfeats

        def shallow() -> nn.Sequential:
            return nn.Sequential(_conv(3, n_feat), _AttentionBlock(n_feat, reduction, slope))

        self.shallow_feat1, self.shallow_feat2, self.shallow_feat3 = shallow(), shallow(), shallow()
        self.stage1_encoder = _Encoder(widths, reduction, slope, fusion=False)
        self.stage1_decoder = _Decoder(widths, reduction, slope)
        self.stage2_encoder = _Encoder(widths, reduction, slope, fusion=True)
        self.stage2_decoder = _Decoder(widths, reduction, slope)
        self.stage3_orsnet = _OriginalResolution(last, widths, reduction, slope, num_cab)
        self.sam12, self.sam23 = _SupervisedAttention(n_feat), _SupervisedAttention(n_feat)
        self.concat12 = _conv(2 * n_feat, n_feat)
        self.concat23 = _conv(2 * n_feat, last)
        self.tail = _conv(last, 3)

    @property
    def size_multiple(self) -> int:
        """Divisor of height and width: two patches per side, each halved twice."""
        return 8

    @property
    def receptive_radius(self) -> None:
        """None, since channel attention depends on the whole picture."""
        return None

    @property
    def activations_per_pixel(self) -> int:
        """Number of values alive at once in a forward pass, per input pixel, rounded up.

        From the growth of a CPU process in a float32 pass of 768×640: 1015 for the published width.
        """
        return 9 * (int(self.config["n_feat"]) + int(self.config["scale_orsnetfeats"]))

    def forward(self, x: Tensor) -> Tensor:
        """Restore (N, 3, H, W) RGB in [0, 1] by the stages up to `stage`; not clamped."""
        return x + self._residuals(x)[-1]

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x, (N, 3, H, W), without adding x first.

        Half precision then does not round the picture itself.
        """
        return self._residuals(x)[-1]

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the restored pictures of stage 1 up to `stage`, each (N, 3, H, W)."""
        return tuple(x + residual for residual in self._residuals(x))

    def start_as_identity(self) -> None:
        """Zero the three output layers, so that the untrained network returns its input."""
        zero_parameters(self.sam12.conv2, self.sam23.conv2, self.tail)

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Read the widths off the first layers of each part, and count the blocks."""
        first = shapes.get("shallow_feat1.1.CA.conv_du.0.weight", ())
        down = shapes.get("stage1_encoder.down12.down.1.weight", ())
        tail = shapes.get("tail.weight", ())
        orb = "stage3_orsnet.orb1.body."
        blocks = {name.split(".")[3] for name in shapes if name.startswith(orb) and ".CA." in name}
        if not (len(first) == len(down) == len(tail) == 4 and first[0] > 0):
            return None
        n_feat = first[1]
        return {
            "n_feat": n_feat,
            "scale_unetfeats": down[0] - n_feat,
            "scale_orsnetfeats": tail[1] - n_feat,
            "num_cab": len(blocks),
            "reduction": n_feat // first[0],
        }

    def _residuals(self, x: Tensor) -> list[Tensor]:
        """Return the corrections of the stages up to the chosen one; later ones are not run."""
        last = int(self.stage)
        # A tile is a patch already; split again, it would have an edge in its middle.
        patches = not cast("_AttentionBlock", self.shallow_feat1[1]).CA.mean.shared

        # Patches form a batch: (N, …) is split into rows (2N, …), and these into columns (4N, …).
        def split(x: Tensor, dim: int) -> Tensor:
            return torch.cat(_halves(x, dim), dim=0) if patches else x

        def merge(x: Tensor, dim: int) -> Tensor:
            return torch.cat(_halves(x, 0), dim=dim) if patches else x

        rows = split(x, 2)
        encoded = self.stage1_encoder(self.shallow_feat1(split(rows, 3)))
        encoded = [merge(level, 3) for level in encoded]
        decoded = self.stage1_decoder(encoded)
        residual = self.sam12.conv2(decoded[0])
        residuals = [merge(residual, 2)]
        if last == 1:
            return residuals

        attended = self.sam12(decoded[0], rows + residual)
        joined = self.concat12(torch.cat([self.shallow_feat2(rows), attended], dim=1))
        encoded = self.stage2_encoder(joined, (encoded, decoded))
        encoded = [merge(level, 2) for level in encoded]
        decoded = self.stage2_decoder(encoded)
        residual = self.sam23.conv2(decoded[0])
        residuals.append(residual)
        if last == 2:
            return residuals

        attended = self.sam23(decoded[0], x + residual)
        joined = self.concat23(torch.cat([self.shallow_feat3(x), attended], dim=1))
        del attended
        residuals.append(self.tail(self.stage3_orsnet(joined, encoded, decoded)))
        return residuals
