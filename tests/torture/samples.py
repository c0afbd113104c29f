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
    for name, codec, sound in (
        ("mpeg4.avi", "mpeg4", "libmp3lame"),
        ("h264.ts", "libx264", "aac"),
        ("h264.flv", "libx264", "aac"),
        ("mpeg2.mpg", "mpeg2video", "mp2"),
        ("vp8.webm", "libvpx", "libopus"),
        ("ffv1.mkv", "ffv1", "flac"),
        ("raw.y4m", "wrapped_avframe", ""),
        ("mjpeg.nut", "mjpeg", ""),
    ):
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        frames = [clips.picture(n, pix_fmt) for n in range(12)]
        made.append(clips.write_frames(root / name, frames, codec, sound=sound))
    return made


def _pictures(root: Path) -> list[Path]:
    picture = Image.fromarray(pictures.scenery(64, 48))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"  # orientation, make
    suffixes = (".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm", ".tga", ".jp2")
    made = [root / f"a{suffix}" for suffix in suffixes]
    for path in made:
        if path.suffix in (".png", ".jpg", ".webp"):
            picture.save(path, exif=exif)
        else:
            picture.save(path)
    picture.convert("P").save(root / "palette.png")
    picture.convert("CMYK").save(root / "cmyk.jpg")
    Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 21).save(root / "16.png")
    frames = [Image.fromarray(pictures.scenery(64, 48, seed=n)) for n in range(4)]
    for name in ("a.gif", "animated.png", "animated.webp"):
        frames[0].save(root / name, save_all=True, append_images=frames[1:], duration=40, loop=3)
    film = (root / "full.mp4").read_bytes()
    (root / "motion.jpg").write_bytes((root / "a.jpg").read_bytes() + film)
    others = ("palette.png", "cmyk.jpg", "16.png", "a.gif", "animated.png", "animated.webp")
    return [*made, *(root / name for name in (*others, "motion.jpg"))]


def _weights(root: Path) -> list[Path]:
    tensors = {f"layer.{n}.weight": torch.ones(4, 4, 3, 3) for n in range(6)}
    save_file(tensors, root / "some.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, root / "some.pth")
    return [root / "some.safetensors", root / "some.pth"]
