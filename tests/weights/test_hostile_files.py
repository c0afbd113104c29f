"""Weights files made to hang or to exhaust memory: each is refused at once, in a sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vdeblur.errors import ModelError
from vdeblur.networks import catalogue
from vdeblur.networks.limits import limited_building
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.weights import load

Write = Callable[[Path], object]


def tiny() -> MIMOUNet:
    torch.manual_seed(0)
    return MIMOUNet(base=8, blocks=1).eval().requires_grad_(False)


def saved(content: Any, *, archive: bool = True) -> Write:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=archive)


def written(data: bytes) -> Write:
    return lambda path: path.write_bytes(data)


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Write:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in entries:
                archive.writestr(name, data)

    return write


def checkpoint_of(body: bytes, *values: tuple[str, bytes]) -> Write:
    """An archive of torch.save whose pickle has this body."""
    data = [(f"x/data/{key}", value) for key, value in values]
    return zipped(("x/data.pkl", b"\x80\x02" + body + b"."), ("x/version", b"3\n"), *data)


def safetensors(header: Any, data: bytes = bytes(4), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def configured(config: str, network: str = "mimo-unet") -> bytes:
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return safetensors({"__metadata__": {"network": network, "config": config}, "a": one})


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 50 << 30)


def shared_dictionaries() -> Any:
    content: Any = {"w": torch.zeros(1)}
    for _ in range(5):
        content = {f"k{i}": content for i in range(200)}
    return content


def pickled_tensor(
    count: int, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> bytes:
    """The pickle of a dictionary with one tensor, whatever it declares."""

    def number(n: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", n)

    def numbers(items: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, items)) + b"t"

    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + number(count) + b"tQ"
    build = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return (
        b"}U\x01w"
        + build
        + storage
        + number(offset)
        + numbers(shape)
        + numbers(stride)
        + (b"\x89ccollections\nOrderedDict\n)RtRs")
    )


def nested_tuple_as_key() -> bytes:
    """A dictionary's key that takes 2⁶⁰ steps to hash."""
    return b"}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s"


def growing_text() -> bytes:
    """A text that doubles with each of 60 calls."""
    return b"}U\x01w" + b"c_codecs\nencode\n" * 60 + b"U\x04aaaa" + b"U\x03hex\x86R" * 60 + b"s"


def dictionaries_of_one_list() -> bytes:
    """100,000 dictionaries, each made of the same list of 200,000 pairs."""
    pairs = b"U\x01aK\x01\x86q\x010](" + b"h\x01" * 200_000 + b"e\x85q\x020"
    return b"ccollections\nOrderedDict\nq\x000" + pairs + b"h\x00h\x02R0" * 100_000 + b"}"


def named_values(*more: bytes) -> bytes:
    """The reference to the values of a tensor, with more in it."""
    name = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x04"
    return name + b"".join(more) + b"tQ"


def one_tensor() -> bytes:
    """A tensor, in the memo as 5."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + named_values()
        + b"K\x00K\x01\x85K\x01\x85tRq\x050"
    )


def two_directories(path: Path) -> None:
    """A zip64 that names a short directory, with a long one where others look for it."""
    numbers = (20, 3, 20, 0, *(0,) * 7, 1, *(0,) * 6)
    entry = b"PK\x01\x02" + struct.pack("<4B4HL2L5H2L", *numbers) + b"x"
    count, head = 400_000, b"PK\x03\x04" + bytes(26)

    def record(entries: int, at: int) -> bytes:
        size = entries * len(entry)
        numbers = (44, 45, 45, 0, 0, entries, entries, size, at)
        return b"PK\x06\x06" + struct.pack("<Q2H2L4Q", *numbers)

    data = head + record(1, 0)
    data += entry * count + record(count, len(data))
    data += b"PK\x06\x07" + struct.pack("<LQL", 0, len(head), 1)
    ones = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data + b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, *ones))


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
FOUR = ("0", bytes(16))
HOSTILE: dict[str, Write] = {
    "one dictionary many times": saved(shared_dictionaries()),
    "one dictionary many times, old": saved(shared_dictionaries(), archive=False),
    "itself inside itself": checkpoint_of(b"}q\x00U\x01ah\x00s"),
    "a list in itself": checkpoint_of(b"]q\x00h\x00a"),
    "deep lists": checkpoint_of(b"]" * 100_000 + b"a" * 99_999),
    "deep dictionaries": checkpoint_of(b"}" + b"U\x01a}" * 100_000 + b"s" * 100_000),
    "a key that hashes forever": checkpoint_of(nested_tuple_as_key()),
    "a text that doubles": checkpoint_of(growing_text()),
    "dictionaries of one list": checkpoint_of(dictionaries_of_one_list()),
    "pairs of one list": checkpoint_of(
        b"}](" + b"N" * 300_000 + b"eq\x010](" + b"h\x01" * 800_000 + b"eq\x020U\x01w"
        b"ccollections\nOrderedDict\nh\x02\x85Rs"
    ),
    "a number as key that hashes long": checkpoint_of(
        b"}\x8b" + struct.pack("<i", 1 << 22) + b"\x7f" * (1 << 22) + b"q\x010"
        + b"h\x01Ns" * 400_000
    ),
    "values with a long name": checkpoint_of(
        b"}(" + named_values(b"\x89" * 500_000) + b"K\x00))tq\x040"
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x020"
        + b"".join(b"M%sh\x02h\x04Rs" % struct.pack("<H", n) for n in range(60_000)), FOUR
    ),
    "one long name many times": checkpoint_of(
        b"}X" + struct.pack("<I", 4 << 20) + b"." * (4 << 20) + b"q\x010" + one_tensor()
        + b"".join(b"X\x05\0\0\0%05d}h\x01h\x05ss" % n for n in range(20_000)), FOUR
    ),
    "many groups of one tensor": checkpoint_of(
        b"}" + one_tensor()
        + b"".join(b"X\x06\0\0\0%06d}U\x0eEncoder.0.biash\x05ss" % n for n in range(150_000)), FOUR
    ),
    "two directories": two_directories,
    "more tensors than a network has": written(
        safetensors({f"{n:x}": ONE | {"shape": [0], "data_offsets": [0, 0]}
                     for n in range(200_000)}, b"")
    ),
    "an array of 10 GB": checkpoint_of(
        b"}U\x01wcbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0bT\x02\x85Rs"
    ),
    "a long text that is not there": checkpoint_of(b"}X\xff\xff\xff\x7fabc"),
    "a large memo": checkpoint_of(b"}r\xff\xff\xff\x7fU\x01ws"),
    "many steps": checkpoint_of(b"N0" * 3_000_000),
    "elements that are one": checkpoint_of(pickled_tensor(4, 0, (1 << 34,), (0,)), FOUR),
    "strides far outside": checkpoint_of(pickled_tensor(4, 0, (2, 2), (1 << 40, 1)), FOUR),
    "an offset outside": checkpoint_of(pickled_tensor(4, 1 << 40, (1,), (1,)), FOUR),
    "a negative offset": checkpoint_of(pickled_tensor(4, -8, (1,), (1,)), FOUR),
    "a negative size": checkpoint_of(pickled_tensor(4, 0, (-1,), (1,)), FOUR),
    "more numbers than values": checkpoint_of(pickled_tensor(1 << 20, 0, (1 << 20,), (1,)), FOUR),
    "values that are not there": checkpoint_of(pickled_tensor(4, 0, (4,), (1,))),
    "too many dimensions": checkpoint_of(pickled_tensor(4, 0, (1,) * 1000, (1,) * 1000), FOUR),
    "sparse": saved({"w": torch.eye(3).to_sparse()}),
    "meta": saved({"w": torch.empty(1 << 40, device="meta")}),
    "complex": saved({"w": torch.zeros(2, dtype=torch.complex64)}),
    "names nested deep": saved({"net." * 3000 + x: torch.zeros(1) for x in "ab"}),
    "a name of a megabyte": saved({"\x1b[31m" + "x" * 1_000_000: torch.zeros(1)}),
    "a bomb": zipped(("x/data.pkl", bytes(1 << 28)), method=zipfile.ZIP_DEFLATED),
    "a bomb of arrays": zipped(("w.npy", bytes(1 << 28)), method=zipfile.ZIP_DEFLATED),
    "many entries": written(
        b"PK\x03\x04" + b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 9, 9, 1 << 30, 4, 0)
    ),
    "names outside": zipped(("/x/data.pkl", b"\x80\x02}."), ("../../x/data/0", b"")),
    "an archive without tables": zipped(("net.pth", b"x")),
    "two pickles": zipped(("x/data.pkl", b"}."), ("y/data.pkl", b"}.")),
    "no end of the archive": written(b"PK\x03\x04" + bytes(1000)),
    "blocks by the million": written(configured('{"base": 64, "blocks": 100000000}')),
    "widths by the million": written(configured('{"base": 100000000, "blocks": 1}')),
    "a fraction": written(configured('{"base": 8.5, "blocks": 1}')),
    "not a number": written(configured('{"base": NaN, "blocks": Infinity}')),
    "a negative number": written(configured('{"base": -8, "blocks": -1}')),
    "words for numbers": written(configured('{"base": "wide", "blocks": true}')),
    "a long number": written(configured('{"base": 1' + "0" * 5000 + "}")),
    "an unknown setting": written(configured('{"kernel": 1000000000}')),
    "many scales": written(configured('{"scales": 16000}', "pss-nsc")),
    "many levels": written(configured('{"scales": 16000}', "mimo-unet-cfa")),
    "many cabs": written(configured('{"num_cab": 16000}', "mprnet")),
    "a deep configuration": written(configured("[" * 100_000)),
    "a deep setting": written(configured('{"base": ' + "[" * 100_000)),
    "a header of 2^63": written(safetensors({"a": ONE}, length=1 << 63)),
    "a header of a gigabyte": written(safetensors({"a": ONE}, length=1 << 30)),
    "a header that is deep": written(safetensors(b'{"a":' + b"[" * 100_000)),
    "overlapping values": written(safetensors({"a": ONE, "b": ONE})),
    "values outside": written(safetensors({"a": ONE | {"data_offsets": [0, 1 << 40]}})),
    "a size that overflows": written(safetensors({"a": ONE | {"shape": [1 << 40, 1 << 40]}})),
    "an unknown type": written(safetensors({"a": ONE | {"dtype": "F7"}})),
    "a header of a wrong type": written(safetensors({"a": [1]})),
    "one name twice": written(safetensors(b'{"a":' + json.dumps(ONE).encode() + b',"a":[]}')),
    "only zeros": sparse,
    "gguf": written(b"GGUF\x03\x00\x00\x00" + bytes(100)),
    "onnx": written(b"\x08\x08\x12\x07pytorch\x1a\x052.1.0"),
    "gzip": written(b"\x1f\x8b\x08" + bytes(100)),
    "an index of parts": written(b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
    "a login page": written(b"<!-- login -->\n<html><body>Sign in</body></html>"),
    "a pointer": written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}  # fmt: skip


def peak() -> int:
    """The most memory that this process has had, in bytes; 0 where nobody knows."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    HOSTILE[kind](path)
    before = peak()
    start = time.process_time()
    with pytest.raises(ModelError) as caught:
        load(None, path)
    assert time.process_time() - start < 30  # machines of others are slow
    assert peak() - before < 400e6
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600 + len(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        with pytest.raises(ModelError, match="no regular file"):
            load(None, path)


@pytest.mark.parametrize("archive", [True, False])
def test_changed_bytes_and_cut_ends_never_escape_as_other_errors(
    archive: bool, tmp_path: Path
) -> None:
    out = io.BytesIO()
    content = {"state_dict": tiny().state_dict(), "epoch": 3, "lr": [1e-4, 0.5], "name": "x"}
    torch.save(content, out, _use_new_zipfile_serialization=archive)
    whole = out.getvalue()
    # Values of tensors are less of a target than the tables around them.
    table = whole[:3000] + whole[-8000:] if archive else whole[:12_000]
    random = np.random.default_rng(1)
    path = tmp_path / "x.pth"
    for turn in range(150):
        data = bytearray(whole)
        for _ in range(random.integers(1, 8)):
            at = int(random.integers(len(table)))
            at = at if not archive or at < 3000 else len(whole) - len(table) + at
            data[at] = int(random.integers(256))
        path.write_bytes(data[: int(random.integers(len(data)))] if turn % 3 == 0 else data)
        with suppress(ModelError):
            load(None, path)


# --- what must go on working ---------------------------------------------------------------------


def averaged() -> Any:
    return torch.optim.swa_utils.AveragedModel(tiny()).state_dict()


def state(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tiny().state_dict().items()}


class Holder(torch.nn.Module):
    """A network that is compiled and wrapped, as training programs do."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny()
        self.register_buffer("num_batches_tracked", torch.tensor(5))


USUAL: dict[str, Callable[[], Any]] = {
    "an average": averaged,
    "an average under a key": lambda: {"swa": averaged(), "epoch": 3},
    "timm's average": lambda: {"state_dict": {}, "state_dict_ema": state(), "arch": "x"},
    "ema_pytorch": lambda: {
        "initted": torch.tensor(True),
        "step": torch.tensor([7]),
        **state("online_model."),
        **state("ema_model."),
    },
    "lightning": lambda: {
        "state_dict": state("model.") | {"loss.weight": torch.ones(3)},
        "hyper_parameters": {"root": Path("x"), "lr": 1e-3},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    "fabric": lambda: {"model": state("_forward_module._orig_mod.")},
    "deepspeed": lambda: {"module": state(), "ds_version": "0.14"},
    "a buffer of batches": lambda: Holder().state_dict(),
    "optimizer beside": lambda: {
        "model": state(),
        "optimizer": torch.optim.Adam(tiny().requires_grad_(True).parameters()).state_dict(),
    },
    "bf16": lambda: {k: t.bfloat16() for k, t in state().items()},
    "parameters": lambda: {k: torch.nn.Parameter(t) for k, t in state().items()},
    "strided": lambda: {k: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t
                        for k, t in state().items()},
    "numpy's numbers": lambda: {"params": state(), "psnr": np.float32(3), "log": np.arange(3.0)},
    "a type": lambda: {"params": state(), "dtype": torch.float32, "device": torch.device("cpu")},
}  # fmt: skip


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kind", USUAL)
def test_usual_checkpoints_are_read(kind: str, archive: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(USUAL[kind](), path, _use_new_zipfile_serialization=archive)
    network = load(None, path).network
    for name, tensor in tiny().state_dict().items():
        assert torch.allclose(network.state_dict()[name], tensor, rtol=1e-2)


def test_a_compressed_archive_is_read(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save(state(), plain)
    with zipfile.ZipFile(plain) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    zipped(*entries, method=zipfile.ZIP_DEFLATED)(packed)
    assert load(None, packed).description == load(None, plain).description


def test_pickles_of_every_protocol_are_data() -> None:
    from vdeblur.weights.pickles import read_pickle

    content = {"a": [1, 2.5, "x", None, True, b"y", (1, 2, 3, 4)], 7: {"z": -1}, "set": {1}}
    for protocol in range(5):
        read = read_pickle(io.BytesIO(pickle.dumps(content, protocol)), lambda _: True)
        assert [*read["a"][:5], read["a"][6]] == [1, 2.5, "x", None, True, (1, 2, 3, 4)]
        assert read[7] == {"z": -1}


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({name: tensor.to(torch.int8) for name, tensor in state().items()}, path)
    with pytest.raises(ModelError, match="quantized weights are not read"):
        load(None, path)


def test_building_is_limited_in_this_thread_alone() -> None:
    with limited_building(10, 1_000_000), pytest.raises(ValueError, match="far more parameters"):
        tiny()
    tiny()
    with pytest.raises(ModelError, match="whole number from 0 to"):
        catalogue.build("mimo-unet", {"base": 8, "blocks": 10**8})
