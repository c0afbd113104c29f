"""Optional packages, imported on first use; errors name the extra that brings a missing one."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from contextlib import suppress
from typing import Any

from vdeblur.errors import MissingPackageError


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """Import a module that `pip install 'vdeblur[extra]'` brings.

    Args:
        module: its dotted name.
        extra: the extra of this package that depends on it.
        purpose: what needs it, as the subject of the error's sentence.

    Raises:
        MissingPackageError: the module cannot be imported.
    """
    root = module.partition(".")[0]
    # OpenVINO and NNCF report their use to their makers over the network, by this package. Without
    # it they run as well and report nothing.
    silenced = root in ("openvino", "nncf") and "openvino_telemetry" not in sys.modules
    if silenced:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"{purpose} needs the package {root}, which cannot be imported here ({error}): "
            f"pip install 'vdeblur[{extra}]'"
        ) from error
    finally:
        if silenced:
            with suppress(KeyError):
                del sys.modules["openvino_telemetry"]


def installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@functools.lru_cache(maxsize=1)
def the_core(openvino: Any) -> Any:
    """Return the one OpenVINO core of this process.

    A core gives its thread a signal stack and restores the previous one when it is freed. Of two
    cores freed in the order of their creation, the second restores the first one's stack, which is
    freed memory, and the next signal with a handler (Ctrl-C, the end of a child process) ends the
    program (seen with OpenVINO 2026.4; `SigAltStackSetup` in its CPU plug-in).
    """
    return openvino.Core()
