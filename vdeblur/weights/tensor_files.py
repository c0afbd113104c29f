"""Read named tensors from weights files. Knows no networks, and runs no code from a file.

The content determines the format: PyTorch's archives and older pickles (read as plain data),
safetensors, or NumPy's .npz.
"""

from __future__ import annotations

import json
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vdeblur.errors import ModelError
from vdeblur.weights.pickles import ForbiddenGlobalError
from vdeblur.weights.torch_files import (
    OtherTensor,
    StoredTensor,
    TorchFile,
    check_archive,
    read_archive,
    read_pickles,
)

#: Keys under which training programs store the weights to use, averaged ones first.
_PREFERRED = (
    "params_ema",
    "ema",
    "model_ema",
    "ema_model",
    "state_dict_ema",
    "ema_state_dict",
    "averaged",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "generator",
    "netG",
    "net_g",
    "net",
    "network",
)
#: Parts of parameter names that DataParallel, torch.compile, FSDP and Lightning insert.
_TRANSPARENT = frozenset(
    {
        "module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    }
)
#: Attributes in which training programs hold the network, as prefixes of parameter names; averaged
#: ones first.
_HOLDERS = (
    "ema_model",
    "model_ema",
    "ema",
    "generator",
    "model",
    "net",
    "netG",
    "net_g",
    "network",
    "online_model",
)
#: Variables that counters (thop), averages of weights and TensorFlow's optimizers store beside the
#: weights.
_BOOKKEEPING = re.compile(
    r"(^|[./])(total_ops|total_params|n_averaged|num_updates|initted|Adam(_\d)?|Momentum"
    r"|beta[12]_power|global_step)$"
)
_DEEPEST = 4
_LONGEST_HEADER = 1 << 24  # bytes of JSON in a safetensors file
_MOST_TENSORS = 100_000
# Dictionaries of tensors that are looked at, the likeliest first: an optimizer has one for each
# parameter.
_MOST_GROUPS = 1000
_LONGEST_CONFIG = 1 << 20
#: Starts of files that people take for weights: what they are, and what to do.
_OTHER_THINGS = (
    (b"GGUF", "is a GGUF file of a language model", "use weights of a network for pictures"),
    (b"\x1f\x8b", "is compressed by gzip", "unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive", "unpack it and give the file in it"),
    (b"Rar!", "is a RAR archive", "unpack it and give the file in it"),
    (b"BZh", "is compressed by bzip2", "unpack it first"),
    (b"\xfd7zXZ", "is compressed by xz", "unpack it first"),
    (b"(\xb5/\xfd", "is compressed by zstd", "unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras)", "export its weights as .npz or .safetensors"),
    (b"\x93NUMPY", "is a single NumPy array", "give a checkpoint with all tensors of a network"),
)


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

    What a file declares is checked before memory is taken for it.

    Raises:
        ModelError: The file is missing, unreadable, or holds no plain tensors.
    """
    try:
        # Opening a pipe would wait for its other end.
        if (mode := path.stat().st_mode) and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ModelError(f"{path} is no regular file: save the weights to one, and give that")
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise ModelError(f"weights file {path} does not exist: check the path") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder: give the weights file in it") from error
    except OSError as error:
        raise ModelError(f"weights file {path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL in the name
        raise ModelError(f"{str(path)!r} is no name of a file: check the path") from error
    _refuse_other_things(path, head)
    try:
        if head[8:9] == b"{":
            return _safetensors(path, head)
        if head[:4] == b"PK\x03\x04":
            return _archive(path)
        return _groups(path, read_pickles(path))
    except ModelError:
        raise
    # Parsers of damaged files raise errors of many types.
    except Exception as error:
        raise _unreadable(path, error) from error


def unwrapped(group: Mapping[str, Tensor], depth: int = 0) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors under names without the prefixes of wrappers, the likeliest group first.

    `module.Encoder.0.weight` becomes `Encoder.0.weight`. Tensors under a common holder, such as
    `generator.`, are also yielded as a group of their own.
    """
    bare = {}
    for name, tensor in group.items():
        parts = name.split(".")
        bare[".".join(part for part in parts if part not in _TRANSPARENT)] = tensor
    yield bare
    if depth == _DEEPEST:
        return
    holders = {name.partition(".")[0] for name in bare}
    for holder in _HOLDERS:
        if holder not in holders:
            continue
        inner = {
            name[len(holder) + 1 :]: tensor
            for name, tensor in bare.items()
            if name.startswith(holder + ".")
        }
        if len(inner) > 1:
            yield from unwrapped(inner, depth + 1)


def _refuse_other_things(path: Path, head: bytes) -> None:
    """Raise ModelError for results of a failed download, and for other kinds of files."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise ModelError(f"{path} is empty: download it again")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<!--", b"<head")):
        raise ModelError(
            f"{path} is a web page, not weights: open its link in a browser and download the file"
        )
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the weights themselves: run `git lfs pull`"
        )
    if start.startswith((b"{", b"[")) and head[8:9] != b"{":
        raise ModelError(
            f"{path} is JSON text, not weights: give the weights file that it belongs to; weights "
            "in several files must be joined into one first"
        )
    for magic, what, do in _OTHER_THINGS:
        if head.startswith(magic):
            raise ModelError(f"{path} {what}, not weights that can be read here: {do}")
    if path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and b"\x12\x07pytorch" in head[:16]):
        raise ModelError(
            f"{path} is an ONNX model, not weights: use the checkpoint it was made from"
        )


def _safetensors(path: Path, head: bytes) -> TensorFile:
    (length,) = struct.unpack_from("<Q", head)
    if length > _LONGEST_HEADER or length + 8 > path.stat().st_size:
        raise ModelError(
            f"{path} is not a readable safetensors file, or is damaged: its header says that it "
            f"is {length} bytes long; download it again"
        )
    with safe_open(path, framework="pt") as file:
        if len(file.keys()) > _MOST_TENSORS:
            raise ModelError(f"{path} holds {len(file.keys())} tensors, more than networks have")
        metadata = file.metadata() or {}
        tensors = {
            name: _single(file.get_tensor(name))
            for name in file.keys()  # noqa: SIM118
            if not _BOOKKEEPING.search(name)
        }
    if not tensors:
        raise _no_tensors(path)
    return TensorFile((tensors,), metadata)


def _archive(path: Path) -> TensorFile:
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    if members and all(name.endswith(".npy") for name in members):
        return _npz(path)
    if any(name.endswith("/constants.pkl") for name in members) and any(
        "/code/" in name for name in members
    ):
        raise ModelError(
            f"{path} is a TorchScript program, not weights: use the checkpoint it was made from"
        )
    if not any(name.endswith("/data.pkl") for name in members):
        raise ModelError(
            f"{path} is a zip archive without a checkpoint's tables: unpack it and give the "
            "weights file in it, or download it again"
        )
    return _groups(path, read_archive(path))


def _npz(path: Path) -> TensorFile:
    tensors = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            if not _BOOKKEEPING.search(name):
                # TensorFlow's variable names end with the number of their output.
                tensors[re.sub(r":\d+$", "", name)] = _single(torch.from_numpy(arrays[name]))
    return TensorFile((tensors,))


def _groups(path: Path, file: TorchFile) -> TensorFile:
    """Return the dictionaries of tensors at the first levels of a checkpoint, each once."""
    groups: list[dict[str, Tensor]] = []
    seen: set[int] = set()

    def walk(content: Any, depth: int) -> None:
        if not isinstance(content, dict) or depth > _DEEPEST or id(content) in seen:
            return
        if len(groups) >= _MOST_GROUPS:
            return
        seen.add(id(content))
        named = {key: value for key, value in content.items() if isinstance(key, str)}
        own = {
            name: value
            for name, value in named.items()
            if isinstance(value, (StoredTensor, OtherTensor)) and not _BOOKKEEPING.search(name)
        }
        if own:
            groups.append({name: _read(path, file, name, value) for name, value in own.items()})
        known = [key for key in _PREFERRED if key in named]
        for key in known + [key for key in named if key not in known]:
            walk(named[key], depth + 1)

    walk(file.content, 0)
    if not groups:
        raise _no_tensors(path)
    return TensorFile(tuple(groups))


def _read(path: Path, file: TorchFile, name: str, value: StoredTensor | OtherTensor) -> Tensor:
    if isinstance(value, OtherTensor):
        raise ModelError(
            f"{path} holds tensors that are {value.kind} ({shortened(name)} first), not plain "
            "ones: save them again as plain floating-point tensors"
        )
    return file.tensor(value)


def _single(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.is_floating_point() else tensor


def _no_tensors(path: Path) -> ModelError:
    return ModelError(f"{path} holds no tensors: use a checkpoint as its authors published it")


def _unreadable(path: Path, error: Exception) -> ModelError:
    if isinstance(error, SafetensorError) or path.suffix == ".safetensors":
        return ModelError(
            f"{path} is not a readable safetensors file, or is damaged: download it again"
        )
    if isinstance(error, ForbiddenGlobalError):
        return ModelError(
            f"{path} asks to run {shortened(str(error.args[0]))} and was not read: nothing of it "
            "ran; use a checkpoint of plain tensors, such as a state_dict"
        )
    return ModelError(
        f"{path} is not a PyTorch checkpoint of plain tensors, or is damaged: use the published "
        "file as it was downloaded"
    )


def shortened(name: str) -> str:
    """Return a name from a file as text for a message: of one line, and no longer than that."""
    shown = name if name.isprintable() else repr(name)
    return shown if len(shown) <= 80 else f"{shown[:50]}…{shown[-25:]}"


def stated_config(metadata: Mapping[str, str]) -> tuple[str, dict[str, Any]] | None:
    """Return network family and config from the metadata of vdeblur's safetensors, or None."""
    text = metadata.get("config", "")
    try:
        config = json.loads(text) if len(text) <= _LONGEST_CONFIG else None
    except (ValueError, RecursionError):
        return None
    network = metadata.get("network")
    return (network, config) if network is not None and isinstance(config, dict) else None
