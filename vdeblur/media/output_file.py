"""The output's names on disk: temporary until it is complete."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vdeblur.errors import OutputError
from vdeblur.media.image_sequences import (
    number_in,
    pictures_of,
    writes_sequence,
)
from vdeblur.media.libav_errors import output_error, text_of
from vdeblur.media.names import libav_name
from vdeblur.media.picture_folder import PictureFolder
from vdeblur.media.pipes import OutputPipe
from vdeblur.system.files import Temporary, check_target, remove_leftovers
from vdeblur.system.streams import is_stream, open_stream

if TYPE_CHECKING:
    from vdeblur.media.reader import VideoReader


class OutputFile:
    """A destination that nothing stands under until `finish`.

    It is written under a temporary name beside it; the pictures of a pattern, into a temporary
    folder; standard output ("-"), a pipe or a character device, as it comes.

    Args:
        destination: A path, an image2 pattern, or "-".
        reader: The source, which may not be written over.
        overwrite: Whether files that exist are replaced. Of a symbolic link the link is replaced.
        also_read: More files that may not be written over.

    Attributes:
        destination: As given.
        is_pattern: The output is a sequence of pictures.
        recovered: Pictures that got their final names now because a run with the same source and
            destination was killed in between; None if there was none. Nothing is left to write.

    Raises:
        OutputError: The destination cannot be written, or exists.
    """

    def __init__(
        self,
        destination: str | Path,
        reader: VideoReader,
        *,
        overwrite: bool,
        also_read: Sequence[Path] = (),
    ) -> None:
        self.destination, self._overwrite = destination, overwrite
        self.is_pattern = writes_sequence(destination, reader.source)
        self.recovered: int | None = None
        self._stream: BinaryIO | None = None
        self._held: Temporary | None = None
        self._pictures: PictureFolder | None = None
        if str(destination) == "-":
            self._stream = sys.stdout.buffer
            return
        target = Path(destination)
        try:
            if self.is_pattern:
                self._begin_pictures(target, reader)
                return
            path = reader.path
            sources = [*([] if path is None else getattr(path, "chapters", [path])), *also_read]
            check_target(target, overwrite=overwrite, sources=sources)
            if is_stream(target):
                self._stream = open_stream(target)
                return
            remove_leftovers(target.parent)
            self._held = Temporary(target.parent, suffix=target.suffix)
        except OSError as error:
            raise output_error(error, destination) from error

    def _begin_pictures(self, target: Path, reader: VideoReader) -> None:
        source = str(reader.source)
        first = 1 if reader.options.start_number is None else reader.options.start_number
        numbers: Sequence[int] = range(first, first + (reader.info.frame_count or sys.maxsize))
        if reader.pictures is not None:
            numbers = reader.pictures.numbers
        if not target.parent.is_dir():
            raise OutputError(f"folder {target.parent} does not exist: create it first")
        for picture in pictures_of(source):
            named = number_in(target.name, picture.name) is not None
            if named and picture.parent.samefile(target.parent):
                raise OutputError(f"{target} is the input itself: choose another output")
        remove_leftovers(target.parent)
        recovered = PictureFolder.recover(target, source)
        if recovered is not None and not self._overwrite:
            self.recovered = recovered
            return
        for file in [] if self._overwrite else sorted(target.parent.iterdir()):
            if number_in(target.name, file.name) in numbers:
                raise OutputError(f"{file} exists already: use `overwrite=True` to replace it")
        self._pictures = PictureFolder(target, source, replace=self._overwrite)

    @property
    def is_stream(self) -> bool:
        """True for standard output, a pipe and a device: what is written cannot be read again."""
        return self._stream is not None

    @property
    def temporary(self) -> Path | None:
        """The path to open the unfinished file or folder by; None for a stream."""
        if self._pictures is not None:
            return self._pictures.path
        return None if self._held is None else self._held.path

    @property
    def temporary_name(self) -> Path | None:
        """Its name on disk, which has the extension of the output, to be read by."""
        if self._pictures is not None:
            return self._pictures.path
        return None if self._held is None else self._held.name

    @property
    def target(self) -> Any:
        """What libav opens for writing."""
        if self._stream is not None:
            return OutputPipe(self._stream)
        assert self.temporary is not None
        return libav_name(self.temporary)

    def files(self) -> list[Path]:
        """Return the files that are written, under their temporary names."""
        if self._pictures is not None:
            return self._pictures.files()
        return [] if self._held is None else [self._held.path]

    def finish(self) -> None:
        """Give the complete output its final name.

        If the name is taken meanwhile, or cannot be had, the output is kept under another.

        Raises:
            OutputError: It has another name, or the disk failed.
        """
        try:
            if self._stream is not None:
                self._stream.flush()
                self._close_stream()
            elif self._pictures is not None:
                self._pictures.finish()
            elif self._held is not None:
                self._held.flush()
        except OSError as error:
            raise output_error(error, self.destination) from error
        if self._held is not None:
            self._take_name(self._held, Path(self.destination))

    def _take_name(self, held: Temporary, target: Path) -> None:
        try:
            held.take(target, replace=self._overwrite)
        except FileExistsError as error:
            raise OutputError(
                f"{target} was made by another program meanwhile: what was written is kept as "
                f"{held.keep(target)}"
            ) from error
        except OSError as error:
            raise OutputError(
                f"{target} cannot be the name of what was written ({text_of(error)}): it is kept "
                f"as {held.keep(target)}"
            ) from error

    def remove(self) -> None:
        """Remove what was written, as far as possible."""
        self._close_stream()
        for held in (self._held, self._pictures):
            if held is not None:
                held.remove()

    def _close_stream(self) -> None:
        if self._stream is not None and self._stream is not sys.stdout.buffer:
            with contextlib.suppress(OSError):
                self._stream.close()
