"""Pairs made from photographs, written to files to look at or to keep: `vdeblur data synth`.

Knows files; the blur itself is `vdeblur.datasets.synthetic_blur`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vdeblur.datasets.augmentation import PHOTO_COLORS, Augment
from vdeblur.datasets.batches import DataOptions
from vdeblur.datasets.blur_options import PURE, BlurOptions
from vdeblur.datasets.layouts import picture_files
from vdeblur.datasets.synthetic_pairs import SyntheticPairs
from vdeblur.errors import OutputError
from vdeblur.system.files import remove_leftovers, replacing, replacing_folder
from vdeblur.system.optional import optional

_CANDIDATES = 3
# What a folder of pairs consists of, and what macOS puts into every folder.
_MADE = frozenset({"blur", "blur_gamma", "sharp", "made.json", ".DS_Store"})

#: One effect at a time, as in the first rows of a sheet.
FEATURES: dict[str, BlurOptions] = {
    "camera path": PURE,
    "roll, zoom, depth": replace(PURE, varying_share=1, roll_degrees=3, zoom=0.06, depth=1.0),
    "moving layers": replace(PURE, layer_share=1, at_rest_share=0.6),
    "averaged frames": replace(PURE, frames_share=1),
    "in linear light": replace(
        PURE, coded_share=0, gammas=(2.2, 2.2), highlight_share=1, lights_share=1
    ),
    "noise": replace(PURE, noise_share=1, noise=0.05, coded_share=0, light_share=1),
    "smeared, sharpened": replace(
        PURE, smear_share=1, smear=0.05, sharpen_share=1, sharpen=1.5, light_share=1
    ),
    "JPEG": replace(PURE, jpeg_share=1, jpeg_quality=(15, 30)),
    "H.264": replace(PURE, h264_share=1, h264_crf=(30, 36)),
}


def write_pairs(
    folder: Path,
    out: Path,
    *,
    count: int,
    crop: int = 512,
    seed: int = 0,
    options: BlurOptions | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Write pairs from photographs into out/blur and out/sharp as PNG.

    made.json beside them holds the options and the seed, which make the same pairs again.

    Args:
        folder: The photographs.
        out: The folder to write; it appears when all pairs are there.
        count: Number of pairs.
        crop: Their side in pixels.
        seed: Decides everything random.
        options: The synthetic camera.
        overwrite: Replace `out` if it exists.
        on_progress: Receives the number of pairs written.

    Raises:
        InputError: There are no photographs, or one cannot be read.
        OutputError: `out` is not empty, or cannot be written.
    """
    image = optional("PIL.Image", extra="train", purpose="writing pictures")
    check_replaceable(out)
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise OutputError(f"{out} exists and is not empty: give another `out`, or `overwrite=True`")
    blur = options or BlurOptions()
    data = SyntheticPairs(
        picture_files(folder),
        DataOptions(batch=1, crop=crop, seed=seed, blur=blur, augment=PHOTO_COLORS),
    )
    try:
        with replacing_folder(out, replace=overwrite) as partial:
            for name in ("blur", "sharp"):
                (partial / name).mkdir()
            for number in range(count):
                for name, picture in zip(("blur", "sharp"), data.batch_at(number)[:2], strict=True):
                    pixels = picture[0].permute(1, 2, 0).numpy()
                    image.fromarray(np.ascontiguousarray(pixels)).save(
                        partial / name / f"{number + 1:06d}.png", compress_level=3
                    )
                if on_progress:
                    on_progress(number + 1)
            made = {"seed": seed, "crop": crop, "options": asdict(blur)}
            text = json.dumps(made, indent=1) + "\n"
            (partial / "made.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error})") from error


def check_replaceable(folder: Path) -> None:
    """Check that a folder may be replaced by pairs: that it holds pairs made earlier, or nothing.

    Raises:
        OutputError: It holds something else, photographs perhaps.
    """
    remove_leftovers(folder.parent)  # which puts back what a killed run has moved aside
    files = list(folder.iterdir()) if folder.is_dir() else []
    made = (folder / "made.json").is_file()
    other = next((file for file in files if not made or file.name not in _MADE), None)
    if other is not None:
        raise OutputError(
            f"{folder} holds {other.name}, which is no part of pairs made earlier, and is not "
            "replaced: give another `out`"
        )


def write_sheet(
    files: Sequence[Path],
    path: Path,
    *,
    seed: int = 0,
    options: BlurOptions | None = None,
    crop: int = 128,
    columns: int = 6,
) -> None:
    """Draw pairs, sharp above blurred, into one picture.

    First one effect at a time, named and strong, then some pairs as drawn for training.

    Args:
        files: The photographs.
        path: The picture to write; its suffix chooses the format.
        seed: Decides everything random.
        options: The synthetic camera of training.
        crop: Side of the pairs in pixels.
        columns: Pairs in a row.

    Raises:
        OutputError: The picture cannot be written, or its format is unknown.
    """
    image = optional("PIL.Image", extra="train", purpose="drawing pictures")
    if path.suffix.lower() not in image.registered_extensions():
        raise OutputError(f"{path} cannot be written: give a name that ends in .png or .jpg")
    draw = optional("PIL.ImageDraw", extra="train", purpose="drawing pictures")
    font = optional("PIL.ImageFont", extra="train", purpose="drawing pictures")
    kinds: list[tuple[str, BlurOptions]] = list(FEATURES.items())
    more = -(-len(kinds) // columns) * 2 * columns - len(kinds)
    kinds += [("as drawn for training", options or BlurOptions())] * more
    # Two pictures per batch: moving layers show the other one.
    settings = DataOptions(
        batch=2,
        crop=crop,
        seed=seed,
        reduce=(2.0, 4.0),
        augment=Augment(rotations=False, flips=False),
    )
    data = SyntheticPairs(files, settings)
    label, gap = 18, 4
    rows = -(-len(kinds) // columns)
    cell = (crop + gap, 2 * crop + label + gap)
    sheet = image.new("RGB", (columns * cell[0] - gap, rows * cell[1] - gap), "white")
    pen = draw.Draw(sheet)
    letters = font.load_default(13)
    for number, (name, chosen) in enumerate(kinds):
        data.options = replace(settings, blur=chosen)
        # Of a few, the one with the most detail.
        drawn = [data.batch_at(_CANDIDATES * number + k) for k in range(_CANDIDATES)]
        blurred, sharp, *_ = max(drawn, key=lambda pair: _detail(pair.sharp[0]))
        x, y = number % columns * cell[0], number // columns * cell[1]
        pen.text((x + 2, y + 1), name, fill="black", font=letters)
        sheet.paste(_image(image, sharp[0]), (x, y + label))
        sheet.paste(_image(image, blurred[0]), (x, y + label + crop))
    form = image.registered_extensions()[path.suffix.lower()]
    try:
        with replacing(path) as temporary:
            sheet.save(temporary, format=form, quality=85, optimize=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"as {form}"
        raise OutputError(f"{path} cannot be written ({reason}): choose another name") from error


def _detail(picture: Tensor) -> float:
    """Mean difference of neighbors, in codes."""
    return float(picture.float().diff(dim=-1).abs().mean())


def _image(image: Any, picture: Tensor) -> Any:
    pixels: Any = picture.permute(1, 2, 0).contiguous().numpy()
    return image.fromarray(pixels)
