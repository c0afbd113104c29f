"""Decoding on a GPU, by FFmpeg's own code and a driver that is simulated in host memory."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.helpers.clips import PLAIN, make, scene, write_frames
from vdeblur.deblur import deblur_video
from vdeblur.inference.gpu_frames import adopt
from vdeblur.media.frame_factory import GpuPicture
from vdeblur.media.reader import VideoReader

SOURCE = Path(__file__).parents[1] / "helpers" / "simulated_gpu.c"
LIBRARIES = Path(av.__file__).parents[1] / "av.libs"
FRAMES, FAILS_AFTER, FAILS_LATE = 40, 20, 85


def build(folder: Path) -> list[Path]:
    """Compile the driver, with every function that FFmpeg looks up."""
    code = SOURCE.read_text()
    asked = {
        name.decode()
        for library in LIBRARIES.glob("lib*.so*")
        for name in re.findall(rb"\0(cu(?:vid)?[A-Z]\w+)(?=\0)", library.read_bytes())
    }
    names = " ".join(f"NO({name})" for name in asked if f"int {name}(" not in code)
    built = []
    for name in ("libcuda.so.1", "libnvcuvid.so.1"):
        built.append(folder / name)
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", f"-DNAMES={names}", f"-Wl,-soname,{name}"]
        subprocess.run([*command, "-o", str(built[-1]), str(SOURCE)], check=True)
    return built


class OnHost:
    """A plane of a simulated GPU as torch without CUDA takes it: its memory is the host's."""

    def __init__(self, plane: Any) -> None:
        self._plane = plane
        self.device = plane.__dlpack_device__()

    def __dlpack__(self) -> Any:
        capsule = self._plane.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        at = pointer(capsule, b"dltensor")
        ctypes.c_int.from_address(at + 8).value = 1  # DLTensor.device: the CPU
        ctypes.c_int.from_address(at + 12).value = 0
        return capsule


def read(source: str, driver: Any, gpu: int, **settings: int) -> dict[str, Any]:
    """Read a film by the simulated driver, which is process-wide, and tell what came."""
    defaults = {"decoded": 0, "downloads": 0, "supported": 1, "fails_after": -1}
    for name, value in {**defaults, **settings}.items():
        ctypes.c_int.in_dll(driver, name).value = value
    driver.make_current(gpu)
    with VideoReader(source) as reader:
        usual = list(reader)
    devices, notes = set[Any](), list[str]()
    whole: Any = GpuPicture.__dict__["planes"]
    with (
        VideoReader(source, hwaccel="cuda", gpu=max(gpu, 0)) as reader,
        pytest.MonkeyPatch.context() as patch,
    ):

        def planes(self: GpuPicture) -> tuple[Any, ...]:
            found = tuple(map(OnHost, whole.fget(self)))
            devices.update(plane.device for plane in found)
            return found

        patch.setattr(GpuPicture, "planes", property(planes))
        frames = list(adopt(reader, torch.device("cpu"), note=notes.append))
    there = [frame.on_device is not None for frame in frames]
    return {
        "info": reader.info == VideoReader(source).info,
        "times": [f.pts for f in frames] == [f.pts for f in usual],
        "count": len(frames),
        "there": there,
        "depth": frames[0].layout.depth,
        "same": all(
            np.array_equal(tensor.numpy(), plane)
            for frame in frames
            for tensor, plane in zip(frame.on_device or (), frame.planes, strict=False)
        ),
        "usual": [
            all(map(np.array_equal, one.planes, other.planes))
            for one, other in zip(frames, usual, strict=True)
        ],
        "devices": sorted(devices),
        "notes": reader.notes + notes + reader.damage.notes,
        "downloads": ctypes.c_int.in_dll(driver, "downloads").value,
        "contexts": ctypes.c_int.in_dll(driver, "contexts_made").value,
    }


def main(folder: Path) -> None:
    """Read films in a process of their own: a driver that is loaded stays."""
    driver, _ = (ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL) for library in build(folder))
    film, deep, sited, twelve, whole, long, avi, raw = (
        str(folder / name)
        for name in (
            *("film.mp4", "deep.mp4", "sited.mp4", "twelve.mp4", "whole.mp4", "long.mp4"),
            *("film.avi", "film.h264"),
        )
    )
    told: dict[str, Any] = {
        "film": read(film, driver, 1),
        "deep": read(deep, driver, 0),
        "unsupported": read(film, driver, 0, supported=0),
        "failing": read(film, driver, 0, fails_after=FAILS_AFTER),
        "no context": read(film, driver, -1),
        "sited": read(sited, driver, 0),
        "twelve": read(twelve, driver, 0),
        "failing in AVI": read(avi, driver, 0, fails_after=FAILS_AFTER),
        "failing without times": read(raw, driver, 0, fails_after=FAILS_AFTER),
        "failing late": read(long, driver, 0, fails_after=FAILS_LATE),
        "other chroma": read(whole, driver, 0),
    }
    driver.make_current(-1)
    for name in (deep, sited, twelve):
        out = Path(name).with_suffix(".out.mp4")
        report = deblur_video(name, out, model="identity", device="cpu", hwaccel="cuda")
        told[f"restored {Path(name).stem}"] = [report.differences, report.lost, report.notes]
    print(json.dumps(told))


def _as(pix_fmt: str, pictures: list[Any]) -> list[Any]:
    return [picture.reformat(format=pix_fmt) for picture in pictures]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if sys.platform != "linux" or shutil.which("cc") is None or not LIBRARIES.is_dir():
        pytest.skip("needs a C compiler and PyAV's wheel for Linux")
    folder = tmp_path_factory.mktemp("simulated")
    # 360 rows are coded as 368: the surfaces of the decoder are larger than its pictures.
    pictures = [scene(n, size=(640, 360)) for n in range(FRAMES)]
    write_frames(folder / "film.mp4", pictures, "libx264")
    write_frames(folder / "film.avi", pictures, "libx264")
    write_frames(folder / "film.h264", pictures, "libx264", options={"g": "12", "bf": "3"})
    small = (scene(n) for n in range(100))
    write_frames(folder / "long.mp4", small, "libx264", options={"g": "7", "bf": "3"})
    # FFmpeg asks NVDEC for less chroma than H.264 has here, and for 12 bits in 16.
    write_frames(folder / "whole.mp4", _as("yuv444p", pictures), "libx264")
    write_frames(folder / "deep.mp4", _as("yuv420p10le", pictures[:10]), "libx265")
    write_frames(folder / "twelve.mp4", _as("yuv420p12le", pictures[:10]), "libx265")
    # Only an encoder that is made from the parameters of the stream keeps where its chroma sits.
    chroma = {"preset": "ultrafast", "x264-params": "chromaloc=2"}
    make(folder / "sited.mp4", replace(PLAIN, options=chroma))
    command = [sys.executable, "-m", "tests.media.test_device_decoding", str(folder)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("film", "frames", "depth", "gpu"),
    [("film", 40, 8, 1), ("deep", 10, 10, 0), ("sited", 24, 8, 0), ("twelve", 10, 12, 0)],
)
def test_pictures_stay_on_the_gpu_and_are_copied_to_the_host_once(
    told: Any, film: str, frames: int, depth: int, gpu: int
) -> None:
    got = told[film]
    assert got["there"] == [True] * frames
    assert got["same"]
    assert got["info"]
    assert got["times"]
    assert (got["depth"], got["devices"], got["notes"]) == (depth, [[2, gpu]], [])
    assert got["downloads"] == 2 * frames  # luma, and both chroma components in one
    assert got["contexts"] == 0  # in that of torch


@pytest.mark.parametrize(
    ("case", "frames", "decoded"),
    [
        ("unsupported", FRAMES, 0),
        ("no context", FRAMES, 0),
        ("other chroma", FRAMES, 0),
        ("failing", FRAMES, FAILS_AFTER),
        ("failing in AVI", FRAMES, FAILS_AFTER),
        ("failing without times", FRAMES, FAILS_AFTER),
        ("failing late", 100, FAILS_LATE),  # some keyframes later
    ],
)
def test_the_cpu_goes_on_where_a_device_fails_and_no_picture_is_lost(
    told: Any, case: str, frames: int, decoded: int
) -> None:
    got = told[case]
    assert (got["count"], got["times"]) == (frames, True)
    given = sum(got["there"])
    assert decoded // 2 <= given <= decoded
    assert got["there"] == [True] * given + [False] * (frames - given)
    assert got["usual"][given:] == [True] * (frames - given)
    [note] = got["notes"]
    assert note.startswith(
        "cuda failed (" if case == "failing without times" else "cuda failed near "
    )
    assert note.endswith(": the CPU decodes the rest")


@pytest.mark.parametrize("film", ["deep", "sited", "twelve"])
def test_a_film_that_a_device_decoded_is_restored_with_all_that_it_has(
    told: Any, film: str
) -> None:
    assert told[f"restored {film}"] == [[], [], []]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
