"""How did each place move while the shutter was open? Read off one picture.

A straight blur multiplies the spectrum of a picture with a sinc along the motion: dark stripes
across it, the closer the longer the blur. Hardly any of that can be seen in the pixels of a patch,
and nearly all of it in the logarithm of its power spectrum, which a small network reads window by
window. What windows nearby say is pooled, for blur changes slowly from place to place. Knows
tensors only.

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

#: Pixels a side of a window, and from one window to the next.
WINDOW, STEP = 64, 32
#: Motions that are told apart: directions over half a turn (a blur has no sign), lengths in pixels.
DIRECTIONS = 16
LENGTHS = (3.0, 4.5, 6.7, 10.0, 15.0, 22.0, 33.0)
#: Each direction's lengths, direction by direction; the last class is a blur too short to see.
CLASSES = DIRECTIONS * len(LENGTHS) + 1
_RATIO = math.log(LENGTHS[-1] / LENGTHS[0]) / (len(LENGTHS) - 1)
_FLOOR = 1e-4  # of power, below which a spectrum is noise


class BlurFieldNetwork(nn.Module):
    """(N, 2, WINDOW, WINDOW / 2) of `spectra` → (N, CLASSES) logits of the window's motion."""

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
        #: Log of how often each class was met in training: what is learned is relative to that.
        self.register_buffer("prior", torch.full((CLASSES,), -math.log(CLASSES)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # Pooling small maps is six times as fast with the channels last.
        x = x.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits

    def evidence(self, x: Tensor) -> Tensor:
        """(N, 2, …) spectra → (N, CLASSES), log of how much likelier each class made them than all
        classes together.
        """
        assert isinstance(self.prior, Tensor)
        return F.log_softmax(self(x), dim=1) - self.prior


@cache
def _rings() -> tuple[Tensor, Tensor, Tensor]:
    """Of half a spectrum: each value's ring around the middle, the rings' sizes; Hann's window."""
    down = torch.fft.fftshift(torch.fft.fftfreq(WINDOW))[:, None]
    across = torch.fft.rfftfreq(WINDOW)[None]
    ring = ((down**2 + across**2).sqrt() * WINDOW).round().long().clamp_max(WINDOW // 2).flatten()
    hann = torch.hann_window(WINDOW)
    return ring, torch.bincount(ring, minlength=WINDOW // 2 + 1).float(), hann[:, None] * hann


def spectra(windows: Tensor) -> Tensor:
    """Windows of luma (N, WINDOW, WINDOW) in [0, 1] → what the network sees, (N, 2, WINDOW,
    WINDOW / 2): the log power of each wave against its ring's mean, and that mean.
    """
    ring, sizes, hann = (part.to(windows.device) for part in _rings())
    windows = (windows - windows.mean(dim=(1, 2), keepdim=True)) * hann
    power = torch.log(torch.fft.rfft2(windows).abs().square() + _FLOOR)
    power = torch.fft.fftshift(power, dim=1).flatten(1)
    means = power.new_zeros(len(power), len(sizes)).index_add_(1, ring, power) / sizes
    around = means[:, ring]
    both = torch.stack([power - around, around * 0.3], dim=1)
    return both.view(len(power), 2, WINDOW, -1)[..., : WINDOW // 2]


def class_shares(chords: Tensor) -> Tensor:
    """Chords (N, 2), x and y in pixels → (N, CLASSES): shares of the nearest classes, together 1.

    Shared linearly by direction and by the logarithm of the length; from the shortest length down
    to half of it more and more is the last class's.
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
    """Luma (H, W), sides at least WINDOW → (h, w, WINDOW, WINDOW), window (i, j) around the middle
    of the square of STEP pixels at (i, j); the picture's edge is reflected.
    """
    height, width = luma.shape
    edge = (WINDOW - STEP) // 2
    below, right = -height % STEP + edge, -width % STEP + edge
    padded = F.pad(luma[None, None], (edge, right, edge, below), mode="reflect")[0, 0]
    return padded.unfold(0, WINDOW, STEP).unfold(1, WINDOW, STEP)


def pooled(evidence: Tensor, prior: Tensor, *, reach: float, belief: float) -> Tensor:
    """Evidence (h, w, CLASSES) of windows → the probability of each class at each place, of the
    same shape, given all windows around, weighed by a Gaussian of `reach` windows.

    belief: what a window's evidence counts; overlapping windows say in part the same.
    """
    radius = math.ceil(3 * reach)
    offsets = torch.arange(-radius, radius + 1, device=evidence.device)
    weights = torch.exp(-(offsets.float() ** 2) / (2 * reach**2))
    each = evidence.clamp_min(-3).permute(2, 0, 1)[:, None]
    each = F.pad(each, (radius,) * 4, mode="replicate")
    each = F.conv2d(F.conv2d(each, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return (each[:, 0].permute(1, 2, 0) * belief + prior).softmax(dim=2)


def mean_chord(probabilities: Tensor) -> Tensor:
    """Probabilities (h, w, CLASSES) → the chord (2, h, w) in pixels, the mean of the motions.

    Opposite directions are the same and perpendicular ones cancel: where nothing is sure the chord
    is short, which is safe.
    """
    angle = torch.arange(DIRECTIONS, device=probabilities.device) * (math.pi / DIRECTIONS)
    length = probabilities.new_tensor(LENGTHS)
    each = probabilities[..., :-1].reshape(*probabilities.shape[:2], DIRECTIONS, len(LENGTHS))
    along = (each * (torch.cos(2 * angle)[:, None] * length)).sum((2, 3))
    across = (each * (torch.sin(2 * angle)[:, None] * length)).sum((2, 3))
    size, half = torch.hypot(along, across), torch.atan2(across, along) / 2
    return torch.stack([size * half.cos(), size * half.sin()])
