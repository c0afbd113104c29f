"""Pictures and data sets made for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


def scenery(width: int = 120, height: int = 90, seed: int = 0, *, hard: bool = False) -> Picture:
    """Coarse cells of colour, enlarged: with soft edges, or hard ones."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    way = Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(cells).resize((width, height), way))


def put(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenery(*size, seed=seed)).save(path)
    return path


def build(root: Path, layout: str) -> None:
    """A data set of two training pairs, and one or two to test on, in a layout."""
    if layout in ("gopro", "gopro-gamma"):
        for where in ("train/GOPR0372_07_00", "train/GOPR0372_07_01", "test/GOPR0384_11_00"):
            for kind in ("blur", "blur_gamma", "sharp"):
                put(root / where / kind / "000047.png")
    elif layout == "reds":
        for split, name in (("train", "000"), ("train", "001"), ("val", "000")):
            for kind in ("blur", "sharp"):
                put(root / split / f"{split}_{kind}" / name / "00000000.png")
    elif layout == "hide":
        for name in ("train/1.png", "train/2.png", "test/test-close-ups/3.png"):
            put(root / name)
            put(root / "GT" / Path(name).name)
        put(root / "test" / "test-long-shot" / "4.png")
        put(root / "GT" / "4.png")
    elif layout == "realblur":
        base = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
        for split, scenes in (("train", (1, 2)), ("test", (3,))):
            lines = []
            for scene in scenes:
                names = [f"{base}/scene{scene:03}/{k}/{k}_1.png" for k in ("gt", "blur")]
                for name in names:
                    put(root / name)
                lines.append(" ".join(names))
            (root / f"RealBlur_J_{split}_list.txt").write_text("\n".join(lines) + "\n")
            # The other camera's lists come along, without its pictures.
            (root / f"RealBlur_R_{split}_list.txt").write_text(
                "RealBlur-R/gt/1.png RealBlur-R/b.png"
            )
    elif layout == "dvd":
        for name in ("IMG_0001", "IMG_0055", "IMG_0030"):
            for kind in ("input", "GT"):
                put(root / "quantitative_datasets" / name / kind / "00000.jpg")
    elif layout == "bsd":
        for where in ("train/000", "train/001", "valid/002", "test/003"):
            for kind in ("Blur", "Sharp"):
                put(root / where / kind / "RGB" / "00000000.png")
    else:
        for where in ("train", "test"):
            for kind in ("blur", "sharp"):
                put(root / where / kind / "a.png")
        for kind in ("blur", "sharp"):
            put(root / "train" / kind / "b.png")
