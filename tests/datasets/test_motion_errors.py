"""Pools of pairs, whose vectors turn with the pictures, and the errors that motion is given."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vdeblur.datasets.motion_errors import NO_ERRORS, MotionErrors, with_errors
from vdeblur.datasets.pool import Places, Pool, PoolOptions, cut_out, draw_places, turned_vectors
from vdeblur.errors import UsageError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def motions(count: int, chord: tuple[float, float] = (6.0, -8.0), bend: float = 2.0) -> Tensor:
    """The same motion everywhere, (count, 4, 8, 8)."""
    return torch.tensor([*chord, bend, -bend])[:, None, None].expand(count, 4, 8, 8).clone()


def lengths(motion: Tensor) -> Tensor:
    x, y = motion[:, 0], motion[:, 1]
    return torch.hypot(x, y)


# --- pools ---------------------------------------------------------------------------------------


def outward(side: int) -> Tensor:
    """At each place the vector from the middle to it: the same, however it is turned as a whole."""
    place = torch.arange(side) - (side - 1) / 2
    x, y = place.expand(side, side), place[:, None].expand(side, side)
    return torch.stack([x, y, 2 * x, 2 * y])


@pytest.mark.parametrize("turn", list(itertools.product((0, 1), repeat=3)))
def test_vectors_turn_with_their_pictures(turn: tuple[int, int, int]) -> None:
    transposed, down, across = turn
    picture = torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8, generator=seeded())
    field = torch.stack([outward(6), 3 * outward(6)])
    one = [torch.tensor([value]) for value in (1, 0, 0, *turn)]
    batch = cut_out(Pool(picture, picture // 2, field), Places(*one), 24)
    expected = picture[1:]
    expected = expected.transpose(2, 3) if transposed else expected
    expected = expected.flip(2) if down else expected
    expected = expected.flip(3) if across else expected
    assert torch.equal(batch.blurred, expected)
    assert torch.equal(batch.sharp, expected // 2)
    assert batch.motion is not None
    assert torch.equal(batch.motion, field[1:])
    # The places alone were turned above, were it not for their vectors.
    assert torch.equal(turned_vectors(field[1:], *one[3:]), field[1:]) == (turn == (0, 0, 0))


def test_crops_are_where_their_vectors_are() -> None:
    """Each pixel holds its place, and so does each cell of the motion."""
    place = torch.arange(32, dtype=torch.uint8)
    picture = torch.stack([place.expand(32, 32), place[:, None].expand(32, 32)])
    picture = torch.cat([picture, picture[:1] * 0])[None].repeat(3, 1, 1, 1)
    picture[:, 2] = torch.arange(3, dtype=torch.uint8)[:, None, None]
    cells = picture[:, [0, 1, 2, 2], ::4, ::4].float()
    rows = np.array([0, 2, 1, 1])
    places = draw_places(rows, np.random.default_rng(1), room=4, flips=False, rotations=False)
    assert int(torch.stack(places[3:]).max()) == 0
    assert len({tuple(corner) for corner in torch.stack(places[1:3], 1).tolist()}) > 1
    blurred, sharp, motion, _ = cut_out(Pool(picture, picture, cells), places, 16)
    assert torch.equal(blurred, sharp)
    assert motion is not None
    assert torch.equal(blurred[:, 0, 0, 0], 4 * places.left.byte())
    assert torch.equal(blurred[:, 1, 0, 0], 4 * places.top.byte())
    assert blurred[:, 2, 0, 0].tolist() == rows.tolist()
    assert torch.equal(motion[:, :3], blurred[:, :, ::4, ::4].float())
    assert int(blurred[:, :2].amax()) <= 31


def test_turns_are_those_that_are_wanted() -> None:
    rows = np.zeros(400, np.int64)
    for flips, rotations, kinds in ((True, True, 8), (True, False, 4), (False, False, 1)):
        places = draw_places(
            rows, np.random.default_rng(0), room=0, flips=flips, rotations=rotations
        )
        assert len({tuple(turn) for turn in torch.stack(places[3:], 1).tolist()}) == kinds


def test_options_of_a_pool() -> None:
    options = PoolOptions(reuse=4, clean_first=1.0, clean_last=0.2)
    assert [options.clean(share) for share in (0, 0.5, 1, 3)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert (options.side(128), options.side(30)) == (192, 42)
    assert PoolOptions().side(128) == 128
    for wrong in ({"reuse": 0}, {"clean_last": 1.2}, {"pairs": 0}, {"room": -1.0}):
        with pytest.raises(UsageError):
            PoolOptions(**wrong)


# --- errors --------------------------------------------------------------------------------------


def test_no_errors_leave_motion_as_it_is() -> None:
    motion = torch.randn(5, 4, 8, 8, generator=seeded()) * 9
    motion[0] = 0
    assert torch.allclose(with_errors(motion, NO_ERRORS, seeded(), share=1.0), motion, atol=1e-5)


def test_lengths_and_directions_are_off_by_what_they_are_said_to_be() -> None:
    only = replace(NO_ERRORS, length=0.2, widest=2.0)
    for share, most in ((0.0, 0.2), (0.5, 0.3), (1.0, 0.4)):
        ratio = (lengths(with_errors(motions(3000), only, seeded(), share=share)) / 10).log()
        assert float(ratio.abs().max()) <= most + 1e-4
        assert float(ratio.abs().max()) > 0.95 * most
    found = with_errors(motions(3000), replace(NO_ERRORS, angle=0.1), seeded())
    turned = torch.atan2(found[:, 1], found[:, 0]) - math.atan2(-8, 6)
    assert float(turned[:, 0, 0].std()) == pytest.approx(0.1, rel=0.05)
    assert torch.allclose(lengths(found), torch.full((3000, 8, 8), 10.0), atol=1e-4)
    # A bend is as long as its path is wrong, squared; or is not known.
    bends = with_errors(
        motions(3000), replace(NO_ERRORS, bend=(0.5, 1.0), straight_share=0.3), seeded()
    )
    factor = bends[:, 2, 0, 0] / 2
    assert float((factor == 0).float().mean()) == pytest.approx(0.3, abs=0.03)
    assert 0.5 <= float(factor[factor > 0].min()) < 0.55
    assert 0.95 < float(factor.max()) <= 1
    longer = with_errors(motions(50), only, seeded())
    assert torch.allclose(longer[:, 2] / 2, (lengths(longer) / 10).square(), atol=1e-4)


def test_drift_changes_slowly_across_a_picture() -> None:
    only = replace(NO_ERRORS, drift=0.2, relative_drift=0.05)
    for motion, most in ((motions(500), 0.7), (motions(500, (0.6, 0.8), 0.0), 0.25)):
        off = (with_errors(motion, only, seeded()) - motion)[:, :2]
        assert 0.2 * most < float(off.std()) < most
        assert float(off.diff(dim=3).abs().mean()) < 0.5 * float(off.abs().mean())
        assert float((with_errors(motion, only, seeded()) - motion)[:, 2:].abs().max()) == 0
    still = torch.zeros(40, 4, 8, 8)
    assert 0 < float(with_errors(still, only, seeded()).abs().max()) < 1


def test_motion_is_levelled_across_the_edge_of_what_moves() -> None:
    motion = motions(200, (8.0, 0.0), 0.0)
    motion[..., 4:] = 0
    found = with_errors(motion, replace(NO_ERRORS, smooth_share=0.5), seeded())[:, 0, 0]
    levelled = found[:, 4] > 0
    assert float(levelled.float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(found[levelled, 3].max()) < 8
    assert torch.equal(found[~levelled], motion[~levelled][:, 0, 0])


def test_some_pictures_are_without_motion_and_still_ones_are_lied_about() -> None:
    errors = MotionErrors(none_share=0.2, false_share=0.5, false_length=30)
    told = with_errors(motions(3000), errors, seeded())
    none = told.flatten(1).abs().amax(dim=1) == 0
    assert float(none.float().mean()) == pytest.approx(0.2, abs=0.03)
    # Nothing that moves is given another motion.
    assert float(lengths(told[~none]).min()) > 5
    still = with_errors(0 * motions(3000), replace(errors, none_share=0, drift=0), seeded())
    far = lengths(still).flatten(1).mean(dim=1)
    assert float((far > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert 25 < float(far.max()) < 30 * math.exp(0.22) + 5
    around = torch.atan2(still[:, 1], still[:, 0])[far > 1]
    assert float(around.min()) < -3
    assert float(around.max()) > 3


def test_the_errors_are_the_generator_s_alone_and_nothing_waits_for_a_device() -> None:
    motion = motions(6)
    first, again, other = (with_errors(motion, MotionErrors(), seeded(k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(motion, motions(6))
    # A device that has shapes and no values: reading one back is an error.
    assert with_errors(motion.to("meta"), MotionErrors(), seeded()).device.type == "meta"
    picture = torch.empty(6, 3, 32, 32, dtype=torch.uint8, device="meta")
    places = draw_places(np.arange(6), np.random.default_rng(0), room=4, flips=True, rotations=True)
    batch = cut_out(Pool(picture, picture, motion.to("meta")), places, 16)
    assert batch.blurred.shape == (6, 3, 16, 16)
    assert batch.motion is not None
    assert batch.motion.shape == (6, 4, 4, 4)


def test_errors_that_cannot_be() -> None:
    for wrong in ({"none_share": 1.2}, {"length": -0.1}, {"false_share": -1}):
        with pytest.raises(UsageError):
            MotionErrors(**wrong)
