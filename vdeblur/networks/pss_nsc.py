"""PSS-NSC: coarse to fine with selective sharing of parameters and nested skip connections.

Architecture: Gao, Tao, Shen, Jia, "Dynamic Scene Deblurring with Parameter Selective Sharing and
Nested Skip Connections", CVPR 2019. The published implementation uses TensorFlow, whose conventions
are kept: 'SAME' padding, and bilinear resizing without half-pixel centers. Knows tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks.base import Network, Shapes, zero_parameters

# Which nested blocks share parameters: those of all scales, those of the same stage.
_SHARING = {
    "both": (True, True),
    "scale": (True, False),
    "stage": (False, True),
    "independent": (False, False),
}
_USES = 2  # nested blocks in a row, in each stage
_STAGES = {"enc1": 1, "enc2": 2, "enc3": 4, "dec3": 4, "dec2": 2, "dec1": 1}  # × base = channels

# Published names of a scale's own layers, as g_net/<name>_<scale>/weights.
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
# Variables of the optimizer in a TensorFlow checkpoint.
_OPTIMISER = re.compile(r".*/(Adam|Adam_1|Momentum|ExponentialMovingAverage)|\w+_power|global_step")


def _double(x: Tensor) -> Tensor:
    """Enlarge (N, C, H, W) to (N, C, 2H, 2W) bilinearly, as TensorFlow's legacy resizing does.

    Sample i is placed at 2i, and the mean of two samples between them; the last sample is repeated.
    """
    following = F.pad(x, (0, 1, 0, 0), mode="replicate")[..., 1:]
    x = torch.stack([x, (x + following) / 2], dim=-1).flatten(-2)
    following = F.pad(x, (0, 0, 0, 1), mode="replicate")[..., 1:, :]
    return torch.stack([x, (x + following) / 2], dim=-2).flatten(-3, -2)


class _Unit(nn.Module):
    """The residual branch of a block: two 3×3 convolutions with a ReLU between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return out


class _Nested(nn.Module):
    """Units that each take the sum of the input and of the results of all previous units."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_Unit(channels) for _ in range(units))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block: (N, C, H, W) → the same shape."""
        # The nested skips unrolled: a running sum replaces all earlier results.
        for unit in self.units:
            x = x + unit(x)
        return x


class _Scale(nn.Module):
    """The layers of a scale that are never shared: those between stages, and of the image."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.enc1 = nn.Conv2d(2, base, 3, padding=1)
        # With stride 2 and even sizes, 'SAME' pads at the bottom and on the right only.
        self.enc2 = nn.Conv2d(base, 2 * base, 3, stride=2)
        self.enc3 = nn.Conv2d(2 * base, 4 * base, 3, stride=2)
        self.dec2 = nn.ConvTranspose2d(4 * base, 2 * base, 4, stride=2, padding=1)
        self.dec1 = nn.ConvTranspose2d(2 * base, base, 4, stride=2, padding=1)
        self.image = nn.Conv2d(base, 1, 3, padding=1)

    def forward(self, x: Tensor, uses: list[nn.ModuleDict]) -> Tensor:
        """Compute the correction of the image at this scale.

        Args:
            x: (N, 2, h, w), the image and the estimate from the coarser scale.
            uses: The nested blocks of all stages, for the first use in a stage and the second.

        Returns:
            (N, 1, h, w), to add to the image.
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

    The network processes each color channel as a separate image.

    Parameter names: `scales.<i>.enc1 … image` belong to scale i, coarse to fine;
    `nested.<scale>.<use>.<stage>.units.<k>.conv1|conv2` are the nested blocks, with 0 for <scale>
    or <use> where blocks are shared. `from_published` translates the TensorFlow names.

    Args:
        sharing: Which nested blocks share parameters. "both": those of all scales, and the two of a
            stage, as published; "scale": those of all scales; "stage": the two of a stage;
            "independent": none.
        base: Channels at the full size of a scale.
        units: Pairs of convolutions in a nested block.
        scales: Images from coarse to fine, each twice the size of the previous.

    Raises:
        ValueError: `sharing` is unknown, or a number is below 1.
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
        """Divisor of height and width in pixels: two halvings within the coarsest scale."""
        return 4 << (len(self.scales) - 1)

    @property
    def receptive_radius(self) -> int:
        """Largest distance, in rows or columns, between an output pixel and input it depends on.

        Padding and resizing are asymmetric; this is the maximum over positions and directions.
        """
        reaches = []
        for pixel in range(self.size_multiple):
            first, last = self._seen(pixel, pixel)
            reaches += [pixel - first, last - pixel]
        return max(reaches)

    @property
    def activations_per_pixel(self) -> int:
        """Number of values alive at once in a forward pass, per input pixel of three colors.

        From the growth of a CPU process in a float32 pass of 640×512, rounded up: 612 at base 32.
        """
        return 13 * int(self.config["base"]) + 200

    def forward(self, x: Tensor) -> Tensor:
        """Restore (N, 3, H, W) RGB in [0, 1]; the result has the same shape and is not clamped."""
        return self.forward_scales(x)[-1]

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x, (N, 3, H, W), without adding x first.

        Half precision then does not round the picture itself.
        """
        return self._run(x)[-1][1]

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the restored pictures of (N, 3, H, W) at all scales, coarse to fine."""
        return tuple(image + residual for image, residual in self._run(x))

    def start_as_identity(self) -> None:
        """Zero the output heads, so that the untrained network returns its input."""
        zero_parameters(*(cast("_Scale", scale).image for scale in self.scales))

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Read base off the first convolution; count units, scales and shared blocks."""
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
        """Return published TensorFlow tensors under the names and layouts of this class.

        Weights are (kh, kw, in, out) in TensorFlow, and (kh, kw, out, in) for transposed
        convolutions; the same permutation turns both into torch's layouts. The suffix ":0" of names
        and the variables of an optimizer are dropped. Other names that are not part of the network
        are kept, so that the caller can report them.

        Args:
            tensors: Published tensors, or tensors of this class, which are returned unchanged.

        Returns:
            The tensors by name; None if they are of neither kind.
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
        """Return the nested blocks of a scale, for the first use in a stage and the second."""
        uses = cast("nn.ModuleList", self.nested[scale % len(self.nested)])
        return [cast("nn.ModuleDict", uses[use % len(uses)]) for use in range(_USES)]

    def _run(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the image at each scale and its correction, both (N, 3, h, w)."""
        gray = x.flatten(0, 1).unsqueeze(1)
        results = []
        estimate: Tensor | None = None
        for index, scale in enumerate(self.scales):
            step = 1 << (len(self.scales) - 1 - index)
            # TensorFlow's bilinear reduction by an integer factor picks every step-th pixel.
            image = gray[..., ::step, ::step] if step > 1 else gray
            # No gradient flows into the coarser scale. The coarsest scale starts from the image.
            before = image if estimate is None else _double(estimate.detach())
            residual = scale(torch.cat([image, before], dim=1), self._uses(index))
            estimate = image + residual
            results.append((image, residual))
        return [(_colors(image), _colors(residual)) for image, residual in results]

    def _seen(self, first: int, last: int) -> tuple[int, int]:
        """Return the range of columns that output columns first … last depend on, off the edges."""
        low, high = first, last
        for index in range(len(self.scales)):
            step = 1 << index  # from fine to coarse
            a, b = _seen_by_scale(low, high, _USES * 2 * self.config["units"])
            first, last = min(first, a * step), max(last, b * step)
            low, high = a // 2, -(-b // 2)  # `_double`
        return first, last


def _colors(x: Tensor) -> Tensor:
    """(3N, 1, h, w) → (N, 3, h, w)."""
    return x.view(-1, 3, x.shape[2], x.shape[3])


def _seen_by_scale(low: int, high: int, reach: int) -> tuple[int, int]:
    """Return the range of input columns of a scale that output columns low … high depend on.

    reach: columns that the nested blocks of a stage reach, at the size of the stage.
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
    """Translate a published parameter name; None if it is not part of the network."""
    if nested := _NESTED_NAME.fullmatch(published):
        stage, unit, conv, kind = nested.groups()
        place = f"nested.0.0.{stage}.units.{int(unit) - 1}.conv{conv}"
    elif (private := _PRIVATE_NAME.fullmatch(published)) and private[1] in _PRIVATE:
        place, kind = f"scales.{private[2]}.{_PRIVATE[private[1]]}", private[3]
    else:
        return None
    return f"{place}.{'weight' if kind == 'weights' else 'bias'}"
