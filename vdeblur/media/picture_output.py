"""Encoded pictures → files, each under the number of its source and with its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from vdeblur.media.image_sequences import numbered
from vdeblur.media.losses import Losses
from vdeblur.media.metadata import carry, exif
from vdeblur.media.output_file import OutputFile
from vdeblur.media.reader import VideoReader


class PictureOutput:
    """Write the pictures of an output: one, or those of a pattern.

    A picture of a sequence keeps its number; frames of a film count from `start_number` (1).

    Args:
        file: Where they are written.
        reader: The source.
        losses: Told of metadata that cannot be kept.
        display_matrix: How players turn the frames of a film, nine numbers of FFmpeg's
            AV_PKT_DATA_DISPLAYMATRIX; None if they are upright.
    """

    def __init__(
        self,
        file: OutputFile,
        reader: VideoReader,
        losses: Losses,
        display_matrix: Sequence[int] | None,
    ) -> None:
        self._file, self._reader, self._losses = file, reader, losses
        start = reader.options.start_number
        self._next = 1 if start is None else start
        self._lost: dict[str, list[str]] = {}  # names of the pictures by what they lost
        self._turned = b""
        orientation = exif.orientation_of_matrix(display_matrix) if display_matrix else 1
        if orientation is None:
            losses.lose("rotation: EXIF has quarter turns only")
        elif orientation > 1:
            self._turned = exif.exif_of(orientation)

    def write(self, packet: av.Packet[Any]) -> None:
        """Write the picture that a packet is.

        Raises:
            OSError: It cannot be written.
        """
        picture = self._reader.picture_of(packet.pts or 0)
        number, source = picture or (None, None)
        if number is None:
            number, self._next = self._next, self._next + 1
        data = bytes(packet)
        lost: list[str] = []
        if source is not None:
            try:
                data, lost = carry.carry(source.read_bytes(), data)
            except OSError as error:
                lost = [f"metadata of pictures: they cannot be read again ({error.strerror})"]
        elif self._turned:
            data, lost = carry.embed(carry.PictureMetadata(exif=self._turned), data)
        path = self._path(number)
        for text in lost:
            self._lost.setdefault(text, []).append(path.name if path else "")
        if path is None:
            self._file.target.write(data)
        else:
            path.write_bytes(data)

    def close(self) -> None:
        """Report what was lost of all pictures."""
        for text, names in self._lost.items():
            several = f" ({len(names)} pictures, the first is {names[0]})" if names[1:] else ""
            self._losses.lose(text + several, "picture metadata", "display matrix")

    def _path(self, number: int) -> Path | None:
        temporary = self._file.temporary
        if temporary is None or not self._file.is_pattern:
            return temporary
        return temporary / Path(numbered(str(self._file.destination), number)).name
