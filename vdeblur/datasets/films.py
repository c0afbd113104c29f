"""The motion and the neighbors that a guided network receives with synthetic pairs, as in use.

Frames are matched as those of a film are by `vdeblur.motion.flow`, on the blurred pictures, so that
errors of the flow are real: for the motion of the frame at hand, and to warp its neighbors to it.
Each neighbor is filtered along its own motion, which has errors too. Not all pairs are frames of
films: for some the motion is known exactly, before a batch adds errors; for some it is estimated
from the picture alone, as for stills. Knows tensors only.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.camera_effects import choose, to_device
from vdeblur.datasets.matching import Matching, matched
from vdeblur.datasets.motion_errors import (
    AS_SHOWN,
    BY_FLOW,
    EXACTLY,
    MotionErrors,
    is_still,
    with_errors,
)
from vdeblur.datasets.pool import Film
from vdeblur.datasets.synthetic_blur import BlurredPairs
from vdeblur.errors import UsageError
from vdeblur.motion.single_picture import blur_field_network
from vdeblur.networks import taps
from vdeblur.networks.blur_field import (
    WINDOW,
    BlurFieldNetwork,
    mean_chord,
    pooled,
    spectra,
    windows_of,
)


@dataclass(frozen=True)
class FilmOptions:
    """Whether pairs come with neighboring frames, and how much of them is known. Shares are 0 to 1.

    Args:
        neighbours: Whether they do; if not, the motion of all pairs is known exactly.
        shown_share: Pairs that are stills: their motion is estimated from the picture, and there
            are no neighbors.
        flow_share: Of the other pairs, those whose motion is that of the flow.
        reductions: Pictures are made smaller by one of these factors to be matched.
        none_share: Of the uses of a pair, those without neighbors.
        before_share: Those with the frame before alone, as from live cameras.
        after_share: Those with the frame after alone.

    Raises:
        UsageError: A share is out of its range, or there is no reduction.
    """

    neighbours: bool = False
    shown_share: float = 0.18
    flow_share: float = 0.5
    reductions: tuple[int, ...] = (2, 2, 2, 3, 4)
    none_share: float = 0.10
    before_share: float = 0.11
    after_share: float = 0.04

    def __post_init__(self) -> None:
        left_out = (self.none_share, self.before_share, self.after_share)
        shares = (self.shown_share, self.flow_share, *left_out, sum(left_out))
        if not all(0 <= share <= 1 for share in shares):
            raise UsageError("shares of films are from 0 to 1, those of lacking frames together")
        if not self.reductions or min(self.reductions) < 1:
            raise UsageError("pictures are matched after a reduction by 1 or more: name one")


#: Errors of a neighbor's own motion, whose exposure is known no better.
NEIGHBOUR_ERRORS = MotionErrors(
    length=0.15,
    angle=0.05,
    drift=0.12,
    relative_drift=0.04,
    smooth_share=1.0,
    straight_share=0.0,
    widest=1.0,
    false_share=0.0,
)
#: Windows over which evidence is pooled where motion is estimated from a picture: one of these.
_REACHES = (0.8, 1.2, 1.8)
_BELIEF = 0.4
_AT_ONCE = 32  # pictures, of which samples are taken


@torch.no_grad()
def filmed(
    pairs: BlurredPairs,
    options: FilmOptions,
    rng: np.random.Generator,
    generator: torch.Generator,
    *,
    match: Matching = matched,
) -> tuple[Tensor, Film]:
    """Find the motion of pairs as it would be known, and the channels of the frames around them.

    Args:
        pairs: With `around`; pictures have values as 8-bit files hold them.
        options: How much is known.
        rng: With `generator`, alone decides what is drawn.
        generator: A CPU generator.
        match: Finds the flow. Only 8-bit luma leaves the device for it.

    Returns:
        The motion, (N, 4, h, w), and the channels.
    """
    around = pairs.around
    assert around is not None
    count, device = len(pairs.blurred), pairs.blurred.device
    kinds = torch.rand(2, count, generator=generator)
    shown = kinds[0] < options.shown_share
    if min(pairs.blurred.shape[2:]) < WINDOW:
        shown[:] = False  # too small for an estimate
    by_flow = ~shown & (kinds[1] < options.flow_share)
    luma = taps.luma_of(pairs.blurred)
    there = torch.stack([taps.luma_of(part) for part in around.blurred])
    motion = pairs.motion.clone()
    grid = (motion.shape[2], motion.shape[3])
    pictures = luma.new_zeros(count, 2 * taps.PICTURES, *luma.shape[2:])
    directions = luma.new_zeros(count, 2 * taps.DIRECTION_CHANNELS, *grid)

    if stills := shown.nonzero()[:, 0].tolist():
        rows = choose(stills, device)
        reach = float(rng.choice(_REACHES))
        motion.index_copy_(0, rows, _shown(luma.index_select(0, rows), reach, grid))
    films = (~shown).nonzero()[:, 0].tolist()
    if films:
        rows = choose(films, device)
        luma, there = luma.index_select(0, rows), there.index_select(1, rows)
        reductions = rng.choice(options.reductions, size=len(films)).tolist()
        frames = torch.cat([luma[None], there])[:, :, 0].mul(255).round().byte()
        ways, found, measured = match(frames, reductions, grid)
        ways, measured = to_device(ways, device), to_device(measured, device)
        by_flow[films] &= found.any(0)
        share = to_device(around.shares[films], device)[:, None, None, None]
        measured = torch.cat([measured[:, :2] * share, measured[:, 2:] * share.square()], dim=1)
        keep = to_device(by_flow[films], device)[:, None, None, None]
        motion.index_copy_(0, rows, torch.where(keep, measured, motion.index_select(0, rows)))
        there_moved = around.motion.index_select(1, rows).flatten(0, 1)
        wrong = with_errors(there_moved, NEIGHBOUR_ERRORS, generator)
        there = there.flatten(0, 1)
        seen = _seen(luma.repeat(2, 1, 1, 1), there, wrong, ways.flatten(0, 1))
        present = to_device(found, device).flatten()[:, None, None, None]
        for part, whole in (
            (seen, pictures),
            (taps.direction(wrong), directions),
        ):
            before, after = torch.where(present, part, 0.0).chunk(2)
            whole.index_copy_(0, rows, torch.cat([before, after], dim=1))
    known = to_device(torch.where(shown, AS_SHOWN, torch.where(by_flow, BY_FLOW, EXACTLY)), device)
    # Sharp pictures get a false motion now and then, and have no other.
    still = is_still(pairs.motion)
    motion = torch.where(still & (known == BY_FLOW)[:, None, None, None], 0.0, motion)
    known = torch.where(still[:, 0, 0, 0] & (known == BY_FLOW), EXACTLY, known)
    return motion, Film(known, pictures.half(), directions)


def _seen(luma: Tensor, there: Tensor, motion: Tensor, ways: Tensor) -> Tensor:
    """The pictures of `taps.neighbour`, (N, PICTURES, H, W); a few at once, to save memory."""
    parts = []
    for k in range(0, len(luma), _AT_ONCE):
        some = slice(k, k + _AT_ONCE)
        added = taps.filtered(taps.guidance(there[some], motion[some]))
        view = taps.neighbour(luma[some], there[some], added, motion[some], ways[some])
        parts.append(view[:, : taps.PICTURES])
    return torch.cat(parts)


def with_some_left_out(around: Tensor, options: FilmOptions, generator: torch.Generator) -> Tensor:
    """Set the channels of some neighbors to 0: (2, N, C, H, W)."""
    drawn = torch.rand(around.shape[1], generator=generator)
    none, before = options.none_share, options.none_share + options.before_share
    after = before + options.after_share
    without_before = (drawn < none) | ((drawn >= before) & (drawn < after))
    without = torch.stack([without_before, drawn < before])
    return around * to_device(~without, around.device)[..., None, None, None]


def _shown(luma: Tensor, reach: float, grid: tuple[int, int]) -> Tensor:
    """The motion that pictures (N, 1, H, W) show of themselves, (N, 4, *grid).

    As `vdeblur.motion.single_picture.still_motion`, except that it is not 0 where a picture may be
    sharp: nothing would be learned from that.
    """
    network = _field_network(luma.device)
    assert isinstance(network.prior, Tensor)
    chords = []
    for picture in luma[:, 0]:
        windows = windows_of(picture)
        evidence = network.evidence(spectra(windows.flatten(0, 1)))
        evidence = evidence.view(*windows.shape[:2], -1)
        chords.append(mean_chord(pooled(evidence, network.prior, reach=reach, belief=_BELIEF)))
    chord = F.interpolate(torch.stack(chords), size=grid, mode="bilinear", align_corners=False)
    return torch.cat([chord, torch.zeros_like(chord)], dim=1)


@functools.cache
def _field_network(device: torch.device) -> BlurFieldNetwork:
    network = blur_field_network()
    return network if device.type == "cpu" else copy.deepcopy(network).to(device)
