"""PSS-NSC: coarse to fine with selective sharing of parameters and nested skip connections.

Architecture: Gao, Tao, Shen, Jia, "Dynamic Scene Deblurring with Parameter Selective Sharing and
Nested Skip Connections", CVPR 2019. Published for TensorFlow, whose conventions are kept here: its
'SAME' padding and its bilinear resizing without half-pixel centres. Knows tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks.base import Network, Shapes, zero_parameters

# Which of the nested blocks are the same: those of all scales, those of one stage.
_SHARING = {
    "both": (True, True),
    "scale": (True, False),
    "stage": (False, True),
    "independent": (False, False),
}
_USES = 2  # nested blocks in a row, in each stage
_STAGES = {"enc1": 1, "enc2": 2, "enc3": 4, "dec3": 4, "dec2": 2, "dec1": 1}  # × base = channels

# The published names of what a scale has for itself, as g_net/<name>_<scale>/weights.
_PRIVATE = {
    "enc1_1": "enc1",
    "enc2_1": "enc2",
    "enc3_1": "enc3",
    "dec2_3": "dec2",
    "dec1_3": "dec1",
    "dec1_0": "image",
}
_PRIVATE_NAME = re.compile(r"g_net/(\w+)_(\d+)/(weights|biases)")
_NESTED_NAME = re.compile(r"g_net/(enc[123]|dec[123])_2/d(\d+)/conv([12])/(weights|biases)")
# What a TensorFlow checkpoint holds beside the network: the optimiser's.
_OPTIMISER = re.compile(r".*/(Adam|Adam_1|Momentum|ExponentialMovingAverage)|\w+_power|global_step")


def _double(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C, 2H, 2W), bilinear with sample i at 2i: TensorFlow's legacy corners.

    What lies between two samples is their mean; beyond the last, the last.
    """
    following = F.pad(x, (0, 1, 0, 0), mode="replicate")[..., 1:]
    x = torch.stack([x, (x + following) / 2], dim=-1).flatten(-2)
    following = F.pad(x, (0, 0, 0, 1), mode="replicate")[..., 1:, :]
    return torch.stack([x, (x + following) / 2], dim=-2).flatten(-3, -2)


class _Unit(nn.Module):
    """Two 3×3 convolutions, the first with a ReLU: what is added to what is there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return out


class _Nested(nn.Module):
    """Units that each see the sum of the input and of all units before."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(channels) for _ in range(units))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        # The nested skips unrolled: a running sum needs none of the earlier results again.
        for unit in self.units:
            x = x + unit(x)
        return x


class _Scale(nn.Module):
    """One scale: what it has for itself, the convolutions between the stages and its image's."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.enc1 = nn.Conv2d(2, base, 3, padding=1)
        # 'SAME' padding of a stride of 2 over even sizes is below and on the right only.
        self.enc2 = nn.Conv2d(base, 2 * base, 3, stride=2)
        self.enc3 = nn.Conv2d(2 * base, 4 * base, 3, stride=2)
        self.dec2 = nn.ConvTranspose2d(4 * base, 2 * base, 4, stride=2, padding=1)
        self.dec1 = nn.ConvTranspose2d(2 * base, base, 4, stride=2, padding=1)
        self.image = nn.Conv2d(base, 1, 3, padding=1)

    def forward(self, x: Tensor, uses: list[nn.ModuleDict]) -> Tensor:
        """(N, 2, h, w), the image and the estimate → (N, 1, h, w), what the image lacks.

        uses: the nested blocks of all stages, for the first use in a stage and the next.
        """

        def stage(name: str, x: Tensor) -> Tensor:
            for blocks in uses:
                x = blocks[name](x)
            return x

        fine = stage("enc1", F.relu(self.enc1(x), inplace=True))
        middle = stage("enc2", F.relu(self.enc2(F.pad(fine, (0, 1, 0, 1))), inplace=True))
        x = stage("enc3", F.relu(self.enc3(F.pad(middle, (0, 1, 0, 1))), inplace=True))
        x = stage("dec3", x)
        x = stage("dec2", F.relu(self.dec2(x), inplace=True) + middle)
        x = stage("dec1", F.relu(self.dec1(x), inplace=True) + fine)
        out: Tensor = self.image(x)
        return out


class PSSNSC(Network):
    """PSS-NSC of any width and depth; the defaults are the published network.

    sharing: which nested blocks have the same parameters. "both": those of all scales, and the two
    of a stage, as published; "scale": those of all scales; "stage": the two of a stage;
    "independent": none. base: channels at a scale's own size. units: pairs of convolutions in a
    nested block. scales: images from coarse to fine, each twice the size of the one before.

    Each colour channel is an image of its own to the network.

    Parameters: `scales.<i>.enc1 … image` are scale i's own, coarse to fine;
    `nested.<scale>.<use>.<stage>.units.<k>.conv1|conv2` are the nested blocks, <scale> and <use>
    being 0 where they are shared. `from_published` knows the TensorFlow names.
    """

    tile_margin = 64

    def __init__(
        self, *, sharing: str = "both", base: int = 32, units: int = 4, scales: int = 3
    ) -> None:
        super().__init__()
        if sharing not in _SHARING:
            raise ValueError(f"sharing {sharing!r} is none of {', '.join(_SHARING)}")
        if min(base, units, scales) < 1:
            raise ValueError(f"base {base}, units {units} and scales {scales} must be 1 or more")
        self.config = {"sharing": sharing, "base": base, "units": units, "scales": scales}
        across_scales, within_stages = _SHARING[sharing]
        self.scales = nn.ModuleList(_Scale(base) for _ in range(scales))

        def stages() -> nn.ModuleDict:
            return nn.ModuleDict({n: _Nested(m * base, units) for n, m in _STAGES.items()})

        self.nested = nn.ModuleList(
            nn.ModuleList(stages() for _ in range(1 if within_stages else _USES))
            for _ in range(1 if across_scales else scales)
        )

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels: two halvings a scale."""
        return 4 << (len(self.scales) - 1)

    @property
    def receptive_radius(self) -> int:
        """No output pixel depends on input more than this many pixels away, in rows or in columns.

        Padding and resizing lean to the right and below: the larger side of all positions.
        """
        reaches = []
        for pixel in range(self.size_multiple):
            first, last = self._seen(pixel, pixel)
            reaches += [pixel - first, last - pixel]
        return max(reaches)

    @property
    def activations_per_pixel(self) -> int:
        """Values alive at once in a forward pass, per input pixel: its three colours' together.

        The growth of a CPU process in a float32 pass of 640×512, rounded up: 612 at base 32.
        """
        return 13 * int(self.config["base"]) + 200

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the same shape, restored; not clamped."""
        return self.forward_scales(x)[-1]

    def correction(self, x: Tensor) -> Tensor:
        """forward(x) − x, as computed before x is added: half precision then rounds no picture.

        (N, 3, H, W) → the same shape; about 0.
        """
        return self._run(x)[-1][1]

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) → restored images at all scales, coarse to fine, as training compares."""
        return tuple(image + residual for image, residual in self._run(x))

    def start_as_identity(self) -> None:
        """Zero the output heads: an untrained network then returns its input."""
        zero_parameters(*(cast("_Scale", scale).image for scale in self.scales))

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Width from the first convolution; depth, scales and sharing by counting."""
        first = shapes.get("scales.0.enc1.weight", ())
        scales = {name.split(".")[1] for name in shapes if name.startswith("scales.")}
        nested = [name.split(".") for name in shapes if name.startswith("nested.")]
        nested = [parts for parts in nested if len(parts) == 8]
        units = {parts[5] for parts in nested if parts[3] == "enc1"}
        if len(first) != 4 or not units:
            return None
        shared = tuple(len({parts[i] for parts in nested}) == 1 for i in (1, 2))
        sharing = next(name for name, kinds in _SHARING.items() if kinds == shared)
        return {"sharing": sharing, "base": first[0], "units": len(units), "scales": len(scales)}

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """TensorFlow's names and layouts → those of this class; those of this class as they are.

        None when there are neither. Weights are (kh, kw, in, out) in TensorFlow and (kh, kw, out,
        in) if transposed: both become torch's, the axes reversed and the kernel's kept. A ":0" at
        the end of a name and an optimiser's variables are left out; names that are no part of the
        network stay, so that the caller can say so.
        """
        if "scales.0.enc1.weight" in tensors:
            return dict(tensors)
        if not any(name.startswith("g_net/") for name in tensors):
            return None
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            plain = name.removesuffix(":0")
            if _OPTIMISER.fullmatch(plain):
                continue
            if tensor.ndim == 4:
                tensor = tensor.permute(3, 2, 0, 1).contiguous()
            found[_own_name(plain) or name] = tensor
        return found

    def _uses(self, scale: int) -> list[nn.ModuleDict]:
        """The nested blocks of a scale, for the first use in a stage and the next."""
        uses = cast("nn.ModuleList", self.nested[scale % len(self.nested)])
        return [cast("nn.ModuleDict", uses[use % len(uses)]) for use in range(_USES)]

    def _run(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(N, 3, H, W) → the image at each scale and what it lacks, both (N, 3, h, w)."""
        gray = x.flatten(0, 1).unsqueeze(1)
        results = []
        estimate: Tensor | None = None
        for index, scale in enumerate(self.scales):
            step = 1 << (len(self.scales) - 1 - index)
            # Bilinear shrinking by a whole factor with sample i at i × factor picks these.
            image = gray[..., ::step, ::step] if step > 1 else gray
            # Training does not reach back into the coarser scale; the first one's is the image.
            before = image if estimate is None else _double(estimate.detach())
            residual = scale(torch.cat([image, before], dim=1), self._uses(index))
            estimate = image + residual
            results.append((image, residual))
        return [(_colours(image), _colours(residual)) for image, residual in results]

    def _seen(self, first: int, last: int) -> tuple[int, int]:
        """The columns that columns first … last of the output depend on, far from all edges."""
        low, high = first, last
        for index in range(len(self.scales)):
            step = 1 << index  # from fine to coarse
            a, b = _seen_by_scale(low, high, _USES * 2 * self.config["units"])
            first, last = min(first, a * step), max(last, b * step)
            low, high = a // 2, -(-b // 2)  # `_double`
        return first, last


def _colours(x: Tensor) -> Tensor:
    """(3N, 1, h, w) → (N, 3, h, w)."""
    return x.view(-1, 3, x.shape[2], x.shape[3])


def _seen_by_scale(low: int, high: int, reach: int) -> tuple[int, int]:
    """The columns of a scale's input that columns low … high of its output depend on.

    reach: of the nested blocks of a stage, in columns of their own size.
    """
    low, high = low - 1 - reach, high + 1 + reach  # image, dec1
    fine = low, high
    low, high = -(-(low - 2) // 2), (high + 1) // 2  # the transposed convolution
    low, high = low - reach, high + reach  # dec2
    middle = low, high
    low, high = -(-(low - 2) // 2), (high + 1) // 2
    low, high = low - 2 * reach, high + 2 * reach  # dec3, enc3
    low, high = min(2 * low, middle[0]), max(2 * high + 2, middle[1])
    low, high = low - reach, high + reach  # enc2
    low, high = min(2 * low, fine[0]), max(2 * high + 2, fine[1])
    return low - reach - 1, high + reach + 1  # enc1 and its entry


def _own_name(published: str) -> str | None:
    """A parameter's name here; None for one that is no part of the network."""
    if nested := _NESTED_NAME.fullmatch(published):
        stage, unit, conv, kind = nested.groups()
        place = f"nested.0.0.{stage}.units.{int(unit) - 1}.conv{conv}"
    elif (private := _PRIVATE_NAME.fullmatch(published)) and private[1] in _PRIVATE:
        place, kind = f"scales.{private[2]}.{_PRIVATE[private[1]]}", private[3]
    else:
        return None
    return f"{place}.{'weight' if kind == 'weights' else 'bias'}"
