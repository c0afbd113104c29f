"""The benchmark: what it measures, how it says so, and the settings that it finds and keeps."""

from __future__ import annotations

import json
import math
import re
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.clips import read_frames, scene, write_frames
from tests.helpers.simulated_devices import GB, simulated_gpu
from vdeblur import Deblurrer, InputError, UsageError
from vdeblur.benchmark import chart as bench_chart
from vdeblur.benchmark import roofline
from vdeblur.benchmark.report import format_result, format_sweep
from vdeblur.benchmark.result import PARTS, STEPS, BenchResult, Rates
from vdeblur.benchmark.run import BenchOptions, bench, load_for_speed
from vdeblur.benchmark.sweep import Sweep, Trial, TuneOptions, tune
from vdeblur.benchmark.timing import busy_shares, hidden_copies, inputs_of
from vdeblur.cli import main as cli
from vdeblur.deblur import deblur_video
from vdeblur.inference import devices, runtimes, settings
from vdeblur.inference.batching import batch_size
from vdeblur.inference.kernels import color, guidance
from vdeblur.inference.runtimes.mimo_unet_rewrite import RewrittenMIMOUNet
from vdeblur.inference.settings import Setting
from vdeblur.inference.transfers import BatchTimes
from vdeblur.media import demo_scene
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.input_formats import open_container
from vdeblur.networks import DEFAULT, build
from vdeblur.networks.cost import work_of
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.system.workers import WorkerTimes

TINY = {"model": DEFAULT, "device": "cpu"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDEBLUR_CACHE", str(tmp_path / "cache"))
    for name in ("VDEBLUR_BACKEND", "VDEBLUR_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    # What "auto" then is does not depend on the machine.
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: False)


@pytest.fixture(autouse=True)
def _quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    # A second and more, otherwise.
    monkeypatch.setattr(roofline, "peaks", lambda device, dtype: (1e12, 1e10))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "clip.mp4"
    return write_frames(path, (scene(n) for n in range(8)), "libx264")


def result(**changes: Any) -> BenchResult:
    rates = {
        "decode": Rates((200.0, 210.0, 190.0)),
        "colour": Rates((900.0,) * 3),
        "network": Rates((60.0, 70.0, 50.0)),
        "restoring": Rates((50.0, 60.0, 40.0)),
        "encode": Rates((100.0,) * 3),
        "asynchronous": Rates((500.0,) * 3),
        "planes to planes": Rates((45.0,) * 3),
        "pipeline": Rates((40.0,) * 3),
        "published network": Rates((10.0, 10.0, 10.0)),
        "published frames": Rates((5.0,) * 3),
    }
    values: dict[str, Any] = {
        "clip": "a.mp4",
        "size": "64x48",
        "frames": 5,
        "rounds": 3,
        "model": "identity",
        "device": "CPU",
        "backend": "torch",
        "precision": "fp32",
        "tile": None,
        "batch": 1,
        "encoder": "libx264",
        "rates": rates,
        "network_flop": 2e9,
        "peak_flops": 1e12,
        "copy_bytes": 1e10,
        "ceiling": 100.0,
        "memory_bytes": 10**9,
        "memory_predicted": 2 * 10**9,
        "copies_hidden": 0.934,
        "busy": {"decode": 0.2, "restoring": 0.91, "encode": 0.4},
    }
    return BenchResult(**(values | changes))


def test_every_stage_is_measured(clip: Path) -> None:
    options = BenchOptions(frames=3, rounds=2, encode=EncodeOptions(preset="ultrafast"))
    got = bench(clip, **TINY, backend="torch", options=options)
    assert (got.frames, got.rounds, got.size, got.batch) == (3, 2, "64x48", 1)
    assert (got.encoder, got.model, got.backend) == ("libx264", DEFAULT, "torch")
    assert (got.precision, got.tile) == ("fp32", None)
    # On a CPU nothing is copied; without --against nobody else's way is run.
    assert set(got.rates) == {*STEPS, "asynchronous", "planes to planes", "pipeline"} - {
        "upload",
        "download",
    }
    assert got.copies_hidden is None
    assert set(got.busy) == {"decode", "motion", "restoring", "encode"}
    assert 0 < max(got.busy.values()) <= 1
    assert all(len(r.rounds) == 2 and min(r.rounds) > 0 for r in got.rates.values())
    assert got.slowest == min(set(STEPS) - set(PARTS) - {"upload", "download"}, key=got.rate)
    assert got.efficiency == got.rate("pipeline") / got.rate(got.slowest)
    assert got.memory_predicted > 64 * 48 * 100
    assert got.memory_bytes is None or got.memory_bytes > got.memory_predicted
    # 64 × 48 is legal: 17.71 GMAC at 1280 × 720.
    assert got.network_flop == pytest.approx(2 * 17.705e9 * 64 * 48 / (1280 * 720), rel=1e-3)
    assert list(clip.parent.iterdir()) == [clip]


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_every_kind_of_gpu_is_measured(clip: Path, kind: str) -> None:
    options = BenchOptions(frames=3, rounds=1, batch=2)
    load_for_speed(DEFAULT, None)  # what is kept of the catalogue's networks is torch's own
    with simulated_gpu(kind):
        got = bench(clip, model=DEFAULT, device=kind, backend="torch", options=options)
    assert set(STEPS) <= set(got.rates)
    text = format_result(got)
    if kind == "mps":
        assert got.copies_hidden is None  # one thing after the other
    else:
        assert got.memory_bytes == 2 * GB
        assert "the GPU's allocations, 2.00 GB at the peak" in text
    assert "bound by " in text


def test_against_the_authors_way(clip: Path) -> None:
    options = BenchOptions(frames=2, rounds=2, against="published")
    got = bench(clip, **TINY, backend="torch", options=options)
    ratio = got.ratio("network", "published network")
    rounds = zip(got.rates["network"].rounds, got.rates["published network"].rounds, strict=True)
    assert ratio.rounds == tuple(a / b for a, b in rounds)
    said = got.as_dict()
    assert (
        said["frames_against_published"]["median"]
        == got.ratio("planes to planes", "published frames").median
    )
    assert "× the authors' way" in format_result(got)


def test_copies_are_hidden_where_the_device_computes_meanwhile() -> None:
    def batch(upload: float, compute: float, download: float) -> BatchTimes:
        spans = ((begin, begin + 1.0) for begin in (upload, compute, download))
        return BatchTimes(4, *spans)

    # The second upload lies half under the first batch; the first download lies under the second.
    times = [batch(0, 1, 2.5), batch(1.5, 2.5, 3.5)]
    assert hidden_copies(times) == pytest.approx((0.5 + 1) / 2)
    # The first upload and the last download have nothing to hide behind.
    assert hidden_copies([batch(0, 1, 2), batch(1, 2, 3), batch(2, 3, 4)]) == 1
    assert hidden_copies(times[:1]) is None
    still = BatchTimes(1, (0, 0), (0, 1), (1, 1))
    assert hidden_copies([still, still]) is None


def test_threads_are_busy_while_they_do_not_wait() -> None:
    decode = WorkerTimes("decode", busy_seconds=1, owner_seconds=2)
    motion = WorkerTimes("motion", busy_seconds=8, owner_seconds=5)  # 2 of 8 for decoding
    encode = WorkerTimes("encode", busy_seconds=3, owner_seconds=1)
    shares = busy_shares([decode, motion], 9, encode, 10)
    expected = {"decode": 0.1, "motion": 0.6, "restoring": 0.3, "encode": 0.3}
    assert shares == pytest.approx(expected)


def test_a_network_is_timed_on_what_it_is_given() -> None:
    network = MIMOUNet(base=8, blocks=1)
    deblurrer = Deblurrer(network, device="cpu", backend="torch", tile=128)
    rgb = torch.rand(1, 3, 150, 200)
    given = inputs_of(deblurrer.network, lambda: deblurrer.correction(rgb))
    assert len(given) > 1  # tiles
    assert {seen.dtype for seen in given} == {deblurrer.dtype}
    # Not recorded any more.
    assert len(inputs_of(deblurrer.network, lambda: None)) == 0
    assert len(given) == len(inputs_of(deblurrer.network, lambda: deblurrer.correction(rgb)))


def test_ceilings_are_measured_on_values_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def per_second(work: Any, device: torch.device, times: int) -> float:
        seen.extend(getattr(work, "args", ()))
        return 1.0

    monkeypatch.undo()
    monkeypatch.setattr(roofline, "_per_second", per_second)
    roofline.peaks(torch.device("cpu"), torch.float32)
    assert len(seen) == 6  # two products and a convolution
    assert all(values.std() > 0.5 for values in seen)


def test_a_network_without_weights_is_measured_untrained() -> None:
    options = BenchOptions(size=(64, 48), frames=1, rounds=1)
    got = bench(model="mimo-unet-lite", device="cpu", backend="torch", options=options)
    assert got.clip.startswith("a generated scene")
    assert got.size == "64x48"
    assert any("untrained" in note for note in got.notes)


def test_how_it_is_shown() -> None:
    got = result()
    assert got.slowest == "restoring"  # of which the network is a part
    assert got.efficiency == 0.8
    text = format_result(got)
    marked = next(line for line in text.splitlines() if "<- slowest stage" in line)
    assert marked.split()[:6] == ["restoring", "50.0", "20.00", "40.0", "to", "60.0"]
    for part in ("0.80 of the slowest", "0.90 of restoring", "0.12 TFLOP/s, 12% of", "60% of it",
                 "93% of the copies hidden", "the network takes none",
                 "bound by restoring, busy 91% of the time; beside it encode 40%, decode 20%",
                 "predicted to take 2.00 GB; the whole process, 1.00 GB at the peak",
                 "6.00× the authors' way (5.00 to 7.00)",
                 "nothing is copied", "500.0"):  # fmt: skip
        assert part in text, part
    said = json.loads(json.dumps(got.as_dict()))
    assert said["efficiency"] == 0.8
    assert said["rates"]["network"] == {"median": 60.0, "rounds": [60.0, 70.0, 50.0]}
    rates = got.rates | {"pipeline": Rates((60.0,) * 3), "motion": Rates((80.0,) * 3)}
    assert "were not computed" in format_result(result(rates=rates))
    assert "were not computed" not in text
    assert "ceiling:" not in format_result(result(ceiling=None, network_flop=None))
    assert text.startswith("a.mp4, 64x48, 5 frames, 3 rounds\n")
    assert "a.mp4, 64x48, 1 frame, 1 round\n" in format_result(result(frames=1, rounds=1))
    assert "faster than the products measured" in format_result(result(ceiling=40.0))
    assert "faster than the products measured" not in text
    # Numbers of any size stand apart.
    wide = result(rates=got.rates | {"planes to planes": Rates((12345678901.2,) * 3)})
    assert re.search(r"planes to planes {2,}12345678901\.2 ", format_result(wide))
    # Bytes, and not frames without codecs too.
    assert sum(line.startswith("  memory") for line in text.splitlines()) == 1


def test_a_network_that_computes_nothing_has_no_speed(clip: Path) -> None:
    options = BenchOptions(rounds=1, against="published")
    got = bench(clip, model="identity", device="cpu", options=options)
    assert set(got.rates) == {"decode", "encode", "planes to planes", "pipeline"}
    assert got.slowest in ("decode", "encode")
    assert got.as_dict()["network_ms"] is None
    text = format_result(got)
    line = next(line for line in text.splitlines() if line.startswith("  network"))
    assert line.split()[1:] == ["-", "-", "nothing", "is", "computed"]
    assert "FLOP" not in text
    assert "authors" not in text
    assert ": nothing is computed\n" in text
    assert not any(backend in text for backend in runtimes.REQUESTS)


def test_numbered_pictures_are_measured(tmp_path: Path) -> None:
    for number in range(3):
        scene(number).to_image().save(tmp_path / f"{number}.png")
    pattern, options = tmp_path / "%d.png", BenchOptions(frames=3, rounds=1)
    result = bench(pattern, model="identity", device="cpu", options=options)
    assert (result.frames, result.encoder) == (3, "png")


def test_there_is_nothing_to_tune_in_a_network_that_computes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["bench", "--device", "cpu", "--model", "identity", "--tune", "--precision", "int8"]
    assert cli.main(words) == 2
    assert "there is nothing to tune" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_decoder_that_is_not_here_is_told(clip: Path) -> None:
    options = BenchOptions(rounds=1, frames=1, hwaccel="cuda")
    got = bench(clip, model="identity", device="cpu", options=options)
    assert got.notes == ["no cuda decoder here: decoding on the CPU"]


def test_decoding_in_hardware_is_asked_for_as_in_a_run(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []

    def refused(file: Any, *, acceleration: Any = None) -> Any:
        if acceleration is None:
            return open_container(file)
        asked.append((acceleration.device_id, acceleration.is_hw_owned))
        raise OSError("no device")

    monkeypatch.setattr("vdeblur.media.opening.open_container", refused)
    monkeypatch.setattr("vdeblur.benchmark.run.current_context", lambda device: nullcontext(1))
    options = BenchOptions(rounds=1, frames=1, hwaccel="cuda")
    bench(clip, model="identity", device="cpu", options=options)
    assert asked[0] == (1, True)  # frames stay on the GPU of the network


def test_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.png"
    words = ["bench", str(clip), "--model", "identity", "--frames", "3", "--rounds", "1", "--json"]
    assert cli.main([*words, "--chart", str(chart)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == 3
    with av.open(str(chart)) as picture:
        assert picture.streams.video[0].width == 1000


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--size", "large"], 2, "'large' is not a size"),
        (["--size", "65x48"], 2, "size is 65x48: choose even numbers"),
        (["--rounds", "0"], 2, "must be 1 or more"),
        (["--chart", "a.svg"], 2, "ends in .png"),
        (["-"], 2, "CLIP is read several times, which a pipe cannot be: name a file"),
        (["--chart", "nowhere/a.png"], 1, "folder nowhere does not exist: create it first"),
        (["--model", "unheard-of"], 2, "there is no network"),
    ],
)
def test_bad_options(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        got = cli.main(["bench", "--device", "cpu", *words])
    except SystemExit as exit:
        got = int(str(exit.code))
    assert got == code
    assert said in capsys.readouterr().err


def test_what_cannot_be_measured(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(UsageError):
        bench(clip, model="identity", options=BenchOptions(frames=0))
    with pytest.raises(InputError):
        bench(tmp_path / "none.mp4", model="identity")
    assert cli.main(["bench", str(clip), "--size", "64x48"]) == 2


def test_the_generated_scene_moves_and_is_the_same_each_time(tmp_path: Path) -> None:
    one = read_frames(demo_scene.write(tmp_path / "a.mp4", (128, 64), count=5))
    two = read_frames(demo_scene.write(tmp_path / "b.mp4", (128, 64), count=5))
    assert len(one) == 5
    assert all((a[1][0] == b[1][0]).all() for a, b in zip(one, two, strict=True))
    moved = [float(np.abs(a[1][0] - b[1][0].astype(int)).mean())
             for a, b in pairwise(one)]  # fmt: skip
    assert min(moved) > 5


def test_a_chart_has_a_bar_for_each_figure_in_its_place() -> None:
    trials = [Trial("torch", "fp32", 1, None, [4.0]), Trial("torch bf16", "fp32", 1, 256, [8.0])]
    sweep = Sweep("identity", "CPU", "64x48", trials, trials[1], True, [])
    both, first = bench_chart.draw(result(), sweep), bench_chart.draw(result(), None)
    assert np.array_equal(both[: len(first)], first)
    ours = both[len(first) :]
    # Of the last row of each bar: no whiskers.
    lengths = [int((np.ptp(row, axis=1) > 100).sum()) for row in ours]
    bars = sorted({n for n in lengths if 100 < n < 700})
    assert bars[-1] == pytest.approx(2 * bars[0], abs=12)
    # Two that are far apart: in decades.
    assert len(first) == len(bench_chart.draw(result(), None))


def test_a_chart_without_its_package_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["bench", "--chart", str(tmp_path / "a.png"), "--frames", "1"]) == 1
    assert "pip install 'vdeblur[plots]'" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"vdeblur\[plots\]"):
        bench_chart.draw(result(), None)
    assert not list(tmp_path.glob("*.png"))


# -- what a network costs ------------------------------------------------------------------------


def test_a_ceiling_is_the_sum_of_what_each_layer_takes() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1),
        nn.Conv2d(4, 3, 2, stride=2, groups=1),
    )
    work = work_of(network, 10, 20, torch.float16)
    assert work is not None
    flop = [2 * 27 * 8 * 200, 2 * 16 * 8 * 4 * 200, 2 * 16 * 3 * 200]
    values = [3 * 200 + 8 * 200 + 216, 8 * 200 + 4 * 800 + 512, 4 * 800 + 3 * 200 + 48]
    assert [layer[0] for layer in work.layers] == flop
    assert [layer[1] for layer in work.layers] == [2 * n for n in values]
    assert work.flop == sum(flop)
    seconds = [max(f / 1e6, 2 * n / 1e5) for f, n in zip(flop, values, strict=True)]
    assert work.ceiling(1e6, 1e5) == pytest.approx(1 / sum(seconds))


def test_the_published_network_costs_what_is_known_of_it() -> None:
    work = work_of(build("mimo-unet"), 720, 1280, torch.float16)
    assert work is not None
    assert work.flop / 2e9 == pytest.approx(896, abs=1)
    identity = work_of(build("identity"), 720, 1280, torch.float16)
    assert identity is not None
    assert (identity.flop, identity.ceiling(1, 1)) == (0, None)


# -- the fastest settings ------------------------------------------------------------------------


def small() -> MIMOUNet:
    torch.manual_seed(1)
    return MIMOUNet(base=8, blocks=1).eval()


CPU = torch.device("cpu")


def test_a_setting_is_kept_for_its_network_size_and_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings.recall(small(), CPU) == {}
    first, second = (Setting("torch", "fp32", n, None, 5.0) for n in (2, 4))
    assert settings.store_setting(small(), CPU, (48, 64), first)
    assert settings.store_setting(small(), CPU, (72, 128), second)
    assert settings.recall(small(), CPU) == {
        (48, 64): first,
        (72, 128): second,
    }
    assert settings.store_setting(small(), CPU, (48, 64), second)
    # The newest last.
    assert list(settings.recall(small(), CPU)) == [(72, 128), (48, 64)]
    other = small()
    with torch.no_grad():
        other.get_parameter("feat_extract.0.main.0.weight").add_(1e-3)
    assert settings.recall(other, CPU) == {}
    assert settings.recall(MIMOUNet(base=8, blocks=2), CPU) == {}
    monkeypatch.setattr(settings, "device_name", lambda device: "another one")
    assert settings.recall(small(), CPU) == {}


def test_a_damaged_cache_is_no_cache(tmp_path: Path) -> None:
    settings.store_setting(small(), CPU, (48, 64), Setting("torch", "fp32", 2, None, 5.0))
    for file in (tmp_path / "cache").rglob("settings.json"):
        file.write_text('{"64x48": {"backend": 1}}')
    assert settings.recall(small(), CPU) == {}
    assert Deblurrer(small(), device="cpu").tuned == {}


def test_what_was_tuned_is_used_and_gives_way_to_what_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    half = Setting("torch", "bf16", 3, 160, 5.0)
    settings.store_setting(small(), CPU, (200, 240), half)
    tuned = Deblurrer(small(), device="cpu")
    assert (tuned.dtype, tuned.precision) == (torch.bfloat16, "bf16")
    assert batch_size("auto", tuned, size=(200, 240)) == 3
    assert batch_size(2, tuned, size=(200, 240)) == 2
    assert batch_size("auto", tuned, size=(201, 240)) == 1
    tuned(torch.rand(1, 3, 200, 240))
    assert (tuned.plans[200, 240].tile, tuned.plans[200, 240].batch) == (160, 3)
    asked = Deblurrer(small(), device="cpu", precision="fp32")
    assert (asked.dtype, asked.tuned) == (torch.float32, {})
    whole = Deblurrer(small(), device="cpu", tile=None)
    whole(torch.rand(1, 3, 200, 240))
    assert whole.plans[200, 240].tile is None
    monkeypatch.setenv("VDEBLUR_BACKEND", "torch")
    assert Deblurrer(small(), device="cpu").dtype == torch.float32


def test_a_tuned_batch_is_that_of_the_video(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    whole = Deblurrer.restore_planes

    def restore_planes(self: Deblurrer, planes: Any, *more: Any) -> Any:
        seen.append(len(planes[0]))
        return whole(self, planes, *more)

    monkeypatch.setattr(Deblurrer, "restore_planes", restore_planes)
    settings.store_setting(small(), CPU, (48, 64), Setting("torch", "fp32", 3, None, 5.0))
    deblur_video(clip, tmp_path / "out.mp4", model=small(), device="cpu")
    assert seen == [3, 3, 2]


def test_a_sweep_keeps_the_fastest_that_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    # 288 wide: tiles of 256 are there to be tried.
    words = ["--size", "288x32", "--rounds", "1", "--frames", "1", "--backend", "torch"]
    assert cli.main(["bench", "--device", "cpu", *words, "--tune", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    trials = said["sweep"]["trials"]
    assert {(t["backend"], t["precision"]) for t in trials} <= {
        ("torch", "fp32"),
        ("torch", "bf16"),
    }
    assert {t["batch"] for t in trials} >= {1, 2}
    assert {t["tile"] for t in trials} == {None, 256}
    assert said["sweep"]["kept"]
    best = said["sweep"]["best"]
    again = Deblurrer(DEFAULT, device="cpu")
    assert again.tuned[32, 288].batch == best["batch"] == said["batch"]


def test_a_trial_s_batch_is_restored_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    network = RewrittenMIMOUNet.correction

    def correction(self: RewrittenMIMOUNet, x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return network(self, x)

    monkeypatch.setattr(RewrittenMIMOUNet, "correction", correction)
    # Larger than what a CPU takes several of by itself.
    monkeypatch.setattr("vdeblur.inference.memory_plan.CPU_BATCH_PIXELS", 1)
    options = TuneOptions(
        size=(64, 64), device="cpu", backend="torch", precision="fp32", batch=3, rounds=1
    )
    weights = tmp_path / "tiny.pth"
    torch.save(MIMOUNet(base=8, blocks=1).state_dict(), weights)
    tune(weights=weights, options=options)
    assert (3, 3, 64, 64) in seen


@pytest.mark.parametrize("instead", [color.FALLBACK, guidance.FALLBACK])
def test_kernels_that_cannot_be_used_fail_no_trial(
    instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All runtimes go on without them alike."""
    restore_planes = Deblurrer.restore_planes

    def restored(self: Deblurrer, *given: Any) -> Any:
        self.notes.append(f"{instead}, its kernels cannot be used here (no such instruction)")
        return restore_planes(self, *given)

    monkeypatch.setattr(Deblurrer, "restore_planes", restored)
    options = TuneOptions(
        size=(64, 64), device="cpu", backend="torch", precision="fp32", batch=1, rounds=1
    )
    assert not tune(options=options).best.failure


def test_what_disagrees_or_fails_is_never_the_fastest() -> None:
    wrong = Trial("torch", "bf16", 1, None, [100.0], decibels=49.0)
    broken = Trial("compile", "fp16", 1, None, failure="needs Triton")
    unsound = Trial("torch", "fp16", 1, None, [100.0], decibels=math.nan)
    right = Trial("torch", "fp32", 1, None, [5.0, 7.0])
    assert [t.rate for t in (wrong, broken, unsound, right)] == [0, 0, 0, 6.0]
    sweep = Sweep("identity", "CPU", "64x48", [wrong, broken, right], right, True, [])
    text = format_sweep(sweep)
    assert "differs too much" in text
    assert "needs Triton" in text
    assert text.count("<- chosen") == 1
    json.dumps(sweep.as_dict(), allow_nan=False)


def test_one_axis_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[tuple[str, int, int | None], float] = {
        ("torch bf16", 1, None): 8, ("torch fp32", 1, None): 5, ("torch bf16", 2, None): 9,
        ("torch bf16", 4, None): 9.1, ("torch bf16", 2, 256): 11,
    }  # fmt: skip

    def measure(self: Any, trials: list[Trial]) -> None:
        for trial in trials:
            rate = rates[f"{trial.backend} {trial.precision}", trial.batch, trial.tile]
            trial.rounds += [rate] * 5

    monkeypatch.setattr("vdeblur.benchmark.sweep._TrialRunner.measure", measure)
    monkeypatch.setattr("vdeblur.inference.runtimes.choice.installed", lambda name: False)
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    tried: list[Trial] = []
    options = TuneOptions(size=(320, 64), device="cpu")
    sweep = tune(options=options, on_trial=tried.append)
    assert [(f"{t.backend} {t.precision}", t.batch, t.tile) for t in tried] == list(rates)
    assert (sweep.best.batch, sweep.best.tile, sweep.kept) == (2, 256, True)
    # An untrained network's settings are for nobody.
    lite = tune(model="mimo-unet-lite", options=options)
    assert not lite.kept


def test_noise_does_not_move_a_setting_from_the_default() -> None:
    usual = Trial("torch", "fp32", 1, None, [50.0, 44.0, 82.0, 60.0, 55.0])
    # A higher median, for it was lucky; and one that is faster whatever else the machine does.
    lucky = Trial("torch", "fp32", 2, None, [80.0, 40.0, 84.0, 66.0, 70.0])
    better = Trial("torch", "fp32", 4, None, [55.0, 48.0, 90.0, 64.0, 61.0])
    hardly = Trial("torch", "fp32", 8, None, [n * 1.01 for n in usual.rounds])
    assert lucky.rate > usual.rate
    assert [t.beats(usual, rounds=5) for t in (lucky, better, hardly)] == [False, True, False]
    assert not Trial("torch", "fp16", 1, None, failure="no").beats(usual, rounds=5)
    sweep = Sweep("a", "CPU", "64x48", [usual, lucky], usual, True, [])
    text = format_sweep(sweep)
    assert "44.00 to 82.00   <- chosen" in text
    assert "faster in every round" in text


def test_what_was_tuned_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "multiplies_bf16", lambda: True)
    settings.store_setting(small(), CPU, (480, 640), Setting("torch", "bf16", 3, 160, 5.0))
    about = Deblurrer(small(), device="cpu").about
    assert (
        "taken from `vdeblur bench --tune`: torch, bf16; unless asked otherwise, "
        "640x480 in batches of 3 and tiles of 160"
    ) in about
    # Where the CPU has no bf16, it is said twice: that it is rounded, and that it is slow.
    assert {"computed in bf16" in line for line in about if "taken from" not in line} == {True}
    assert not Deblurrer(small(), device="cpu", precision="fp32", backend="torch").about


@pytest.mark.parametrize(
    "damage",
    [{"batch": 1.5}, {"tile": 3}, {"batch": "2"}, {"batch": True}, {"backend": "abacus"},
     {"precision": 1}, {"frames_per_second": None}],
)  # fmt: skip
def test_a_setting_of_the_wrong_kind_is_left_out(tmp_path: Path, damage: dict[str, Any]) -> None:
    sound = Setting("torch", "fp32", 2, None, 5.0)
    for size in ((48, 64), (72, 128)):
        settings.store_setting(small(), CPU, size, sound)
    (file,) = (f for f in tmp_path.rglob("settings.json") if f.parent.suffix != ".part")
    lines = json.loads(file.read_text())
    lines["128x72"] |= damage
    file.write_text(json.dumps(lines))
    assert settings.recall(small(), CPU) == {(48, 64): sound}


def test_memory_is_predicted_from_size_batch_tile_and_precision() -> None:
    deblurrer = Deblurrer(small(), device="cpu", tile=None)
    one = deblurrer.memory_needed(480, 640)
    assert deblurrer.memory_needed(480, 640, batch=3) == 3 * one
    assert deblurrer.memory_needed(960, 640) == 2 * one
    assert Deblurrer(small(), device="cpu", tile=128).memory_needed(480, 640) < one / 2
    half = Deblurrer(small(), device="cpu", tile=None, precision="bf16")
    assert one / 2 < half.memory_needed(480, 640) < one
    assert deblurrer.fitting_batch(1 << 14, 1 << 14) >= 1


def test_a_correction_is_what_is_added() -> None:
    deblurrer, picture = Deblurrer(small(), device="cpu"), torch.rand(2, 3, 30, 45)
    expected = (picture + deblurrer.correction(picture)).clamp(0, 1)
    assert torch.allclose(deblurrer(picture), expected)


class RunsOut(nn.Module):
    """Adds a little red; from the fifth picture on, the allocator itself fails for more than one,
    and from the ninth on for whole pictures.
    """

    size_multiple, receptive_radius, activations_per_pixel = 1, 0, 3

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.failures = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        side = 1 << 14 if self.seen < 8 else 128
        limit = 4 if self.seen < 4 else 1
        if len(x) > limit or max(x.shape[2:]) > side:
            self.failures += 1
            torch.empty(1 << 56, dtype=torch.uint8)  # more than there is of anything
        self.seen += len(x)
        return x + torch.tensor([10 / 255, 0, 0])[:, None, None]


def test_running_out_of_memory_in_mid_video_loses_no_frame(tmp_path: Path) -> None:
    frames = [scene(n, "bgr0", (160, 136)) for n in range(13)]
    source = write_frames(tmp_path / "a.mkv", frames)
    network = RunsOut()
    report = deblur_video(source, tmp_path / "b.mkv", model=network, device="cpu", batch=4)
    before, after = (read_frames(tmp_path / name) for name in ("a.mkv", "b.mkv"))
    assert [time for time, _ in after] == [time for time, _ in before]
    for (_, old), (_, new) in zip(before, after, strict=True):
        change = new[0].reshape(136, 160, 4).astype(int) - old[0].reshape(136, 160, 4)
        assert (change[..., 2] == 10).all()
        assert not change[..., :2].any()
    assert report.frames == 13
    assert report.replaced == 0
    assert network.failures >= 3
    assert any("batch 2" in note for note in report.notes)
    assert any("tiles of 128" in note for note in report.notes)
