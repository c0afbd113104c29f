"""Panels to look at: blurred, restored and sharp beside each other, the largest change enlarged."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.pictures import RGBImage, to_picture
from vdeblur.evaluation.lettering import can_letter, put_label

_GAP = 6  # pixels between the columns
_YELLOW = (255, 220, 0)


def panel(
    blurred: Tensor,
    restored: Tensor | None,
    sharp: Tensor,
    values: dict[str, float],
    *,
    label: str = "restored",
    width: int = 560,
) -> RGBImage:
    """Draw blurred | restored | sharp, and below each the place of the largest change, enlarged.

    The place is the one that the network changed most; without a restored picture, the one where
    the blurred picture is farthest from the sharp. Without Pillow there are no labels.

    Args:
        blurred: (1, 3, H, W) floats in [0, 1], as `restored` and `sharp`.
        restored: None leaves its column out.
        sharp: The reference.
        values: `psnr_` and `ssim_` of each picture, for the labels.
        label: What the restored picture is called.
        width: Pixels of a column; pictures that are narrower stay as they are.

    Returns:
        (rows, columns, 3) uint8 RGB.
    """
    rows, columns = sharp.shape[2:]
    width = min(width, columns)
    crop = max(1, rows // 5), max(1, columns // 5)
    top, left = largest_change(blurred, sharp if restored is None else restored, crop)

    def score(name: str) -> str:
        return f"{values[f'psnr_{name}']:.2f} dB  {values[f'ssim_{name}']:.3f}"

    views = [(f"blurred  {score('blurred')}", blurred)]
    if restored is not None:
        views.append((f"{label}  {score('restored')}", restored))
    views.append(("sharp", sharp))
    height = max(1, round(rows * width / columns))
    scale = width / columns
    box = [round(v * scale) for v in (top, left, top + crop[0], left + crop[1])]
    stacks = []
    for title, view in views:
        shrunk = F.interpolate(
            view.float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
        )
        whole = to_picture(shrunk).copy()
        if can_letter():
            put_label(whole, title, height=max(12, width // 20))
        _outline(whole, *box)
        part = view[..., top : top + crop[0], left : left + crop[1]].float()
        zoom = to_picture(F.interpolate(part, size=(height, width), mode="bicubic"))
        stacks.append(np.pad(np.concatenate([whole, zoom]), ((0, 0), (0, _GAP), (0, 0))))
    return np.concatenate(stacks, axis=1)[:, :-_GAP]


def _outline(picture: RGBImage, top: int, left: int, bottom: int, right: int) -> None:
    """Draw a yellow frame of two pixels, in place."""
    picture[top : top + 2, left:right] = picture[bottom - 2 : bottom, left:right] = _YELLOW
    picture[top:bottom, left : left + 2] = picture[top:bottom, right - 2 : right] = _YELLOW


def largest_change(a: Tensor, b: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Find the window in which |a − b| sums up highest.

    Args:
        a: (1, C, H, W), at least as large as the window.
        b: Like `a`.
        size: Rows and columns of the window.

    Returns:
        Its top row and its left column.
    """
    change = (a - b).abs().mean((0, 1)).double().cpu()
    table = F.pad(change, (1, 0, 1, 0)).cumsum(0).cumsum(1)
    rows, columns = size
    sums = table[rows:, columns:] - table[:-rows, columns:]
    sums = sums - table[rows:, :-columns] + table[:-rows, :-columns]
    place = int(sums.argmax())
    return place // sums.shape[1], place % sums.shape[1]
