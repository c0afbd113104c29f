"""The output's names on disk: temporary until it is complete."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from vdeblur.errors import OutputError
from vdeblur.media.image_sequences import writes_sequence
from vdeblur.media.libav_errors import output_error
from vdeblur.media.names import libav_name
from vdeblur.media.pipes import OutputPipe
from vdeblur.system.files import default_mode


class OutputFile:
    """A destination that nothing stands under until `finish`.

    It is written under a temporary name beside it; the pictures of a pattern, into a temporary
    folder; standard output ("-") as it comes.

    Args:
        destination: A path, an image2 pattern, or "-".
        source: What is read: it may not be written over.
        source_path: Its file, None for a pipe or a pattern.
        overwrite: Whether files that exist are replaced.

    Attributes:
        destination: As given.
        temporary: The temporary file or folder; None for standard output.

    Raises:
        OutputError: The destination cannot be written, or exists.
    """

    def __init__(
        self,
        destination: str | Path,
        *,
        source: str | Path,
        source_path: Path | None,
        overwrite: bool,
    ) -> None:
        self.destination, self._overwrite = destination, overwrite
        #: The output is a sequence of pictures.
        self.is_pattern = writes_sequence(destination, source)
        self.temporary: Path | None = None
        if str(destination) == "-":
            return
        target = Path(destination)
        if target.is_dir():
            raise OutputError(f"{target} is a folder: name a file")
        if not target.parent.is_dir():
            raise OutputError(f"folder {target.parent} does not exist: create it first")
        if self.is_pattern:
            if str(target) == str(source):
                raise OutputError(f"{target} is the input itself: choose another output")
            temporary = target.parent / f".vdeblur-{os.getpid()}.part"
        else:
            if target.exists():
                if (
                    source_path is not None
                    and source_path.exists()
                    and target.samefile(source_path)
                ):
                    raise OutputError(f"{target} is the input itself: choose another output")
                if not overwrite:
                    raise OutputError(
                        f"{target} exists already: use `overwrite=True` to replace it"
                    )
            temporary = target.parent / f".{target.stem}.{os.getpid()}.part{target.suffix}"
        try:
            if self.is_pattern:
                temporary.mkdir()
            else:
                temporary.open("xb").close()
        except OSError as error:
            raise output_error(error, destination) from error
        self.temporary = temporary

    @property
    def target(self) -> Any:
        """What libav opens for writing."""
        if self.temporary is None:
            return OutputPipe(sys.stdout.buffer)
        return libav_name(self.temporary)

    def files(self) -> list[Path]:
        """Return the files that are written, under their temporary names."""
        if self.temporary is None:
            return []
        return sorted(self.temporary.iterdir()) if self.is_pattern else [self.temporary]

    def finish(self) -> None:
        """Give the complete output its final name.

        Raises:
            OutputError: A picture of a sequence exists already.
            OSError: A file cannot be renamed.
        """
        if self.temporary is None:
            return
        target = Path(self.destination)
        if not self.is_pattern:
            self.temporary.chmod(default_mode())
            self.temporary.replace(target)
            return
        images = self.files()
        for image in images:
            final = target.parent / image.name
            if final.exists() and not self._overwrite:
                raise OutputError(f"{final} exists already: use `overwrite=True` to replace it")
        for image in images:
            image.replace(target.parent / image.name)
        self.temporary.rmdir()

    def remove(self) -> None:
        """Remove what was written, as far as possible."""
        if self.temporary is None:
            return
        with contextlib.suppress(OSError):
            for file in self.files():
                file.unlink()
            if self.is_pattern:
                self.temporary.rmdir()
