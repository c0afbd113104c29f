"""Devices of every kind that torch knows, simulated: none of them needs to be there."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers.clips import read_frames, write_frames
from tests.helpers.simulated_devices import GB, Kind, Mps, simulated_gpu
from vdeblur import Deblurrer, deblur_video
from vdeblur.cli.main import main
from vdeblur.cli.options import add_network_options, deblurrer_of
from vdeblur.errors import DeviceError, UsageError
from vdeblur.inference import devices
from vdeblur.inference.batching import batch_size
from vdeblur.inference.devices import (
    accelerator,
    current_device,
    device_name,
    empty_cache,
    exact_dtype,
    find_device,
    free_memory,
    has_streams,
    is_out_of_memory,
    synchronize,
)
from vdeblur.networks import build
from vdeblur.training.options import RunOptions
from vdeblur.training.processes import start_processes
from vdeblur.training.recipes import RECIPES
from vdeblur.training.trainer import train


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No GPU of any kind."""
    monkeypatch.setattr(torch, "cuda", Kind("NVIDIA H100", 0))
    monkeypatch.setattr(torch, "xpu", Kind("Intel Arc B580", 0))
    monkeypatch.setattr(torch.mps, "device_count", lambda: 0)
    for kind in ("cuda", "hip", "xpu"):
        monkeypatch.setattr(torch.version, kind, None, raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    return monkeypatch


def test_auto_takes_cuda_then_xpu_then_mps_then_the_cpu(nothing: pytest.MonkeyPatch) -> None:
    assert find_device("auto") == torch.device("cpu")
    nothing.setattr(torch, "mps", Mps())
    assert find_device("auto") == find_device("mps") == torch.device("mps", 0)
    nothing.setattr(torch, "xpu", Kind("Intel Arc B580", 2, current=1))
    assert find_device("auto") == torch.device("xpu", 1)
    assert find_device("xpu") == torch.device("xpu", 0)
    nothing.setattr(torch, "cuda", Kind("NVIDIA H100", 1))
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device(torch.device("xpu:1")) == torch.device("xpu", 1)


def test_rocm_is_another_name_of_cuda_where_torch_is_built_for_it(
    nothing: pytest.MonkeyPatch,
) -> None:
    nothing.setattr(torch, "cuda", Kind("AMD Instinct MI300X", 2))
    nothing.setattr(torch.version, "hip", "6.4.43482-0f2d60242", raising=False)
    assert find_device("rocm:1") == find_device("cuda:1") == torch.device("cuda", 1)
    assert device_name(find_device("rocm")) == "AMD Instinct MI300X 0"
    nothing.setattr(torch.version, "hip", None, raising=False)
    nothing.setattr(torch.version, "cuda", "13.0", raising=False)
    message = (
        r"there is no rocm: this PyTorch, built for CUDA 13.0, sees cuda:0 \(AMD Instinct MI300X "
        r"0\), cuda:1 \(AMD Instinct MI300X 1\); use `device='auto'`, or install AMD's driver and "
        "a ROCm build of PyTorch"
    )
    with pytest.raises(DeviceError, match=message):
        find_device("rocm")
    with pytest.raises(DeviceError, match=r"there is no cuda:2: .*; use `device='auto'`$"):
        find_device("cuda:2")


@pytest.mark.parametrize(
    ("asked", "install"),
    [
        ("cuda:1", "NVIDIA's driver and a CUDA build"),
        ("rocm:1", "AMD's driver and a ROCm build"),
        ("xpu", "Intel's driver and an XPU build"),
        ("mps", "PyTorch for macOS on a Mac with Apple silicon"),
    ],
)
def test_a_device_that_is_not_there_is_said_with_what_to_install(
    nothing: pytest.MonkeyPatch, asked: str, install: str
) -> None:
    message = f"there is no {asked}: this PyTorch, built for the CPU, sees no GPU; .*{install}"
    with pytest.raises(DeviceError, match=message):
        find_device(asked)


def test_a_gpu_whose_driver_torch_cannot_use_is_not_there(nothing: pytest.MonkeyPatch) -> None:
    old = Kind("NVIDIA H100", 1)
    nothing.setattr(old, "is_available", lambda: False)
    nothing.setattr(torch, "cuda", old)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="sees no GPU"):
        find_device("cuda")


@pytest.mark.parametrize("asked", ["gpu", "rocm:x", "vulkan", "meta", "cuda:-1"])
def test_kinds_that_nobody_restores_on_are_refused(asked: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device '{asked}': choose auto, cpu, cuda"):
        find_device(asked)


def test_calls_reach_the_kind_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    xpu, mps = Kind("Intel Arc B580", 2), Mps()
    monkeypatch.setattr(torch, "xpu", xpu)
    monkeypatch.setattr(torch, "mps", mps)
    second, apple, cpu = torch.device("xpu:1"), torch.device("mps:0"), torch.device("cpu")
    for device in (second, apple, cpu):
        synchronize(device)
        empty_cache(device)
        with current_device(device):
            pass
    assert xpu.calls == [("synchronize", second), "empty_cache", ("device", second)]
    assert mps.calls == ["synchronize", "empty_cache"]
    assert [accelerator(device) for device in (second, apple, cpu)] == [xpu, mps, None]
    assert [has_streams(device) for device in (second, apple, cpu)] == [True, False, False]
    xpu.fp64 = False
    exact = [exact_dtype(device) for device in (second, apple, cpu)]
    assert exact == [torch.float32, torch.float32, torch.float64]


def test_free_memory_counts_what_torch_holds_and_does_not_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    xpu = Kind("Intel Arc B580", 1)
    monkeypatch.setattr(torch, "xpu", xpu)
    assert free_memory(torch.device("xpu:0")) == (12 + 3 - 1) * GB

    def unknown(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory")

    monkeypatch.setattr(xpu, "mem_get_info", unknown)
    assert free_memory(torch.device("xpu:0")) == (16 - 1) * GB
    monkeypatch.setattr(torch, "mps", Mps())
    for available, free in ((None, 10), (64, 10), (3, 3)):
        bytes_ = None if available is None else available * GB
        monkeypatch.setattr(devices, "available_bytes", lambda found=bytes_: found)
        assert free_memory(torch.device("mps:0")) == free * GB


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("XPU out of memory. Tried to allocate 512.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, max allowed: 6.80 GB)."),
        RuntimeError("UR backend returns:40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: not enough memory"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
)
def test_every_kind_says_in_its_words_that_memory_was_not_enough(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of a pan, blurred by a shutter that is open for half of a frame's time."""
    shown = pytest.importorskip("tests.helpers.films", reason="lettered with Pillow").render(
        "pan", 4, 9
    )
    pictures = (av.VideoFrame.from_ndarray(x[:128, :192], "rgb24") for x in shown.blurred)
    path = tmp_path_factory.mktemp("film") / "pan.mkv"
    return write_frames(path, (each.reformat(format="yuv420p") for each in pictures))


def planes(path: Path) -> list[np.ndarray]:
    return [plane.astype(np.float64) for _, frame in read_frames(path) for plane in frame]


@pytest.mark.parametrize(
    ("kind", "precision", "decibels"),
    [("rocm", "fp16", 55), ("xpu", "fp16", 55), ("mps", "fp32", 70)],
)
def test_a_film_is_restored_on_every_kind_as_on_the_cpu(
    film: Path,
    tmp_path: Path,
    kind: str,
    precision: str,
    decibels: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VDEBLUR_PRECISION", raising=False)
    deblur_video(film, tmp_path / "cpu.mkv", device="cpu", precision="fp32")
    with simulated_gpu(kind) as (gpu, module):
        deblurrer = Deblurrer()
        assert deblurrer.device == find_device(kind)
        assert deblurrer.precision == precision
        report = deblur_video(film, tmp_path / "gpu.mkv", model=deblurrer, batch=2)
    assert {"conv2d", "grid_sample"} <= gpu.seen
    assert ("stream" in module.calls) == has_streams(deblurrer.device)
    assert report.frames == 4
    assert report.replaced == 0
    source, cpu, there = map(planes, (film, tmp_path / "cpu.mkv", tmp_path / "gpu.mkv"))
    error = np.mean([np.square(a - b).mean() for a, b in zip(cpu, there, strict=True)])
    changed = np.mean([np.square(a - b).mean() for a, b in zip(cpu, source, strict=True)])
    assert 10 * np.log10(255**2 / error) > decibels
    assert changed > 100 * error


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_a_network_is_trained_on_every_kind_as_on_the_cpu(kind: str) -> None:
    recipe = replace(
        RECIPES["mimo-unet-lite"], seconds=0, epochs=0, steps=2, batch=2, crop=64, ema=0.9
    )
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.rand(2, 3, 64, 64, generator=generator) for _ in range(4)]

    def weights(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        outcome = train(
            build("mimo-unet-lite"),
            lambda first: [(pictures[n], pictures[n + 1]) for n in range(first, 3)],
            recipe,
            run=RunOptions(device=torch.device(device)),
        )
        return [p.detach().cpu() for p in outcome.last.parameters()]

    with simulated_gpu(kind):
        there = weights(f"{kind}:0")
    here = weights("cpu")
    assert max(float((a - b).abs().max()) for a, b in zip(here, there, strict=True)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("cuda", "restoring on NVIDIA H100 0 (CUDA 13.0), fp16, torch"),
        ("rocm", "restoring on AMD Instinct MI300X 0 (ROCm 6.4.43482), fp16, torch"),
        ("xpu", "restoring on Intel Arc B580 0 (XPU 20250302), fp16, torch"),
        ("mps", "restoring on Apple M4 (MPS), fp32, torch"),
    ],
)
def test_a_line_says_what_restores(
    kind: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VDEBLUR_PRECISION", raising=False)
    parser = argparse.ArgumentParser()
    add_network_options(parser)
    with simulated_gpu(kind):
        deblurrer_of(parser.parse_args(["--device", kind]))
    assert capsys.readouterr().err.splitlines()[0] == line


@pytest.mark.parametrize(
    ("kind", "own", "backend"), [("cuda", 3, "nccl"), ("xpu", 3, "xccl"), ("cpu", None, "gloo")]
)
def test_processes_share_the_devices_of_a_kind(
    kind: str, own: int | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.distributed, "init_process_group", started.append)
    module = Kind("one of four", 4)
    monkeypatch.setattr(torch, kind, module)
    assert start_processes(torch.device(kind)) == torch.device(f"{kind}:{own}" if own else kind)
    assert (module.current, started) == (own or 0, [backend])


def test_a_missing_device_is_one_line(
    film: Path, nothing: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["video", str(film), "-o", "-", "--device", "rocm:1"]) == 1
    assert capsys.readouterr().err == (
        "vdeblur: there is no rocm:1: this PyTorch, built for the CPU, sees no GPU; use --device "
        "auto, or install AMD's driver and a ROCm build of PyTorch\n"
    )


def test_batches_keep_a_gpu_busy_and_fit_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VDEBLUR_PRECISION", raising=False)
    with simulated_gpu("xpu") as (_, module):
        deblurrer = Deblurrer()
        sizes = [(360, 640), (720, 1280), (1080, 1920), (2160, 3840)]
        assert [batch_size("auto", deblurrer, size=size) for size in sizes] == [8, 2, 1, 1]
        assert batch_size("auto", deblurrer) == 8
        assert batch_size(5, deblurrer, size=(1080, 1920)) == 5
        needed = deblurrer.memory_needed(360, 640, batch=3)
        monkeypatch.setattr(module, "mem_get_info", lambda device: (needed / 0.6 - 2 * GB, 16 * GB))
        assert 1 <= batch_size("auto", deblurrer, size=(360, 640)) < 8
