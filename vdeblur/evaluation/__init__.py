"""Picture quality: scores on pairs, and comparisons of videos.

    from vdeblur.datasets import open_pairs
    from vdeblur.evaluation import EvalOptions, evaluate

    scores = evaluate(open_pairs([Path("GoPro")]), Deblurrer(), options=EvalOptions(sharp=True))
    scores.total.values["psnr_gain"]

`evaluate` scores a network on pairs, `psnr` and `ssim` two pictures; `compare_video` and
`compare_page` show two files beside each other. Knows pairs, networks through `Deblurrer`, and
videos; knows no training and no speed. Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.evaluation.comparison_page import compare_page
    from vdeblur.evaluation.comparison_video import CompareOptions, compare_video
    from vdeblur.evaluation.metrics import psnr, ssim
    from vdeblur.evaluation.protocols import PROTOCOLS, ScoringProtocol
    from vdeblur.evaluation.run import EvalOptions, evaluate
    from vdeblur.evaluation.scores import PairScore, SetScores

__all__ = [
    "PROTOCOLS",
    "CompareOptions",
    "EvalOptions",
    "PairScore",
    "ScoringProtocol",
    "SetScores",
    "compare_page",
    "compare_video",
    "evaluate",
    "psnr",
    "ssim",
]

_HOMES = {
    "comparison_page": ("compare_page",),
    "comparison_video": ("CompareOptions", "compare_video"),
    "metrics": ("psnr", "ssim"),
    "protocols": ("PROTOCOLS", "ScoringProtocol"),
    "run": ("EvalOptions", "evaluate"),
    "scores": ("PairScore", "SetScores"),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
