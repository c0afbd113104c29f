"""Average away the flicker of a film's restored frames, along the motion.

Each frame is restored by itself, so artifacts and residual blur differ from frame to frame:
lettering shimmers though only the camera moves. The previous frame, already restored and steadied,
is warped to the current frame; where both agree, the result is their weighted mean: a recursive
filter in time. It lowers the noise of restoration, and so raises fidelity, too. Places that the
network left unchanged stay unchanged.

The motion to the frame before was found on blurred pictures. One step of Lucas and Kanade on the
restored pictures corrects it ("An iterative image registration technique", IJCAI 1981); without it,
half of the gain is lost. Recursive filtering along motion: E. Dubois and S. Sabri, "Noise
reduction in image sequences using motion-compensated temporal filtering", IEEE Trans. Comm. 1984.
Knows tensors and views; no files, no networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.color import as_int16, to_codes, to_float
from vdeblur.frames import PlaneLayout
from vdeblur.inference.graphs import Recorded, Recorder
from vdeblur.motion.neighbours import Around
from vdeblur.motion.warping import warp

#: Side in pixels of the cells in which weights and corrections of the motion are computed.
_CELL = 4
#: Side in cells of the window over which they are computed.
_WINDOW = 3
#: Weight of the previous frame where both agree; the current frame has weight 1.
_MAX_WEIGHT = 2.0
#: Change by the network, in levels of 255, at which the weight is half of that.
_HALF_CHANGE = 2.0
#: Difference of both frames, in levels, beyond which they count as different things, and its
#: increase for each level that the network changed.
_DIFFER, _DIFFER_CHANGED = 1.0, 0.7
#: Median difference in levels to the previous frame, beyond which the light changed (a flash, a
#: fade) and must not be mixed in.
_MAX_LIGHT_CHANGE = 1.0
#: Squared slope, in levels per pixel, below which a place does not determine the motion; and the
#: largest correction of the motion, in pixels.
_MIN_SLOPE, _MAX_STEP = 2.0, 1.0


@torch.no_grad()
def steady(layout: PlaneLayout, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Steady the restored planes of a frame.

    Args:
        layout: Interpretation of the planes.
        tensors: The restored planes, (rows, columns) each; those of the previous frame, restored
            and steadied; the luma plane (or the first) of the frame as decoded; the displacement of
            each place to the previous frame, (2, h, w) in pixels.

    Returns:
        New planes of the same dtype; on a CPU the given ones if the network changed nothing.
    """
    count = len(layout.shapes)
    planes, olds, (decoded, way) = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
    level = 2.0 ** (layout.depth - 8)
    now, before, source = (to_float(each, layout.depth) for each in (planes[0], olds[0], decoded))
    size = (-(-layout.height // _CELL), -(-layout.width // _CELL))
    changed = _local_mean(_resized((now - source).abs_(), size)[None])[0] / level
    if _on_cpu(now) and not bool(changed.any()):
        return planes
    flow = torch.stack([_resized(part, size) for part in way])
    flow = flow + _correction(now, before, flow, level)
    (warped,) = _warped([before], flow, cubic=True)
    error = warped - now
    lighter = _resized(error, size).median() / level
    apart = _local_mean(_resized(error.abs_(), size)[None])[0] / level
    weight = _MAX_WEIGHT * changed / (changed + _HALF_CHANGE)
    weight *= torch.exp(-((apart / (_DIFFER + _DIFFER_CHANGED * changed)) ** 2))
    weight *= _inside(flow, layout) * (lighter.abs() <= _MAX_LIGHT_CHANGE)
    share = weight / (1 + weight)
    result = [_mixed(planes[0], now, warped, _resized(share, now.shape), layout)]
    if count > 1:
        others, before_ = ([to_float(p, layout.depth) for p in of[1:]] for of in (planes, olds))
        shape = others[0].shape
        per = shape[1] / layout.width, shape[0] / layout.height
        found = _warped(before_, torch.stack([flow[0] * per[0], flow[1] * per[1]]), cubic=True)
        part = _resized(share, shape)
        result += [
            _mixed(plane, here, warped, part, layout)
            for plane, here, warped in zip(planes[1:], others, found, strict=True)
        ]
    return tuple(result)


def other_codes(expected: Sequence[Tensor], got: Sequence[Tensor]) -> str | None:
    """Say, as a part of a sentence, that planes are not the expected ones; None if they are."""
    same = map(torch.equal, map(as_int16, expected), map(as_int16, got))
    return None if all(same) else "they give other codes"


def recorded(note: Callable[[str], object]) -> Recorded:
    """Return `steady` as CUDA graphs; `note` is called if they cannot be used."""
    return Recorded(steady, note=note, differs=other_codes, record=Recorder())


def steadied_in_order(
    planes: Sequence[Tensor],
    layout: PlaneLayout,
    around: Sequence[Around | None],
    run: Callable[..., tuple[Tensor, ...]] = steady,
) -> list[Tensor]:
    """Steady the restored planes of frames in order, and keep them for the next frames.

    Args:
        planes: (N, rows, columns) each, restored.
        layout: Interpretation of the planes.
        around: The neighbors of each frame; the steadied planes are kept in their views.
        run: `steady`, or a faster way to do the same.

    Returns:
        The steadied planes; the same tensors if there was nothing to steady: previous frames are
        unknown or were not restored, or the network changed nothing.
    """
    if planes[0].device.type == "mps":  # has no area means and, before torch 2.13, no edges
        planes = [plane.cpu() for plane in planes]
    pictures, any_new = [], False
    for number, known in enumerate(around):
        own = tuple(plane[number] for plane in planes)
        link = None if known is None else known.before
        new = own
        if known is not None and link is not None and link[0].restored is not None:
            # On the device already, where copies may be issued without waiting for them.
            rest = (each.to(own[0].device) for each in (known.here.planes[0], link[1]))
            new = run(layout, *own, *link[0].restored, *rest)
        changed = new[0] is not own[0]
        if known is not None:
            # Copies: the planes may be a frame's own memory, or views of a whole batch.
            copies = (as_int16(plane).clone().view(plane.dtype) for plane in own)
            known.here.restored = new if changed else tuple(copies)
        any_new = any_new or changed
        pictures.append(new)
    if not any_new:
        return list(planes)
    return [
        torch.stack([as_int16(plane) for plane in same]).view(whole.dtype)
        for same, whole in zip(zip(*pictures, strict=True), planes, strict=True)
    ]


def _mixed(
    plane: Tensor, here: Tensor, warped: Tensor, share: Tensor, layout: PlaneLayout
) -> Tensor:
    """here + share · (warped − here) as codes of the plane's dtype; overwrites `warped`."""
    mixed = warped.sub_(here).mul_(share).add_(here).round_()
    return to_codes(mixed.clamp_(0, (1 << layout.depth) - 1), plane.dtype)


def _correction(now: Tensor, before: Tensor, flow: Tensor, level: float) -> Tensor:
    """Return the correction (2, h, w) of the flow in pixels, by a step of least squares.

    It is computed per cell: per pixel it would take much longer.
    """
    (warped,) = _warped([before], flow)
    mean, error = (warped + now).mul_(0.5 / level), (warped - now).mul_(1 / level)
    across, down = torch.zeros_like(mean), torch.zeros_like(mean)
    torch.sub(mean[:, 2:], mean[:, :-2], out=across[:, 1:-1]).mul_(0.5)
    torch.sub(mean[2:], mean[:-2], out=down[1:-1]).mul_(0.5)
    pairs = (across, across), (down, down), (across, down), (across, error), (down, error)
    size = flow.shape[1:]
    sums = torch.stack([_resized(one * other, size) for one, other in pairs])
    xx, yy, xy, xe, ye = _local_mean(sums)
    xx, yy = xx + _MIN_SLOPE, yy + _MIN_SLOPE
    area = xx * yy - xy * xy
    found: Tensor = torch.stack([xy * ye - yy * xe, xy * xe - xx * ye]) / area
    return found.clamp_(-_MAX_STEP, _MAX_STEP)


def _inside(flow: Tensor, layout: PlaneLayout) -> Tensor:
    """Return (h, w): 1 for cells whose flow (2, h, w) stays within the picture, else 0."""
    rows, columns = flow.shape[1:]
    per = layout.width / columns, layout.height / rows
    x, y = (
        (torch.arange(count, device=flow.device) + 0.5) * one
        for count, one in zip((columns, rows), per, strict=True)
    )
    across, down = flow[0] + x, flow[1] + y[:, None]
    seen = (across >= 0) & (across <= layout.width) & (down >= 0) & (down <= layout.height)
    return seen.to(flow.dtype)


def _on_cpu(values: Tensor) -> bool:
    """Return whether OpenCV computes the values, in a tenth of torch's time."""
    return values.device.type == "cpu"


def _local_mean(cells: Tensor) -> Tensor:
    """Return the mean (N, h, w) of the window around each cell; edges are repeated."""
    if _on_cpu(cells):
        size = (_WINDOW, _WINDOW)
        means = [cv2.blur(each.numpy(), size, borderType=cv2.BORDER_REPLICATE) for each in cells]
        return torch.from_numpy(np.stack(means))
    edge = _WINDOW // 2
    return F.avg_pool2d(F.pad(cells[None], (edge,) * 4, mode="replicate"), _WINDOW, stride=1)[0]


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (rows, columns): by area means if it shrinks, else bilinear."""
    smaller = size[0] < values.shape[0]
    if _on_cpu(values):
        kind = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return torch.from_numpy(cv2.resize(values.numpy(), (size[1], size[0]), interpolation=kind))
    whole = values[None, None]
    if smaller:
        return F.interpolate(whole, size=tuple(size), mode="area")[0, 0]
    return F.interpolate(whole, size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _warped(planes: Sequence[Tensor], flow: Tensor, *, cubic: bool = False) -> list[Tensor]:
    """Warp planes (rows, columns) by `flow` (2, h, w), x and y in pixels; edges are repeated."""
    rows, columns = planes[0].shape
    x, y = (_resized(part, (rows, columns)) for part in flow)
    if not _on_cpu(x):
        mode = "bicubic" if cubic else "bilinear"
        return list(warp(torch.stack(list(planes))[None], torch.stack([x, y])[None], mode)[0])
    to_x, to_y = (x + torch.arange(columns)).numpy(), (y + torch.arange(rows)[:, None]).numpy()
    kind = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    return [
        torch.from_numpy(
            cv2.remap(plane.numpy(), to_x, to_y, kind, borderMode=cv2.BORDER_REPLICATE)
        )
        for plane in planes
    ]
