"""Average away the flicker of a film's restored frames, along the motion.

Each frame is restored by itself, and what a network invents or leaves over differs from frame to
frame: lettering shimmers though nothing moves but the camera. The frame before, restored and
steadied already, is warped to the current frame, and where both show the same, the result is a
weighted mean of both: a recursive filter in time. It lowers the noise of restoration, and so raises
fidelity too. Where the network left the picture as it was, so does this filter.

The motion to the frame before was found on blurred pictures. One step of Lucas and Kanade on the
restored pictures corrects it ("An iterative image registration technique", IJCAI 1981); without it,
half of the gain is lost. Recursive filtering along motion: E. Dubois and S. Sabri, "Noise
reduction in image sequences using motion-compensated temporal filtering", IEEE Trans. Comm. 1984.
Knows tensors and views; no files, no networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.color import as_int16, to_codes, to_float
from vdeblur.frames import PlaneLayout
from vdeblur.motion.neighbours import Around
from vdeblur.motion.warping import warp

#: Side in pixels of the cells in which weights and corrections of the motion are computed.
_CELL = 4
#: Side in cells of the window they are computed over.
_WINDOW = 3
#: Weight of the frame before where both show the same; the current frame has weight 1.
_MOST = 2.0
#: Levels of 255 by which the network changed a place, for half of that weight.
_CHANGED = 2.0
#: Levels by which both frames may differ before they count as different things; and the same for
#: each level that the network changed.
_DIFFER, _DIFFER_CHANGED = 1.0, 0.7
#: Levels by which half of the picture may be lighter or darker than the frame before; beyond, the
#: light changed (a flash, a fade), and must not be mixed in.
_LIGHTER = 1.0
#: Squared slope, in levels per pixel, below which a place says nothing of the motion; and the
#: largest correction of the motion, in pixels.
_FAINT, _FARTHEST = 2.0, 1.0


@torch.no_grad()
def steadied(
    planes: Sequence[Tensor], layout: PlaneLayout, around: Around | None
) -> list[Tensor] | None:
    """Steady the restored planes of a frame.

    Args:
        planes: (rows, columns) each, restored.
        layout: What they are.
        around: What the frame was restored with.

    Returns:
        New planes of the same dtype; None if there is nothing to steady: the frame before is not
        known or was not restored, or the network changed nothing.
    """
    link = None if around is None else around.before
    if around is None or link is None or link[0].restored is None:
        return None
    level = 2.0 ** (layout.depth - 8)
    now, before, source = (
        to_float(each[0], layout.depth) for each in (planes, link[0].restored, around.here.planes)
    )
    size = (-(-layout.height // _CELL), -(-layout.width // _CELL))
    changed = _around(_resized((now - source.to(now.device)).abs_(), size)[None])[0] / level
    if _on_cpu(now) and not bool(changed.any()):
        return None
    way = torch.stack([_resized(part, size) for part in link[1].to(now.device)])
    way = way + _correction(now, before, way, level)
    (there,) = _brought([before], way, cubic=True)
    error = there - now
    lighter = _resized(error, size).median() / level
    apart = _around(_resized(error.abs_(), size)[None])[0] / level
    weight = _MOST * changed / (changed + _CHANGED)
    weight *= torch.exp(-((apart / (_DIFFER + _DIFFER_CHANGED * changed)) ** 2))
    weight *= _inside(way, layout) * (lighter.abs() <= _LIGHTER)
    share = weight / (1 + weight)
    result = [_mixed(planes[0], now, there, _resized(share, now.shape), layout)]
    others = [to_float(plane, layout.depth) for plane in planes[1:]]
    if others:
        shape = others[0].shape
        olds = [to_float(plane, layout.depth) for plane in link[0].restored[1:]]
        per = way.new_tensor([shape[1] / layout.width, shape[0] / layout.height])
        found = _brought(olds, way * per[:, None, None], cubic=True)
        part = _resized(share, shape)
        result += [
            _mixed(plane, here, there, part, layout)
            for plane, here, there in zip(planes[1:], others, found, strict=True)
        ]
    return result


def steadied_in_order(
    planes: Sequence[Tensor], layout: PlaneLayout, around: Sequence[Around | None]
) -> list[Tensor]:
    """Steady the restored planes of frames in their order, and keep them for the frames to follow.

    Args:
        planes: (N, rows, columns) each, restored.
        layout: What they are.
        around: What each frame was restored with; the steadied planes are kept in their views.

    Returns:
        The steadied planes; the same tensors if there was nothing to steady.
    """
    pictures, any_new = [], False
    for number, known in enumerate(around):
        own = [plane[number] for plane in planes]
        new = steadied(own, layout, known)
        if known is not None:
            # Copies: the planes may be a frame's own memory, or views of a whole batch.
            copies = (as_int16(plane).clone().view(plane.dtype) for plane in own)
            known.here.restored = tuple(new or copies)
        any_new = any_new or new is not None
        pictures.append(new or own)
    if not any_new:
        return list(planes)
    return [
        torch.stack([as_int16(plane) for plane in same]).view(whole.dtype)
        for same, whole in zip(zip(*pictures, strict=True), planes, strict=True)
    ]


def _mixed(
    plane: Tensor, here: Tensor, there: Tensor, share: Tensor, layout: PlaneLayout
) -> Tensor:
    """here + share · (there − here) as codes of the plane's dtype; overwrites `there`."""
    mixed = there.sub_(here).mul_(share).add_(here).round_()
    return to_codes(mixed.clamp_(0, (1 << layout.depth) - 1), plane.dtype)


def _correction(now: Tensor, before: Tensor, way: Tensor, level: float) -> Tensor:
    """The correction (2, h, w) of the motion in pixels, by one step of least squares.

    Computed for cells: for pixels it would take much longer.
    """
    (there,) = _brought([before], way)
    mean, error = (there + now).mul_(0.5 / level), (there - now).mul_(1 / level)
    across, down = torch.zeros_like(mean), torch.zeros_like(mean)
    torch.sub(mean[:, 2:], mean[:, :-2], out=across[:, 1:-1]).mul_(0.5)
    torch.sub(mean[2:], mean[:-2], out=down[1:-1]).mul_(0.5)
    pairs = (across, across), (down, down), (across, down), (across, error), (down, error)
    size = way.shape[1:]
    sums = torch.stack([_resized(one * other, size) for one, other in pairs])
    xx, yy, xy, xe, ye = _around(sums)
    xx, yy = xx + _FAINT, yy + _FAINT
    area = xx * yy - xy * xy
    found: Tensor = torch.stack([xy * ye - yy * xe, xy * xe - xx * ye]) / area
    return found.clamp_(-_FARTHEST, _FARTHEST)


def _inside(way: Tensor, layout: PlaneLayout) -> Tensor:
    """1 for cells whose motion (2, h, w) stays within the picture, else 0: (h, w)."""
    rows, columns = way.shape[1:]
    per = layout.width / columns, layout.height / rows
    x, y = (
        (torch.arange(count, device=way.device) + 0.5) * one
        for count, one in zip((columns, rows), per, strict=True)
    )
    across, down = way[0] + x, way[1] + y[:, None]
    seen = (across >= 0) & (across <= layout.width) & (down >= 0) & (down <= layout.height)
    return seen.to(way.dtype)


def _on_cpu(values: Tensor) -> bool:
    """Whether OpenCV computes it, in a tenth of torch's time."""
    return values.device.type == "cpu"


def _around(cells: Tensor) -> Tensor:
    """The mean (N, h, w) of the cells around each; edges are repeated."""
    if _on_cpu(cells):
        size = (_WINDOW, _WINDOW)
        means = [cv2.blur(each.numpy(), size, borderType=cv2.BORDER_REPLICATE) for each in cells]
        return torch.from_numpy(np.stack(means))
    edge = _WINDOW // 2
    return F.avg_pool2d(F.pad(cells[None], (edge,) * 4, mode="replicate"), _WINDOW, stride=1)[0]


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (rows, columns): by means where it gets smaller, else bilinear."""
    smaller = size[0] < values.shape[0]
    if _on_cpu(values):
        kind = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return torch.from_numpy(cv2.resize(values.numpy(), (size[1], size[0]), interpolation=kind))
    whole = values[None, None]
    if smaller:
        return F.interpolate(whole, size=tuple(size), mode="area")[0, 0]
    return F.interpolate(whole, size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _brought(planes: Sequence[Tensor], way: Tensor, *, cubic: bool = False) -> list[Tensor]:
    """Warp planes (rows, columns) by `way` (2, h, w), x and y in pixels; edges are repeated."""
    rows, columns = planes[0].shape
    x, y = (_resized(part, (rows, columns)) for part in way)
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
