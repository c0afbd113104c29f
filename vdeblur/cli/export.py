"""vdeblur export: write a network as ONNX, OpenVINO or TorchScript."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vdeblur.cli.options import add_network_options
from vdeblur.cli.output import say
from vdeblur.errors import UsageError

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.inference.export import Format

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}
_OPSET = 17


def add(commands: Commands) -> None:
    """Register the subcommand."""
    export = commands.add_parser(
        "export",
        help="write a network as ONNX, OpenVINO or TorchScript",
        description="Write a network for other programs: any batch, height and width, in fp32. "
        "The file is checked against torch on a frame of another size before it takes its name.",
    )
    add_network_options(export, "model", "weights", "stage")
    export.add_argument(
        "--format", choices=tuple(_SUFFIXES), help="format (default: by the extension of FILE)"
    )
    export.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="output file (default: the name of the network with .onnx, .xml and .bin, or .pt)",
    )
    export.add_argument(
        "--opset", type=int, metavar="N", help=f"version of the ONNX operators (default {_OPSET})"
    )
    export.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace an output that exists"
    )
    export.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    format, output = _format_and_output(args)
    if args.opset is not None and format != "onnx":
        raise UsageError("--opset is ONNX's alone: leave it out, or use --format onnx")

    from vdeblur.inference.export import export
    from vdeblur.networks import Network
    from vdeblur.system.files import sha256_of
    from vdeblur.weights import load

    loaded = load(args.model, args.weights)
    if args.stage is not None:
        stages = loaded.network.stages if isinstance(loaded.network, Network) else ("full",)
        if args.stage not in stages:
            raise UsageError(f"--stage is {args.stage!r}: {loaded.name} has {', '.join(stages)}")
        if isinstance(loaded.network, Network):
            loaded.network.stage = args.stage
    facts = {"model": loaded.name}
    if loaded.path is not None:
        facts["weights_sha256"] = sha256_of(loaded.path)
    output = output or Path(f"{loaded.name}{_SUFFIXES[format]}")
    done = export(
        loaded.network,
        output,
        format=format,
        opset=_OPSET if args.opset is None else args.opset,
        metadata=facts,
        overwrite=args.overwrite,
        sources=[] if loaded.path is None else [loaded.path],
    )
    size = sum(file.stat().st_size for file in done.files) / 1e6
    opset = f" opset {done.opset}" if done.opset else ""
    count, height, width = done.frame
    say(
        f"{' and '.join(map(str, done.files))}: {loaded.name} as {format}{opset}, {size:.1f} MB; "
        f"any batch, height and width in multiples of {done.metadata['size_multiple']}"
    )
    say(
        f"  differs from torch by {done.difference:.1e} at most "
        f"(tolerance {done.tolerance:.0e}; {count} random frames of {width}×{height})"
    )
    for note in loaded.notes:
        say(f"  note: {note}")
    if loaded.ensemble:
        say("  note: one pass of the network; averaging its rotations is left to who runs it")
    return 0


def _format_and_output(args: argparse.Namespace) -> tuple[Format, Path | None]:
    """Return the format, if need be from the extension of the output, and the output if named."""
    by_suffix = {suffix: name for name, suffix in _SUFFIXES.items()}
    format = args.format
    if format is None:
        if args.output is None:
            raise UsageError(
                "what to write is missing: give --format, or -o FILE.onnx, .xml or .pt"
            )
        format = by_suffix.get(Path(args.output).suffix.lower())
        if format is None:
            raise UsageError(
                f"the ending of {args.output} says no format: give --format {', '.join(_SUFFIXES)}"
            )
    if args.output is not None:
        other = by_suffix.get(Path(args.output).suffix.lower(), format)
        if other != format:
            raise UsageError(
                f"{args.output} ends as {other} does, and --format is {format}: leave --format "
                f"out, or end the name in {_SUFFIXES[format]}"
            )
    return format, Path(args.output) if args.output else None
