"""The README's first example, run as it stands on part of the sample."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vdeblur.cli.main import main
from vdeblur.evaluation.metrics import psnr

ROOT = Path(__file__).parent.parent
FRAMES = 12


def pictures(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        return [np.asarray(frame, np.uint8) for frame in frames[:FRAMES]]


def test_the_first_example_brings_the_sample_closer_to_the_sharp_original(tmp_path: Path) -> None:
    command = re.search(r"^    .*&& vdeblur (video .*)$", (ROOT / "README.md").read_text(), re.M)
    assert command is not None
    arguments = shlex.split(command[1])
    assert arguments[1] == "samples/street_blurred.mp4"
    arguments[1] = str(ROOT / arguments[1])
    output = tmp_path / "restored.mp4"
    assert main([*arguments, "-o", str(output), "--duration", f"{(FRAMES - 0.5) / 30:.3f}"]) == 0
    sharp = pictures(ROOT / "samples" / "street_sharp.mp4")
    scores = [
        float(np.mean([psnr(a, b) for a, b in zip(pictures(path), sharp, strict=True)]))
        for path in (ROOT / "samples" / "street_blurred.mp4", output)
    ]
    assert scores[1] > scores[0] + 0.05
