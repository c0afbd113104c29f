"""How steady a sequence of pictures is: warped-frame error and flicker, along its motion."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.evaluation.metrics import flicker, warp_error
from vdeblur.evaluation.optical_flow import optical_flow, visible

_FLOW_SIDE = 640  # pixels: motion is estimated on pictures of at most this longer side


class Steadiness:
    """Measures a sequence, frame by frame: warped-frame error, flicker, and flicker of the error.

    The motion is that of the sharp frames for every view, so that only the pictures differ.
    """

    def __init__(self) -> None:
        self._before: list[dict[str, Tensor]] = []  # the last frame, and the one before it
        #: Of the last frame to its predecessor: flow, and where it can be trusted.
        self._to_predecessor: tuple[Tensor, Tensor] | None = None
        self._values: dict[str, list[float]] = {}

    def push(self, now: dict[str, Tensor]) -> None:
        """Take the next frame; one of another size begins a new sequence.

        Args:
            now: The views "sharp", "blurred" and, where there is one, "restored": (1, 3, H, W)
                floats in [0, 1].
        """
        if self._before and self._before[-1]["sharp"].shape != now["sharp"].shape:
            self._before, self._to_predecessor = [], None
        if not self._before:
            self._before = [now]
            return
        last = self._before[-1]
        forward = _flow(last["sharp"], now["sharp"])
        backward = _flow(now["sharp"], last["sharp"])
        seen = visible(backward, forward)
        for name, frame in now.items():
            self._add(f"warp_{name}", warp_error(last[name], frame, backward, seen, data_range=1))
        if self._to_predecessor is not None:
            to_before, seen_before = self._to_predecessor
            both = visible(forward, backward) & seen_before
            for name in now:
                one, two, three = (frame[name] for frame in (self._before[0], last, now))
                value = flicker(one, two, three, to_before, forward, both, data_range=1)
                self._add(f"flicker_{name}", value)
            for name in set(now) - {"sharp"}:
                one, two, three = (
                    frame[name] - frame["sharp"] for frame in (self._before[0], last, now)
                )
                value = flicker(one, two, three, to_before, forward, both, data_range=1)
                self._add(f"unrest_{name}", value)
        self._before = [last, now]
        self._to_predecessor = backward, seen

    def _add(self, name: str, value: float) -> None:
        if not math.isnan(value):
            self._values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Average over the frames.

        Returns:
            `warp_`, `flicker_` and `unrest_` (the flicker of the error) of each view, in 8-bit
            levels; and `_ratio`, restored over blurred, where there is a restored view.
        """
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        for measure in ("warp", "flicker", "unrest"):
            before, after = (means.get(f"{measure}_{x}") for x in ("blurred", "restored"))
            if before and after is not None:
                means[f"{measure}_ratio"] = after / before
        return means


def _flow(here: Tensor, there: Tensor) -> Tensor:
    """The flow, found on smaller pictures if these are large."""
    height, width = here.shape[2:]
    longer = max(height, width)
    if longer <= _FLOW_SIDE:
        return optical_flow(here, there)
    size = [max(1, round(side * _FLOW_SIDE / longer)) for side in (height, width)]
    small = [F.interpolate(x, size=size, mode="area") for x in (here, there)]
    flow = F.interpolate(
        optical_flow(*small), size=(height, width), mode="bilinear", align_corners=False
    )
    return flow * torch.tensor([width / size[1], height / size[0]]).to(flow).view(1, 2, 1, 1)
