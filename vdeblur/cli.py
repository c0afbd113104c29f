"""The command `vdeblur`: the only module that prints or exits.

Exit codes: 0 done; 1 an error, said in one sentence; 2 bad usage; 3 done, but the source was
damaged or something differs (said on stderr); 130, 143 and 129 stopped by Ctrl-C, SIGTERM and
SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vdeblur import __version__
from vdeblur.errors import InputError, OutputError, UsageError, VdeblurError

if TYPE_CHECKING:
    from vdeblur.deblur import Report

_VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class _Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal: unwinds like Ctrl-C, leaving nothing behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    # A pipe that says nothing more is left behind on purpose when the program ends.
    warnings.filterwarnings("ignore", message="stage .* did not stop", category=RuntimeWarning)
    stops = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    # A program started under nohup ignores SIGHUP, and goes on doing so.
    stops = [stop for stop in stops if signal.getsignal(stop) is not signal.SIG_IGN]
    previous = {stop: signal.signal(stop, terminate) for stop in stops}
    try:
        return int(args.run(args))
    except UsageError as error:
        _say(f"vdeblur: {error}")
        return 2
    except VdeblurError as error:
        _say(f"vdeblur: {error}")
        return 1
    except KeyboardInterrupt:
        _say("vdeblur: stopped; nothing unfinished was left behind")
        return 130
    except _Terminated as signalled:
        _say("vdeblur: stopped; nothing unfinished was left behind")
        return 128 + int(signalled.args[0])
    except BrokenPipeError:
        # Whoever read standard output has gone: that is theirs to decide.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def _keep_pages() -> None:
    """Have glibc keep freed memory: a network's tensors would fault every page in again.

    Half of the time of a frame's colour conversion on a CPU is page faults without this; see
    mallopt(3). 32 MB is the highest M_MMAP_THRESHOLD that glibc takes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD


def _say(text: str) -> None:
    # File names may hold bytes that are not UTF-8.
    print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


# -- arguments -------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vdeblur", description="Deblur video: every frame restored, everything else kept."
    )
    parser.add_argument("--version", action="version", version=f"vdeblur {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    video = commands.add_parser(
        "video",
        help="deblur video files, images, image sequences or a pipe",
        description="Deblur INPUT; by default into INPUT's name with _deblurred, beside it.",
    )
    video.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a file, a folder, a glob, an image pattern such as frames/%%05d.png, or - for a pipe",
    )
    video.add_argument(
        "-o", "--output", help="output file, folder (for several inputs), or - for a pipe"
    )
    video.add_argument("--force", action="store_true", help="replace an output that exists")
    _network_options(video)
    video.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="share of the correction to apply: 0 is the source, 1 the network's (default 1)",
    )
    video.add_argument(
        "--encoder",
        default="auto",
        help="libav encoder name, nvenc, or auto: the source's own codec (default)",
    )
    video.add_argument("--crf", type=float, help="constant quality, on the encoder's own scale")
    video.add_argument("--bitrate", type=_bitrate, help="bits a second, such as 12M")
    video.add_argument("--preset", help="the encoder's speed preset")
    video.add_argument("--pix-fmt", help="pixel format to encode, such as yuv420p10le")
    video.add_argument("--format", help="container format, where the name does not tell (pipes)")
    video.add_argument("--start", type=_seconds, help="begin here: seconds or [HH:]MM:SS")
    video.add_argument("--duration", type=_seconds, help="restore this much: seconds or [HH:]MM:SS")
    video.add_argument("--framerate", type=_rate, help="of an image sequence (default 25)")
    video.add_argument("--start-number", type=int, help="first number of an image sequence")
    video.add_argument(
        "--hwaccel", metavar="TYPE", help="decode in hardware: cuda, qsv, videotoolbox …"
    )
    video.add_argument(
        "--json", action="store_true", help="print the report as JSON, a line a file"
    )
    video.add_argument("--quiet", action="store_true", help="print errors and losses only")
    video.set_defaults(run=_video)

    check = commands.add_parser(
        "verify",
        help="prove that an output kept everything of its source",
        description="Compare OUT with IN: frames, times, copied packets, colour, tags. "
        "Exit 1 on a difference.",
    )
    check.add_argument("source", metavar="IN")
    check.add_argument("output", metavar="OUT")
    check.add_argument("--quick", action="store_true", help="compare packets only, decode nothing")
    check.add_argument("--json", action="store_true", help="print the checks as JSON")
    check.set_defaults(run=_verify)

    bench = commands.add_parser(
        "bench",
        help="measure frames per second of each stage and of the whole",
        description="Frames/s of decoding, network and encoding alone, and of the pipeline.",
    )
    bench.add_argument("clip", metavar="CLIP", help="a video file")
    _network_options(bench)
    bench.add_argument("--encoder", default="auto", help="libav encoder name, or auto")
    bench.add_argument("--preset", help="the encoder's speed preset")
    bench.add_argument("--frames", type=int, default=120, help="frames to measure (default 120)")
    bench.add_argument("--rounds", type=int, default=3, help="rounds; medians count (default 3)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.set_defaults(run=_bench)
    return parser


def _network_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="mimo-unet-small", help="network (default mimo-unet-small)"
    )
    parser.add_argument("--weights", metavar="FILE", help="weights other than those that ship")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps …")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--batch", type=_number_or("auto"), default="auto", help="frames at once")
    parser.add_argument(
        "--tile",
        type=_number_or("auto", "none"),
        default="auto",
        help="side of the square the network sees, in pixels; auto; none for the whole picture",
    )


def _number_or(*words: str) -> Any:
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


def _seconds(text: str) -> float:
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or any(part < 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds or [HH:]MM:SS")
    total = 0.0
    for part in parts:
        total = total * 60 + part
    return total


def _bitrate(text: str) -> int:
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        value = int(float(text[:-1] if text[-1:].lower() in factors else text) * factor)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a bit rate: give one such as 12M")
    return value


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: give one such as 30000/1001")
    return rate


# -- vdeblur video ---------------------------------------------------------------------------------


def _expand(inputs: Sequence[str]) -> list[str]:
    """Folders and globs → files; names that do not exist stay, to be reported one by one."""
    found: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(
                str(p)
                for p in path.iterdir()
                if p.is_file()
                and p.suffix.lower() in _VIDEO_SUFFIXES | _IMAGE_SUFFIXES
                and not p.stem.endswith("_deblurred")
                and not p.name.startswith(".")
            )
            if not files:
                raise InputError(f"no videos or images in folder {name}: give a folder with some")
            found += files
        elif not path.exists() and any(c in name for c in "*?["):
            # glob takes an absolute or a relative pattern, which Path.glob does not.
            matches = glob.glob(name, recursive=True)  # noqa: PTH207
            files = sorted(f for f in matches if Path(f).is_file())
            if not files:
                raise InputError(f"nothing matches {name}: check the pattern")
            found += files
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _outputs(inputs: Sequence[str], output: str | None) -> Iterator[tuple[str, str]]:
    from vdeblur.deblur import default_output

    if output is None:
        yield from ((name, default_output(name)) for name in inputs)
    elif output == "-" or not (output.endswith(("/", os.sep)) or Path(output).is_dir()):
        if len(inputs) > 1:
            raise UsageError(f"{len(inputs)} inputs and one output {output}: give a folder with -o")
        yield inputs[0], output
    else:
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {output} cannot be made ({error.strerror})") from error
        for name in inputs:
            if name == "-":
                raise UsageError("standard input has no name for a folder: give a file with -o")
            yield name, str(Path(output) / Path(default_output(name)).name)


def _video(args: argparse.Namespace) -> int:
    _keep_pages()
    if args.crf is not None and args.bitrate is not None:
        raise UsageError("--crf and --bitrate exclude each other: give one")
    if args.duration is not None and args.duration <= 0:
        raise UsageError(f"--duration is {args.duration:g}: give more than 0 seconds")
    jobs = list(_outputs(_expand(args.inputs), args.output))
    clash = {out for _, out in jobs if out != "-"}
    if len(clash) < len([out for _, out in jobs if out != "-"]):
        raise UsageError("two inputs would be written to one name: restore them one by one")

    from vdeblur.deblurrer import Deblurrer

    deblurrer = Deblurrer(
        args.model,
        weights=args.weights,
        device=args.device,
        precision=args.precision,
        tile=None if args.tile == "none" else args.tile,
        strength=args.strength,
    )
    worst = 0
    for source, output in jobs:
        try:
            report = _one_video(source, output, deblurrer, args)
        except UsageError:
            raise
        except VdeblurError as error:
            if len(jobs) == 1:
                raise
            _say(f"vdeblur: {error}")
            worst = 1
            continue
        if report.damage or report.differences:
            worst = worst or 3
    return worst


def _one_video(source: str, output: str, deblurrer: Any, args: argparse.Namespace) -> Report:
    from tqdm import tqdm

    from vdeblur.deblur import deblur_video
    from vdeblur.encoders import EncodeOptions

    silent = args.quiet or args.json
    name = "standard input" if source == "-" else Path(source).name
    with tqdm(desc=name, unit="frame", disable=silent or None, dynamic_ncols=True) as bar:

        def progress(frames: int, expected: int | None) -> None:
            if expected is not None and bar.total != expected:
                bar.total = expected
            bar.update(frames - bar.n)

        report = deblur_video(
            source,
            output,
            model=deblurrer,
            batch=args.batch,
            encode=EncodeOptions(
                encoder=args.encoder,
                crf=args.crf,
                bitrate=args.bitrate,
                preset=args.preset,
                pix_fmt=args.pix_fmt,
            ),
            start=args.start,
            duration=args.duration,
            framerate=args.framerate,
            start_number=args.start_number,
            hwaccel=args.hwaccel,
            format=args.format,
            overwrite=args.force,
            on_progress=progress,
        )
    if args.json:
        print(json.dumps(report.as_dict()), file=sys.stderr if output == "-" else sys.stdout)
    else:
        _conclude(report, quiet=args.quiet)
    return report


def _conclude(report: Report, *, quiet: bool) -> None:
    if not quiet:
        kept = f"; kept {', '.join(report.kept)}" if report.kept else ""
        where = "standard output" if report.output == "-" else report.output
        _say(
            f"{where}: {report.frames} frames in {report.seconds:.1f} s "
            f"({report.frames_per_second:.1f} frames/s){kept}"
        )
        for note in report.notes:
            _say(f"  note: {note}")
    for line in report.lost:
        _say(f"  not kept: {line}")
    if report.replaced:
        _say(f"  {report.replaced} frames stand as in the source: the network's result was unsound")
    for line in report.damage:
        _say(f"  damaged source: {line}")
    for line in report.differences:
        _say(f"  differs from the source: {line}")


# -- vdeblur verify, bench -------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    from vdeblur.verify import as_json, format_checks, verify

    checks = verify(args.source, args.output, quick=args.quick)
    print(json.dumps(as_json(checks)) if args.json else format_checks(checks))
    return 0 if all(check.passed for check in checks) else 1


def _bench(args: argparse.Namespace) -> int:
    from vdeblur.bench import bench, format_result

    _keep_pages()
    result = bench(
        args.clip,
        model=args.model,
        weights=args.weights,
        device=args.device,
        precision=args.precision,
        batch=args.batch,
        tile=None if args.tile == "none" else args.tile,
        encoder=args.encoder,
        preset=args.preset,
        frames=args.frames,
        rounds=args.rounds,
    )
    print(json.dumps(result.as_dict()) if args.json else format_result(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
