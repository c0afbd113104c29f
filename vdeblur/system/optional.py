"""Optional packages: imported on first use; a missing one is said with the extra that brings it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from contextlib import suppress
from typing import Any

from vdeblur.errors import UsageError


def optional(module: str, *, extra: str, purpose: str) -> Any:
    """Import `module`, which `pip install 'vdeblur[extra]'` brings; UsageError if it is not there.

    purpose: what it was wanted for, as the subject of the error's sentence.
    """
    root = module.partition(".")[0]
    # OpenVINO and NNCF report their use to their makers over the network, unasked. Imported without
    # this package, they have nothing to do it with.
    silenced = root in ("openvino", "nncf") and "openvino_telemetry" not in sys.modules
    if silenced:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{purpose} needs the package {root}, which cannot be imported here ({error}): "
            f"pip install 'vdeblur[{extra}]'"
        ) from error
    finally:
        if silenced:
            with suppress(KeyError):
                del sys.modules["openvino_telemetry"]


def installed(module: str) -> bool:
    """Whether a package of this name can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@functools.lru_cache(maxsize=1)
def the_core(openvino: Any) -> Any:
    """The one OpenVINO core of this process.

    A core gives the thread a signal stack of its own and puts back the one before when it goes: of
    two that go in the order they came, the second puts back the first one's, which is freed, and
    the next signal with a handler (Ctrl-C, the end of a child process) ends the program (seen with
    OpenVINO 2026.4; `SigAltStackSetup` in its CPU plug-in).
    """
    return openvino.Core()
