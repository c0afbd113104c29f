"""The motion of a single picture, read off its own blur. Knows no files but its network's weights.

For stills, and for frames that have no neighbour to tell. See `vdeblur.networks.blur_field`.
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

#: Pixels that larger pictures are reduced to: windows of 64 see blurs of up to 33.
_AREA = 1280 * 720
#: Windows over which evidence is pooled, and what each counts (four overlap in every place).
_REACH, _BELIEF = 1.5, 0.3
_AT_ONCE = 64  # windows, whose activations stay in a cache
_FAINT = 1 / 255**2  # mean square of slopes, below which detail is not to be believed
#: Share of a picture's detail that shows a blur of some pixels: up to the first the picture is
#: taken for sharp, from the second on for blurred. A camera that moves blurs all of it (0.99 and
#: more of four real photographs); of sharp ones a quarter looks so (stripes, railings, lettering).
_SHARP, _BLURRED = 0.3, 0.6
_SEEN = 3.0  # pixels
#: Pixels that a camera may have shaken by, from the middle of what is tried to its ends, and in one
#: step; windows that are asked, at most or so; and how much better than by the flow and a shake the
#: places may be told each by itself for the shake to be believed.
_SHAKEN, _SHAKEN_STEP, _ASKED, _BETTER = 18.0, 1.5, 80, 0.5
_SMALLER = 1e-3  # what a squared pixel of a shake counts against it


@cache
def blur_field_network(weights: Path | None = None) -> BlurFieldNetwork:
    """The network for inference on the CPU, with the weights that ship or those of another file.

    ModelError when they are damaged, or another network's.
    """
    path = weights or checked_weights(SHIPPED / "blur-field.safetensors")
    network = BlurFieldNetwork()
    try:
        network.load_state_dict(read_tensors(path).groups[0])
    except RuntimeError as error:
        raise ModelError(f"{path} holds the weights of another network than blur-field") from error
    return network.eval().requires_grad_(False)


def luma_plane(frame: Frame) -> NDArray[np.float32]:
    """The luma of a frame, (rows, columns) in [0, 1]; of interlaced ones the upper field's."""
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
    """What a picture shows of its own motion.

    motion: (4, h, w) as `Frame.motion` has it, the bend 0. blurred: how far it is to be believed,
    0 … 1: most of the detail of a sharp picture is sharp, whatever looks like a blur in the rest.
    """

    motion: NDArray[np.float32]
    blurred: float


def estimate_motion(
    luma: NDArray[np.float32], flow: NDArray[np.float32] | None = None
) -> BlurEstimate | None:
    """How each place of a picture (H, W) in [0, 1] moved; None of one that is too small to tell.

    flow: (2, h, w) pixels, the motion but for what a camera that shakes adds to it, if any of it is
    known. A shake is a motion of the whole picture, which all windows tell together more exactly
    than those nearby.
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
    """The chords (2, h, w) of windows that a shake of the camera, a shift and a turn, makes of the
    flow, so that they agree best with the evidence (h, w, CLASSES); or `alone`, what places tell
    each by itself, where that agrees much better: then the flow is wrong, or it was no shake.
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
        # A blur has no sign: of two shakes that agree alike, the smaller one.
        scores = scores - _SMALLER * shakes[:, :2].square().sum(1)
        first = int(scores.argmax())
        return shakes[first], float(scores[first])

    steps = torch.arange(-_SHAKEN, _SHAKEN + 0.1, _SHAKEN_STEP)
    shake, score = best(torch.cartesian_prod(steps, steps, torch.zeros(1)))
    # A turn counts by what it does halfway to the picture's edge.
    per_pixel = 1 / (STEP * max(height, width) / 4)
    for step in (1.0, 0.5, 0.5, 0.25, 0.25):
        near = torch.tensor([-1.0, 0.0, 1.0]) * step
        more = torch.cartesian_prod(near, near, near * per_pixel)
        shake, score = best(shake + more)
    if score < _BETTER * float(agreement(asked(alone)[None])):
        return alone
    return flow + shake[:2, None, None] + shake[2] * turned


def still_motion(luma: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The motion of a picture of which nothing else is known: see `estimate_motion`.

    Of one most of whose detail is sharp all is 0, also where something in it moves: nothing would
    tell that from what only looks like a blur.
    """
    shown = estimate_motion(luma)
    return None if shown is None else shown.motion * np.float32(shown.blurred)


def estimate_motions(rgb: Tensor) -> Tensor | None:
    """What each picture (N, 3, H, W) in [0, 1] shows of its own motion, (N, 4, h, w) on its device;
    None of pictures too small to tell.
    """
    fields = [still_motion(luma[0].cpu().numpy()) for luma in luma_of(rgb.detach().float())]
    known = [torch.from_numpy(field) for field in fields if field is not None]
    return torch.stack(known).to(rgb.device) if known else None


def window_evidence(network: BlurFieldNetwork, luma: Tensor) -> tuple[Tensor, Tensor]:
    """Luma (H, W) in [0, 1] → (h, w, CLASSES), see `BlurFieldNetwork.evidence`, and how far there
    is any detail to see, (h, w) in [0, 1].
    """
    windows = windows_of(luma)
    rows, columns = windows.shape[:2]
    parts, details = [], []
    for part in torch.split(windows.flatten(0, 1), _AT_ONCE):
        # Where nothing is to be seen, what a spectrum looks like says nothing.
        down, across = (part.diff(dim=d).square().mean(dim=(1, 2)) for d in (1, 2))
        seen = (down + across) / (down + across + _FAINT)
        parts.append(network.evidence(spectra(part)) * seen[:, None])
        details.append(seen)
    return torch.cat(parts).view(rows, columns, -1), torch.cat(details).view(rows, columns)
