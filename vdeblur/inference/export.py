"""Export a network as an ONNX, OpenVINO or TorchScript file for other programs. Knows no video.

The graph maps "rgb" to "restored", both (N, 3, H, W) fp32 RGB in [0, 1], the second not clamped; N,
H and W are free, H and W multiples of the network's `size_multiple`. A guided network takes
"rgb_and_guidance", (N, 3 + CHANNELS, H, W), as `vdeblur.networks.taps.with_guidance` makes it:
sampling along the motion is five times as fast outside the graph. The file's metadata describe the
network, under METADATA_PREFIX.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.networks import taps
from vdeblur.networks.base import traits_of
from vdeblur.system.files import Temporary, check_target, remove_leftovers
from vdeblur.system.optional import optional, the_core
from vdeblur.system.renaming import move
from vdeblur.version import __version__

Format = Literal["onnx", "openvino", "torchscript"]

SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}
#: The newest opset that every ONNX Runtime since 1.12 (2022) runs; no network here gains from a
#: later one.
OPSET = 17
#: Opsets that torch's exporter writes and that have the networks' operators.
OPSETS = range(11, 21)
#: Largest absolute difference to torch, relative to the output's range where that is above 1.
TOLERANCE = 1e-4
METADATA_PREFIX = "vdeblur."
_TRACED = (2, 64, 96)  # pictures, height, width; sizes are rounded up to the network's multiple
_CHECKED = (3, 101, 137)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: The files, the graph first.
        format: Their format.
        opset: Of ONNX, else None.
        frame: N, H and W of the random input on which the export was checked.
        difference: Largest absolute difference to torch on it.
        tolerance: Largest difference that would have been accepted.
        metadata: The texts in the file.
    """

    files: tuple[Path, ...]
    format: Format
    opset: int | None
    frame: tuple[int, int, int]
    difference: float
    tolerance: float
    metadata: dict[str, str]


def export(
    network: nn.Module,
    destination: str | Path,
    *,
    format: Format,
    opset: int = OPSET,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    sources: Sequence[Path] = (),
) -> Exported:
    """Write a network as a file, after checking it.

    The file is loaded again in its own runtime and compared with torch on a random input of another
    size than the traced one; it takes its name only if the two agree to TOLERANCE.

    Args:
        network: On the CPU, fp32, for inference.
        destination: The file; OpenVINO's weights go beside its .xml, as .bin.
        format: "onnx", "openvino" or "torchscript".
        opset: Of ONNX.
        metadata: Texts to keep in the file besides those of `describe`.
        overwrite: Whether an existing file may be replaced.
        sources: Files that are not replaced in any case.

    Raises:
        UsageError: A package is missing, the opset is impossible or the file's ending is wrong.
        OutputError: The file exists or cannot be written.
        ModelError: The network cannot be exported, or its export computes another picture.
    """
    if format not in SUFFIXES:
        raise UsageError(f"format is {format!r}: choose {', '.join(SUFFIXES)}")
    target = Path(destination)
    if format == "openvino" and target.suffix != ".xml":
        raise UsageError(f"{target} cannot hold an OpenVINO network: give a name ending in .xml")
    files = (target, target.with_suffix(".bin")) if format == "openvino" else (target,)
    for file in files:
        check_target(file, overwrite=overwrite, sources=sources)
    network = network.eval()
    texts = describe(network) | dict(metadata or {})
    # Fails for a missing package before anything is computed.
    run = _RUNTIMES[format]()
    try:
        remove_leftovers(target.parent)
        with Temporary(target.parent, folder=True) as held:
            parts = tuple(held.path / f"network{file.suffix}" for file in files)
            _WRITERS[format](network, parts[0], opset, texts)
            frame = legal_size(network, *_CHECKED)
            difference, tolerance = compare(
                network, lambda x: run(parts[0], x), random_input(network, *frame)
            )
            if not difference <= tolerance:
                raise ModelError(
                    f"the {format} network differs from torch by {difference:.1e} on a frame of "
                    f"{frame[2]}×{frame[1]}, more than {tolerance:.0e}: nothing was written; "
                    "try another `format` or `opset`"
                )
            held.flush()
            for part, file in reversed(list(zip(parts, files, strict=True))):
                move(part, file, replace=overwrite)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written ({error.strerror or error}): choose another place"
        ) from error
    return Exported(
        files, format, opset if format == "onnx" else None, frame, difference, tolerance, texts
    )


def describe(network: nn.Module) -> dict[str, str]:
    """Return the metadata of an exported network: what it is, and what its input must be."""
    traits = traits_of(network)
    texts = {
        "version": __version__,
        "network": type(network).__name__,
        "config": json.dumps(traits.config, sort_keys=True),
        "size_multiple": str(traits.size_multiple),
        "parameters_sha256": parameters_sha256(network),
        "input": f"{input_name(network)}: (N, {input_channels(network)}, H, W) float32 RGB in 0..1"
        + (", then its guidance" if input_channels(network) > 3 else ""),
        "output": "restored: the same shape, not clamped",
    }
    return texts | ({"stage": traits.stage} if traits.stage else {})


def parameters_sha256(network: nn.Module) -> str:
    """Return the sha256 of names, shapes, types and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compare(
    network: Callable[[Tensor], Tensor], run: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[float, float]:
    """Compare run(x) with network(x).

    Args:
        network: The reference.
        run: What is compared with it.
        x: An input of the network, see `random_input`.

    Returns:
        (largest absolute difference, tolerance). The difference is infinite for an output of
        another shape or one that is not finite; the tolerance is TOLERANCE times the range of
        network(x), at least TOLERANCE.
    """
    with torch.no_grad():
        expected = network(x)
    output = run(x)
    span = max(1.0, float(expected.max() - expected.min()))
    if output.shape != expected.shape:
        return float("inf"), TOLERANCE * span
    difference = float((output - expected).abs().max())
    return difference if difference == difference else float("inf"), TOLERANCE * span


def to_onnx(
    network: nn.Module, file: Path, *, opset: int = OPSET, output: str = "restored"
) -> None:
    """Write an ONNX graph of free batch, height and width. Needs the package onnx.

    Args:
        network: What is exported.
        file: Where to.
        opset: One of OPSETS.
        output: Name of the graph's output.

    Raises:
        UsageError: The opset is not one of OPSETS.
        ModelError: torch cannot export the network.
    """
    if opset not in OPSETS:
        raise UsageError(
            f"opset is {opset}: choose one of {OPSETS[0]} to {OPSETS[-1]} (default {OPSET})"
        )
    # torch's exporter by tracing takes half a second and needs onnx alone; the newer one takes 20 s
    # and needs onnxscript. Before torch 2.5 there was no choice.
    exporter: Any = torch.onnx.export
    by_tracing = {"dynamo": False} if "dynamo" in inspect.signature(exporter).parameters else {}
    names = (input_name(network), output)
    with _tracing():
        try:
            exporter(
                network,
                (random_input(network, *legal_size(network, *_TRACED)),),
                str(file),
                opset_version=opset,
                input_names=names[:1],
                output_names=names[1:],
                dynamic_axes={name: {0: "n", 2: "height", 3: "width"} for name in names},
                **by_tracing,
            )
        except RuntimeError as error:
            raise ModelError(
                f"the network cannot become ONNX of opset {opset}: {_line(error)}"
            ) from error


def to_openvino(
    network: nn.Module, *, output: str = "restored", example: Tensor | None = None
) -> Any:
    """Return an `openvino.Model` of free batch, height and width. Needs the package openvino.

    Args:
        network: What is converted.
        output: Name of the model's output.
        example: An input (N, C, H, W), for a module that takes something else than pictures.

    Raises:
        UsageError: The package is missing.
        ModelError: OpenVINO cannot convert the network.
    """
    openvino = optional("openvino", extra="openvino", purpose="converting to OpenVINO")
    channels = input_channels(network) if example is None else example.shape[1]
    shape = openvino.PartialShape([-1, channels, -1, -1])
    with _tracing():
        traced = to_torchscript(network, example)
        try:
            model = openvino.convert_model(traced, input=[shape])
        except Exception as error:  # its converter raises bare exceptions of its own
            raise ModelError(f"the network cannot become OpenVINO: {_line(error)}") from error
    # Added, not set: a network that returns its input has a single tensor for both.
    model.inputs[0].get_tensor().add_names({input_name(network)})
    model.outputs[0].get_tensor().add_names({output})
    return model


def to_torchscript(network: nn.Module, example: Tensor | None = None) -> Any:
    """Return a traced `torch.jit.ScriptModule` of free batch, height and width.

    Args:
        network: What is traced.
        example: An input; None takes `random_input`.

    Raises:
        ModelError: torch cannot trace the network.
    """
    pictures = example
    if pictures is None:
        pictures = random_input(network, *legal_size(network, *_TRACED))
    trace: Any = torch.jit.trace  # it has no types
    with _tracing():
        try:
            return trace(network, pictures, check_trace=False)
        except RuntimeError as error:
            raise ModelError(f"the network cannot be traced: {_line(error)}") from error


def random_pictures(count: int, height: int, width: int) -> Tensor:
    """Return pictures (N, 3, H, W) in [0, 1] of soft spots and hard squares, always the same.

    On plain noise a trained deblurrer does next to nothing, and every export would agree with it.
    """
    dice = torch.Generator().manual_seed(0)
    spots, squares = (
        torch.rand(count, 3, -(-height // side), -(-width // side), generator=dice)
        for side in (8, 16)
    )
    size = (height, width)
    soft = F.interpolate(spots, size=size, mode="bilinear", align_corners=False)
    return (soft + F.interpolate(squares, size=size)) / 2


def random_input(network: nn.Module, count: int, height: int, width: int) -> Tensor:
    """Return `random_pictures` as the network takes them: with guidance for a guided one."""
    pictures = random_pictures(count, height, width)
    if not traits_of(network).guided:
        return pictures
    return random_guided(pictures)


def random_guided(pictures: Tensor) -> Tensor:
    """Add made-up guidance to pictures.

    Each place moves, and neighboring frames show it some pixels away, filtered another way.

    Args:
        pictures: (N, 3, H, W) RGB in [0, 1].

    Returns:
        The input of a guided network, (N, 3 + CHANNELS, H, W).
    """
    motion = random_motion(2 * len(pictures))
    here, there = motion[: len(pictures)], motion[len(pictures) :]
    luma = taps.luma_of(pictures)
    added = taps.filtered(taps.guidance(luma, there))
    before, after = (
        taps.neighbour(luma, luma, added, there, way / 4) for way in (here[:, :2], here[:, 2:])
    )
    return taps.with_guidance(pictures, here, (before, after))


def random_motion(count: int) -> Tensor:
    """Return motion (N, 4, 3, 4) of some 10 pixels that varies from place to place; not random."""
    dice = torch.Generator().manual_seed(1)
    return torch.randn(count, taps.MOTION_CHANNELS, 3, 4, generator=dice) * 8


def input_channels(network: nn.Module) -> int:
    """Return the number of channels of the network's input."""
    return 3 + taps.CHANNELS if traits_of(network).guided else 3


def input_name(network: nn.Module) -> str:
    """Return the name of an exported graph's input."""
    return "rgb_and_guidance" if traits_of(network).guided else "rgb"


@contextmanager
def _tracing() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings():
        # torch deprecates its tracer, and warns of every size that Python sees; whether that
        # matters is found by the check on another size.
        warnings.simplefilter("ignore")
        yield


def _write_onnx(network: nn.Module, file: Path, opset: int, metadata: Mapping[str, str]) -> None:
    onnx = optional("onnx", extra="onnx", purpose="`format='onnx'`")
    to_onnx(network, file, opset=opset)
    model = onnx.load(file)
    model.producer_name, model.producer_version = "vdeblur", __version__
    onnx.helper.set_model_props(model, {METADATA_PREFIX + k: v for k, v in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def _write_openvino(
    network: nn.Module, file: Path, opset: int, metadata: Mapping[str, str]
) -> None:
    openvino = optional("openvino", extra="openvino", purpose="`format='openvino'`")
    model = to_openvino(network)
    for key, value in metadata.items():
        model.set_rt_info(value, [METADATA_PREFIX.rstrip("."), key])
    openvino.save_model(model, file, compress_to_fp16=False)


def _write_torchscript(
    network: nn.Module, file: Path, opset: int, metadata: Mapping[str, str]
) -> None:
    traced = to_torchscript(network)
    with _tracing():
        kept = {METADATA_PREFIX + key: value for key, value in metadata.items()}
        torch.jit.save(traced, str(file), _extra_files=kept)


def _onnx_runtime() -> Callable[[Path, Tensor], Tensor]:
    optional("onnx", extra="onnx", purpose="`format='onnx'`")
    runtime = optional("onnxruntime", extra="onnx", purpose="checking an ONNX file")

    def run(file: Path, x: Tensor) -> Tensor:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; warnings would go to standard error
        try:
            session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        except Exception as error:  # its exceptions share no class of their own
            raise ModelError(f"ONNX Runtime cannot run the export: {_line(error)}") from error

    return run


def _openvino_runtime() -> Callable[[Path, Tensor], Tensor]:
    openvino = optional("openvino", extra="openvino", purpose="`format='openvino'`")

    def run(file: Path, x: Tensor) -> Tensor:
        try:
            # Where the CPU has bf16 units, OpenVINO would use them unasked.
            compiled = the_core(openvino).compile_model(
                file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            )
            return torch.from_numpy(compiled(x.numpy())[0].copy())
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run the export: {_line(error)}") from error

    return run


def _torchscript_runtime() -> Callable[[Path, Tensor], Tensor]:
    load: Any = torch.jit.load  # it has no types

    def run(file: Path, x: Tensor) -> Tensor:
        with _tracing():
            try:
                restored: Tensor = load(str(file))(x)
            except RuntimeError as error:
                raise ModelError(f"TorchScript cannot run the export: {_line(error)}") from error
        return restored

    return run


_WRITERS: dict[str, Callable[[nn.Module, Path, int, Mapping[str, str]], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchscript": _write_torchscript,
}
_RUNTIMES: dict[str, Callable[[], Callable[[Path, Tensor], Tensor]]] = {
    "onnx": _onnx_runtime,
    "openvino": _openvino_runtime,
    "torchscript": _torchscript_runtime,
}


def legal_size(network: nn.Module, count: int, height: int, width: int) -> tuple[int, int, int]:
    """Round H and W up to odd multiples of the network's `size_multiple`.

    Odd, so that a network that needs a larger multiple than it says fails.
    """
    multiple = traits_of(network).size_multiple

    def legal(size: int) -> int:
        return (-(-size // multiple) | 1) * multiple

    return count, legal(height), legal(width)


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(". :") if text else type(error).__name__
