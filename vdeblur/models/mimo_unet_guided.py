"""A MIMO-UNet that is told how each place moved while the shutter was open.

The frame is that of Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring",
ICCV 2021: an input picture and an output picture at each of three scales. What is new is the
guidance (`vdeblur.models.taps`): samples along the motion go through a bank of filters, at first
Wiener filters for several lengths of blur, and the network decides at each place how much of each
filter's result to take, besides what it adds by itself. Of a film it also sees the frames before
and after, each brought to the places of the one at hand. What does not move is not changed. Knows
tensors only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.models import taps
from vdeblur.models.network import Network, Shapes, zero_parameters

_BANK_LENGTHS = (0.7, 0.85, 1.0, 1.0, 1.0, 1.18, 1.4)
_BANK_NOISES = (1e-3, 1e-3, 2e-4, 1e-3, 1e-2, 1e-3, 1e-3)


#: The share of negative values that activations let through, so that no channel dies.
LEAK = 0.1


#: Pixels of motion: up to the first a place is left as it is, from the second on it is restored.
_STILL, _MOVING = 0.5, 2.0


class GuidedBlock(nn.Module):
    """A residual block of two 3×3 convolutions: (N, C, H, W) → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = x + self.last(F.leaky_relu(self.first(x), LEAK))
        return out


class MIMOUNetGuided(Network):
    """A U-Net over three scales of a 2× pixel-unshuffled picture, guided along the motion.

    widths: channels at the three scales, 1/2, 1/4 and 1/8 of the picture's size. blocks: residual
    blocks at each scale, on the way down and as many on the way up.
    """

    guided = True
    context = 64  # at 44 pixels seams reached 0.6 of a level

    def __init__(
        self,
        *,
        widths: tuple[int, int, int] | list[int] = (16, 40, 80),
        blocks: tuple[int, int, int] | list[int] = (1, 1, 2),
    ) -> None:
        super().__init__()
        if len(widths) != 3 or len(blocks) != 3 or min(*widths, *blocks) < 1:
            raise ValueError("widths and blocks are three numbers each, 1 or more")
        self.widths, self.blocks = list(widths), list(blocks)
        self.config = {"widths": self.widths, "blocks": self.blocks}
        fine, middle, coarse = widths
        filters = len(_BANK_LENGTHS)

        def stage(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(GuidedBlock(width) for _ in range(count)))

        self.bank = nn.Conv2d(2 * len(taps.OFFSETS), filters, 1, bias=False)
        self.inputs = nn.ModuleList(
            [
                nn.Conv2d(
                    12
                    + taps.SHAPE_CHANNELS
                    + 4 * (len(taps.SLOPES) + filters + 2 * taps.PICTURES)
                    + 2 * taps.DIRECTION_CHANNELS,
                    fine,
                    3,
                    padding=1,
                ),
                nn.Conv2d(12, middle, 3, padding=1),
                nn.Conv2d(12, coarse, 3, padding=1),
            ]
        )
        self.down = nn.ModuleList(
            [nn.Conv2d(fine, middle, 2, stride=2), nn.Conv2d(middle, coarse, 2, stride=2)]
        )
        self.encoder = nn.ModuleList(stage(w, b) for w, b in zip(widths, blocks, strict=True))
        self.decoder = nn.ModuleList(stage(w, b) for w, b in zip(widths, blocks, strict=True))
        self.pack, self.unpack = nn.PixelUnshuffle(2), nn.PixelShuffle(2)
        # A 1×1 convolution and a rearrangement: a doubling of the size that costs no 3×3.
        self.up = nn.ModuleList([nn.Conv2d(middle, 4 * fine, 1), nn.Conv2d(coarse, 4 * middle, 1)])
        self.heads = nn.ModuleList(
            [
                nn.Conv2d(fine, 12 + 4 * filters, 3, padding=1),
                nn.Conv2d(middle, 12, 3, padding=1),
                nn.Conv2d(coarse, 12, 3, padding=1),
            ]
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=LEAK)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in self.modules():
            if isinstance(layer, GuidedBlock):
                layer.last.weight.data.mul_(0.3)
        weights = taps.wiener_bank(_BANK_LENGTHS, _BANK_NOISES)
        self.bank.weight.data.copy_(weights[:, :, None, None])

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return 8

    @property
    def halo(self) -> int:
        """No output pixel depends on input more than this many pixels away, in rows or in columns.

        Samples along the motion are taken before a picture is cut into tiles: they do not count.
        """
        fine, middle, coarse = self.blocks
        return 2 * (2 * 2 * fine + 2) + 4 * (2 * 2 * middle + 2) + 8 * (2 * 2 * coarse + 2) + 16

    @property
    def activations_per_pixel(self) -> int:
        """Values alive at once in an inference pass, per input pixel, rounded up."""
        return 2 * taps.CHANNELS + 6 * self.widths[0] // 4 + 60

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1], or (N, 3 + taps.CHANNELS, H, W) with its guidance, restored;
        not clamped.
        """
        return x[:, :3] + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """forward(x) − RGB, as computed before it is added: half precision then rounds no picture.

        (N, 3 or 3 + taps.CHANNELS, H, W) → (N, 3, H, W); about 0.
        """
        features, filtered, _, moved = self._features(x)
        return self._full(features[0], filtered, moved)

    def forward_scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3 or 3 + taps.CHANNELS, H, W) → restored pictures at 1/4, 1/2 and full size."""
        features, filtered, images, moved = self._features(x)
        half, quarter = (images[s] + self.unpack(self.heads[s](features[s])) for s in (1, 2))
        return quarter, half, images[0] + self._full(features[0], filtered, moved)

    def start_as_identity(self) -> None:
        """Zero the output heads: an untrained network then returns its input."""
        zero_parameters(*self.heads)

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Widths from the input convolutions, depths by counting the blocks."""
        inputs = [shapes.get(f"inputs.{s}.weight", ()) for s in range(3)]
        if any(len(shape) != 4 for shape in inputs) or "bank.weight" not in shapes:
            return None
        blocks = [
            len({name.split(".")[2] for name in shapes if name.startswith(f"encoder.{s}.")})
            for s in range(3)
        ]
        return {"widths": [shape[0] for shape in inputs], "blocks": [max(b, 1) for b in blocks]}

    def _full(self, features: Tensor, filtered: Tensor, moved: Tensor) -> Tensor:
        head = self.heads[0](features)
        own = self.unpack(head[:, :12])
        share = self.unpack(head[:, 12:])
        taken: Tensor = own + (share * filtered).sum(1, keepdim=True)
        return taken * moved

    def _features(self, x: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor], Tensor]:
        """What the heads see, from the finest scale on; the bank's results; the pyramid; and where
        anything moves, from 0 to 1.
        """
        rgb, known = x[:, :3], x[:, 3:]
        if not known.shape[1]:
            known = rgb.new_zeros(len(x), taps.CHANNELS, *x.shape[2:])
        half = F.avg_pool2d(rgb, 2)
        images = [rgb, half, F.avg_pool2d(half, 2)]
        parts = [
            taps.SHAPE_CHANNELS,
            len(taps.SLOPES),
            2 * len(taps.OFFSETS),
            2 * taps.PICTURES,
            2 * taps.DIRECTION_CHANNELS,
        ]
        shape, slopes, samples, around, directions = torch.split(known, parts, dim=1)
        filtered = self.bank(samples)
        packed = [self.pack(image - 0.45) for image in images]
        detail = self.pack(torch.cat([slopes, filtered, around], dim=1))
        shapes = F.avg_pool2d(torch.cat([shape, directions], dim=1), 2)
        packed[0] = torch.cat([packed[0], shapes, detail], dim=1)
        z = self.encoder[0](self.inputs[0](packed[0]))
        encoded = [z]
        for s in (1, 2):
            z = self.encoder[s](self.down[s - 1](z) + self.inputs[s](packed[s]))
            encoded.append(z)
        decoded = [self.decoder[2](z)]
        for s in (1, 0):
            deep = self.unpack(self.up[s](decoded[0]))
            decoded.insert(0, self.decoder[s](deep + encoded[s]))
        moved = ((shape[:, :1] * taps.UNIT - _STILL) / (_MOVING - _STILL)).clamp(0, 1)
        return decoded, filtered, images, moved
