"""Small valid inputs of many kinds, which the trials damage, interrupt or starve."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers import clips, gopro_clips, pictures

#: Pictures of the numbered sequence.
SEQUENCE = 12
_CHAPTERS = ("GX010042.MP4", "GX020042.MP4")


@dataclass(frozen=True)
class Samples:
    """Inputs in one folder.

    Attributes:
        films: One video of each container and codec.
        pictures: One picture of each format.
        sequence: Folder with `%03d.png`, numbered from 0.
        recording: Folder with the chapters of one GoPro recording.
        weights: Checkpoints that no network fits, but that can be read.
    """

    films: list[Path]
    pictures: list[Path]
    sequence: Path
    recording: Path
    weights: list[Path]


def make_samples(root: Path) -> Samples:
    """Write all inputs into an empty folder."""
    films = [
        clips.make(root / "full.mp4", clips.MP4),
        clips.make(root / "full.mkv", clips.MKV),
        clips.make(root / "plain.mov", replace(clips.PLAIN, suffix=".mov")),
        clips.make(root / "late_index.mp4", replace(clips.MP4, faststart=False)),
        clips.make(root / "hdr.mp4", clips.HDR),
        clips.make(root / "interlaced.mp4", clips.INTERLACED),
        *_bare_films(root),
    ]
    sequence = root / "sequence"
    for number in range(SEQUENCE):
        pictures.put(sequence / f"{number:03d}.png", seed=number)
    recording = root / "recording"
    recording.mkdir()
    for chapter in gopro_clips.footage(root / "made", _CHAPTERS).chapters:
        shutil.copy(chapter, recording / chapter.name)
    return Samples(films, _pictures(root), sequence, recording, _weights(root))


def _bare_films(root: Path) -> list[Path]:
    made = []
    for name, codec in (
        ("mpeg4.avi", "mpeg4"),
        ("h264.ts", "libx264"),
        ("h264.flv", "libx264"),
        ("mpeg2.mpg", "mpeg2video"),
        ("vp8.webm", "libvpx"),
        ("ffv1.mkv", "ffv1"),
        ("raw.y4m", "wrapped_avframe"),
        ("mjpeg.nut", "mjpeg"),
    ):
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frames = [clips.picture(n, pix_fmt) for n in range(12)]
        made.append(clips.write_frames(root / name, frames, codec))
    return made


def _pictures(root: Path) -> list[Path]:
    picture = Image.fromarray(pictures.scenery(64, 48))
    made = []
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif", "a.webp", "a.ppm", "a.tga"):
        picture.save(root / name)
        made.append(root / name)
    picture.convert("P").save(root / "palette.png")
    Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21).save(root / "16.png")
    frames = [Image.fromarray(pictures.scenery(64, 48, seed=n)) for n in range(4)]
    frames[0].save(root / "a.gif", save_all=True, append_images=frames[1:], duration=40, loop=3)
    return [*made, root / "palette.png", root / "16.png", root / "a.gif"]


def _weights(root: Path) -> list[Path]:
    tensors = {f"layer.{n}.weight": torch.ones(4, 4, 3, 3) for n in range(6)}
    save_file(tensors, root / "some.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, root / "some.pth")
    return [root / "some.safetensors", root / "some.pth"]
