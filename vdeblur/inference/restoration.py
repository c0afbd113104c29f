"""Restore pictures that fit the memory at once: color, the network, the guard, the fields.

Knows tensors on one device; no memory limits, no files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vdeblur.color import (
    add_correction,
    correction_to_planes,
    merge_fields,
    planes_to_rgb,
    split_fields,
)
from vdeblur.frames import PlaneLayout
from vdeblur.inference import guard
from vdeblur.inference.guidance import Guidance, padded
from vdeblur.inference.kernels import color
from vdeblur.inference.network_pass import NetworkPass


def restored_planes(
    network: NetworkPass,
    planes: list[Tensor],
    layout: PlaneLayout,
    tile: int | None,
    guidance: Guidance,
    *,
    strength: float,
) -> tuple[list[Tensor], Tensor]:
    """Restore planes; the fields of interlaced pictures are restored apart.

    Args:
        network: Computes corrections.
        planes: (N, rows, columns) each, on the network's device; they are kept.
        layout: What they are.
        tile: Side of tiles in pixels; None for whole pictures.
        guidance: Of the pictures; empty for networks that are not guided.
        strength: Share of the correction that is applied.

    Returns:
        New planes, or the given ones if nothing changes; and bool (N,), which pictures were
        replaced by their source.
    """
    if network.untouched(guidance.motion):
        return planes, torch.zeros(len(planes[0]), dtype=torch.bool, device=network.device)
    pictures, together = layout, 1
    if layout.interlaced:
        planes, pictures = split_fields(planes, layout)
        guidance, together = guidance.of_fields(), 2
    size = network.legal_size(pictures.height, pictures.width)
    kernels = network.color_kernels
    if kernels and kernels.usable(planes, pictures, size=size, dtype=network.dtype):
        restored, replaced = _by_kernels(
            network, planes, pictures, tile, guidance, strength=strength, together=together
        )
    else:
        delta, replaced = guarded_correction(
            network,
            lambda: planes_to_rgb(planes, pictures),
            (pictures.height, pictures.width),
            tile,
            guidance,
            strength=strength,
            together=together,
        )
        restored = add_correction(planes, correction_to_planes(delta, pictures), pictures)
    return merge_fields(restored, layout) if layout.interlaced else restored, replaced


def guarded_correction(
    network: NetworkPass,
    rgb: Callable[[], Tensor],
    size: tuple[int, int],
    tile: int | None,
    guidance: Guidance,
    *,
    strength: float,
    together: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute what is added to pictures: 0 for those that the network damages.

    Args:
        network: Computes corrections.
        rgb: Makes the pictures (N, 3, *size) float32, if they are needed.
        size: Height and width of the pictures.
        tile: Side of tiles in pixels; None for whole pictures.
        guidance: Of the pictures; empty for networks that are not guided.
        strength: Factor of the correction.
        together: So many neighbors in the batch (the fields of a frame) are kept or replaced as
            one.

    Returns:
        (N, 3, *size) float32; and bool (N / together,), which pictures it is 0 for.
    """
    height, width = size
    legal = network.legal_size(height, width)
    guidance = guidance.fitted(size, legal)
    # What follows works channel by channel: twice as fast on planes of their own.
    delta = network(lambda: padded(rgb(), legal), legal, tile, guidance).float().contiguous()
    delta = delta[..., :height, :width]
    replaced = guard.damaged(delta).view(-1, together).any(1)
    if strength != 1:
        delta = delta * strength
    # On a GPU, asking whether any is costs a wait for the device; filling costs nothing.
    if network.device.type != "cpu" or bool(replaced.any()):
        damaged = replaced.repeat_interleave(together)
        delta = delta.masked_fill(damaged[:, None, None, None], 0)
    return delta, replaced


def _by_kernels(
    network: NetworkPass,
    planes: list[Tensor],
    layout: PlaneLayout,
    tile: int | None,
    guidance: Guidance,
    *,
    strength: float,
    together: int,
) -> tuple[list[Tensor], Tensor]:
    """`planes_to_rgb`, `guarded_correction` and `add_correction` in three kernels."""
    size = network.legal_size(layout.height, layout.width)
    guidance = guidance.fitted((layout.height, layout.width), size)

    def seen() -> Tensor:
        return color.planes_to_input(planes, layout, size=size, dtype=network.dtype)

    delta = network(seen, size, tile, guidance)
    if min(layout.height, layout.width) >= guard.BLOCK:
        replaced = color.judge(
            delta, layout, block=guard.BLOCK, block_mean=guard.BLOCK_MEAN, mean=guard.MEAN
        )
    else:
        replaced = guard.damaged(delta[..., : layout.height, : layout.width].float())
    replaced = replaced.view(-1, together).any(1)
    return color.add_to_planes(
        planes, delta, layout, strength=strength, replaced=replaced
    ), replaced
