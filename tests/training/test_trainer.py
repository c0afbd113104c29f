"""The loop learns, resumes exactly, survives wild steps and shares work."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
import socket
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.training import (
    EVERY_STEP,
    FAMILY_SAMPLES,
    GUIDED,
    TINY,
    batches,
    losses_of,
    network_of,
    weights_of,
)
from vdeblur.datasets.pool import Batch
from vdeblur.errors import InputError, UsageError, VdeblurError
from vdeblur.networks import names, spec, taps
from vdeblur.networks.base import Network
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided
from vdeblur.training import trainer
from vdeblur.training.divergence import Diverged
from vdeblur.training.losses import (
    l1,
)
from vdeblur.training.options import Callbacks, Progress, RunOptions
from vdeblur.training.processes import processes, start_processes
from vdeblur.training.schedules import Schedule
from vdeblur.training.state import StateFile
from vdeblur.training.trainer import Batches, cut, train, with_sharp_input


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


def test_a_state_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    losses_of(replace(TINY, steps=1), state_file=state)
    content = torch.load(state, weights_only=True)
    one = torch.zeros(1)
    change: dict[str, Any]
    for change in (
        {"model": {}},
        {"model": dict.fromkeys(content["model"], one)},
        {"averaged": {"x": "not a tensor"}},
        {"optimiser": {}},
        {"optimiser": content["optimiser"] | {"param_groups": []}},
        {"random": one},
        {"step": "7"},
        {"network": None},
        {"scaler": [1]},
        {"model": {name: one.expand(1 << 40) for name in content["model"]}},
        {"images": Path("x")},
    ):
        torch.save(content | change, state)
        with pytest.raises(InputError, match="is not a state"):
            losses_of(TINY, state_file=state)
    # Pickles that take for ever are not run to their end.
    with zipfile.ZipFile(state, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"N0" * 3_000_000 + b"}.")
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


@pytest.mark.parametrize("ahead", [1, 4])
def test_a_step_without_a_finite_gradient_is_left_out(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the host looks at each step, or lets the device leave it out, as on a GPU."""
    monkeypatch.setitem(trainer._AHEAD, "cpu", ahead)

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
    by_two = replace(EVERY_STEP, report_steps=2)
    sums: list[Progress] = []
    again = train(
        network_of(),
        with_one_bad,
        TINY,
        run=by_two,
        callbacks=Callbacks(on_report=lambda p, _: sums.append(p)),
    )
    assert [r.skipped for r in sums] == [0, 1, 0]
    assert sums[0].loss == pytest.approx((reports[0].loss + reports[1].loss) / 2)
    assert all(map(torch.equal, weights_of(again.last), weights_of(outcome.last)))
    assert all(w.isfinite().all() for w in weights_of(outcome.last))
    nothing_else = [(torch.full((2, 3, 32, 32), math.nan), torch.zeros(2, 3, 32, 32))] * 100
    with pytest.raises(VdeblurError, match="lower `learning_rate`"):
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
