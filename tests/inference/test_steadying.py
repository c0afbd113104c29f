"""Steadying: flicker of the restored frames goes, and nothing else does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.motion.test_flow import film, pan, texture, view
from vdeblur.cli.options import add_network_options, deblurrer_of
from vdeblur.deblur import deblur_frames
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference import steadying as steady
from vdeblur.inference.batching import restore
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.steadying import steadied_in_order
from vdeblur.inference.transfers import Overlap
from vdeblur.motion.exposure import Exposure
from vdeblur.motion.guide import Guide
from vdeblur.motion.neighbours import Around, View
from vdeblur.networks import taps

OTHER = texture(900, 2400, seed=9)
WIDTH, HEIGHT = 162, 121  # no whole cells
MOVED = 6.4, -3.3  # how far the scene moves to the next frame
EDGE = 12


def steadied(
    planes: list[Tensor], layout: PlaneLayout, around: Around | None
) -> list[Tensor] | None:
    """The steadied planes of a single frame; None if there was nothing to steady."""
    stacked = [plane[None] for plane in planes]
    found = steadied_in_order(stacked, layout, [around])
    return None if found[0] is stacked[0] else [plane[0] for plane in found]


def sharp(k: int, *, world: Any = None) -> NDArray[np.float32]:
    """The scene at frame k, in [0, 1]."""
    other: dict[str, Any] = {} if world is None else {"world": world}
    seen = view(-MOVED[0] * k, -MOVED[1] * k, (WIDTH, HEIGHT), **other)
    return np.asarray(seen / 255, np.float32)


def noisy(picture: NDArray[np.float32], seed: int, deviation: float = 0.02) -> Any:
    noise = np.random.default_rng(seed).normal(0, deviation, picture.shape)
    return np.asarray(picture + noise, np.float32)


def blurred(picture: NDArray[np.float32]) -> Any:
    return cv2.blur(picture, (5, 5))


def planes_of(picture: NDArray[np.float32], layout: PlaneLayout) -> list[Tensor]:
    """Planes of one content, each of its own size."""
    top = (1 << layout.depth) - 1
    planes = []
    for rows, columns in layout.shapes:
        small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
        codes = np.clip(small * top, 0, top).round().astype(layout.dtype)
        planes.append(torch.from_numpy(codes))
    return planes


def view_of(planes: Sequence[Tensor], layout: PlaneLayout) -> View:
    own = tuple(plane.numpy() for plane in planes)
    motion = np.zeros((4, 2, 2), np.float32)
    return View(Frame(own, layout, 0, Fraction(1), motion=motion))


def around(
    source: Any, before: Any, layout: PlaneLayout, way: tuple[float, float] | None = None
) -> Around:
    """Of a frame that was decoded as `source`, after one that was restored as `before`."""
    x, y = way or (-MOVED[0], -MOVED[1])
    there = view_of(planes_of(blurred(sharp(0)), layout), layout)
    there.restored = tuple(planes_of(before, layout))
    link = (there, torch.tensor([x, y])[:, None, None].expand(2, 15, 20).contiguous())
    return Around(view_of(planes_of(source, layout), layout), link)


def error(planes: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Mean square of what each plane is off, in levels, away from the edges."""
    inner = (slice(EDGE, -EDGE),) * 2
    return [
        float((a.to(torch.float64) - b.to(torch.float64))[inner].square().mean())
        for a, b in zip(planes, truth, strict=True)
    ]


GRAY = PlaneLayout(WIDTH, HEIGHT, kind="gray", chroma_shift=(0, 0))
LAYOUTS = [
    GRAY,
    PlaneLayout(WIDTH, HEIGHT),
    PlaneLayout(WIDTH, HEIGHT, depth=10, chroma_shift=(1, 0)),
    PlaneLayout(WIDTH, HEIGHT, depth=16, chroma_shift=(0, 0)),
    PlaneLayout(WIDTH, HEIGHT, kind="rgb", chroma_shift=(0, 0), full_range=True),
]


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda one: f"{one.kind}{one.depth}")
def test_what_differs_from_frame_to_frame_is_averaged(
    layout: PlaneLayout, by_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_torch:  # as on a GPU
        monkeypatch.setattr(steady, "_on_cpu", lambda values: False)
    given = planes_of(noisy(sharp(1), 1), layout)
    known = around(blurred(sharp(1)), noisy(sharp(0), 2), layout)
    result = steadied(given, layout, known)
    assert result is not None
    truth = planes_of(sharp(1), layout)
    for new, old, after, before in zip(
        result, given, error(result, truth), error(given, truth), strict=True
    ):
        assert new.dtype == old.dtype
        assert new.shape == old.shape
        assert after < 0.75 * before


def test_both_ways_to_compute_it_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    given = planes_of(noisy(sharp(1), 1), GRAY)
    known = around(blurred(sharp(1)), noisy(sharp(0), 2), GRAY)
    results = []
    for on_cpu in (True, False):
        monkeypatch.setattr(steady, "_on_cpu", lambda values, on_cpu=on_cpu: on_cpu)
        (plane,) = steadied(given, GRAY, known) or []
        results.append(plane.float())
    apart = (results[0] - results[1]).abs()
    # Cells that are not of whole pixels are cut another way.
    assert float(apart.mean()) < 0.3
    assert float(apart.max()) <= 4


def test_a_way_that_is_a_little_wrong_is_put_right() -> None:
    given, truth = planes_of(noisy(sharp(1), 1), GRAY), planes_of(sharp(1), GRAY)
    known = noisy(sharp(0), 2)
    errors = []
    for off in (0.0, 0.5):
        way = off - MOVED[0], off - MOVED[1]
        result = steadied(given, GRAY, around(blurred(sharp(1)), known, GRAY, way))
        assert result is not None
        errors += error(result, truth)
    assert errors[1] < 1.1 * errors[0]


def test_what_the_network_left_alone_stays_to_the_last_bit() -> None:
    half = sharp(1)
    half[:, : WIDTH // 2] = noisy(sharp(1), 1)[:, : WIDTH // 2]
    given, source = planes_of(half, GRAY), sharp(1)
    result = steadied(given, GRAY, around(source, noisy(sharp(0), 2), GRAY))
    assert result is not None
    assert not torch.equal(result[0], given[0])
    beyond = WIDTH // 2 + 12  # whole cells, and those around
    assert torch.equal(result[0][:, beyond:], given[0][:, beyond:])
    untouched = planes_of(source, GRAY)
    assert steadied(untouched, GRAY, around(source, noisy(sharp(0), 2), GRAY)) is None


def test_what_was_not_there_before_is_not_mixed_in() -> None:
    now = noisy(sharp(1), 1)
    part = (slice(30, 90), slice(50, 110))
    now[part] = sharp(1, world=OTHER)[part]  # it came from behind something
    given = planes_of(now, GRAY)
    result = steadied(given, GRAY, around(blurred(now), noisy(sharp(0), 2), GRAY))
    assert result is not None
    change = (result[0].float() - given[0].float()).abs()
    assert float(change[40:80, 60:100].mean()) < 0.3
    assert float(change[EDGE:25, EDGE:-EDGE].mean()) > 0.8


@pytest.mark.parametrize("lighter", [-0.03, 0.03, 0.2])
def test_where_the_light_changes_the_one_before_is_not_mixed_in(lighter: float) -> None:
    now = np.clip(noisy(sharp(1), 1) * 0.6 + 0.1 + lighter, 0, 1)
    before = noisy(sharp(0), 2) * 0.6 + 0.1
    given = planes_of(now, GRAY)
    result = steadied(given, GRAY, around(blurred(now), before, GRAY))
    assert result is not None
    assert torch.equal(result[0], given[0])


def test_there_must_be_a_restored_frame_before() -> None:
    given = planes_of(noisy(sharp(1), 1), GRAY)
    known = around(blurred(sharp(1)), noisy(sharp(0), 2), GRAY)
    assert known.before is not None
    known.before[0].restored = None  # left out, or not ready yet
    assert steadied(given, GRAY, known) is None
    assert steadied(given, GRAY, None) is None
    assert steadied(given, GRAY, Around(known.here, None)) is None


class Grainy(nn.Module):
    """Guided by motion; adds grain that is another one for each picture."""

    guided, in_channels, size_multiple = True, 3 + taps.CHANNELS, 1

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (1, 1, 720, 1280)))

    def correction(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        starts = [int(1e6 * float(picture.double().mean())) for picture in x[:, :3]]
        parts = [self.noise[..., s % 97 : s % 97 + rows, s % 89 : s % 89 + columns] for s in starts]
        return torch.cat(parts).to(x).expand(-1, 3, -1, -1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + self.correction(x)


def run(
    deblurrer: Deblurrer | None = None, *, batch: int = 1, steady: bool = True
) -> list[NDArray[np.uint8]]:
    deblurrer = deblurrer or Deblurrer(
        Grainy(), device="cpu", backend="torch", precision="fp32", steady=steady
    )
    frames = Guide(Exposure(share=0.5)).run(iter(film(pan(6, -4), 6)))
    return [one.planes[0].copy() for one, _ in restore(frames, Overlap(deblurrer), batch)]


def test_a_film_flickers_less_whatever_the_batch() -> None:
    truth = [one.planes[0].astype(np.float64) for one in film(pan(6, -4), 6)]

    def errors(pictures: Any) -> list[float]:
        inner = (slice(EDGE, -EDGE),) * 2
        return [float(np.square(p - t)[inner].mean()) for p, t in zip(pictures, truth, strict=True)]

    plain, out = run(steady=False), run()
    assert np.array_equal(out[0], plain[0])  # nothing came before it
    for steady_error, own in zip(errors(out)[1:], errors(plain)[1:], strict=True):
        assert steady_error < 0.8 * own
    for batch in (2, 4):
        for one, same in zip(run(batch=batch), out, strict=True):
            assert np.array_equal(one, same)


def test_without_memory_to_steady_them_frames_are_restored_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def full(*given: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return steadied(*given)

    plain, out, steadied = run(steady=False), run(), steady.steady
    monkeypatch.setattr(steady, "steady", full)
    deblurrer = Deblurrer(Grainy(), device="cpu", backend="torch", precision="fp32")
    wanted = [*out[:2], *plain[2:]]
    assert all(map(np.array_equal, run(deblurrer), wanted))
    assert len(calls) == 2
    assert deblurrer.notes[-1] == "out of memory: going on without steadying frames"


def test_frames_given_as_arrays_are_steadied_too() -> None:
    pictures: list[Any] = [np.stack([one.planes[0]] * 3, axis=-1) for one in film(pan(6, -4), 4)]

    def outcome(steady: bool) -> list[NDArray[np.uint8]]:
        deblurrer = Deblurrer(Grainy(), device="cpu", backend="torch", steady=steady)
        return list(deblur_frames(pictures, model=deblurrer, exposure=0.5, batch=2))

    on, off = outcome(True), outcome(False)
    assert np.array_equal(on[0], off[0])
    for one, other in zip(on[1:], off[1:], strict=True):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize(("words", "on"), [([], True), (["--no-steady"], False)])
def test_the_command_can_leave_it_out(words: list[str], on: bool) -> None:
    parser = argparse.ArgumentParser()
    add_network_options(parser)
    assert deblurrer_of(parser.parse_args([*words, "--model", "identity"])).steady is on
