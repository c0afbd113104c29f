"""Open what a user names as training data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vdeblur.datasets.augmentation import PHOTO_COLORS
from vdeblur.datasets.batches import Data, DataOptions
from vdeblur.datasets.folder_pairs import FolderPairs
from vdeblur.datasets.layouts import find_pairs, picture_files, recognise
from vdeblur.datasets.synthetic_pairs import SyntheticPairs
from vdeblur.errors import InputError, UsageError

_HELD_OUT = 20  # photographs kept for validation, the last by name


def open_data(
    source: str | Path,
    options: DataOptions | None = None,
    *,
    layout: str = "auto",
    device: torch.device | str = "cpu",
) -> Data:
    """Open pairs to train on.

    Of photographs the last 20 by name are held out for validation (a tenth, where there are no
    more than 100); of pairs, those of the data set's own "val" or "test" split.

    Args:
        source: "synth:DIR" for a folder of sharp photographs, or a folder of pairs.
        options: Size and kind of the batches.
        layout: Layout of a folder of pairs, one of `vdeblur.datasets.layouts.LAYOUTS`, or "auto".
        device: A GPU makes the pairs of photographs itself. Pairs of files come from the CPU.

    Raises:
        InputError: The folder is missing, empty or of no known layout.
        UsageError: The source names no folder, or the layout is unknown.
    """
    options = options or DataOptions()
    kind, _, rest = str(source).partition(":")
    if kind == "synth":
        if not rest:
            raise UsageError("synth: lacks its folder: give synth:DIR, DIR with sharp photographs")
        files = picture_files(Path(rest))
        count = _HELD_OUT if len(files) > 100 else max(1, len(files) // 10)
        if len(files) < 2:
            raise InputError(f"{rest} has one photograph: at least two are needed, one to score on")
        return SyntheticPairs(
            files[:-count],
            replace(options, augment=options.augment or PHOTO_COLORS),
            device=device,
            held_out=files[-count:],
        )
    folder = Path(source)
    found = recognise(folder, layout=layout)
    train, aside = found.training(), found.validation()
    return FolderPairs(
        find_pairs(folder, layout=found.name, split=train),
        options,
        held_out=find_pairs(folder, layout=found.name, split=aside) if aside else (),
        name=f" ({found.name})",
    )
