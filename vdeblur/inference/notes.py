"""What a user should know of a deblurrer, for reports. Knows no pictures."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vdeblur.inference import runtimes
from vdeblur.inference.runtimes import torch_cpu
from vdeblur.inference.settings import InferenceSettings


class Notes(list[str]):
    """Notes in the order in which they were made: first of the setup, then of each run.

    Notes of the setup belong to every run's report; others to that of the run they were made in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setup: tuple[str, ...] = ()

    def end_setup(self) -> None:
        """Count the notes so far as notes of the setup."""
        self.setup = tuple(self)

    def begin_run(self) -> Callable[[], list[str]]:
        """Begin a run; the result returns the notes of the setup and of the run so far, once each.

        Parts of a deblurrer, such as the network and steadying, may find the same.
        """
        before = len(self)
        return lambda: list(dict.fromkeys([*self.setup, *self[before:]]))


def slow_precision(settings: InferenceSettings, device: torch.device) -> str:
    """Return a line if this CPU computes the precision much slower than fp32; else "".

    MIMO-UNet in fp16 or bf16 on a CPU with AVX2 alone: 0.06 to 0.12 times as fast as in fp32.
    """
    if (
        device.type != "cpu"
        or settings.runtime not in runtimes.TENSOR_RUNTIMES
        or torch_cpu.computes(settings.dtype)
    ):
        return ""
    return (
        f"computed in {settings.precision}, which this CPU has no instructions for: "
        "`precision='fp32'` is up to ten times as fast here, and exact"
    )


def setup_report(
    settings: InferenceSettings,
    device: torch.device,
    *,
    tile: object,
    calibrated: int,
    side_by_side: Callable[[int, int], int],
) -> tuple[str, ...]:
    """Report lines: automatic choices, and settings that change the picture.

    Args:
        settings: How the network is computed.
        device: Where.
        tile: The tile that was asked for.
        calibrated: Pictures that 8-bit ranges were measured on; 0 for the first to come.
        side_by_side: Height and width in pixels → pictures restored at once without measurements.
    """
    lines = []
    if settings.tuned:
        sizes = [
            f"{width}x{height} in batches of {each.batch}"
            + (f" and tiles of {each.tile}" if each.tile is not None and tile == "auto" else "")
            for (height, width), each in settings.tuned.items()
            if each.tile is not None
            or device.type != "cpu"
            or each.batch != side_by_side(height, width)
        ]
        also = f"; unless asked otherwise, {', '.join(sizes)}" if sizes else ""
        lines.append(
            f"taken from `vdeblur bench --tune`: {settings.runtime}, {settings.precision}{also}"
        )
    if not settings.precision_asked and settings.precision == "bf16" and device.type == "cpu":
        lines.append(
            "computed in bf16, which this CPU has instructions for: `precision='fp32'` is exact, "
            "and half as fast"
        )
    if settings.precision == "int8":
        on = f"{calibrated} pictures of the source" if calibrated else "the first pictures"
        lines.append(f"computed in int8, its ranges measured on {on}: `precision='fp32'` is exact")
    return tuple(lines)
