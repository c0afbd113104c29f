"""Folders of blurred and sharp pictures in the layouts that data sets come in. Knows files only.

    gopro     SEQUENCE/{blur,sharp}; gopro-gamma: SEQUENCE/{blur_gamma,sharp}   (Nah et al., 2017)
    reds      train/train_blur/000/00000000.png beside train_sharp              (Nah et al., 2019)
    hide      train/*.png, test/{test-close-ups,test-long-shot}/*.png, GT/*.png (Shen et al., 2019)
    realblur  RealBlur_J_train_list.txt and its like: "sharp blurred" a line   (Rim et al., 2020)
    dvd       quantitative_datasets/SEQUENCE/{input,GT}                         (Su et al., 2017)
    bsd       BSD_2ms16ms/train/SEQUENCE/{Blur,Sharp}/RGB                       (Zhong et al., 2020)
    plain     blur/ and sharp/, or names that mean the same: input and target, lq and gt …

Folders named train, val or test among those above the pictures are splits; without any, all pairs
are one split, "all".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vdeblur.errors import InputError, UsageError
from vdeblur.media.names import about_address, is_address
from vdeblur.system.optional import optional

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# What the folders of blurred and sharp pictures are called, below a sequence's folder.
_NAMED = {
    "gopro": (("blur", "sharp"),),
    "gopro-gamma": (("blur_gamma", "sharp"),),
    "dvd": (("input", "GT"),),
    "bsd": (("Blur/RGB", "Sharp/RGB"),),
}
_BLURRED = ("blur", "blurred", "blurry", "input", "inputs", "lq", "low", "Blur", "LQ", "lr", "LR")
_SHARP = ("sharp", "target", "targets", "gt", "GT", "hq", "Sharp", "HQ", "groundtruth", "clean")
_PLAIN = (*((b, s) for b in _BLURRED for s in _SHARP),)
# Words of file names that tell a blurred picture from its sharp partner.
_WORDS = re.compile(r"(?i)(?<![a-z])(blur(ry|red)?|sharp|gt|input|target|lq|hq)(?![a-z])")
# The DVD authors' test sequences (issue 2 of shuochsu/DeepVideoDeblurring).
_DVD_TEST = {"720p_240fps_2"} | {
    f"IMG_00{n}" for n in ("03", "21", "30", "31", "32", "33", "37", "39", "49")
}
LAYOUTS = (*_NAMED, "reds", "hide", "realblur", "plain")


@dataclass(frozen=True)
class PairFiles:
    """A pair of files.

    Args:
        blurred: The blurred picture.
        sharp: Its sharp partner.
        sequence: The video that both are from, or "".
    """

    blurred: Path
    sharp: Path
    sequence: str = ""


@dataclass(frozen=True)
class Recognised:
    """The layout of a folder, and its pairs.

    Args:
        name: One of LAYOUTS.
        splits: Pairs of "train", "val" and "test", or of "all" where the folder has no splits.
            Includes blurred pictures whose partner is missing.
    """

    name: str
    splits: dict[str, list[PairFiles]] = field(repr=False)

    def training(self) -> str:
        """Return the split to train on."""
        return "train" if "train" in self.splits else next(iter(self.splits))

    def validation(self) -> str | None:
        """Return the split to validate on; None if only the one to train on exists."""
        others = [s for s in ("val", "test") if s in self.splits and s != self.training()]
        return others[0] if others else None


def picture_files(folder: Path) -> list[Path]:
    """Return every picture under `folder`, sorted.

    Raises:
        InputError: There is none.
    """
    if folder.is_dir():
        next(folder.iterdir(), None)  # one that may not be read is no empty one
    files = _pictures(folder)
    if not files:
        raise InputError(f"no pictures under {folder}: give a folder of PNG or JPEG files")
    return files


def picture_size(path: Path) -> tuple[int, int]:
    """Read (height, width) from the header of a picture.

    Raises:
        InputError: The file cannot be read.
    """
    pillow = optional("PIL.Image", extra="train", purpose="reading pictures")
    try:
        with pillow.open(path) as image:
            return image.height, image.width
    except OSError as error:
        reason = error.strerror or "it is none, or damaged"
        raise InputError(
            f"{path} cannot be read as a picture ({reason}): remove the pair"
        ) from error


def find_pairs(folder: Path, *, layout: str = "auto", split: str = "train") -> list[PairFiles]:
    """Find the pairs of a data set's split, sorted; every file of them exists.

    Args:
        folder: The data set.
        layout: One of LAYOUTS, or "auto" to recognize it.
        split: "train", "val" or "test". For a folder without splits, all of its pairs are returned
            for any of them.

    Raises:
        InputError: The folder is missing, of no known layout or without that split, or a picture
            lacks its partner.
        UsageError: The layout is unknown.
    """
    found = recognise(folder, layout=layout)
    pairs = found.splits.get(split) or found.splits.get("all")
    if not pairs:
        raise InputError(
            f"{folder} ({found.name}) has no pairs of a split {split!r}: it has "
            f"{', '.join(found.splits)}"
        )
    for pair in pairs:
        if not pair.sharp.is_file():
            raise InputError(f"{pair.blurred} has no sharp partner: expected {pair.sharp}")
        if not pair.blurred.is_file():  # named by a list
            raise InputError(f"{pair.sharp} has no blurred partner: expected {pair.blurred}")
    return pairs


def recognise(folder: Path, *, layout: str = "auto") -> Recognised:
    """Recognize the layout of a folder, and list its pairs; sharp partners need not exist.

    Args:
        folder: The data set.
        layout: One of LAYOUTS, to skip the recognition; or "auto".

    Raises:
        InputError: The folder is missing, or of no known layout.
        UsageError: The layout is unknown.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UsageError(f"layout {layout!r} is none of auto, {', '.join(LAYOUTS)}")
    if is_address(folder):
        raise InputError(about_address(str(folder)))
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one with blurred and sharp pictures")
    for name in LAYOUTS if layout == "auto" else (layout,):
        if layout == "auto" and name == "gopro-gamma":
            continue  # the same folders as gopro
        if name == "reds":
            splits = _reds(folder)
        elif name == "hide":
            splits = _hide(folder)
        elif name == "realblur":
            splits = _realblur(folder)
        elif name == "plain":
            splits = _sequences(folder, _PLAIN, plain=True)
        else:
            splits = _sequences(folder, _NAMED[name], plain=False)
            if name == "dvd" and "all" in splits:
                splits = _dvd_splits(splits["all"])
        if splits:
            order = [s for s in ("train", "val", "test", "all") if splits.get(s)]
            return Recognised(name, {s: sorted(splits[s], key=_by_name) for s in order})
    kind = "pairs" if layout == "auto" else f"the layout {layout}"
    raise InputError(
        f"no {kind} found in {folder}: expected blur/ and sharp/ with pictures of the same names, "
        "or the folders of GoPro, REDS, HIDE, RealBlur, DVD or BSD"
    )


def _by_name(pair: PairFiles) -> tuple[str, Path]:
    return pair.sequence, pair.blurred


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        Path(where) / name
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in _SUFFIXES and not name.startswith(".")
    )


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """`root` and the folders below it, `depth` levels deep."""
    yield root
    if depth:
        for child in sorted(root.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _folders(child, depth - 1)


def _split_of(parts: tuple[str, ...]) -> tuple[str, str]:
    """The split named by the folders on the way to a sequence, and the sequence's name."""
    split = next((_SPLITS[part.lower()] for part in parts if part.lower() in _SPLITS), "all")
    return split, "/".join(part for part in parts if part.lower() not in _SPLITS)


def _has(folder: Path, name: str) -> bool:
    """Whether a folder of exactly this name exists, on file systems that ignore case too."""
    place = folder / name
    return place.is_dir() and any(place.name == other.name for other in place.parent.iterdir())


def _sequences(
    root: Path, names: tuple[tuple[str, str], ...], *, plain: bool
) -> dict[str, list[PairFiles]]:
    """Pairs of every folder that holds two of these names; `plain` needs no sequence folder."""
    splits: dict[str, list[PairFiles]] = {}
    for folder in _folders(root, 3):
        held = next(((b, s) for b, s in names if _has(folder, b) and _has(folder, s)), None)
        if held is None:
            continue
        split, sequence = _split_of(folder.relative_to(root).parts)
        if not plain and not sequence:
            continue
        splits.setdefault(split, []).extend(_partners(folder / held[0], folder / held[1], sequence))
    return splits


def _partners(blurred: Path, sharp: Path, sequence: str) -> Iterator[PairFiles]:
    """Every picture of one folder, paired with that of the same name in the other.

    Suffixes may differ, and words such as blur, sharp and gt.
    """
    candidates: dict[str, Path] = {}
    for path in _pictures(sharp):
        candidates.setdefault(_key(path.relative_to(sharp)), path)
    for path in _pictures(blurred):
        inner = path.relative_to(blurred)
        partner = sharp / inner
        if not partner.is_file():
            partner = candidates.get(_key(inner), partner)
        yield PairFiles(path, partner, sequence or "/".join(inner.parts[:-1]))


def _key(path: Path) -> str:
    return "/".join((*path.parts[:-1], _WORDS.sub("", path.stem).strip("-_. ")))


def _reds(root: Path) -> dict[str, list[PairFiles]]:
    splits: dict[str, list[PairFiles]] = {}
    folders = list(_folders(root, 4))
    for split in ("train", "val", "test"):
        # The archives of some mirrors unpack to train_blur/train/train_blur: the innermost counts.
        blurred, sharp = (
            max((f for f in folders if f.name == f"{split}_{kind}"), key=_depth, default=None)
            for kind in ("blur", "sharp")
        )
        if blurred is not None and sharp is not None:
            splits[split] = list(_partners(blurred, sharp, ""))
    return splits


def _depth(path: Path) -> int:
    return len(path.parts)


def _hide(root: Path) -> dict[str, list[PairFiles]]:
    sharp = next((f for f in _folders(root, 1) if f.name == "GT"), None)
    if sharp is None:
        return {}
    splits = {}
    for split in ("train", "test"):
        folder = sharp.parent / split
        blurred = _pictures(folder)
        if not blurred or (folder / "GT").is_dir():
            continue
        listed = _listed(sharp.parent, split)
        if listed:
            blurred = [path for path in blurred if path.name in listed]
        splits[split] = [
            PairFiles(path, sharp / path.name, "/".join(path.relative_to(folder).parts[:-1]))
            for path in blurred
        ]
    return splits


def _listed(folder: Path, split: str) -> set[str]:
    """Names of pictures at the beginning of lines in the lists of a split."""
    names = set()
    for file in sorted(folder.glob(f"{split}*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            first = line.replace("\\", "/").split()[:1]
            if first and Path(first[0]).suffix.lower() in _SUFFIXES:
                names.add(Path(first[0]).name)
    return names


def _realblur(root: Path) -> dict[str, list[PairFiles]]:
    splits: dict[str, list[PairFiles]] = {}
    for file in sorted(root.glob("RealBlur_*_list.txt")):
        split = _SPLITS.get(file.stem.split("_")[-2].lower())
        if split is None:
            continue
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) < 2:
                continue
            sharp, blurred = (root / word for word in words[:2])
            # Lists of both cameras may lie beside the pictures of one of them.
            if (root / Path(words[0]).parts[0]).is_dir():
                splits.setdefault(split, []).append(
                    PairFiles(blurred, sharp, sharp.parent.parent.name)
                )
    return splits


def _dvd_splits(pairs: list[PairFiles]) -> dict[str, list[PairFiles]]:
    """Split by the authors' list of test sequences, where any of them exists."""
    splits: dict[str, list[PairFiles]] = {"train": [], "test": []}
    for pair in pairs:
        held = pair.sequence.rpartition("/")[2] in _DVD_TEST
        splits["test" if held else "train"].append(pair)
    return splits if splits["test"] else {"all": pairs}
