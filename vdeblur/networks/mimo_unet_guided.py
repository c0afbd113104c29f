"""A MIMO-UNet guided by the motion of each pixel during the exposure.

Follows Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021, with
an input picture and an output picture at each of three scales, and adds the guidance
(`vdeblur.networks.taps`). Samples along the motion pass a bank of filters, initialized as Wiener
filters for several lengths of blur; at each pixel the network weights the result of each filter,
and adds a correction of its own. In videos it also sees the frames before and after, aligned with
the current frame. Pixels that do not move are not changed. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks import taps
from vdeblur.networks.base import Network, Shapes, zero_parameters

_BANK_LENGTHS = (0.7, 0.85, 1.0, 1.0, 1.0, 1.18, 1.4)
_BANK_NOISES = (1e-3, 1e-3, 2e-4, 1e-3, 1e-2, 1e-3, 1e-3)


#: Negative slope of the activations, so that no channel dies.
LEAK = 0.1


#: Length of motion in pixels: up to the first value a pixel is left unchanged, from the second on
#: it is fully restored.
_STILL, _MOVING = 0.5, 2.0


#: Approximate mean of pictures, subtracted from the input.
_MIDDLE = 0.45
#: Channels of each part of the guidance.
_PARTS = [
    taps.SHAPE_CHANNELS,
    len(taps.SLOPES),
    2 * len(taps.OFFSETS),
    2 * taps.PICTURES,
    2 * taps.DIRECTION_CHANNELS,
]


def _halving(channels: int) -> Tensor:
    """Return the weights (12, channels, 2, 2) of a convolution with stride 2 that halves a picture.

    The picture is 2× pixel-unshuffled, before (in the first 12 of the input's channels) and after.
    """
    weights = torch.zeros(12, channels, 2, 2)
    for colour in range(3):
        for down in (0, 1):
            for across in (0, 1):
                place = 4 * colour + 2 * down + across
                weights[place, 4 * colour : 4 * colour + 4, down, across] = 0.25
    return weights


def _packed(rgb: Tensor, coarse: Sequence[Tensor], fine: Sequence[Tensor]) -> Tensor:
    """Pixel-unshuffle `rgb` and `fine`, and average `coarse` over 2×2 pixels: (N, C, H/2, W/2).

    For float32 on a CPU. OpenCV needs a fifth of torch's time.
    """
    count, _, height, width = rgb.shape
    parts = [(rgb, True), *((part, False) for part in coarse), *((part, True) for part in fine)]
    total = sum(part.shape[1] * (4 if whole else 1) for part, whole in parts)
    out = rgb.new_empty(count, total, height // 2, width // 2)
    for picture in range(count):
        planes = iter(out[picture].numpy())
        for part, whole in parts:
            for plane in part[picture].numpy():
                if whole:
                    # The even and odd columns of each row go to separate planes.
                    pairs = np.ascontiguousarray(plane).reshape(height // 2, 2, width // 2, 2)
                    for row in (0, 1):
                        cv2.split(pairs[:, row], [next(planes), next(planes)])
                else:
                    size = width // 2, height // 2
                    cv2.resize(plane, size, dst=next(planes), interpolation=cv2.INTER_AREA)
    return out


class GuidedBlock(nn.Module):
    """A residual block of two 3×3 convolutions: (N, C, H, W) → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        out: Tensor = x + self.last(F.leaky_relu(self.first(x), LEAK))
        return out


class EvenConv(nn.Conv2d):
    """A 3×3 convolution whose input is padded to a multiple of 8 channels for training on a GPU.

    On an H100, forward and backward take 1.37 ms with 87 channels and 0.75 ms with 88 (bf16, batch
    of 32, 128×128 pixels).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, H, W) to (N, C', H, W)."""
        if self.training and input.is_cuda:
            return self.filled(input)
        return super().forward(input)

    def filled(self, x: Tensor) -> Tensor:
        """Compute the same with channels of zeros appended to the input and to the weights."""
        more = (0, 0, 0, 0, 0, -x.shape[1] % 8)
        return F.conv2d(F.pad(x, more), F.pad(self.weight, more), self.bias, padding=1)


class MIMOUNetGuided(Network):
    """A U-Net over three scales of a 2× pixel-unshuffled picture, guided along the motion.

    Args:
        widths: Channels at the three scales, 1/2, 1/4 and 1/8 of the picture's size.
        blocks: Residual blocks at each scale, in the encoder and again in the decoder.

    Raises:
        ValueError: `widths` or `blocks` are not three numbers of 1 or more.
    """

    guided = True
    halve: Tensor

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
        # With the shipped weights, seams reached 2.5 8-bit levels at a third of the radius.
        self.tile_margin = self.receptive_radius // 2
        self.config = {"widths": self.widths, "blocks": self.blocks}
        fine, middle, coarse = widths
        filters = len(_BANK_LENGTHS)

        def stage(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(GuidedBlock(width) for _ in range(count)))

        shapes = taps.SHAPE_CHANNELS + 2 * taps.DIRECTION_CHANNELS
        taken = 12 + shapes + 4 * (len(taps.SLOPES) + filters + 2 * taps.PICTURES)
        self.bank = nn.Conv2d(2 * len(taps.OFFSETS), filters, 1, bias=False)
        self.inputs = nn.ModuleList(
            [
                EvenConv(taken, fine, 3, padding=1),
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
        # Doubling the size by a 1×1 convolution and a pixel shuffle is cheaper than by a 3×3.
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
        self.register_buffer("halve", _halving(taken), persistent=False)
        weights = taps.wiener_bank(_BANK_LENGTHS, _BANK_NOISES)
        self.bank.weight.data.copy_(weights[:, :, None, None])

    @property
    def size_multiple(self) -> int:
        """Number of pixels that height and width must be multiples of."""
        return 8

    @property
    def receptive_radius(self) -> int:
        """Largest distance, in rows or columns, between an output pixel and input it depends on.

        Samples along the motion do not count, since they are taken before tiles are cut.
        """
        fine, middle, coarse = self.blocks
        return 2 * (2 * 2 * fine + 2) + 4 * (2 * 2 * middle + 2) + 8 * (2 * 2 * coarse + 2) + 16

    @property
    def activations_per_pixel(self) -> int:
        """Number of values alive at once in an inference pass, per input pixel, rounded up."""
        return 2 * taps.CHANNELS + 6 * self.widths[0] // 4 + 60

    @staticmethod
    def leaves(motion: Tensor) -> bool:
        """Return whether pictures with this motion, (N, 4, h, w), stay entirely unchanged."""
        return bool((motion[:, :2].square().sum(1) <= _STILL**2).all())

    def forward(self, x: Tensor) -> Tensor:
        """Restore a picture.

        Args:
            x: (N, 3, H, W) RGB in [0, 1], or (N, 3 + taps.CHANNELS, H, W) with its guidance.

        Returns:
            (N, 3, H, W), not clamped.
        """
        return x[:, :3] + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) minus the RGB of x, (N, 3, H, W), without adding the RGB first.

        Half precision then does not round the picture itself.
        """
        packed, moved = self.prepare(x)
        return self.finish(self.trunk(packed), packed, moved)

    def prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the input of `trunk` and the mask of motion.

        Args:
            x: (N, 3 or 3 + taps.CHANNELS, H, W), as for `forward`.

        Returns:
            The input of `trunk`, (N, C, H/2, W/2), and the mask, (N, 1, H, W): 0 where nothing
            moves, 1 where the picture is fully restored.
        """
        rgb, known = x[:, :3], x[:, 3:]
        if not known.shape[1]:
            known = rgb.new_zeros(len(x), taps.CHANNELS, *x.shape[2:])
        shape, slopes, samples, around, directions = torch.split(known, _PARTS, dim=1)
        moved = ((shape[:, :1] * taps.UNIT - _STILL) / (_MOVING - _STILL)).clamp(0, 1)
        tracing: Any = torch.jit  # without types
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        if plain and not (torch.is_grad_enabled() or tracing.is_tracing()):
            # Contiguous whatever the layout of the input, so that a flattened part is a view.
            filtered = x.new_empty(len(x), self.bank.out_channels, *x.shape[2:])
            for picture, place in zip(samples, filtered, strict=True):
                # A matrix product: the convolution of contiguous planes with channels-last weights
                # takes nine times as long.
                torch.mm(self.bank.weight.flatten(1), picture.flatten(1), out=place.flatten(1))
            return _packed(rgb - _MIDDLE, (shape, directions), (slopes, filtered, around)), moved
        means = [F.avg_pool2d(part, 2) for part in (shape, directions)]
        fine = (rgb - _MIDDLE, slopes, self.bank(samples), around)
        unshuffled = [self.pack(part) for part in fine]
        return torch.cat([unshuffled[0], *means, *unshuffled[1:]], dim=1), moved

    def trunk(self, packed: Tensor) -> Tensor:
        """Compute the input of `finish`, (N, 12 + 4·filters, H/2, W/2), from that of `prepare`.

        This part holds all convolutions except the bank, and little else.
        """
        head: Tensor = self.heads[0](self._features(packed)[0])
        return head

    def finish(self, head: Tensor, packed: Tensor, moved: Tensor) -> Tensor:
        """Compute the correction, (N, 3, H, W), from the results of `trunk` and `prepare`."""
        filters = self.bank.out_channels
        start = 12 + taps.SHAPE_CHANNELS + 2 * taps.DIRECTION_CHANNELS + 4 * len(taps.SLOPES)
        filtered = packed[:, start : start + 4 * filters]
        if head.device.type == "cpu":
            head = head.contiguous()  # sums over contiguous planes are twice as fast
        # The four pixels of each unshuffled position at once.
        count, _, height, width = head.shape
        size = (count, -1, 4, height, width)
        share = (head[:, 12:].reshape(size) * filtered.reshape(size)).sum(1, keepdim=True)
        taken = head[:, :12].reshape(size) + share
        out: Tensor = self.unpack(taken.flatten(1, 2)) * moved
        return out

    def forward_scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the restored pictures at 1/4, 1/2 and full size; `x` is as for `forward`."""
        packed, moved = self.prepare(x)
        features = self._features(packed)
        half = F.avg_pool2d(x[:, :3], 2)
        images = [x[:, :3], half, F.avg_pool2d(half, 2)]
        middle, coarse = (images[s] + self.unpack(self.heads[s](features[s])) for s in (1, 2))
        full = self.finish(self.heads[0](features[0]), packed, moved)
        return coarse, middle, images[0] + full

    def start_as_identity(self) -> None:
        """Zero the output heads, so that the untrained network returns its input."""
        zero_parameters(*self.heads)

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Read the widths off the input convolutions, and count the blocks."""
        inputs = [shapes.get(f"inputs.{s}.weight", ()) for s in range(3)]
        if any(len(shape) != 4 for shape in inputs) or "bank.weight" not in shapes:
            return None
        blocks = [
            len({name.split(".")[2] for name in shapes if name.startswith(f"encoder.{s}.")})
            for s in range(3)
        ]
        return {"widths": [shape[0] for shape in inputs], "blocks": [max(b, 1) for b in blocks]}

    def _features(self, packed: Tensor) -> list[Tensor]:
        """Return the inputs of the heads, from the finest scale to the coarsest."""
        # One convolution halves the unshuffled picture; shuffling it back is not needed.
        pictures = [packed]
        for channels in (packed.shape[1], 12):
            pictures.append(F.conv2d(pictures[-1], self.halve[:, :channels], stride=2))
        z = self.encoder[0](self.inputs[0](packed))
        encoded = [z]
        for s in (1, 2):
            z = self.encoder[s](self.down[s - 1](z) + self.inputs[s](pictures[s]))
            encoded.append(z)
        decoded = [self.decoder[2](z)]
        for s in (1, 0):
            deep = self.unpack(self.up[s](decoded[0]))
            decoded.insert(0, self.decoder[s](deep + encoded[s]))
        return decoded
