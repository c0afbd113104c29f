"""The errors of vdeblur.

    VdeblurError
    ├── UsageError          a combination of options that cannot work (exit code 2)
    │   └── MissingPackageError   an option needs a package that is not installed (exit code 1)
    ├── InputError          the source is missing, empty, unreadable, not a video
    ├── OutputError         the destination cannot be written
    │   └── DiskError       its disk is full, over quota, read-only or broken
    ├── EncoderError        the requested encoder is missing or rejects the settings
    ├── ModelError          weights that do not fit, are damaged or missing
    ├── DeviceError         the requested device is not available, or has too little memory
    └── Cancelled           the caller asked to stop

Every message is a single sentence for the user: the value received, the values accepted, the
remedy.
"""

from __future__ import annotations

import errno


class VdeblurError(Exception):
    """Base class of every error that this library raises on purpose."""


class UsageError(VdeblurError):
    """Options that contradict each other or have an impossible value."""


class MissingPackageError(UsageError):
    """An option needs an optional package that is missing or broken here."""


class InputError(VdeblurError):
    """The source is missing, empty, unreadable or not a video."""


class OutputError(VdeblurError):
    """The destination cannot be written, or exists already."""


class DiskError(OutputError):
    """The disk of the destination is full, over quota, read-only or broken.

    Other outputs on the same disk fail as well.
    """

    @classmethod
    def of(cls, number: int | None, where: str) -> DiskError:
        """Return the error for an `errno` and the output that met it."""
        if number == errno.EROFS:
            return cls(f"the disk of {where} is read-only: make it writable, or choose another")
        if number == errno.EIO:
            return cls(f"the disk of {where} fails (input/output error): choose another")
        if number == getattr(errno, "EDQUOT", None):
            return cls(f"the disk quota is used up: make room for {where} and start again")
        return cls(f"the disk is full: make room for {where} and start again")


class EncoderError(VdeblurError):
    """The encoder is not available or rejects the settings."""


class ModelError(VdeblurError):
    """The network is unknown, or its weights do not fit, are damaged or are missing."""


class DeviceError(VdeblurError):
    """The device is not available or has too little memory."""


class Cancelled(VdeblurError):
    """The caller stopped the work."""
