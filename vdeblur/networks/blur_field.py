"""Estimate the motion during the exposure from a single picture.

A straight blur multiplies the spectrum of a picture by a sinc along the motion, which shows as dark
stripes across it; the longer the blur, the closer the stripes. The pixels of a patch show little of
this, but the logarithm of its power spectrum shows most of it. A small network reads that spectrum
window by window, and the results of nearby windows are pooled, since blur varies slowly over a
picture. Knows tensors only.

Window spectra for blind motion estimation: M. Cannon, "Blind deconvolution of spatially invariant
image blurs with phase", IEEE Trans. ASSP 1976; a network over kernels of patches: J. Sun et al.,
"Learning a convolutional neural network for non-uniform motion blur removal", CVPR 2015.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Side of a window and distance between windows, in pixels.
WINDOW, STEP = 64, 32
#: Classes of motion: directions over half a turn (a blur has no sign) and lengths in pixels.
DIRECTIONS = 16
LENGTHS = (3.0, 4.5, 6.7, 10.0, 15.0, 22.0, 33.0)
#: All lengths of the first direction, then of the next; the last class is a blur too short to see.
CLASSES = DIRECTIONS * len(LENGTHS) + 1
_RATIO = math.log(LENGTHS[-1] / LENGTHS[0]) / (len(LENGTHS) - 1)
_FLOOR = 1e-4  # power below which a spectrum is noise


class BlurFieldNetwork(nn.Module):
    """Classifies the motion of windows.

    Maps `spectra`, (N, 2, WINDOW, WINDOW / 2), to logits, (N, CLASSES).

    Args:
        widths: Channels of the four convolutions.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 48, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 2
        for number, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.LeakyReLU(0.1)]
            layers += [nn.MaxPool2d(2)] if number < 3 else []
            before = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(widths[-1] * (WINDOW // 8) * (WINDOW // 16), 128),
            nn.LeakyReLU(0.1),
            nn.Linear(128, CLASSES),
        )
        #: Log frequency of each class in training, which the logits include.
        self.register_buffer("prior", torch.full((CLASSES,), -math.log(CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (N, CLASSES)."""
        # Pooling small maps is six times as fast in channels-last layout.
        x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits

    def evidence(self, x: Tensor) -> Tensor:
        """Return the log likelihood ratio of each class to all classes together, (N, CLASSES).

        `x` are spectra as for `forward`.
        """
        assert isinstance(self.prior, Tensor)
        return F.log_softmax(self(x), dim=1) - self.prior


@cache
@torch.inference_mode(False)
def _rings(device: torch.device) -> tuple[Tensor, ...]:
    """Return the ring of each value of half a spectrum, the values per ring, and a Hann window."""
    down = torch.fft.fftshift(torch.fft.fftfreq(WINDOW))[:, None]
    across = torch.fft.rfftfreq(WINDOW)[None]
    ring = ((down**2 + across**2).sqrt() * WINDOW).round().long().clamp_max(WINDOW // 2).flatten()
    hann = torch.hann_window(WINDOW)
    sizes = torch.bincount(ring, minlength=WINDOW // 2 + 1).float()
    return tuple(part.to(device) for part in (ring, sizes, hann[:, None] * hann))


@cache
@torch.inference_mode(False)
def _lengths(device: torch.device) -> Tensor:
    return torch.tensor(LENGTHS, device=device)


def spectra(windows: Tensor) -> Tensor:
    """Compute the input of `BlurFieldNetwork`.

    Args:
        windows: Luma, (N, WINDOW, WINDOW) in [0, 1].

    Returns:
        (N, 2, WINDOW, WINDOW / 2): the log power of each frequency minus the mean of its ring, and
        that mean times 0.3.
    """
    ring, sizes, hann = _rings(windows.device)
    windows = (windows - windows.mean(dim=(1, 2), keepdim=True)) * hann
    power = torch.log(torch.fft.rfft2(windows).abs().square() + _FLOOR)
    power = torch.fft.fftshift(power, dim=1).flatten(1)
    means = power.new_zeros(len(power), len(sizes)).index_add_(1, ring, power) / sizes
    around = means[:, ring]
    both = torch.stack([power - around, around * 0.3], dim=1)
    return both.view(len(power), 2, WINDOW, -1)[..., : WINDOW // 2]


def class_shares(chords: Tensor) -> Tensor:
    """Distribute motions over the nearest classes.

    Interpolates linearly in direction and in the logarithm of the length. Below the shortest
    length, the share of the last class grows; at less than half of that length it is 1.

    Args:
        chords: (N, 2), x and y in pixels.

    Returns:
        Shares, (N, CLASSES), which sum to 1.
    """
    length = chords.norm(dim=1)
    turn = torch.atan2(chords[:, 1], chords[:, 0]) % math.pi / math.pi * DIRECTIONS
    place = (length.clamp_min(1e-3) / LENGTHS[0]).log() / _RATIO
    unseen = (-place / 1.7).clamp(0, 1)
    place = place.clamp(0, len(LENGTHS) - 1)
    lower = place.floor().clamp_max(len(LENGTHS) - 2)
    first = turn.floor()
    shares = chords.new_zeros(len(chords), CLASSES)
    rows = torch.arange(len(chords), device=chords.device)
    for step_turn in (0, 1):
        for step_length in (0, 1):
            direction = (first + step_turn).long() % DIRECTIONS
            number = direction * len(LENGTHS) + (lower + step_length).long()
            weight = (1 - (turn - first - step_turn).abs()) * (
                1 - (place - lower - step_length).abs()
            )
            shares[rows, number] += weight * (1 - unseen)
    shares[:, -1] += unseen
    return shares


def windows_of(luma: Tensor) -> Tensor:
    """Cut a picture into overlapping windows.

    Args:
        luma: (H, W), both at least WINDOW; edges are reflected.

    Returns:
        (h, w, WINDOW, WINDOW). Window (i, j) is centered on square (i, j) of a grid of STEP pixels.
    """
    height, width = luma.shape
    edge = (WINDOW - STEP) // 2
    below, right = -height % STEP + edge, -width % STEP + edge
    padded = F.pad(luma[None, None], (edge, right, edge, below), mode="reflect")[0, 0]
    return padded.unfold(0, WINDOW, STEP).unfold(1, WINDOW, STEP)


def pooled(evidence: Tensor, prior: Tensor, *, reach: float, belief: float) -> Tensor:
    """Pool the evidence of windows with that of the windows around.

    Args:
        evidence: (h, w, CLASSES), by `BlurFieldNetwork.evidence`.
        prior: Log of the prior probability of each class, (CLASSES,).
        reach: Standard deviation of the Gaussian weight of windows around, in windows.
        belief: Weight of the evidence; below 1, since overlapping windows are not independent.

    Returns:
        Probability of each class for each window, (h, w, CLASSES).
    """
    radius = math.ceil(3 * reach)
    offsets = torch.arange(-radius, radius + 1, device=evidence.device)
    weights = torch.exp(-(offsets.float() ** 2) / (2 * reach**2))
    each = evidence.clamp_min(-3).permute(2, 0, 1)[:, None]
    each = F.pad(each, (radius,) * 4, mode="replicate")
    each = F.conv2d(F.conv2d(each, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return (each[:, 0].permute(1, 2, 0) * belief + prior).softmax(dim=2)


def mean_chord(probabilities: Tensor) -> Tensor:
    """Return the mean chord of class probabilities.

    Opposite directions are equivalent and perpendicular directions cancel, so that the chord is
    short, and the correction cautious, where the motion is uncertain.

    Args:
        probabilities: (h, w, CLASSES).

    Returns:
        (2, h, w), x and y in pixels.
    """
    angle = torch.arange(DIRECTIONS, device=probabilities.device) * (math.pi / DIRECTIONS)
    length = _lengths(probabilities.device)
    each = probabilities[..., :-1].reshape(*probabilities.shape[:2], DIRECTIONS, len(LENGTHS))
    along = (each * (torch.cos(2 * angle)[:, None] * length)).sum((2, 3))
    across = (each * (torch.sin(2 * angle)[:, None] * length)).sum((2, 3))
    size, half = torch.hypot(along, across), torch.atan2(across, along) / 2
    return torch.stack([size * half.cos(), size * half.sin()])
