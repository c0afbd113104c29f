"""A file of weights, of whatever kind → named tensors. Knows no networks and runs no code.

The kind is told from the content: PyTorch's archives and its older pickles (read weights-only),
safetensors, NumPy's .npz.
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

#: Where training programs put the weights they mean to be used, the averaged ones first.
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
#: Parts of a parameter's name that DataParallel and torch.compile put in.
_TRANSPARENT = frozenset({"module", "_orig_mod"})
#: Attributes under which training programs hold the network, which then begin its names.
_HOLDERS = frozenset({"model", "net", "network", "netG", "net_g", "generator"})
#: What counters (thop) and TensorFlow's optimisers leave beside the weights.
_BOOKKEEPING = re.compile(
    r"(^|[./])(total_ops|total_params|Adam(_\d)?|Momentum|beta[12]_power|global_step)$"
)
_DEEPEST = 4
#: Modules whose functions make tensors, arrays and dictionaries.
_HARMLESS = frozenset({"torch", "numpy", "collections", "_codecs", "argparse"})


@dataclass(frozen=True)
class TensorFile:
    """groups: dictionaries of tensors found in the file, the likeliest first; floating-point ones
    are float32. metadata: what a safetensors file says of itself.
    """

    groups: tuple[dict[str, Tensor], ...]
    metadata: dict[str, str] = field(default_factory=dict)


def read_tensors(path: Path) -> TensorFile:
    """All tensors of a file, by name; ModelError, in one sentence, when that cannot be."""
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
    # Whatever a parser of a foreign file trips over, the file is not what it should be.
    except Exception as error:
        raise _unreadable(path, error) from error
    groups = tuple(_groups(content))
    if not groups:
        raise ModelError(f"{path} holds no tensors: use a checkpoint as its authors published it")
    return TensorFile(groups)


def unwrapped(group: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The same tensors under their names without what wrappers put before them, likeliest first.

    `module.Encoder.0.weight` becomes `Encoder.0.weight`; of names that begin with `generator.` and
    `discriminator.`, each holder's own are given apart, too.
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
    """Say what the file is, where a download went wrong in one of the usual ways."""
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
                # TensorFlow's own names of variables end with their output's number.
                tensors[re.sub(r":\d+$", "", name)] = _single(torch.from_numpy(arrays[name]))
    return TensorFile((tensors,))


def _torch(path: Path) -> Any:
    # Beside their tensors, checkpoints carry the options they were trained with and a best score.
    plain: list[Any] = [argparse.Namespace, np.dtype]
    for kind in (np.float64, np.float32, np.int64):
        rebuild = kind(0).__reduce__()[0]  # NumPy's scalar(), a function
        plain += [rebuild, type(np.dtype(kind))]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):
        plain.append((rebuild, "numpy.core.multiarray.scalar"))  # as NumPy 1 called it
    allowing = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    with warnings.catch_warnings(), allowing(plain) if allowing else nullcontext():
        # Older formats come with warnings of what will become of them.
        warnings.simplefilter("ignore")
        # An open file: by its name, torch would take .safetensors for what it may not be.
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
    # torch names what a pickle wants to call beside tensors, if it is of torch's own kind.
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
    """The first function that a bare pickle would call, beside what makes tensors; nothing runs."""
    texts: list[str] = []
    # Not a pickle, or not to its end: what was seen before that counts.
    with contextlib.suppress(Exception), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                texts = str(argument).split(" ", 1)
            elif opcode.name != "STACK_GLOBAL":
                texts += [argument] if isinstance(argument, str) else []
                continue
            # Python 2's names of modules stand in older protocols.
            if len(texts) > 1 and texts[-2].partition(".")[0] not in _HARMLESS:
                return ".".join(texts[-2:])
    return None


def stated_config(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """(network family, config) that our safetensors carry; None when they are not there."""
    try:
        config = json.loads(metadata["config"])
        return (metadata["network"], config) if isinstance(config, dict) else None
    except (KeyError, ValueError):
        return None
