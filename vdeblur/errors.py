"""The errors of vdeblur.

    VdeblurError
    ├── UsageError          a combination of options that cannot work (exit code 2)
    │   └── MissingPackageError   an option needs a package that is not installed (exit code 1)
    ├── InputError          the source is missing, empty, unreadable, not a video
    ├── OutputError         the destination cannot be written
    ├── EncoderError        the requested encoder is missing or rejects the settings
    ├── ModelError          weights that do not fit, are damaged or missing
    ├── DeviceError         the requested device is not available, or has too little memory
    └── Cancelled           the caller asked to stop

Every message is a single sentence for the user: the value received, the values accepted, the
remedy.
"""

from __future__ import annotations


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


class EncoderError(VdeblurError):
    """The encoder is not available or rejects the settings."""


class ModelError(VdeblurError):
    """The network is unknown, or its weights do not fit, are damaged or are missing."""


class DeviceError(VdeblurError):
    """The device is not available or has too little memory."""


class Cancelled(VdeblurError):
    """The caller stopped the work."""
