"""Estimate the motion of a single picture by its own blur, with a network.

For stills, and for frames without a neighbor that shows their motion. The network is
`vdeblur.networks.blur_field`; its weights are the only file that this reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.errors import ModelError
from vdeblur.frames import Frame
from vdeblur.networks.blur_field import (
    STEP,
    WINDOW,
    BlurFieldNetwork,
    class_shares,
    mean_chord,
    pooled,
    spectra,
    windows_of,
)
from vdeblur.networks.taps import luma_of
from vdeblur.weights.packaged import SHIPPED, checked_weights
from vdeblur.weights.tensor_files import read_tensors

#: Area in pixels that larger pictures are reduced to: windows of 64 pixels show blurs of up to 33.
_AREA = 1280 * 720
#: Sigma, in windows, that evidence is pooled over; weight of each window (four overlap everywhere).
_REACH, _BELIEF = 1.5, 0.3
_AT_ONCE = 64  # windows in one pass, whose activations fit a CPU's cache
_FAINT = 1 / 255**2  # mean square of slopes below which detail is not trusted
#: Share of a picture's detail that shows a blur: up to the first the picture counts as sharp, from
#: the second on as blurred. A moving camera blurs all detail (at least 0.99 in four photographs);
#: in sharp pictures a quarter looks blurred (stripes, railings, lettering).
_SHARP, _BLURRED = 0.3, 0.6
_SEEN = 3.0  # pixels from which on a blur counts for that
#: Search for a camera's shake: range from 0 and step in pixels; approximate number of windows used;
#: and the share of the score of independent windows that flow and shake must reach together.
_SHAKEN, _SHAKEN_STEP, _ASKED, _BETTER = 18.0, 1.5, 80, 0.5
_SMALLER = 1e-3  # penalty on a shake, per squared pixel


@cache
def blur_field_network(weights: Path | None = None) -> BlurFieldNetwork:
    """Return the network for inference on the CPU.

    Args:
        weights: a file; None for the weights that ship.

    Raises:
        ModelError: the weights are damaged, or of another network.
    """
    path = weights or checked_weights(SHIPPED / "blur-field.safetensors")
    network = BlurFieldNetwork()
    try:
        network.load_state_dict(read_tensors(path).groups[0])
    except RuntimeError as error:
        raise ModelError(f"{path} holds the weights of another network than blur-field") from error
    return network.eval().requires_grad_(False)


def luma_plane(frame: Frame) -> NDArray[np.float32]:
    """Return a frame's luma, (rows, columns) in [0, 1]; of an interlaced one, its upper field."""
    layout = frame.layout
    step = 2 if layout.interlaced else 1
    used = frame.planes if layout.kind == "rgb" else frame.planes[:1]
    planes = [plane[::step].astype(np.float32) for plane in used]
    top = float((1 << layout.depth) - 1)
    if layout.kind == "rgb":
        green, blue, red = planes
        luma = (0.587 * green + 0.114 * blue + 0.299 * red) / top
    elif layout.full_range:
        luma = planes[0] / top
    else:
        unit = 1 << (layout.depth - 8)
        luma = (planes[0] - 16 * unit) / (219 * unit)
    return np.asarray(luma, np.float32)


@dataclass(frozen=True)
class BlurEstimate:
    """The motion that a picture shows by itself.

    Attributes:
        motion: (4, h, w) as in `Frame.motion`, without bend.
        blurred: confidence in it, 0 to 1, by the share of detail that is blurred.
    """

    motion: NDArray[np.float32]
    blurred: float


def estimate_motion(
    luma: NDArray[np.float32], flow: NDArray[np.float32] | None = None
) -> BlurEstimate | None:
    """Estimate the motion of each place of a picture during its exposure.

    Args:
        luma: (H, W) in [0, 1].
        flow: (2, h, w) in pixels, if the motion is known except for a shake of the camera. A shake
            moves the whole picture, so that all windows together show it more exactly than those
            nearby.

    Returns:
        The estimate; None for a picture that is too small.
    """
    height, width = luma.shape
    reduced = max(1, round(math.sqrt(height * width / _AREA)))
    if min(height, width) < WINDOW * reduced:
        return None
    size = (round(width / reduced), round(height / reduced))
    small: Any = luma if reduced == 1 else cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    network = blur_field_network()
    with torch.inference_mode():
        luma_there = torch.from_numpy(np.ascontiguousarray(small))
        evidence, detail = window_evidence(network, luma_there)
        assert isinstance(network.prior, Tensor)
        chord = mean_chord(pooled(evidence, network.prior, reach=_REACH, belief=_BELIEF))
        long = torch.hypot(chord[0], chord[1]) > _SEEN
        blurred = float((detail * long).sum() / detail.sum().clamp_min(1e-6))
        if flow is not None:
            known = [cv2.resize(part, evidence.shape[1::-1], interpolation=cv2.INTER_AREA)
                     for part in flow * np.float32(size[0] / width)]  # fmt: skip
            chord = _shaken(evidence, torch.from_numpy(np.stack(known)), chord)
    scale = np.array([width / size[0], height / size[1]], np.float32)[:, None, None]
    motion = np.zeros((4, *chord.shape[1:]), np.float32)
    motion[:2] = chord.numpy() * scale
    return BlurEstimate(motion, min(1.0, max(0.0, (blurred - _SHARP) / (_BLURRED - _SHARP))))


def _shaken(evidence: Tensor, flow: Tensor, alone: Tensor) -> Tensor:
    """Add the shake of the camera, a shift and a turn, that fits the evidence best to the flow.

    Args:
        evidence: (h, w, CLASSES).
        flow: (2, h, w), chords in pixels.
        alone: (2, h, w), chords of each window by itself.

    Returns:
        Chords (2, h, w): `alone` where that fits much better, since then the flow is wrong, or
        there was no shake.
    """
    height, width = evidence.shape[:2]
    down, across = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )  # fmt: skip
    turned = torch.stack([-down, across]) * float(STEP)
    thin = max(1, round(math.sqrt(height * width / _ASKED)))

    def asked(field: Tensor) -> Tensor:
        return field[:, ::thin, ::thin].flatten(1).T

    likely = evidence[::thin, ::thin].flatten(0, 1).clamp_min(-3).exp()
    base, turns = asked(flow), asked(turned)

    def agreement(chords: Tensor) -> Tensor:
        shares = class_shares(chords.reshape(-1, 2)).view(*chords.shape[:2], -1)
        return (shares * likely).sum(2).clamp_min(1e-3).log().sum(1)

    def best(shakes: Tensor) -> tuple[Tensor, float]:
        scores = agreement(base + shakes[:, None, :2] + shakes[:, None, 2:] * turns)
        # The direction of a blur has no sign: of two shakes that fit alike, take the smaller one.
        scores = scores - _SMALLER * shakes[:, :2].square().sum(1)
        first = int(scores.argmax())
        return shakes[first], float(scores[first])

    steps = torch.arange(-_SHAKEN, _SHAKEN + 0.1, _SHAKEN_STEP)
    shake, score = best(torch.cartesian_prod(steps, steps, torch.zeros(1)))
    # Turns are in pixels of motion halfway to the picture's edge.
    per_pixel = 1 / (STEP * max(height, width) / 4)
    for step in (1.0, 0.5, 0.5, 0.25, 0.25):
        near = torch.tensor([-1.0, 0.0, 1.0]) * step
        more = torch.cartesian_prod(near, near, near * per_pixel)
        shake, score = best(shake + more)
    if score < _BETTER * float(agreement(asked(alone)[None])):
        return alone
    return flow + shake[:2, None, None] + shake[2] * turned


def still_motion(luma: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return the motion of a picture of which nothing else is known, by `estimate_motion`.

    (4, h, w), 0 everywhere in a picture whose detail is mostly sharp, even if something moves in
    it: that cannot be told from texture that looks like a blur.
    """
    shown = estimate_motion(luma)
    return None if shown is None else shown.motion * np.float32(shown.blurred)


def estimate_motions(rgb: Tensor) -> Tensor | None:
    """Estimate the motion of each picture of a batch by itself.

    Args:
        rgb: (N, 3, H, W) in [0, 1].

    Returns:
        (N, 4, h, w) on the same device; None for pictures that are too small.
    """
    fields = [still_motion(luma[0].cpu().numpy()) for luma in luma_of(rgb.detach().float())]
    known = [torch.from_numpy(field) for field in fields if field is not None]
    return torch.stack(known).to(rgb.device) if known else None


def window_evidence(network: BlurFieldNetwork, luma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the network's evidence for each window of luma (H, W) in [0, 1].

    (h, w, CLASSES), see `BlurFieldNetwork.evidence`, and the visibility of detail, (h, w) in
    [0, 1].
    """
    windows = windows_of(luma)
    rows, columns = windows.shape[:2]
    parts, details = [], []
    for part in torch.split(windows.flatten(0, 1), _AT_ONCE):
        # Without visible detail, a spectrum shows nothing.
        down, across = (part.diff(dim=d).square().mean(dim=(1, 2)) for d in (1, 2))
        seen = (down + across) / (down + across + _FAINT)
        parts.append(network.evidence(spectra(part)) * seen[:, None])
        details.append(seen)
    return torch.cat(parts).view(rows, columns, -1), torch.cat(details).view(rows, columns)
