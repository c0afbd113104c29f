"""The log of a run: metrics.jsonl always, TensorBoard with pictures where requested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vdeblur.system.files import replacing
from vdeblur.system.optional import optional

METRICS = "metrics.jsonl"


class RunLog:
    """One line of JSON per report in `folder`/metrics.jsonl, and the same as TensorBoard curves.

    Args:
        folder: The folder of the run.
        step: The step at which the run continues. Later lines, left by a run that ended without
            saving, are removed.
        tensorboard: Whether to write for TensorBoard too.

    Raises:
        UsageError: TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path, *, step: int = 0, tensorboard: bool = False) -> None:
        self._file = folder / METRICS
        self._board: Any = None
        if tensorboard:
            # torch's own module asks for the package only when it is imported.
            optional("tensorboard", extra="train", purpose="logging to TensorBoard")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        rows = read_metrics(self._file)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            with replacing(self._file) as temporary:
                text = "".join(json.dumps(row) + "\n" for row in kept)
                temporary.write_text(text, encoding="utf-8")

    def add(self, row: Mapping[str, float | int | None], picture: Tensor | None = None) -> None:
        """Add a report.

        Args:
            row: Values by name; "step" is required.
            picture: (3, H, W) in 0..1, for TensorBoard.
        """
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if value is not None and name != "step":
                    self._board.add_scalar(name, value, row["step"])
            if picture is not None:
                self._board.add_image("blurred | restored | sharp", picture, row["step"])
            self._board.flush()

    def close(self) -> None:
        """End TensorBoard's thread."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the reports of a metrics.jsonl, without a truncated last line; [] without a file."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows
