"""Losses by their definitions; recipes as published; the loop learns, resumes exactly, shares work.

Blur, data and scores have tests of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.datasets.pool import Batch
from vdeblur.errors import InputError, ModelError, UsageError, VdeblurError
from vdeblur.networks import build, names, spec, taps
from vdeblur.networks.base import Network
from vdeblur.networks.cost import operations
from vdeblur.networks.layers import BasicConv
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided
from vdeblur.training.dead_channels import dead_share, revive, start_well
from vdeblur.training.distillation import distance_to_teacher
from vdeblur.training.divergence import Diverged
from vdeblur.training.losses import (
    LOSSES,
    charbonnier,
    edge,
    l1,
    msfr,
    multi_scale,
    parse_loss,
    scale_weights,
    ssim,
    targets_for,
)
from vdeblur.training.options import Callbacks, Outcome, Progress, RunOptions
from vdeblur.training.processes import processes, start_processes
from vdeblur.training.pruning import prune
from vdeblur.training.recipes import RECIPES, Recipe, recipe_of, with_values
from vdeblur.training.schedules import Schedule
from vdeblur.training.state import StateFile
from vdeblur.training.trainer import Batches, cut, train, with_sharp_input
from vdeblur.weights import load, save_weights

TINY = Recipe(
    "tiny",
    "for tests",
    "mimo-unet",
    config={"base": 4, "blocks": 1},
    loss="l1",
    steps=8,
    batch=2,
    crop=32,
    learning_rate=3e-3,
    schedule=Schedule("constant"),
)
EVERY_STEP = RunOptions(report_steps=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


# --- losses --------------------------------------------------------------------------------------


def test_targets_are_means_of_what_a_pixel_covers() -> None:
    sharp = image(2, 3, 16, 16)
    outputs = [torch.zeros(2, 3, s, s) for s in (4, 8, 16, 16)]
    quarter, half, full, again = targets_for(outputs, sharp)
    assert full is sharp
    assert again is sharp
    assert torch.allclose(half, F.avg_pool2d(sharp, 2))
    assert torch.allclose(quarter, F.avg_pool2d(sharp, 4), atol=1e-6)


def test_each_loss_is_least_where_nothing_differs() -> None:
    sharp = image(1, 3, 24, 24)
    worse = sharp + 0.1 * image(1, 3, 24, 24, seed=1)
    for name, loss in LOSSES.items():
        assert float(loss(sharp, sharp)) == pytest.approx(0, abs=1.1e-3), name  # Charbonnier's ε
        assert float(loss(worse, sharp)) > float(loss(sharp, sharp)) + 1e-4, name


def test_losses_by_hand() -> None:
    sharp = image(1, 3, 16, 16)
    assert float(l1(sharp + 0.1, sharp)) == pytest.approx(0.1, abs=1e-5)
    assert float(charbonnier(sharp + 0.003, sharp)) == pytest.approx(math.hypot(0.003, 1e-3), 1e-3)
    assert float(LOSSES["huber"](sharp + 0.003, sharp)) == pytest.approx(0.003**2 / 0.06, rel=0.02)
    assert float(LOSSES["huber"](sharp + 0.9, sharp)) == pytest.approx(0.87, rel=0.01)
    both = [torch.fft.rfft2(picture) for picture in (sharp * 0.5, sharp)]
    apart = (both[0].real - both[1].real).abs() + (both[0].imag - both[1].imag).abs()
    assert float(msfr(sharp * 0.5, sharp)) == pytest.approx(float(apart.mean()) / 2, rel=1e-4)
    # A picture a tenth as wrong counts for as much less as one that is ten times as good.
    off = torch.tensor([0.3, 0.03]).view(2, 1, 1, 1)
    pair = [torch.zeros(2, 3, 4, 4) + off, torch.zeros(2, 3, 4, 4)]
    expected = (math.log(91) + math.log(1.9)) / 2  # the floor is 10⁻³
    assert float(LOSSES["log_mse"](*pair)) == pytest.approx(expected, rel=1e-4)
    # An edge loss sees no change of level, and sees a checkerboard more than L1 does.
    assert float(edge(sharp + 0.2, sharp)) == pytest.approx(1e-3, abs=1e-5)
    ones = torch.ones(16, 16)
    board = 0.1 * ((ones.cumsum(0) + ones.cumsum(1)) % 2 * 2 - 1)
    assert float(edge(sharp + board, sharp)) > 0.08
    # SSIM of two flat pictures is its luminance term alone.
    a, b, c1 = 0.25, 0.75, 0.01**2
    flat = [torch.full((1, 3, 16, 16), value) for value in (a, b)]
    expected = 1 - (2 * a * b + c1) / (a * a + b * b + c1)
    assert float(ssim(flat[0], flat[1])) == pytest.approx(expected, rel=1e-3)
    assert float(ssim(flat[0][..., :5, :5], flat[1][..., :5, :5])) == pytest.approx(expected, 1e-3)


def test_sums_over_scales() -> None:
    sharp = image(1, 3, 16, 16)
    outputs = [t + 0.1 for t in targets_for([torch.zeros(1, 3, s, s) for s in (4, 8, 16)], sharp)]
    assert float(multi_scale(outputs, sharp, {"l1": 1})) == pytest.approx(0.3, abs=1e-5)
    weights = scale_weights(outputs, "halving")
    assert weights == [0.25, 0.5, 1]
    total = multi_scale(outputs, sharp, {"l1": 2}, weights)
    assert float(total) == pytest.approx(2 * 0.175, abs=1e-5)
    assert scale_weights([*outputs, sharp], "tenth") == [0.1, 0.1, 1, 1]
    # Coarse scales first: one after another.
    shares = [scale_weights(outputs, share=s, coarse_first=0.3) for s in (0, 0.11, 0.21)]
    assert shares == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    with pytest.raises(UsageError, match="none of equal, halving, tenth"):
        scale_weights(outputs, "cubic")


def test_a_loss_is_read_from_text() -> None:
    assert parse_loss("l1") == {"l1": 1}
    assert parse_loss("charbonnier + 0.05*edge") == {"charbonnier": 1, "edge": 0.05}
    assert parse_loss("log_mse") == {"log_mse": 1}
    assert parse_loss("1e-1*msfr+l1") == {"msfr": 0.1, "l1": 1}
    for wrong in ("", "l3", "l1 + l1", "-1*l1", "l1 +", "1..2*l1"):
        with pytest.raises(UsageError, match="is not a loss"):
            parse_loss(wrong)


# --- schedules and recipes -----------------------------------------------------------------------


def test_schedules() -> None:
    step = Schedule("step", every=1 / 6, factor=0.5)
    assert [step.rate(1, n / 3000) for n in (0, 499, 500, 999, 1000, 2999)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        1 / 32,
    ]
    cosine = Schedule(last=0.1, warmup=0.5)
    assert [cosine.rate(2, s) for s in (0, 0.25, 0.5, 1)] == pytest.approx([0.04, 1, 2, 0.2])
    assert cosine.rate(2, 0.75) == pytest.approx(1.1)
    assert Schedule("exponential", last=0.01).rate(1, 0.5) == pytest.approx(0.1)
    assert Schedule("power", power=0.3).rate(1, 0.5) == pytest.approx(0.5**0.3)
    assert Schedule().rate(1, 7) == Schedule("power").rate(1, 7) == 0  # beyond the end
    for wrong in (
        {"shape": "sine"},
        {"shape": "exponential"},
        {"warmup": 1.0},
        {"every": 0.0},
    ):
        with pytest.raises(UsageError):
            Schedule(**wrong)


def test_recipes_of_papers() -> None:
    gopro = recipe_of("mimo-unet-gopro")
    assert parse_loss(gopro.loss) == {"l1": 1, "msfr": 0.1}
    assert (gopro.batch, gopro.crop, gopro.optimiser) == (4, 256, "adam")
    steps = gopro.total_steps(2103)  # GoPro's training pairs
    assert steps == 3000 * 2103 // 4
    assert gopro.schedule.rate(1e-4, 500 / 3000) == pytest.approx(5e-5)
    mprnet = recipe_of("mprnet-gopro")
    assert mprnet.total_steps(2103) == pytest.approx(4e5, rel=0.02)
    assert mprnet.schedule.rate(mprnet.learning_rate, 1) == pytest.approx(1e-6)
    assert parse_loss(mprnet.loss) == {"charbonnier": 1, "edge": 0.05}
    assert recipe_of("pss-nsc-gopro").loss == "mse"
    with pytest.raises(UsageError, match="choose one of mimo-unet-guided"):
        recipe_of("nothing")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_network_and_goes_into_a_card(name: str) -> None:
    recipe = RECIPES[name]
    assert spec(recipe.network).trained
    assert json.loads(json.dumps(recipe.as_dict()))["loss"] == recipe.loss
    assert recipe.summary
    assert recipe.source


def test_values_of_a_recipe_from_text() -> None:
    changed = with_values(
        TINY,
        {
            "clip": "0",
            "betas": "0.8,0.99",
            "schedule.shape": "cosine",
            "schedule.warmup": "0.1",
            "patches": "0:16,0.5:32",
            "identity_start": "false",
            "updates": "0:2,0.5:1",
            "pool.reuse": "4",
            "pool.clean_first": "0.5",
            "errors.length": "0.3",
            "errors.bend": "0,1",
        },
    )
    assert changed.updates == ((0.0, 2), (0.5, 1))
    assert (changed.pool.reuse, changed.pool.clean_first) == (4, 0.5)
    assert (changed.errors.length, changed.errors.bend) == (0.3, (0, 1))
    assert changed.clip == 0
    assert changed.betas == (0.8, 0.99)
    assert (changed.schedule.shape, changed.schedule.warmup) == ("cosine", 0.1)
    assert changed.patches == ((0.0, 16), (0.5, 32))
    assert changed.identity_start is False
    assert with_values(TINY, {}) == TINY
    for key, text in (
        ("clip", "much"),
        ("config", "x"),
        ("schedule.form", "x"),
        ("betas", "1"),
        ("identity_start", "maybe"),
        ("patches", "0:64"),  # larger than the crop
        ("ema", "1"),
        ("updates", "0:3"),  # more than crops
        ("pool.reuse", "0"),
        ("errors.none_share", "1.5"),
        ("errors.size", "1"),
    ):
        with pytest.raises(UsageError):
            with_values(TINY, {key: text})


def test_the_length_of_a_run() -> None:
    assert TINY.total_steps(None) == 8
    assert replace(TINY, seconds=5).total_steps(None) is None
    assert replace(TINY, steps=0, epochs=3).total_steps(10) == 15
    with pytest.raises(UsageError, match="no end"):
        replace(TINY, steps=0, epochs=3).total_steps(None)
    with pytest.raises(UsageError, match="needs a length"):
        replace(TINY, steps=0).total_steps(10)


# --- the loop ------------------------------------------------------------------------------------


def network_of(recipe: Recipe = TINY) -> Network:
    torch.manual_seed(0)
    network = build(recipe.network, recipe.config)
    network.start_as_identity()
    return network


def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Checks that are blurred: a batch depends on its number alone."""
    for number in itertools.count(first):
        coarse = image(2, 3, 8, 8, seed=number)
        sharp = F.interpolate(coarse, scale_factor=4.0, mode="nearest")
        blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="replicate"), 5, 1)
        yield blurred.mul(255).round().byte(), sharp.mul(255).round().byte()


def same(count: int) -> Batches:
    one = next(batches(0))
    return lambda first: [one] * (count - first)


def losses_of(
    recipe: Recipe, feed: Batches = batches, **options: Any
) -> tuple[list[float], Outcome]:
    """The loss of every step, and what came out."""
    losses: list[float] = []
    network = options.pop("network", None) or network_of(recipe)
    run = options.pop("run", EVERY_STEP)
    seed, state_file = options.pop("seed", 0), options.pop("state_file", None)
    known = {name: options.pop(name) for name in ("on_share", "stop") if name in options}
    outcome = train(
        network,
        feed,
        recipe,
        run=run,
        state=StateFile(state_file, seed) if state_file else None,
        callbacks=Callbacks(on_report=lambda p, _: losses.append(p.loss), **known),
        **options,
    )
    return losses, outcome


def weights_of(network: nn.Module) -> list[Tensor]:
    return list(network.state_dict().values())


def test_training_lowers_the_loss() -> None:
    recipe = replace(TINY, steps=18, ema=0.5, learning_rate=1e-2)
    sharp = next(batches(0))[1].float().div(255)
    faded = 0.6 * sharp  # what a tiny network undoes in a few steps

    losses, outcome = losses_of(recipe, lambda first: [(faded, sharp)] * (18 - first))
    assert len(losses) == 18
    assert losses[-1] < 0.8 * losses[0]
    assert outcome.finished
    assert not any(p.requires_grad for p in outcome.network.parameters())
    with torch.no_grad():
        restored = outcome.network(faded)
    assert float(l1(restored, sharp)) < 0.8 * float(l1(faded, sharp))


@pytest.mark.parametrize(
    "changes",
    [
        {"patches": ((0.0, 16), (0.5, 32)), "coarse_first": 0.6, "keep_sharp": 0.3},
        {"loss": "charbonnier + 0.05*edge", "optimiser": "adam", "schedule": Schedule("step")},
        {"loss": "log_mse", "scales": "tenth", "updates": ((0.0, 2), (0.5, 1))},
    ],
)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = replace(TINY, **changes)
    unbroken, whole = losses_of(recipe)
    state = tmp_path / "state.pt"
    count = itertools.count(1)
    first, stopped = losses_of(recipe, state_file=state, stop=lambda: next(count) == 3)
    assert not stopped.finished
    assert stopped.progress.step == 3
    second, resumed = losses_of(recipe, state_file=state)
    assert first + second == unbroken
    assert all(map(torch.equal, weights_of(resumed.network), weights_of(whole.network)))
    assert all(map(torch.equal, weights_of(resumed.last), weights_of(whole.last)))
    assert resumed.progress.megapixels == whole.progress.megapixels
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    # A finished run gives its weights again, and takes no step.
    again, outcome = losses_of(recipe, lambda first: iter(()), state_file=state)
    assert again == []
    assert all(map(torch.equal, weights_of(outcome.network), weights_of(whole.network)))
    # A longer one goes on.
    longer, _ = losses_of(replace(recipe, steps=10), state_file=state)
    assert len(longer) == 2


def test_a_state_from_a_gpu_goes_on_on_a_cpu(tmp_path: Path) -> None:
    unbroken, _ = losses_of(TINY)
    state = tmp_path / "state.pt"
    first, _ = losses_of(TINY, state_file=state, stop=lambda: True)
    content = torch.load(state, weights_only=True)
    for group in content["optimiser"]["param_groups"]:
        group["fused"] = True
    torch.save(content, state)
    second, outcome = losses_of(TINY, state_file=state)
    assert first + second == unbroken
    assert outcome.finished


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    losses_of(replace(TINY, steps=1), state_file=state)
    with pytest.raises(UsageError, match=r"its loss differ\)"):  # the rate may be another
        losses_of(replace(TINY, loss="mse", learning_rate=1), state_file=state)
    with pytest.raises(UsageError, match="seed differ"):
        losses_of(TINY, state_file=state, seed=5)
    wide = replace(TINY, config={"base": 8, "blocks": 1})
    with pytest.raises(UsageError, match="config"):
        losses_of(wide, state_file=state)
    for content in (b"", b"not a state", state.read_bytes()[:900]):
        state.write_bytes(content)
        with pytest.raises(InputError, match="is not a state"):
            losses_of(TINY, state_file=state)


def test_how_a_run_is_carried_out_changes_rounding_only() -> None:
    recipe = replace(TINY, steps=3)
    plain, _ = losses_of(recipe)
    for run, tolerance in (
        (RunOptions(report_steps=1, checkpointing=True), 0),
        (RunOptions(report_steps=1, accumulate=2), 1e-5),
        (RunOptions(report_steps=1, channels_last=False), 1e-5),
        (RunOptions(report_steps=1, precision="bf16"), 5e-3),
        (RunOptions(report_steps=1, precision="fp16"), 5e-3),
    ):
        losses, outcome = losses_of(recipe, run=run)
        assert losses == pytest.approx(plain, abs=tolerance), run
        assert all(w.dtype == torch.float32 for w in weights_of(outcome.network))
    for wrong in ({"precision": "fp8"}, {"accumulate": 0}):
        with pytest.raises(UsageError):
            RunOptions(**wrong)


def test_checkpointing_forgets_activations() -> None:
    """Fewer tensors are kept for the backward pass."""
    kept: dict[bool, int] = {}
    for checkpointing in (False, True):
        saved = 0

        def note(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses_of(
                replace(TINY, steps=1),
                run=RunOptions(report_steps=1, checkpointing=checkpointing),
            )
        kept[checkpointing] = saved
    assert kept[True] < 0.7 * kept[False]


def test_a_budget_of_time_ends_in_averaged_weights_at_a_rate_of_zero() -> None:
    recipe = replace(TINY, seconds=1.0, schedule=Schedule(warmup=0.1))
    reports: list[Progress] = []
    outcome = train(
        network_of(),
        batches,
        recipe,
        run=EVERY_STEP,
        callbacks=Callbacks(on_report=lambda progress, _: reports.append(progress)),
    )
    assert outcome.finished
    assert 1.0 <= outcome.progress.elapsed < 6
    assert reports[-1].learning_rate < 0.3 * max(r.learning_rate for r in reports)
    assert all(0 <= r.waiting <= 1 for r in reports)
    assert reports[-1].images_per_second > 0


def test_small_batches_are_parts_of_a_batch() -> None:
    """Two updates a batch of two are what batches of one are."""

    def single(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number in itertools.count(first):
            blurred, sharp = next(batches(number // 2))
            here = slice(number % 2, number % 2 + 1)
            yield blurred[here], sharp[here]

    _, split = losses_of(replace(TINY, steps=4, updates=((0.0, 2),)))
    _, ones = losses_of(replace(TINY, steps=8, batch=1), single)
    assert all(map(torch.equal, weights_of(split.network), weights_of(ones.network)))
    _, never = losses_of(replace(TINY, steps=4, updates=((1.0, 2),)))
    assert not all(map(torch.equal, weights_of(split.last), weights_of(never.last)))


GUIDED = {"widths": [4, 8, 8], "blocks": [1, 1, 1]}


class Noting(MIMOUNetGuided):
    """A guided network that keeps what it was given."""

    def forward_scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.given = [*getattr(self, "given", []), x.detach().clone()]
        return super().forward_scales(x)


def moved(first: int, *, told: bool) -> Iterator[Batch]:
    """The batches above with the motion of a blur along rows, or without it."""
    motion = torch.tensor([5.0, 0, 1, 0])[:, None, None].expand(2, 4, 8, 8)
    for blurred, sharp in batches(first):
        yield Batch(blurred, sharp, motion if told else None)


def test_a_guided_network_sees_the_motion_of_a_batch() -> None:
    told: Batches = functools.partial(moved, told=True)
    untold: Batches = functools.partial(moved, told=False)
    recipe = replace(TINY, network="mimo-unet-guided", config=GUIDED, steps=1, loss="log_mse")
    blurred = next(batches(0))[0].float().div(255)
    motion = next(moved(0, told=True)).motion
    for precision in ("fp32", "bf16"):  # what is seen is of full precision in both
        network = Noting(**GUIDED)
        losses_of(recipe, told, network=network, run=RunOptions(precision=precision))
        (seen,) = network.given
        assert torch.equal(seen, taps.with_guidance(blurred, motion))
        assert float(seen[:, 3:].abs().amax()) > 0.1
    network = Noting(**GUIDED)
    losses_of(recipe, untold, network=network)
    assert torch.equal(network.given[0], blurred)
    # In parts: patches of what was sampled as a whole, then a gradient from each half.
    network, whole = Noting(**GUIDED), taps.with_guidance(blurred, motion)
    patches = replace(recipe, patches=((0.0, 16),))
    losses_of(patches, told, network=network, run=RunOptions(accumulate=2))
    assert torch.equal(torch.cat(network.given), cut(whole, 16))
    # A network that is not guided takes no notice; either may be the other's teacher.
    plain = replace(TINY, steps=2)
    assert losses_of(plain, told)[0] == losses_of(plain, untold)[0]
    losses_of(replace(plain, steps=1, teacher_weight=1.0), told, teacher=network.eval())
    assert torch.equal(network.given[-1], whole)
    taught = Noting(**GUIDED)
    losses_of(replace(recipe, teacher_weight=1.0), told, network=taught, teacher=network_of())
    assert torch.equal(taught.given[0], whole)


def test_a_run_says_how_much_of_it_is_done() -> None:
    said: list[float] = []
    losses_of(replace(TINY, steps=4), on_share=said.append)
    assert said == [0, 0, 0.25, 0.5, 0.75]  # first of all to whoever makes batches ahead


def test_average_of_weights() -> None:
    _, without = losses_of(replace(TINY, ema=0.0))
    assert without.network is without.last
    _, averaged = losses_of(replace(TINY, ema=0.9))
    assert not all(map(torch.equal, weights_of(averaged.network), weights_of(averaged.last)))
    assert all(map(torch.equal, weights_of(averaged.last), weights_of(without.last)))


def test_a_step_without_a_finite_gradient_is_left_out() -> None:
    def with_one_bad(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (blurred, sharp) in zip(range(first, 5), batches(first), strict=False):
            bad = blurred.float().div(255)
            yield (bad * math.nan if number == 2 else bad), sharp

    reports: list[Progress] = []
    outcome = train(
        network_of(),
        with_one_bad,
        TINY,
        run=EVERY_STEP,
        callbacks=Callbacks(on_report=lambda p, _: reports.append(p)),
    )
    assert [r.skipped for r in reports[:5]] == [0, 0, 1, 0, 0]
    assert all(w.isfinite().all() for w in weights_of(outcome.last))
    nothing_else = [(torch.full((2, 3, 32, 32), math.nan), torch.zeros(2, 3, 32, 32))] * 100
    with pytest.raises(VdeblurError, match="lower --lr"):
        losses_of(replace(TINY, steps=100), lambda first: nothing_else)


@pytest.mark.parametrize("wild", [math.nan, 1e3])
def test_a_run_that_ran_away_ends_with_what_it_last_had(wild: float, tmp_path: Path) -> None:
    def after_6(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (blurred, sharp) in zip(itertools.count(first), batches(first), strict=False):
            yield (blurred, sharp) if number < 6 else (blurred, sharp.float() * wild)

    reports: list[tuple[int, list[Tensor]]] = []
    recipe, state = replace(TINY, steps=60, ema=0.5), tmp_path / "state.pt"

    def keep(progress: Progress, kept: Network) -> None:
        reports.append((progress.step, [w.clone() for w in weights_of(kept)]))

    with pytest.raises(
        Diverged, match=r"for 30 steps, at step 36; what is kept is of step 6: "
    ) as it:
        train(
            network_of(),
            after_6,
            recipe,
            run=EVERY_STEP,
            state=StateFile(state),
            callbacks=Callbacks(on_report=keep),
        )
    assert [step for step, _ in reports] == [1, 2, 3, 4, 5, 6]
    outcome = it.value.outcome
    assert outcome is not None
    assert not outcome.finished
    assert all(map(torch.equal, weights_of(outcome.network), reports[-1][1]))
    assert torch.load(state, weights_only=True)["step"] == 6

    # It goes on from there at a lower rate; a few wild steps among others do not matter.
    def now_and_then(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, (blurred, sharp) in zip(itertools.count(first), batches(first), strict=False):
            yield (blurred, sharp) if number % 4 else (blurred, sharp.float() * wild)

    slower = replace(recipe, learning_rate=1e-4, steps=14)
    assert train(network_of(), now_and_then, slower, state=StateFile(state)).finished


def test_a_run_stopped_while_it_never_was_sound_hands_nothing_back() -> None:
    steps = itertools.count(1)
    nothing_else = [(torch.full((2, 3, 32, 32), math.nan), torch.zeros(2, 3, 32, 32))] * 100
    recipe = replace(TINY, steps=100)
    with pytest.raises(Diverged, match="nothing was kept") as it:
        train(
            network_of(),
            lambda first: nothing_else,
            recipe,
            callbacks=Callbacks(stop=lambda: next(steps) == 15),
        )
    assert it.value.outcome is None


def test_patches_and_sharp_inputs() -> None:
    picture = torch.arange(36.0).reshape(1, 1, 6, 6)
    assert torch.equal(cut(picture, 3)[:, 0, 0, 0], torch.tensor([0.0, 3, 18, 21]))
    assert cut(torch.zeros(2, 3, 10, 10), 4).shape == (8, 3, 4, 4)
    blurred, sharp = torch.zeros(8, 3, 2, 2), torch.ones(8, 3, 2, 2)
    chosen = [
        with_sharp_input(blurred, sharp, first=8 * n, share=0.3).mean(dim=(1, 2, 3)) for n in (0, 1)
    ]
    assert int(torch.cat(chosen).sum()) == 4  # ⌊16 · 0.3⌋


FAMILY_SAMPLES: dict[str, dict[str, Any]] = {
    "mimo-unet-guided": GUIDED,
    "mimo-unet": {"base": 4, "blocks": 1},
    "mimo-unet-lite": {"base": 8, "blocks": 1, "unshuffle": 1},
    "mimo-unet-cfa": {"base": 8, "blocks": 1, "scales": 3},
    "pss-nsc": {"sharing": "both", "base": 4, "units": 1, "scales": 3},
    "mprnet": {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
}


@pytest.mark.parametrize("name", FAMILY_SAMPLES)
def test_any_network_of_the_catalogue_trains(name: str) -> None:
    recipe = replace(
        TINY, network=name, config=FAMILY_SAMPLES[name], steps=2, scales="halving", loss="l1+mse"
    )
    before = weights_of(network_of(recipe))
    losses, outcome = losses_of(
        recipe, run=RunOptions(report_steps=1, checkpointing=True, accumulate=2)
    )
    assert all(map(math.isfinite, losses))
    changed = [not torch.equal(a, b) for a, b in zip(before, weights_of(outcome.last), strict=True)]
    assert sum(changed) > 0.5 * len(changed)


def test_no_family_is_left_out() -> None:
    assert {spec(name).family for name in names() if spec(name).trained} == {
        spec(name).family for name in FAMILY_SAMPLES
    }


# --- several processes ---------------------------------------------------------------------------


def of_four(first: int) -> Iterator[tuple[Tensor, Tensor]]:
    for number in itertools.count(first):
        (a, b), (c, d) = next(batches(number)), next(batches(number + 100))
        yield torch.cat([a, c]), torch.cat([b, d])


def _as_one_of(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    device = start_processes(torch.device("cpu"))
    assert processes() == (rank, 2)

    def half(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((b.chunk(2)[rank], s.chunk(2)[rank]) for b, s in of_four(first))

    # Only one is told to stop: both must end at the same step.
    calls = itertools.count(1)
    outcome = train(
        network_of(),
        half,
        replace(TINY, keep_sharp=0.5, coarse_first=0.5),
        run=RunOptions(device=device, report_steps=2, accumulate=2),
        state=StateFile(folder / "state.pt"),
        callbacks=Callbacks(stop=lambda: rank == 1 and next(calls) == 5),
    )
    torch.save((outcome.progress.step, outcome.last.state_dict()), folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_as_one_of, args=(rank, port, tmp_path)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    recipe, calls = replace(TINY, keep_sharp=0.5, coarse_first=0.5), itertools.count(1)
    _, alone = losses_of(recipe, of_four, stop=lambda: next(calls) == 5)
    _, half = losses_of(replace(recipe, steps=5), batches)  # one that sees its own part only

    def distance(weights: list[Tensor]) -> float:
        pairs = zip(weights, weights_of(alone.last), strict=True)
        return sum(float((a - b).abs().sum()) for a, b in pairs)

    for rank in range(2):
        step, weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert step == alone.progress.step == 5
        assert distance(list(weights.values())) < 0.01 * distance(weights_of(half.last))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5


# --- lighter networks ----------------------------------------------------------------------------


def trained_pieces() -> tuple[MIMOUNet, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(1)
    network = MIMOUNet(base=8, blocks=2)
    return network, [next(batches(0)), next(batches(1))]


def test_pruning_takes_channels_that_do_nothing_and_changes_nothing() -> None:
    network, sample = trained_pieces()
    for name, parameter in network.named_parameters():
        if ".layers." in name and name.endswith("main.0.main.0.weight"):
            parameter.data[::2] = 0  # every other filter is dead
        if ".layers." in name and name.endswith("main.0.main.0.bias"):
            parameter.data[::2] = 0
    smaller = prune(network, 0.5, sample, multiple=2)
    x = image(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(smaller(x), network(x), atol=1e-6)
    assert operations(smaller) < 0.65 * operations(network)
    assert all(p.grad is None for p in network.parameters())


def test_a_pruned_network_is_smaller_and_loads_by_itself(tmp_path: Path) -> None:
    network, sample = trained_pieces()
    smaller = prune(network, 0.4, sample, multiple=4)
    assert sum(smaller.config["hidden"]) < 224
    assert min(smaller.config["hidden"]) >= 4
    assert all(width % 4 == 0 for width in smaller.config["hidden"])
    saved = tmp_path / "a.safetensors"
    save_weights(saved, smaller.state_dict(), network="mimo-unet", config=smaller.config)
    assert load(None, saved).network.config == smaller.config
    # Also where only names and shapes say what it is.
    torch.save(smaller.state_dict(), tmp_path / "a.pth")
    again = load("mimo-unet", tmp_path / "a.pth").network
    assert again.config == smaller.config
    x = image(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), smaller(x))
    losses, _ = losses_of(replace(TINY, steps=2), network=smaller)
    assert len(losses) == 2
    with pytest.raises(ModelError, match="only networks of the family mimo-unet"):
        prune(build("mimo-unet-lite", FAMILY_SAMPLES["mimo-unet-lite"]), 0.5, sample)


def test_operations_are_counted_as_they_are() -> None:
    """3×3 convolutions of a known network: the published figure is 63.7 G at 256×256."""
    assert operations(build("mimo-unet"), size=256) == pytest.approx(63.7e9, rel=0.06)


def test_widths_of_a_pruned_network_are_checked() -> None:
    with pytest.raises(ModelError, match="hidden must be 6 widths"):
        build("mimo-unet", {"base": 8, "blocks": 1, "hidden": [8, 8]})
    full = build("mimo-unet", {"base": 8, "blocks": 1, "hidden": [8, 16, 32, 32, 16, 8]})
    assert "hidden" not in full.config


def test_a_teacher_is_approached() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.2

    recipe = replace(TINY, steps=40, teacher_weight=1.0, loss="0*l1", ema=0, learning_rate=1e-2)
    losses, outcome = losses_of(recipe, same(40), teacher=Bright())
    assert losses[0] == pytest.approx(0.2, abs=1e-3)
    blurred = next(batches(0))[0].float().div(255)
    with torch.no_grad():
        assert float((outcome.network(blurred) - blurred).mean()) > 0.12
    with pytest.raises(UsageError, match="--teacher"):
        losses_of(recipe)


def test_teacher_and_student_of_different_scales() -> None:
    full, half = image(1, 3, 8, 8), image(1, 3, 4, 4)
    student = [half + 0.1, full + 0.1]
    total = distance_to_teacher(student, [full * 0, half, full], [0.5, 1.0])
    assert float(total) == pytest.approx(0.15, abs=1e-5)
    # A teacher of one output teaches the last one.
    assert float(distance_to_teacher(student, [full], [0.5, 1.0])) == pytest.approx(0.1, abs=1e-5)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.batch = 4  # type: ignore[misc]
    check: Callable[[], Recipe] = lambda: replace(TINY, batch=0)  # noqa: E731
    with pytest.raises(UsageError, match="batch 0"):
        check()


# --- dead channels -------------------------------------------------------------------------------


def test_dead_channels_are_counted_and_revived_without_a_change() -> None:
    torch.manual_seed(0)
    network = MIMOUNet(base=8, blocks=1)
    x = image(2, 3, 32, 32)
    alive = dead_share(network, x)
    first = network.Encoder[1].layers[0].main[0].main[0]  # type: ignore[index, union-attr]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.weight[:6] = 0
        first.bias[:6] = -1  # type: ignore[index]
        before = network(x)
    relus = sum(channels_of(layer) for layer in network.modules())
    # One more layer's six channels; a layer behind may lose or win some by it.
    assert dead_share(network, x) == pytest.approx(alive + 6 / relus, abs=3 / relus)
    assert revive(network, x) >= 6
    with torch.no_grad():
        assert torch.equal(network(x), before)
    assert dead_share(network, x) <= alive
    # They take part in learning again.
    kept = first.weight.detach().clone()
    losses_of(replace(TINY, steps=3, config={"base": 8, "blocks": 1}), network=network)
    moved = (first.weight.detach() - kept).abs().amax(dim=(1, 2, 3))
    assert bool((moved[:6] > 0).all())


def channels_of(layer: nn.Module) -> int:
    """How many channels a ReLU of this layer has."""
    if not isinstance(layer, BasicConv) or len(layer.main) < 2:
        return 0
    convolution = layer.main[0]
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    return convolution.out_channels


def test_a_good_start_has_no_dead_channels_and_does_not_lean_on_brightness() -> None:
    torch.manual_seed(0)
    network = build("mimo-unet", {"base": 32, "blocks": 2, "unshuffle": 4})
    coarse = image(2, 3, 8, 8)
    x = F.interpolate(coarse, size=(128, 128), mode="bilinear") * 0.5 + 0.2
    default = dead_share(network, x)
    start_well(network)
    assert dead_share(network, x) < min(0.05, default)
    assert isinstance(network, MIMOUNet)
    with torch.no_grad():
        grey = network.feat_extract[0].main[0](torch.full((1, 48, 8, 8), 0.45))  # type: ignore[index, operator]
    assert float(grey[..., 1:-1, 1:-1].abs().max()) < 1e-4


def test_pairs_that_know_no_motion_teach_along_what_they_show() -> None:
    """Without any motion a guided network changes nothing, and nothing would be learnt."""
    lines = torch.rand(2, 3, 64, 1, generator=torch.Generator().manual_seed(3))
    sharp = lines.expand(2, 3, 64, 64)
    blurred = sharp.unfold(2, 9, 1).mean(-1)
    blurred = torch.nn.functional.pad(blurred, (0, 0, 4, 4), mode="replicate")

    def untold(first: int) -> Iterator[Batch]:
        while True:
            yield Batch(blurred.mul(255).byte(), sharp.mul(255).byte(), None)

    recipe = replace(TINY, network="mimo-unet-guided", config=GUIDED, steps=1, loss="log_mse")
    network = Noting(**GUIDED)
    losses_of(recipe, untold, network=network)
    (seen,) = network.given
    assert seen.shape[1] == 3 + taps.CHANNELS
