"""How PSNR, SSIM and LPIPS of a pair are measured, by the protocols that papers use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vdeblur.errors import InputError, UsageError
from vdeblur.evaluation.metrics import psnr, ssim
from vdeblur.system.optional import optional

ScoringProtocol = Literal["8bit", "float", "matlab"]
#: Distance of two pictures, (1, 3, H, W) in [0, 1] each.
Distance = Callable[[Tensor, Tensor], float]

#: How each protocol measures, in words: printed under every table.
PROTOCOLS: dict[str, str] = {
    "8bit": "restored picture clamped and rounded to 8 bits, PSNR over all pixels and channels "
    "with peak 255; SSIM with the 11×11 Gaussian window (σ 1.5) of Wang et al. (2004), the mean of "
    "R, G and B; whole picture; means of the pictures' values",
    "float": "restored picture clamped to [0, 1] and not rounded, as MIMO-UNet's eval.py measures: "
    "PSNR with peak 1; SSIM as in 8bit, on the same values; whole picture; means of the pictures' "
    "values",
    "matlab": "8 bits as MPRNet's and later papers' MATLAB script: psnr(A, ref) as in 8bit, and "
    "ssim(A, ref), which takes rows × columns × RGB for a volume (11×11×11 window, edges repeated) "
    "and gives higher values; whole picture; means of the pictures' values",
}


def score_pair(
    blurred: Tensor,
    restored: Tensor | None,
    sharp: Tensor,
    protocol: ScoringProtocol,
    perceptual: Distance | None = None,
) -> dict[str, float]:
    """Measure a blurred and a restored picture against the sharp one.

    Args:
        blurred: (1, 3, H, W) floats, as `restored` and `sharp`; clamped to [0, 1].
        restored: None measures the blurred picture only.
        sharp: The reference.
        protocol: A key of `PROTOCOLS`.
        perceptual: LPIPS, from `load_lpips`; None leaves it out.

    Returns:
        `psnr_`, `ssim_` and `lpips_` of "blurred" and "restored", and "gain": restored − blurred.
    """
    values: dict[str, float] = {}
    peak = 1.0 if protocol == "float" else 255.0
    reference = pixels_of(sharp, protocol)
    for name, picture in (("blurred", blurred), ("restored", restored)):
        if picture is None:
            continue
        pixels = pixels_of(picture, protocol)
        values[f"psnr_{name}"] = psnr(pixels, reference, data_range=peak)
        values[f"ssim_{name}"] = ssim(
            pixels, reference, data_range=peak, volume=protocol == "matlab"
        )
        if perceptual is not None:
            values[f"lpips_{name}"] = perceptual(picture, sharp)
    for measure in ("psnr", "ssim", "lpips"):
        before, after = (values.get(f"{measure}_{x}") for x in ("blurred", "restored"))
        if before is not None and after is not None:
            # Two infinities have no difference, and mean that nothing was won or lost.
            values[f"{measure}_gain"] = 0.0 if before == after else after - before
    return values


def pixels_of(picture: Tensor, protocol: ScoringProtocol) -> Tensor:
    """Turn (1, 3, H, W) in [0, 1] into (H, W, 3) as the protocol counts: codes, or floats."""
    pixels = picture[0].clamp(0, 1).permute(1, 2, 0)
    return pixels if protocol == "float" else pixels.mul(255).round()


def psnr_of(picture: Tensor, sharp: Tensor, protocol: ScoringProtocol) -> float:
    """PSNR in dB of two pictures, (1, 3, H, W) in [0, 1], by a protocol."""
    peak = 1.0 if protocol == "float" else 255.0
    return psnr(pixels_of(picture, protocol), pixels_of(sharp, protocol), data_range=peak)


def load_lpips(device: torch.device) -> Distance:
    """Load LPIPS of R. Zhang et al. (CVPR 2018), version 0.1 with AlexNet, of the authors' package.

    Raises:
        UsageError: The package is missing, or its torchvision does not fit this torch.
        InputError: AlexNet's weights are not there; they are never fetched.
    """
    try:
        package = optional("lpips", extra="eval", purpose="`lpips=True`")
    # torchvision, which it needs, fails in ways of its own beside another build of torch.
    except (RuntimeError, OSError, AttributeError) as error:
        raise UsageError(
            f"`lpips=True` needs a torchvision that was built for torch {torch.__version__}, and "
            "this one was not: install torch and torchvision of one release, or leave `lpips` out"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not weights.is_file():
        # The package would fetch them unasked; a measurement should not need a network.
        raise InputError(
            f"LPIPS needs AlexNet's weights at {weights}, which are not there: run "
            "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\" once"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about how the package calls it
        network = package.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def distance(picture: Tensor, sharp: Tensor) -> float:
        a, b = (x.clamp(0, 1).mul(255).round().div(127.5) - 1 for x in (picture, sharp))
        return float(network(a, b))

    return distance
