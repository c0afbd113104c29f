"""Read named tensors from weights files. Knows no networks, and runs no code from a file.

The content determines the format: PyTorch's archives and older pickles (read weights-only),
safetensors, or NumPy's .npz.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vdeblur.errors import ModelError

#: Keys under which training programs store the weights to use, averaged ones first.
_PREFERRED = (
    "params_ema",
    "ema",
    "model_ema",
    "averaged",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "generator",
    "netG",
    "net_g",
    "net",
    "network",
)
#: Parts of parameter names that DataParallel and torch.compile insert.
_TRANSPARENT = frozenset({"module", "_orig_mod"})
#: Attributes in which training programs hold the network, as prefixes of parameter names.
_HOLDERS = frozenset({"model", "net", "network", "netG", "net_g", "generator"})
#: Variables that counters (thop) and TensorFlow's optimizers store beside the weights.
_BOOKKEEPING = re.compile(
    r"(^|[./])(total_ops|total_params|Adam(_\d)?|Momentum|beta[12]_power|global_step)$"
)
_DEEPEST = 4
#: Modules whose functions make tensors, arrays and dictionaries.
_HARMLESS = frozenset({"torch", "numpy", "collections", "_codecs", "argparse"})


@dataclass(frozen=True)
class TensorFile:
    """The content of a weights file.

    Attributes:
        groups: Dictionaries of tensors found in the file, the likeliest first. Floating-point
            tensors are float32.
        metadata: Metadata of a safetensors file.
    """

    groups: tuple[dict[str, Tensor], ...]
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensors(path: Path) -> TensorFile:
    """Read all tensors of a file.

    Raises:
        ModelError: The file is missing, unreadable, or holds no plain tensors.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise ModelError(f"weights file {path} does not exist: check the path") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder: give the weights file in it") from error
    except OSError as error:
        raise ModelError(f"weights file {path} cannot be read ({error.strerror})") from error
    _refuse_other_things(path, head)
    try:
        if head[8:9] == b"{":
            return _safetensors(path)
        if head[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
            if members and all(name.endswith(".npy") for name in members):
                return _npz(path)
            if any(name.endswith("/constants.pkl") for name in members) and any(
                "/code/" in name for name in members
            ):
                raise ModelError(
                    f"{path} is a TorchScript program, not weights: use the checkpoint it was "
                    "made from"
                )
        content = _torch(path)
    except ModelError:
        raise
    # Parsers of damaged files raise errors of many types.
    except Exception as error:
        raise _unreadable(path, error) from error
    groups = tuple(_groups(content))
    if not groups:
        raise ModelError(f"{path} holds no tensors: use a checkpoint as its authors published it")
    return TensorFile(groups)


def unwrapped(group: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors under names without the prefixes of wrappers, the likeliest group first.

    `module.Encoder.0.weight` becomes `Encoder.0.weight`. Tensors under a common holder, such as
    `generator.`, are also yielded as a group of their own.
    """
    bare = {}
    for name, tensor in group.items():
        parts = name.split(".")
        bare[".".join(part for part in parts if part not in _TRANSPARENT)] = tensor
    yield bare
    for holder in sorted({name.partition(".")[0] for name in bare} & _HOLDERS):
        inner = {
            name[len(holder) + 1 :]: tensor
            for name, tensor in bare.items()
            if name.startswith(holder + ".")
        }
        if len(inner) > 1:
            yield from unwrapped(inner)


def _refuse_other_things(path: Path, head: bytes) -> None:
    """Raise ModelError for the common results of a failed download."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise ModelError(f"{path} is empty: download it again")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise ModelError(
            f"{path} is a web page, not weights: open its link in a browser and download the file"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the weights themselves: run `git lfs pull`"
        )


def _safetensors(path: Path) -> TensorFile:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: _single(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    if not tensors:
        raise ModelError(f"{path} holds no tensors: use a checkpoint as its authors published it")
    return TensorFile((tensors,), metadata)


def _npz(path: Path) -> TensorFile:
    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            if not _BOOKKEEPING.search(name):
                # TensorFlow's variable names end with the number of their output.
                tensors[re.sub(r":\d+$", "", name)] = _single(torch.from_numpy(arrays[name]))
    return TensorFile((tensors,))


def _torch(path: Path) -> Any:
    # Besides tensors, checkpoints hold training options and a best score.
    plain: list[Any] = [argparse.Namespace, np.dtype]
    for kind in (np.float64, np.float32, np.int64):
        rebuild = kind(0).__reduce__()[0]  # NumPy's scalar(), a function
        plain += [rebuild, type(np.dtype(kind))]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        plain.append((rebuild, "numpy.core.multiarray.scalar"))  # as NumPy 1 called it
    allowing = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    with warnings.catch_warnings(), allowing(plain) if allowing else nullcontext():
        # Older formats cause deprecation warnings.
        warnings.simplefilter("ignore")
        # An open file, since torch would judge a .safetensors file by its name.
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _groups(content: Any, depth: int = 0) -> Iterator[dict[str, Tensor]]:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    own = {
        name: _single(value)
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and not _BOOKKEEPING.search(name)
    }
    if own:
        yield own
    named = [key for key in content if isinstance(key, str)]
    known = [key for key in _PREFERRED if key in named]
    for key in known + [key for key in named if key not in known]:
        yield from _groups(content[key], depth + 1)


def _single(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _unreadable(path: Path, error: Exception) -> ModelError:
    if isinstance(error, SafetensorError) or path.suffix == ".safetensors":
        return ModelError(
            f"{path} is not a readable safetensors file, or is damaged: download it again"
        )
    # For pickles in torch's own format, the error names the function they would call.
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    wanted = found[1] if found else _wanted_by_pickle(path)
    if wanted:
        return ModelError(
            f"{path} asks to run {wanted} and was not read: nothing of it ran; use a checkpoint "
            "of plain tensors, such as a state_dict"
        )
    return ModelError(
        f"{path} is not a PyTorch checkpoint of plain tensors, or is damaged: use the published "
        "file as it was downloaded"
    )


def _wanted_by_pickle(path: Path) -> str | None:
    """Return the first function other than tensor builders that a bare pickle would call.

    Nothing is run.
    """
    texts: list[str] = []
    # If this is not a complete pickle, the part before the error counts.
    with contextlib.suppress(Exception), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                texts = str(argument).split(" ", 1)
            elif opcode.name != "STACK_GLOBAL":
                texts += [argument] if isinstance(argument, str) else []
                continue
            # Older protocols use the module names of Python 2.
            if len(texts) > 1 and texts[-2].partition(".")[0] not in _HARMLESS:
                return ".".join(texts[-2:])
    return None


def stated_config(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return network family and config from the metadata of vdeblur's safetensors, or None."""
    try:
        config = json.loads(metadata["config"])
        return (metadata["network"], config) if isinstance(config, dict) else None
    except (KeyError, ValueError):
        return None
