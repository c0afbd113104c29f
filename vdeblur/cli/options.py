"""What the commands share: saying things, options of the network, values of options."""

from __future__ import annotations

import argparse
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.errors import OutputError
from vdeblur.system.allocator import keep_pages as keep_pages

if TYPE_CHECKING:
    from vdeblur.inference.deblurrer import Deblurrer

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def say(text: str) -> None:
    """One message to standard error."""
    # File names may hold bytes that are not UTF-8.
    print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


def check_new_file(path: Path, *, force: bool) -> None:
    """OutputError when no file can be written here: said before hours of work, not after."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} does not exist: create it first")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already: use --force to replace it")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} may not be written: check the folder's permissions")


_NETWORK_OPTIONS = (
    "model",
    "weights",
    "device",
    "precision",
    "backend",
    "batch",
    "tile",
    "halo",
    "stage",
    "ensemble",
    "steady",
)


def network_option_given(args: argparse.Namespace) -> str | None:
    """The first option of `network_options` that was given, as it is typed."""
    for name in _NETWORK_OPTIONS:
        if getattr(args, name) not in (None, "auto"):
            return f"--{name}"
    return None


def network_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose a network and how it is run; `deblurrer_of` reads them."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="network (default mimo-unet-guided; with --weights, the one that they are for)",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint, or the name of one that `vdeblur models add` keeps",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where the network runs: cpu, cuda, cuda:1, mps …; auto is a GPU where there is one",
    )
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "fp16", "bf16", "int8", "fp8"),
        help="of the arithmetic: auto is fp16 on CUDA, bf16 on CPUs with instructions for it, fp32 "
        "elsewhere; int8 needs OpenVINO on a CPU or Triton on CUDA, fp8 the latter",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "torch", "openvino", "onnxruntime", "cudagraphs", "triton"),
        help="what computes the network: auto is what `vdeblur bench --tune` found fastest here, "
        "else OpenVINO on a CPU where installed, else torch; cudagraphs and triton are for CUDA",
    )
    parser.add_argument(
        "--batch",
        type=number_or("auto"),
        default="auto",
        metavar="N",
        help="frames at once (default auto: what fits; on a CPU, one a thread in OpenVINO)",
    )
    parser.add_argument(
        "--tile",
        type=number_or("auto", "none"),
        default="auto",
        metavar="PIXELS",
        help="side of the square the network sees at once, for memory; none is the whole picture "
        "(default auto: whole, unless it does not fit)",
    )
    parser.add_argument(
        "--halo",
        type=number_or("auto", "full"),
        default="auto",
        metavar="PIXELS",
        help="pixels computed and dropped at a tile's edge; full makes tiles exact (default auto)",
    )
    parser.add_argument(
        "--stage",
        metavar="NAME",
        help="take an earlier or another prediction of the network: mprnet has 3, 2 and 1 "
        "(the cheapest), mimo-unet-cfa full and fused",
    )
    parser.add_argument(
        "--ensemble",
        action=argparse.BooleanOptionalAction,
        help="average over eight rotations and reflections: better, eight times slower "
        "(default for mimo-unet-plusplus)",
    )
    parser.add_argument(
        "--steady",
        action=argparse.BooleanOptionalAction,
        help="average what flickers in a film's restored frames away along their motion (default, "
        "for networks that are guided by motion)",
    )


def exposure_option(parser: argparse._ActionsContainer) -> None:
    """How long the shutter is open, for networks that are guided by motion."""
    parser.add_argument(
        "--exposure",
        default="auto",
        metavar="TIME",
        help="how long the shutter was open: seconds such as 1/60 or 0.004s, a share of a frame's "
        "time such as 0.5, or auto: as a GoPro recorded it, else read off the pictures (default); "
        "for networks that are guided by motion",
    )


def deblurrer_of(args: argparse.Namespace, **more: Any) -> Deblurrer:
    """The Deblurrer that the options of `network_options` ask for, with `more` of its own."""
    from vdeblur.inference.deblurrer import Deblurrer

    return Deblurrer(
        args.model,
        weights=args.weights,
        device=args.device,
        precision=args.precision,
        backend=args.backend,
        tile=None if args.tile == "none" else args.tile,
        halo=args.halo,
        stage=args.stage,
        ensemble=args.ensemble,
        steady=args.steady is not False,
        **more,
    )


def number_or(*words: str) -> Any:
    """A parser of a whole number, or one of `words`, which stays as it is."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a whole number nor {' nor '.join(words)}"
            ) from None

    return parse


def seconds(text: str) -> float:
    """Seconds, or [HH:]MM:SS, as seconds."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < float("inf") for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds or [HH:]MM:SS")
    total = 0.0
    for part in parts:
        total = total * 60 + part
    return total


def bitrate(text: str) -> int:
    """Bits a second, with k, M or G at the end."""
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        value = int(float(text[:-1] if text[-1:].lower() in factors else text) * factor)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a bit rate: give one such as 12M")
    return value


def rate(text: str) -> Fraction:
    """Frames a second, such as 25 or 30000/1001."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: give one such as 30000/1001")
    return rate
