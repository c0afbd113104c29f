"""Converted networks in the user's cache, held to torch each time they are loaded.

Their keys are made of all that a conversion depends on. Knows no runtime, no video, and no files
but the cache's.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError, VdeblurError
from vdeblur.inference.export import compare, legal_size, parameters_sha256, random_input
from vdeblur.inference.runtimes.runner import Runner
from vdeblur.networks.base import correction_of, traits_of
from vdeblur.system import cache
from vdeblur.system.folders import cache_folder
from vdeblur.version import __version__

#: Prefix of the note for a cache folder that cannot be written.
NOT_KEPT = "the converted network cannot be kept"
#: Pictures, height, width of the random input that a converted network is compared on.
CHECKED_SIZE = (1, 64, 96)
T = TypeVar("T")


def cache_key_parts(network: nn.Module, **more: str) -> dict[str, str] | None:
    """Return all that a converted network depends on, by name.

    The code of the network, of its conversion and the version of torch are included: they change
    while weights stay.

    Args:
        network: The network in torch.
        more: What else the entry depends on.

    Returns:
        None if the network's source code cannot be read: then nothing may be kept.
    """
    try:
        own = inspect.getsource(inspect.getmodule(type(network)) or type(network))
    except (OSError, TypeError):
        return None
    return {
        "vdeblur": __version__,
        "torch": torch.__version__,
        "sources": _sources(),
        "class": type(network).__qualname__,
        "module": hashlib.sha256(own.encode()).hexdigest(),
        "config": json.dumps(traits_of(network).config, sort_keys=True, default=str),
        "stage": str(traits_of(network).stage),
        "parameters": parameters_sha256(network),
        **more,
    }


@lru_cache
def _sources() -> str:
    package = Path(__file__).parents[2]
    folders = ("networks", "inference/runtimes", "inference/kernels")
    files = [f for name in folders for f in package.glob(f"{name}/*.py")]
    files.append(package / "inference" / "export.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def load_or_convert(
    kind: str,
    key_parts: dict[str, str] | None,
    convert: Callable[[Path], None],
    load: Callable[[Path], T],
    check: Callable[[T], str | None],
    *,
    note: Callable[[str], object] = lambda _: None,
) -> T:
    """Load a converted network from the cache, or convert it and keep it there.

    Args:
        kind: The cache's folder.
        key_parts: See `cache_key_parts`; None keeps nothing.
        convert: Fills a folder.
        load: Makes the network of a folder.
        check: Returns what is wrong with a loaded network, as a part of a sentence. A kept network
            that fails is converted again.
        note: Called if the cache takes nothing.

    Raises:
        ModelError: The network cannot be converted, or a new conversion fails the check.
    """
    found = cache.find_entry(kind, key_parts) if key_parts is not None else None
    if found is not None:
        try:
            loaded = load(found)
            if check(loaded) is None:
                return loaded
        except (VdeblurError, RuntimeError, OSError):
            pass  # damaged: converted again
    with tempfile.TemporaryDirectory(prefix="vdeblur-") as temporary:
        folder = Path(temporary)
        try:
            convert(folder)
        except (OSError, RuntimeError) as error:  # runtimes report a full disk by a RuntimeError
            raise ModelError(
                f"the network could not be converted in {temporary} ({error}): free space there, "
                "or use `backend='torch'`"
            ) from error
        loaded = load(folder)
        if wrong := check(loaded):
            raise ModelError(f"the converted network {wrong}: use `backend='torch'`")

        def copy_into(part: Path) -> None:
            shutil.copytree(folder, part, dirs_exist_ok=True)

        # Converted elsewhere and copied: a copy reports a full disk by OSError, runtimes do not.
        if key_parts is not None and cache.store_entry(kind, key_parts, copy_into) is None:
            note(
                f"{NOT_KEPT} in {cache_folder()}, so every run converts it anew: make that "
                "writable with some space, or name another folder in VDEBLUR_CACHE"
            )
    return loaded


def check_against(
    network: nn.Module, runner: Runner, device: torch.device, precision: str = "fp32"
) -> str | None:
    """Compare a runner's correction with torch's, on a picture small enough to cost nothing.

    The tolerance is that of an export; in bf16 it is a tenth of the correction itself, since a
    caller who asks for bf16 decides what it is worth.

    Returns:
        How they differ, as a part of a sentence; None if they agree.
    """
    correction = correction_of(network)

    def here(x: Tensor) -> Tensor:
        return correction(x.to(device)).cpu()

    x = random_input(network, *legal_size(network, *CHECKED_SIZE))
    if precision == "bf16":
        with torch.no_grad():
            expected = here(x)
            error = runner(x.to(device)).cpu().float() - expected
        share = float(error.square().mean().sqrt() / expected.square().mean().sqrt().clamp(1e-6))
        return None if share <= 0.1 else f"differs from torch by {share:.0%} of the correction"
    difference, tolerance = compare(here, lambda x: runner(x.to(device)).cpu(), x)
    if difference <= tolerance:
        return None
    return f"differs from torch by {difference:.1e}, more than {tolerance:.0e}"
