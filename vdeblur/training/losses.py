"""Losses over the images that a network outputs in training, named as in their papers.

Each output is compared with the sharp picture at its own size, whatever the sizes and their order,
so that coarse-to-fine networks (MIMO-UNet, PSS-NSC) and networks with several full-size outputs
(MPRNet) share the same terms. Knows tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.errors import UsageError

SCALE_WEIGHTS = ("equal", "halving", "tenth")
_LOG_FLOOR = 1e-3


def targets_for(outputs: Sequence[Tensor], sharp: Tensor) -> list[Tensor]:
    """Resize the sharp picture to each output: the mean of the pixels that a pixel covers.

    For halvings this equals repeated bilinear halving. At full size the target is `sharp` itself.

    Args:
        outputs: (N, 3, h, w) each.
        sharp: (N, 3, H, W).
    """
    resized = {sharp.shape[-2:]: sharp}
    for output in outputs:
        size = output.shape[-2:]
        if size not in resized:
            resized[size] = F.interpolate(sharp, size=size, mode="area")
    return [resized[output.shape[-2:]] for output in outputs]


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference; over all scales, MIMO-UNet's L1 (equation 4)."""
    return F.l1_loss(output, target)


def msfr(output: Tensor, target: Tensor) -> Tensor:
    """Return the L1 of Fourier transforms; over all scales, MIMO-UNet's MSFR (equation 5)."""
    # The transform is linear: one transform of the difference serves.
    return torch.view_as_real(torch.fft.rfft2(output - target)).abs().mean()


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference: the Euclidean loss of a scale in SRN and PSS-NSC."""
    return F.mse_loss(output, target)


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean of √(difference² + ε²) with ε = 10⁻³ (MPRNet, equation 3)."""
    difference = output - target
    return (difference * difference + 1e-6).sqrt().mean()


def huber(output: Tensor, target: Tensor) -> Tensor:
    """Return Charbonnier's with a wide ε of 0.03 (8 of 255 levels), minus ε.

    Small differences are squared. L1 pulls every pixel alike; where most are noise, a network that
    starts as the identity is held there. Here the pull grows with the error (docs/training.md).
    """
    difference = output - target
    return (difference * difference + 9e-4).sqrt().mean() - 0.03


def log_mse(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the pictures of log(1 + squared error / 10⁻³).

    Halving an error counts alike wherever it is above the floor, 30 dB, and less and less below. A
    mean of squared errors is dominated by the worst few pictures, which teach least. Without a
    floor, sharp pairs would pull everything toward the identity (docs/training.md).
    """
    error = (output - target).square().mean(dim=(1, 2, 3))
    return torch.log1p(error / _LOG_FLOOR).mean()


def edge(output: Tensor, target: Tensor) -> Tensor:
    """Return the Charbonnier distance of the finest Laplacian-pyramid levels (MPRNet, equation 4).

    Borders are reflected, so that a change of level alone changes no edges.
    """
    difference = output - target  # the pyramid is linear
    detail = difference - _expanded(_smoothed(difference))
    return (detail * detail + 1e-6).sqrt().mean()


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 − SSIM (Wang et al., 2004): Gaussian window of 11 pixels, σ 1.5, values in 0..1.

    A picture smaller than 11 pixels is compared in a window of its own size.
    """
    side = min(11, *output.shape[-2:])
    x = torch.arange(side, dtype=output.dtype, device=output.device) - (side - 1) / 2
    line = torch.exp(-x * x / (2 * 1.5**2))
    window = (line[:, None] * line)[None, None] / line.sum() ** 2
    channels = output.shape[1]

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(image, window.expand(channels, 1, side, side), groups=channels)

    a, b = mean(output), mean(target)
    variances = mean(output * output) - a * a + mean(target * target) - b * b
    covariance = mean(output * target) - a * b
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * a * b + c1) * (2 * covariance + c2) / ((a * a + b * b + c1) * (variances + c2))
    return 1 - index.mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "msfr": msfr,
    "mse": mse,
    "charbonnier": charbonnier,
    "huber": huber,
    "log_mse": log_mse,
    "edge": edge,
    "ssim": ssim,
}


def parse_loss(text: str) -> dict[str, float]:
    """Parse a sum such as "charbonnier + 0.05*edge" into its terms and their weights.

    Raises:
        UsageError: The text is empty, or has an unknown or repeated term, or no valid weight.
    """
    terms: dict[str, float] = {}
    for part in text.split("+"):
        found = re.fullmatch(r"\s*(?:([0-9.]+(?:e-?[0-9]+)?)\s*\*\s*)?([a-z0-9_]+)\s*", part)
        try:
            weight = float(found[1] or 1) if found else -1.0
        except ValueError:
            weight = -1.0
        if not found or weight < 0 or found[2] not in LOSSES or found[2] in terms:
            raise UsageError(
                f"{text!r} is not a loss: give a sum such as 'l1 + 0.1*msfr' "
                f"of {', '.join(LOSSES)}, each once"
            )
        terms[found[2]] = weight
    return terms


def scale_weights(
    outputs: Sequence[Tensor],
    kind: str = "equal",
    *,
    share: float = 1.0,
    coarse_first: float = 0.0,
) -> list[float]:
    """Return the weight of each of a network's outputs, coarse to fine or early to late.

    Args:
        outputs: (N, 3, h, w) each.
        kind: "equal"; "halving", 1/2^i for a picture halved i times; or "tenth", 0.1 for all but
            those of full size.
        share: The share of the run that is done.
        coarse_first: The share of the run by which the outputs have joined one after another, the
            first at once.

    Raises:
        UsageError: The kind is unknown.
    """
    if kind not in SCALE_WEIGHTS:
        raise UsageError(f"scale weights {kind!r} are none of {', '.join(SCALE_WEIGHTS)}")
    full, count = outputs[-1].shape[-2], len(outputs)
    smaller = [output.shape[-2] / full for output in outputs]
    weights = {
        "equal": [1.0] * count,
        "halving": smaller,
        "tenth": [1.0 if size == 1 else 0.1 for size in smaller],
    }[kind]
    return [
        weight if share >= coarse_first * i / count else 0.0 for i, weight in enumerate(weights)
    ]


def multi_scale(
    outputs: Sequence[Tensor],
    sharp: Tensor,
    terms: Mapping[str, float],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Sum the weighted terms over the outputs.

    Args:
        outputs: (N, 3, h, w) each, in 0..1.
        sharp: (N, 3, H, W) in 0..1.
        terms: Weights by name, see `parse_loss`.
        weights: One per output; 1 by default. An output of weight 0 stays in the graph, because
            several processes wait for the gradient of every parameter.

    Returns:
        A scalar in fp32.
    """
    weights = [1.0] * len(outputs) if weights is None else weights
    total = sharp.new_zeros((), dtype=torch.float32)
    for output, target, scale in zip(outputs, targets_for(outputs, sharp), weights, strict=True):
        if not scale:
            total = total + 0.0 * output.float().sum()
            continue
        for name, weight in terms.items():
            total = total + scale * weight * LOSSES[name](output.float(), target)
    return total


def _smoothed(image: Tensor) -> Tensor:
    """Burt and Adelson's 5-tap binomial-like filter, in rows and columns."""
    line = image.new_tensor([0.05, 0.25, 0.4, 0.25, 0.05])
    channels = image.shape[1]
    kernel = (line[:, None] * line).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def _expanded(smooth: Tensor) -> Tensor:
    """The smooth image reduced by 2 and enlarged again, as a coarser level holds it."""
    spread = torch.zeros_like(smooth)
    spread[..., ::2, ::2] = smooth[..., ::2, ::2] * 4
    return _smoothed(spread)
