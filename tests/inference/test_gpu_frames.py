"""Frames in a GPU's memory: with host memory in its place, which DLPack describes just as well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
import torch
from av.video.format import VideoFormat

from tests.helpers.clips import scene, write_frames
from tests.helpers.simulated_devices import Stream, simulated_gpu
from tests.inference.test_transfers import FakeDevice, LazyPlusOne
from vdeblur.deblur import deblur_video
from vdeblur.frames import Frame, FrameBatch, PlaneLayout
from vdeblur.inference.gpu_frames import adopt, current_context, tensors_of
from vdeblur.inference.transfers import Overlap
from vdeblur.media.decoding import StreamDecoder
from vdeblur.media.frame_factory import to_host
from vdeblur.media.reader import VideoReader

CPU = torch.device("cpu")
CODED = {"nv12": "yuv420p", "p010le": "yuv420p10le", "yuv444p": "yuv444p"}
LAYOUT = PlaneLayout(64, 48)


class Hardware:
    """A decoded frame as NVDEC's: its planes by DLPack only, its picture after a download."""

    def __init__(self, host: Any, name: str) -> None:
        self._host = host.reformat(format=name)
        self._host.pts, self._host.time_base = host.pts, host.time_base
        self._host.duration = host.duration
        self.sw_format = VideoFormat(name, host.width, host.height)
        self.width, self.height, self.duration = host.width, host.height, host.duration
        self.is_corrupt, self.format = False, VideoFormat("cuda")

    @property
    def planes(self) -> tuple[Any, ...]:
        return tuple(Capsules(plane) for plane in self._host.planes)

    def reformat(self, **wanted: Any) -> Any:
        return self._host.reformat(**wanted)


class Capsules:
    """A plane with DLPack, and nothing else, as PyAV has it for hardware frames."""

    def __init__(self, plane: Any) -> None:
        self._plane = plane

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        if stream is not None:
            raise NotImplementedError("CUDA stream synchronization is not supported")
        return self._plane.__dlpack__()


def decoding(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have every frame come as hardware."""
    decode = StreamDecoder.decode

    def hardware(self: StreamDecoder, packet: Any) -> list[Any]:
        frames = [cast(Any, Hardware(frame, name)) for frame, _ in decode(self, packet)]
        return [to_host(frame, CODED[name]) for frame in frames]

    monkeypatch.setattr(StreamDecoder, "decode", hardware)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("on-device") / "clip.mkv"
    return write_frames(path, (scene(n) for n in range(7)), "ffv1")


@pytest.mark.parametrize(("name", "depth"), [("nv12", 8), ("p010le", 10)])
def test_they_are_the_planes_of_the_host(
    clip: Path, monkeypatch: pytest.MonkeyPatch, name: str, depth: int
) -> None:
    decoding(monkeypatch, name)
    with VideoReader(clip) as reader:
        frames = list(adopt(reader.items(), CPU, note=pytest.fail))
    assert len(frames) == 7
    assert [frame.time_seconds for frame in frames] == pytest.approx([n / 25 for n in range(7)])
    for frame in frames:
        assert frame.layout.depth == depth
        assert frame.planes[0].std() > 1
        assert frame.planes[1].mean() != frame.planes[2].mean()
        assert len(frame.on_device) == 3
        for plane, tensor in zip(frame.planes, frame.on_device, strict=True):
            assert tensor.is_contiguous()
            assert np.array_equal(tensor.numpy(), plane)
            # A copy: the decoder has its surface back.
            assert not np.shares_memory(tensor.numpy(), plane)


def test_a_device_restores_them_without_an_upload_from_the_host(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restored(frames: Sequence[Frame]) -> tuple[list[Any], FakeDevice]:
        device = FakeDevice()
        batches = [FrameBatch(frames[:3]), FrameBatch(frames[3:6]), FrameBatch(frames[6:])]
        overlap = Overlap(LazyPlusOne(device), ops=device)
        list(overlap.run(batches))
        return [plane.copy() for frame in frames for plane in frame.planes], device

    with VideoReader(clip) as reader:
        usual, _ = restored(list(reader))
    decoding(monkeypatch, "nv12")
    with VideoReader(clip) as reader:
        frames = list(adopt(reader, CPU, note=pytest.fail))
    for frame in frames:
        assert frame.on_device is not None
        for tensor, plane in zip(frame.on_device, frame.planes, strict=True):
            assert np.array_equal(tensor.numpy(), plane)
            plane[:] = 0  # not where the pictures are taken from
    ours, device = restored(frames)
    assert all(map(np.array_equal, ours, usual))
    assert all(frame.on_device is None for frame in frames)
    assert any(stream == "copy-in" for _, stream in device.shared)


def test_a_batch_of_both_kinds_is_uploaded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding(monkeypatch, "nv12")
    with VideoReader(clip) as reader:
        frames = list(adopt(reader, CPU, note=pytest.fail))
    before = [frame.planes[0].copy() for frame in frames]
    frames[1].on_device = None
    device = FakeDevice()
    list(Overlap(LazyPlusOne(device), ops=device).run([FrameBatch(frames)]))
    for frame, plane in zip(frames, before, strict=True):
        assert np.array_equal(frame.planes[0], plane + 1)


def test_what_cannot_be_taken_so_goes_the_usual_way_and_it_is_said_once(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    decoding(monkeypatch, "yuv444p")
    with VideoReader(clip) as reader:
        frames = list(adopt(reader, CPU, note=notes.append))
    assert [frame.on_device for frame in frames] == [None] * 7
    assert len(notes) == 1
    assert "go through host memory (3 planes" in notes[0]
    report = deblur_video(clip, tmp_path / "out.mkv", model="identity", device="cpu")
    assert report.frames == 7


def test_planes_of_another_size_are_refused() -> None:
    frame = av.VideoFrame(64, 48, "nv12")
    assert tensors_of(tuple(frame.planes), LAYOUT, CPU)[1].shape == (24, 32)
    with pytest.raises(ValueError, match="are not those of"):
        tensors_of(tuple(frame.planes), PlaneLayout(62, 48), CPU)
    with pytest.raises(ValueError, match="are not those of NV12 or P010"):
        tensors_of(tuple(frame.planes), PlaneLayout(64, 48, 10), CPU)


def test_a_decoder_opens_in_torch_s_context_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    with simulated_gpu("cuda") as (_, module):
        with current_context(device) as gpu:
            assert module.calls == [("device", device), ("synchronize", None)]
            assert gpu == 0
        with monkeypatch.context() as patch:
            patch.setattr(torch.version, "hip", "6.4")
            with current_context(device) as gpu:
                assert gpu is None  # AMD's: no memory that NVDEC decodes to
    with current_context(CPU) as gpu:
        assert gpu is None


def test_planes_that_are_others_than_those_of_the_host_are_not_used(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    decoding(monkeypatch, "nv12")
    with VideoReader(clip) as reader:
        frames = list(reader)
    frames[0].planes[1][0, 0] += 1
    assert [frame.on_device for frame in adopt(frames, CPU, note=notes.append)] == [None] * 7
    assert notes == [
        "decoded frames go through host memory (their planes in the GPU's memory are others)"
    ]


def test_packets_pass(clip: Path) -> None:
    frame = Frame((), LAYOUT, 0, Fraction(1, 25))
    assert list(adopt(["packet", frame], CPU, note=pytest.fail)) == ["packet", frame]


def test_without_a_gpu_decoding_falls_back(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    clip = write_frames(tmp_path / "a.mp4", (scene(n) for n in range(7)), "libx264")
    with VideoReader(clip, hwaccel="cuda", gpu=0) as reader:
        frames = list(reader)
    assert len(frames) == 7
    assert all(frame.on_device is None for frame in frames)
    assert reader.notes == ["no cuda decoder here: decoding on the CPU"]


@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA"),
    reason="no CUDA device",
)
def test_a_gpu_s_decoder_gives_what_the_cpu_s_gives(tmp_path: Path) -> None:
    big = (scene(n, size=(320, 192)) for n in range(24))
    source = write_frames(tmp_path / "a.mp4", big, "libx264")
    with VideoReader(source) as reader:
        usual = [[plane.copy() for plane in frame.planes] for frame in reader]
    device = torch.device("cuda", 0)
    with current_context(device) as gpu, VideoReader(source, hwaccel="cuda", gpu=gpu) as reader:
        frames = list(adopt(reader, device, note=pytest.fail))
        assert reader.notes == []
    assert len(frames) == 24
    for frame, planes in zip(frames, usual, strict=True):
        assert frame.on_device is not None
        for tensor, plane in zip(frame.on_device, planes, strict=True):
            assert tensor.device == device
            assert np.array_equal(tensor.cpu().numpy(), plane)
    report = deblur_video(
        source, tmp_path / "b.mkv", model="identity", device="cuda", hwaccel="cuda"
    )
    assert (report.frames, report.notes) == (24, [])


def test_all_films_copy_on_one_stream() -> None:
    """torch has 32, and then gives out those again on which graphs are recorded."""
    made: list[Any] = []

    def stream(device: torch.device) -> Any:
        made.append(Stream(device))
        return made[-1]

    with simulated_gpu("cuda") as (_, cuda):
        cuda.Stream = stream
        for _ in range(3):
            assert list(adopt(["packet"], torch.device("cuda", 0), note=pytest.fail)) == ["packet"]
    assert len(made) == 1
