"""Pairs of blurred and sharp pictures: read from data sets, or made, to train on and to score on.

    from vdeblur.datasets import DataOptions, open_data, open_pairs

    for pair in open_pairs([Path("GoPro")]):              # whole pictures, one by one
        ...
    data = open_data("synth:photos", DataOptions(batch=8, crop=192))
    for batch in data.feed(workers=4)(0):                 # crops, without end
        ...

Knows files, layouts of data sets, and how cameras blur; knows no training and no measures. Names
are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.datasets.augmentation import Augment
    from vdeblur.datasets.average import AverageOptions, AverageReport, average_video
    from vdeblur.datasets.batches import Course, Data, DataOptions
    from vdeblur.datasets.blur_options import BlurOptions
    from vdeblur.datasets.films import FilmOptions
    from vdeblur.datasets.layouts import PairFiles, find_pairs
    from vdeblur.datasets.motion_errors import MotionErrors
    from vdeblur.datasets.pairs import ImagePair, PairSet, open_pairs
    from vdeblur.datasets.pool import Batch, PoolOptions
    from vdeblur.datasets.training_data import open_data

__all__ = [
    "Augment",
    "AverageOptions",
    "AverageReport",
    "Batch",
    "BlurOptions",
    "Course",
    "Data",
    "DataOptions",
    "FilmOptions",
    "ImagePair",
    "MotionErrors",
    "PairFiles",
    "PairSet",
    "PoolOptions",
    "average_video",
    "find_pairs",
    "open_data",
    "open_pairs",
]

_HOMES = {
    "augmentation": ("Augment",),
    "average": ("AverageOptions", "AverageReport", "average_video"),
    "batches": ("Course", "Data", "DataOptions"),
    "blur_options": ("BlurOptions",),
    "films": ("FilmOptions",),
    "layouts": ("PairFiles", "find_pairs"),
    "motion_errors": ("MotionErrors",),
    "pairs": ("ImagePair", "PairSet", "open_pairs"),
    "pool": ("Batch", "PoolOptions"),
    "training_data": ("open_data",),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
