"""Read PyTorch's checkpoints: archives, and the older sequence of pickles and values.

`torch.load` trusts the sizes that a file declares, and rebuilds what it names. Here, the pickle is
read as plain data, and every tensor must lie within the values that the file really has.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdeblur.weights.pickles import Call, Global, Reference, read_pickle

#: Bytes of a pickle. The values of tensors lie outside.
_LONGEST_PICKLE = 1 << 26
#: Entries of an archive: one for each tensor, and a few more.
_MOST_ENTRIES = 100_000
_LONGEST_DIRECTORY = 1 << 24
#: Bytes that values may take beyond a multiple of the file's own size.
_SLACK = 1 << 27
_MOST_DIMENSIONS = 16
#: Arguments of calls that make tensors. Each list in a file may be used by many of them.
_MOST_ARGUMENTS = 16
# The first pickle of the older format, in torch.serialization.
_MAGIC = 0x1950A86A20F9469CFC6C

_REBUILDS = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_PARAMETERS = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
_OTHER_KINDS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantized",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "without values (meta)",
    "_rebuild_wrapper_subclass": "of a kind of their own",
    "_rebuild_device_tensor_from_numpy": "of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "of another device",
}
_DTYPES_OF_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}
#: Packages in whose classes training programs keep options, scores and histories.
_KEEPERS = frozenset(
    {
        "addict",
        "argparse",
        "datetime",
        "easydict",
        "lightning",
        "lightning_fabric",
        "mmcv",
        "mmengine",
        "numpy",
        "omegaconf",
        "pathlib",
        "pytorch_lightning",
        "yacs",
    }
)
_PLAIN = frozenset(
    {
        ("_codecs", "encode"),
        ("builtins", "complex"),
        ("builtins", "set"),
        ("__builtin__", "set"),
        ("torch", "Size"),
        ("torch", "Tensor"),
        ("torch", "device"),
        ("torch.nn.parameter", "Parameter"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.serialization", "_get_layout"),
        ("types", "SimpleNamespace"),
        ("typing", "Any"),
    }
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, whose values are not read yet.

    Attributes:
        storage: Name of its storage.
        dtype: Type of its numbers.
        offset: Its first number in the storage.
        shape: Its shape.
        strides: Numbers from one element to the next, by dimension.
    """

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that is not plain: `kind` says what it is."""

    kind: str


@dataclass
class TorchFile:
    """A checkpoint that is open.

    Attributes:
        content: What was saved, with `StoredTensor` and `OtherTensor` for tensors, and `Call` for
            objects of other classes.
    """

    content: Any
    _read: Callable[[str], bytearray]
    _most: int
    _storages: dict[str, bytearray] = field(default_factory=dict)
    _tensors: dict[StoredTensor, Tensor] = field(default_factory=dict)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return a tensor with its values; floating-point numbers become float32.

        Raises:
            ValueError: It lies outside its storage, or all tensors together declare much more than
                the file has.
        """
        if (known := self._tensors.get(stored)) is not None:
            return known
        count = math.prod(stored.shape)
        self._most -= count * max(stored.dtype.itemsize, 4)
        if self._most < 0:
            raise ValueError("its tensors declare more numbers than the file has")
        if count:
            values = self._storages.get(stored.storage)
            if values is None:
                values = self._storages[stored.storage] = self._read(stored.storage)
            end = stored.offset + 1
            end += sum((n - 1) * s for n, s in zip(stored.shape, stored.strides, strict=True))
            if end * stored.dtype.itemsize > len(values):
                raise ValueError("a tensor is longer than its values")
            flat = torch.frombuffer(values, dtype=torch.uint8)
            flat = flat[: end * stored.dtype.itemsize].view(stored.dtype)
            tensor = flat.as_strided(stored.shape, stored.strides, stored.offset)
        else:
            tensor = torch.empty(stored.shape, dtype=stored.dtype)
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        self._tensors[stored] = tensor
        return tensor


def check_archive(path: Path) -> None:
    """Check what a zip file declares, before anything of it is read.

    Raises:
        ValueError: It has too many entries, or they unpack to much more than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 65_536 - 22, 0))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < 22:
            raise ValueError("the archive has no end")
        count, length = struct.unpack_from("<HI", tail, at + 10)
        if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # zip64
            # Readers differ: some take the record that this names, others the one before it.
            stated = struct.unpack_from("<Q", tail, at - 12)[0]
            found = []
            for place in (min(stated, size), max(size - len(tail) + at - 76, 0)):
                file.seek(place)
                record = file.read(56)
                if record[:4] == b"PK\x06\x06" and len(record) == 56:
                    found.append(struct.unpack_from("<QQ", record, 32))
            if found:
                count, length = map(max, zip(*found, strict=True))
    if count > _MOST_ENTRIES or length > _LONGEST_DIRECTORY:
        raise ValueError("the archive has too many entries")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES or sum(e.file_size for e in entries) > 4 * size + _SLACK:
        raise ValueError("the archive unpacks to much more than the file")


def read_archive(path: Path) -> TorchFile:
    """Read a file of `torch.save` since torch 1.6; `check_archive` must have passed.

    Raises:
        ForbiddenGlobalError: Its pickle names a function that makes no tensors.
        ValueError, LookupError, OSError, zipfile.BadZipFile: It is damaged.
    """
    archive = zipfile.ZipFile(path)  # open as long as tensors can be read
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    entry = archive.getinfo(pickles[0])
    if entry.file_size > _LONGEST_PICKLE:
        raise ValueError("its pickle is too long")
    root = entry.filename[: -len("data.pkl")]
    order = archive.read(root + "byteorder") if root + "byteorder" in archive.namelist() else b""
    if order.strip() == b"big":
        raise ValueError("its numbers are big-endian")
    content = read_pickle(BytesIO(archive.read(entry)), _accepts)

    def read(key: str) -> bytearray:
        return bytearray(archive.read(f"{root}data/{key}"))

    return _interpreted(content, read, path.stat().st_size)


def read_plain(path: Path) -> Any:
    """Return what a file of `torch.save` holds: plain data, and tensors in dictionaries.

    Raises:
        ValueError, LookupError, OSError, RuntimeError, zipfile.BadZipFile: It is damaged, or holds
            something else.
    """
    check_archive(path)
    file = read_archive(path)
    for each in _dictionaries(file.content):
        for key, value in each.items():
            if isinstance(value, StoredTensor):
                each[key] = file.tensor(value)
            elif isinstance(value, (OtherTensor, Call)):
                raise ValueError("it holds more than plain data")
    return file.content


def read_pickles(path: Path) -> TorchFile:
    """Read a file of `torch.save` before torch 1.6.

    Raises:
        ForbiddenGlobalError: A pickle names a function that makes no tensors.
        ValueError, LookupError, OSError: It is damaged, or no such file.
    """
    with path.open("rb") as file:
        head = BytesIO(file.read(_LONGEST_PICKLE))
    if read_pickle(head, _accepts) != _MAGIC:
        raise ValueError("it is no file of torch.save")
    for _ in range(2):  # the version, and facts of the machine
        read_pickle(head, _accepts)
    content = read_pickle(head, _accepts)
    keys = read_pickle(head, _accepts)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its storages have no names")
    sizes: dict[str, int] = {}
    for reference in _references(content):
        key, dtype, count = _storage(reference)
        sizes[key] = count * dtype.itemsize
    places = dict(_places(path, head.tell(), keys, sizes))

    def read(key: str) -> bytearray:
        start, length = places[key]
        with path.open("rb") as file:
            file.seek(start)
            return bytearray(file.read(length))

    return _interpreted(content, read, path.stat().st_size)


def _places(
    path: Path, at: int, keys: list[str], sizes: dict[str, int]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield where the values of each storage are, and their length in bytes."""
    end = path.stat().st_size
    for key in keys:
        length = sizes[key]
        if at + 8 + length > end:
            raise ValueError("its values are cut off")
        yield key, (at + 8, length)
        at += 8 + length


def _accepts(named: Global) -> bool:
    if named in _PLAIN or named.module.partition(".")[0] in _KEEPERS:
        return True
    if named.module == "torch._utils":
        return named.name in _REBUILDS | _PARAMETERS | _OTHER_KINDS.keys()
    if named.module in ("torch", "torch.storage") and named.name in _DTYPES_OF_STORAGES:
        return True
    return named.module == "torch" and isinstance(getattr(torch, named.name, None), torch.dtype)


def _interpreted(content: Any, read: Callable[[str], bytearray], size: int) -> TorchFile:
    """Replace the calls that make tensors, in dictionaries at any depth."""
    for each in _dictionaries(content):
        for key, value in each.items():
            if isinstance(value, Call):
                each[key] = _tensor(value) or value
    return TorchFile(content, read, 4 * size + _SLACK)


def _dictionaries(content: Any) -> Iterator[dict[Any, Any]]:
    """Yield each dictionary that is reached through others, once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict) and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += each.values()


def _references(content: Any) -> Iterator[Reference]:
    """Yield all references to storages in plain data; each container is looked at once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Reference):
            yield each
        elif isinstance(each, (dict, list, tuple)) and id(each) not in seen:
            seen.add(id(each))
            waiting += each.values() if isinstance(each, dict) else each


def _tensor(call: Call) -> StoredTensor | OtherTensor | None:
    """Return the tensor that a call would make, or None if it would make something else."""
    for _ in range(4):  # a parameter of a tensor with attributes of its own
        function, arguments = call
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            return None
        if function.module == "torch._utils" and function.name in _PARAMETERS and arguments:
            inner = arguments[0]
        elif function.name == "_rebuild_from_type_v2" and len(arguments) > 2:
            inner = Call(arguments[0], arguments[2])
        else:
            break
        if not isinstance(inner, Call):
            return None
        call = inner
    if function.module != "torch._utils":
        return None
    if kind := _OTHER_KINDS.get(function.name):
        return OtherTensor(kind)
    if function.name not in _REBUILDS:
        return None
    if len(arguments) > _MOST_ARGUMENTS:
        raise ValueError("a tensor is made of too much")
    reference, offset, shape, strides, *more = arguments
    key, dtype, _ = _storage(reference)
    if function.name == "_rebuild_tensor_v3":
        dtype = _dtype(more[2])
    if dtype.is_complex:
        return OtherTensor("complex")
    shape, strides = _numbers(shape), _numbers(strides)
    if len(shape) != len(strides):
        raise ValueError("a tensor has no such shape")
    return StoredTensor(key, dtype, _numbers((offset,))[0], shape, strides)


def _storage(reference: Any) -> tuple[str, torch.dtype, int]:
    """Return the name of a storage, the type of its numbers, and their count."""
    key = reference.key if isinstance(reference, Reference) else ()
    if not isinstance(key, tuple) or not 5 <= len(key) <= 6 or key[0] != "storage" or any(key[5:]):
        raise ValueError("a tensor has no values")
    kind, name = key[1], key[2]
    if not isinstance(kind, Global) or not isinstance(name, str):
        raise ValueError("a tensor's values have no name")
    return name, _DTYPES_OF_STORAGES[kind.name], _numbers((key[4],))[0]


def _dtype(named: Any) -> torch.dtype:
    dtype = getattr(torch, named.name, None) if isinstance(named, Global) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor's numbers have no type")
    return dtype


def _numbers(values: Any) -> tuple[int, ...]:
    """Return sizes or strides; torch.Size is a call of its own."""
    if isinstance(values, Call) and isinstance(values.arguments, tuple) and values.arguments:
        values = values.arguments[0]
    if not isinstance(values, (tuple, list)) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("a tensor has no such shape")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in values):
        raise ValueError("a tensor has no such size")
    return tuple(values)
