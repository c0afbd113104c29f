"""The guided network and what it is given: samples along the motion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.blur_options import PURE
from vdeblur.datasets.synthetic_blur import make_pairs
from vdeblur.frames import PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.networks import taps
from vdeblur.networks.mimo_unet_guided import EvenConv, MIMOUNetGuided


def network() -> MIMOUNetGuided:
    torch.manual_seed(5)
    made = MIMOUNetGuided(widths=[8, 8, 8], blocks=[1, 1, 1]).eval().requires_grad_(False)
    for head in made.heads:
        head.get_parameter("weight").mul_(0.02)
    return made


def texture(count: int = 1, height: int = 96, width: int = 128, *, seed: int = 0) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    fine, coarse = (
        torch.rand(count, 3, height // side, width // side, generator=dice) for side in (2, 8)
    )
    size = (height, width)
    mixed = F.interpolate(fine, size, mode="bicubic") + F.interpolate(coarse, size, mode="bicubic")
    return (mixed / 2).clamp(0, 1)


def across(length: float, count: int = 1) -> Tensor:
    """A motion of `length` pixels to the right everywhere."""
    return torch.tensor([length, 0.0, 0.0, 0.0]).view(1, 4, 1, 1).repeat(count, 1, 2, 2)


def test_samples_are_taken_along_the_motion() -> None:
    # A ramp to the right: a sample's difference to the centre is how far away it was taken.
    ramp = (torch.arange(128.0) / 128).expand(1, 1, 96, 128)
    seen = taps.guidance(ramp, across(16.0))
    on = 16 / 16.5
    middle = seen[0, taps.SHAPE_CHANNELS + 3 :, 48, 64] / on * 128
    places = [side * o * 16 for o in taps.OFFSETS for side in (-1, 1)]
    assert middle.tolist() == pytest.approx(places, abs=0.05)
    assert seen[0, :5, 48, 64].tolist() == pytest.approx([1, 1, 0, 0, 0], abs=1e-5)
    # A slope of a 128th a pixel, times the length in units of 4 pixels.
    assert seen[0, 5:8, 48, 64].tolist() == pytest.approx([4 / 128] * 3, abs=1e-4)


def test_channels_of_zeros_change_nothing() -> None:
    """As a GPU trains."""
    first = network().inputs[0]
    assert isinstance(first, EvenConv)
    x = torch.rand(2, first.in_channels, 8, 12)
    first.requires_grad_(True)
    for result in (first(x), first.filled(x)):
        result.square().sum().backward()
    usual = torch.autograd.grad(first(x).square().sum(), first.weight)[0]
    assert torch.allclose(first.filled(x), first(x), atol=1e-5)
    assert first.weight.grad is not None
    assert torch.allclose(first.weight.grad, 2 * usual, rtol=1e-3, atol=1e-3)


def test_without_motion_nothing_is_seen_but_the_picture() -> None:
    rgb = texture()
    assert not taps.guidance(taps.luma_of(rgb), torch.zeros(1, 4, 3, 3)).any()
    still = network()(taps.with_guidance(rgb, torch.zeros(1, 4, 3, 3)))
    assert torch.equal(network()(taps.with_guidance(rgb, None)), still)
    assert torch.equal(network()(rgb), still)


def test_a_motion_and_its_opposite_are_the_same_blur() -> None:
    luma = taps.luma_of(texture())
    motion = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(2)) * 6
    back = motion * torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None, None]
    # Where a field passes through 0 the order of the samples turns round: compare away from that.
    same = (taps.guidance(luma, motion) - taps.guidance(luma, back)).abs().amax(1)
    assert (same < 1e-4).float().mean() > 0.99


def test_opencv_samples_as_torch_does() -> None:
    # Along a motion of x pixels, a sample at `o` lengths is the luma o·x to the right.
    luma, motion = taps.luma_of(texture()), across(13.0)
    seen = taps.guidance(luma, motion)[:, -2 * len(taps.OFFSETS) :] / (13 / 13.5) + luma
    for number, offset in enumerate(side * o for o in taps.OFFSETS for side in (-1, 1)):
        place = (torch.arange(128.0) + 13 * offset).expand(96, 128)
        rows = torch.arange(96.0)[:, None].expand(96, 128)
        grid = torch.stack([(place + 0.5) / 64 - 1, (rows + 0.5) / 48 - 1], dim=-1)[None]
        by_torch = F.grid_sample(luma, grid, padding_mode="border", align_corners=False)
        # OpenCV rounds places to 1/32 of a pixel.
        assert (seen[:, number] - by_torch[:, 0]).abs().max() < 1 / 32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opencv_packs_as_torch_does(layout: torch.memory_format) -> None:
    x = taps.with_guidance(texture(2), across(9.0, 2))
    x[:, 3 + taps.OWN_CHANNELS :] = texture(8).reshape(2, 12, 96, 128)
    x = x.contiguous(memory_format=layout)
    with torch.no_grad():
        quick = network().prepare(x)
    with torch.enable_grad():
        plain = network().prepare(x)
    for one, other in zip(quick, plain, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)


def test_the_bank_undoes_a_straight_blur_before_any_training() -> None:
    sharp = F.interpolate(texture(4, 48, 64), (192, 256), mode="bicubic").clamp(0, 1)
    from dataclasses import replace

    options = replace(PURE, max_length=10, length_power=0, calm_share=1)
    pairs = make_pairs(
        sharp, margin=32, options=options, generator=torch.Generator().manual_seed(3)
    )
    luma, wanted = (taps.luma_of(x) for x in (pairs.blurred, pairs.sharp))
    seen = taps.guidance(luma, pairs.motion)[:, taps.SHAPE_CHANNELS + len(taps.SLOPES) :]
    bank = taps.wiener_bank((1.0,), (1e-3,))
    undone = luma + torch.einsum("kc,nchw->nkhw", bank, seen)
    before, after = ((x - wanted).square().mean() for x in (luma, undone))
    assert 10 * torch.log10(before / after) > 1.5


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_turned_pictures_move_the_turned_way(turns: int, mirror: bool) -> None:
    rgb = texture()
    motion = F.interpolate(
        torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(2)) * 6, (96, 128)
    )

    def turn(x: Tensor) -> Tensor:
        return torch.rot90(x.flip(3) if mirror else x, turns, (2, 3))

    def seen(rgb: Tensor, motion: Tensor) -> Tensor:
        """What does not depend on which of two opposite directions is taken first."""
        all_ = taps.guidance(taps.luma_of(rgb), motion)
        samples = all_[:, taps.SHAPE_CHANNELS + len(taps.SLOPES) :]
        return torch.cat([all_[:, :1], samples[:, 0::2] + samples[:, 1::2]], 1)

    there = seen(turn(rgb), taps.turned(motion, turns, mirror))
    assert torch.allclose(there, turn(seen(rgb, motion)), atol=2e-3)


def test_tiles_see_the_whole_pictures_motion() -> None:
    images, motion = texture(1, 304, 328), torch.tensor([40.0, 12, 3, 0]).view(1, 4, 1, 1)
    whole = Deblurrer(network(), device="cpu", tile=None)(images, motion)
    assert (whole - images).abs().max() > 0.001
    tiled = Deblurrer(network(), device="cpu", tile=160, halo="full")(images, motion)
    assert torch.allclose(tiled, whole, atol=1e-5)


def test_planes_are_restored_as_pictures_are_with_odd_sizes() -> None:
    layout = PlaneLayout(101, 75, kind="rgb")
    planes = [
        torch.randint(
            0, 256, (2, 75, 101), dtype=torch.uint8, generator=torch.Generator().manual_seed(k)
        )
        for k in range(3)
    ]
    deblurrer = Deblurrer(network(), device="cpu")
    motion = across(9.0, 2)
    restored, _ = deblurrer.restore_planes(planes, layout, motion)
    rgb = torch.stack([planes[2], planes[0], planes[1]], 1).float() / 255  # planes are G, B, R
    expected = deblurrer(rgb, motion)
    assert (restored[0].float() / 255 - expected[:, 1]).abs().max() <= 0.51 / 255
    blind, _ = deblurrer.restore_planes(planes, layout)
    assert not torch.equal(blind[0], restored[0])


def test_what_does_not_move_is_left_without_asking_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, layout = network(), PlaneLayout(64, 48, kind="gray")
    still, moving = across(0.49, 1), across(9.0, 1)
    seen = taps.with_guidance(texture(1, 48, 64), still)
    assert not net.correction(seen).any()
    asked, correction = [], net.correction

    def counted(x: Tensor) -> Tensor:
        asked.append(len(x))
        return correction(x)

    monkeypatch.setattr(net, "correction", counted)
    planes = [(texture(2, 48, 64)[:, 0] * 255).byte()]
    deblurrer = Deblurrer(net, device="cpu")
    (left,), replaced = deblurrer.restore_planes(planes, layout, still.expand(2, -1, -1, -1))
    assert torch.equal(left, planes[0])
    assert not replaced.any()
    assert not asked
    both = torch.cat([still, moving])
    (restored,), _ = deblurrer.restore_planes(planes, layout, both)
    assert torch.equal(restored[0], planes[0][0])
    assert not torch.equal(restored[1], planes[0][1])


def test_each_field_moves_by_half_the_rows() -> None:
    layout = PlaneLayout(64, 96, kind="gray")
    field = (texture(1, 48, 64)[:, 0] * 255).byte()
    frame = field.repeat_interleave(2, dim=1)  # both fields alike
    deblurrer = Deblurrer(network(), device="cpu")
    motion = torch.tensor([0.0, 12, 0, 0]).view(1, 4, 1, 1)
    from dataclasses import replace

    (whole,), _ = deblurrer.restore_planes([frame], replace(layout, interlaced=True), motion)
    (alone,), _ = deblurrer.restore_planes([field], replace(layout, height=48), motion / 2)
    assert torch.equal(whole[:, 0::2], alone)
    assert torch.equal(whole[:, 1::2], alone)


def test_motion_of_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="chord"):
        Deblurrer(network(), device="cpu")(texture(2), across(3.0, 1))


def test_the_halo_is_what_a_pixel_reaches() -> None:
    net = network()
    x = taps.with_guidance(texture(1, 256, 256), across(20.0)).requires_grad_(True)
    net(x)[0, :, 128, 128].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].abs().sum(0).nonzero()
    assert (reached - 128).abs().max() <= net.receptive_radius
