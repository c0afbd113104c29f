"""The errors of vdeblur.

    VdeblurError
    ├── UsageError          a combination of options that cannot work (exit code 2)
    │   └── MissingPackageError   what is asked for needs a package that is not installed (1)
    ├── InputError          the source is missing, empty, unreadable, not a video
    ├── OutputError         the destination cannot be written
    ├── EncoderError        the asked-for encoder is missing or refuses the settings
    ├── ModelError          weights that do not fit, are damaged or missing
    ├── DeviceError         the asked-for device is not there, or has too little memory
    └── Cancelled           the caller asked to stop

Every message is one sentence for the person at the keyboard: what was received, what would be
right, what to do.
"""

from __future__ import annotations


class VdeblurError(Exception):
    """Anything this library raises on purpose."""


class UsageError(VdeblurError):
    """Options that contradict each other or have an impossible value."""


class MissingPackageError(UsageError):
    """An option needs an optional package that is missing or broken here."""


class InputError(VdeblurError):
    """The source is missing, empty, unreadable or not a video."""


class OutputError(VdeblurError):
    """The destination cannot be written, or exists already."""


class EncoderError(VdeblurError):
    """The encoder is not available or refuses the settings."""


class ModelError(VdeblurError):
    """The network is unknown, or its weights do not fit, are damaged or are missing."""


class DeviceError(VdeblurError):
    """The device is not available or has too little memory."""


class Cancelled(VdeblurError):
    """The work was stopped by its caller."""
