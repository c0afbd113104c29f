"""Options that several commands share, and the objects that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

from vdeblur.cli.output import say
from vdeblur.cli.values import bitrate, number_or, rate, seconds
from vdeblur.errors import UsageError

if TYPE_CHECKING:
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.media.encoders import EncodeOptions

    # argparse has no public names for these.
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001
    Options = argparse._ActionsContainer  # noqa: SLF001  a parser or a group of one

# The options by name, each with the arguments of add_argument.
_NETWORK: dict[str, dict[str, Any]] = {
    "model": {
        "metavar": "NAME",
        "help": "network (default mimo-unet-guided; with --weights, the network they belong to)",
    },
    "weights": {
        "metavar": "FILE",
        "help": "checkpoint, or the name of weights added with `vdeblur models add`",
    },
    "device": {
        "default": "auto",
        "metavar": "NAME",
        "help": "where the network runs: cpu, cuda, cuda:1, rocm, xpu, mps …; auto uses a GPU if "
        "there is one",
    },
    "precision": {
        "default": "auto",
        "choices": ("auto", "fp32", "fp16", "bf16", "int8"),
        "help": "number format of the computation: auto is fp16 on CUDA, ROCm and XPU, bf16 on "
        "CPUs with instructions for it, fp32 elsewhere; int8 needs OpenVINO on a CPU",
    },
    "backend": {
        "default": "auto",
        "choices": (
            *("auto", "torch", "openvino", "onnxruntime"),
            *("cudagraphs", "compile", "tensorrt"),
        ),
        "help": "runtime of the network: auto is the one that `vdeblur bench --tune` found "
        "fastest here, else OpenVINO on a CPU if installed, cudagraphs on CUDA, else torch; "
        "cudagraphs, compile and tensorrt need a GPU, and the last two some time to start",
    },
    "batch": {
        "type": number_or("auto"),
        "default": "auto",
        "metavar": "N",
        "help": "frames per batch (default auto: on a GPU, one of 1920x1080, two of 1280x720, 8 at "
        "most; on a CPU, one per thread at most)",
    },
    "tile": {
        "type": number_or("auto", "none"),
        "default": "auto",
        "metavar": "PIXELS",
        "help": "side of the square that the network processes at once, to save memory; none is "
        "the whole picture (default auto: the whole picture if it fits)",
    },
    "halo": {
        "type": number_or("auto", "full"),
        "default": "auto",
        "metavar": "PIXELS",
        "help": "pixels computed around each tile and discarded; full makes tiles exact "
        "(default auto)",
    },
    "stage": {
        "metavar": "NAME",
        "help": "use another output of the network: mprnet has 3, 2 and 1 (the cheapest), "
        "mimo-unet-cfa has full and fused",
    },
    "ensemble": {
        "action": argparse.BooleanOptionalAction,
        "help": "average over eight rotations and reflections: better, and eight times slower "
        "(default for mimo-unet-plusplus)",
    },
    "steady": {
        "action": argparse.BooleanOptionalAction,
        "help": "average out flicker between the restored frames of a video, along their motion "
        "(default for networks that are guided by motion)",
    },
}

_ENCODE: dict[str, dict[str, Any]] = {
    "encoder": {
        "default": "auto",
        "metavar": "NAME",
        "help": "libav encoder, nvenc, or auto: the codec of the source (default)",
    },
    "crf": {
        "type": float,
        "metavar": "N",
        "help": "constant quality, on the scale of the encoder; lower is better",
    },
    "bitrate": {
        "type": bitrate,
        "metavar": "RATE",
        "help": "bits per second, such as 12M",
    },
    "preset": {
        "metavar": "NAME",
        "help": "speed preset of the encoder, such as fast or slow of libx264",
    },
    "pix_fmt": {"metavar": "NAME", "help": "pixel format to encode, such as yuv420p10le"},
}

_READ: dict[str, dict[str, Any]] = {
    "start": {
        "type": seconds,
        "metavar": "TIME",
        "help": "begin here: seconds or [HH:]MM:SS",
    },
    "duration": {
        "type": seconds,
        "metavar": "TIME",
        "help": "process this much: seconds or [HH:]MM:SS",
    },
    "framerate": {
        "type": rate,
        "metavar": "R",
        "help": "frames per second of an image sequence (default 25)",
    },
    "start_number": {
        "type": int,
        "metavar": "N",
        "help": "first number of an image sequence (default: the lowest that exists)",
    },
    "hwaccel": {
        "metavar": "TYPE",
        "help": "decode in hardware: cuda, qsv, vaapi, videotoolbox …",
    },
}


def _add(
    parser: Options,
    table: dict[str, dict[str, Any]],
    names: tuple[str, ...],
) -> None:
    for name in names or table:
        parser.add_argument(f"--{name.replace('_', '-')}", **table[name])


def add_network_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the options that choose a network and how it runs, for `deblurrer_of`.

    Args:
        parser: the parser of a command.
        names: the options to add, as attributes of the parsed arguments; all if none is named.
    """
    _add(parser, _NETWORK, names)


def add_exposure_option(parser: argparse.ArgumentParser) -> None:
    """Add --exposure, for networks that are guided by motion."""
    parser.add_argument(
        "--exposure",
        default="auto",
        metavar="TIME",
        help="exposure time: seconds such as 1/60 or 0.004s, a share of the frame interval such as "
        "0.5, or auto: as recorded by a GoPro, else estimated from the pictures (default); for "
        "networks that are guided by motion",
    )


def add_strength_option(parser: argparse.ArgumentParser) -> None:
    """Add --strength."""
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="share of the correction to apply: 0 keeps the source, 1 applies all (default 1)",
    )


def add_read_options(parser: Options, *names: str) -> None:
    """Add options for reading a video: all of them, or those in `names`."""
    _add(parser, _READ, names)


def add_encode_options(parser: Options, *names: str) -> None:
    """Add options of the encoder, for `encode_options_of`: all of them, or those in `names`."""
    _add(parser, _ENCODE, names)


def add_layout_option(parser: Options) -> None:
    """Add --layout, for folders of pairs."""
    parser.add_argument(
        "--layout",
        default="auto",
        metavar="NAME",
        help="layout of a folder of pairs, if it is not recognized: gopro, reds …",
    )


def add_pairs_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name pairs of blurred and sharp pictures or videos."""
    from pathlib import Path

    parser.add_argument(
        "--pairs",
        nargs="+",
        action="append",
        required=True,
        type=Path,
        metavar=("DIR|BLURRED", "SHARP"),
        help="a folder of pairs (GoPro, REDS, HIDE, RealBlur, DVD, BSD, or blur/ beside sharp/); "
        "or two folders with files of the same names; or two videos; repeatable",
    )
    add_layout_option(parser)
    parser.add_argument(
        "--split",
        choices=("auto", "train", "val", "test"),
        default="auto",
        help="part to score of a folder that has splits (default: test, else val)",
    )


def network_option_given(args: argparse.Namespace) -> str | None:
    """Return the first option of `add_network_options` that was given, as it is typed."""
    for name in _NETWORK:
        if getattr(args, name) not in (None, "auto"):
            return f"--{name}"
    return None


def tile_of(args: argparse.Namespace) -> int | Literal["auto"] | None:
    """Return --tile as `Deblurrer` takes it: None for the whole picture."""
    return None if args.tile == "none" else args.tile


def deblurrer_of(args: argparse.Namespace, **more: Any) -> Deblurrer:
    """Return the Deblurrer of the options of `add_network_options`, and say what it runs on.

    `more` goes to it as well.
    """
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.inference.devices import described

    deblurrer = Deblurrer(
        args.model,
        weights=args.weights,
        device=args.device,
        precision=args.precision,
        backend=args.backend,
        tile=tile_of(args),
        halo=args.halo,
        stage=args.stage,
        ensemble=args.ensemble,
        steady=args.steady is not False,
        **more,
    )
    if getattr(args, "quiet", False) or getattr(args, "json", False):
        return deblurrer
    if not deblurrer.changes_nothing:
        where = described(deblurrer.device)
        say(f"restoring on {where}, {deblurrer.precision}, {deblurrer.backend}")
    # The report says it again, after hours perhaps.
    if deblurrer.slow_precision:
        say(f"note: {deblurrer.slow_precision}")
    return deblurrer


def encode_options_of(args: argparse.Namespace) -> EncodeOptions:
    """Return the options of the encoder; options that the command lacks keep their defaults.

    Raises:
        UsageError: both --crf and --bitrate, or settings that no encoder has.
        EncoderError: the encoder does not exist here.
    """
    from vdeblur.media.encoders import EncodeOptions

    if args.crf is not None and args.bitrate is not None:
        raise UsageError("--crf and --bitrate exclude each other: give one")
    return EncodeOptions(**{name: getattr(args, name) for name in _ENCODE if hasattr(args, name)})
