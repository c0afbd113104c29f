"""The command `vdeblur`: the only module that prints or exits.

Exit codes: 0 done; 1 an error, said in one sentence (what is asked for is missing, damaged, taken
or refused here); 2 bad usage (options that could not work anywhere); 3 done, but the source was
damaged, something differs, or frames stand as in the source because the network's result was
unsound (said on stderr); 130, 143 and 129 stopped by Ctrl-C, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from vdeblur.cli import (
    bench,
    camera,
    compare,
    data,
    eval,
    export,
    gopro,
    models,
    train,
    verify,
    video,
)
from vdeblur.cli.output import say
from vdeblur.errors import UsageError, VdeblurError
from vdeblur.version import __version__

# In the order that --help lists them.
_COMMANDS = (video, camera, gopro, verify, bench, eval, compare, export, models, train, data)


class _Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal: unwinds like Ctrl-C, leaving nothing behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    # Read when torch is imported, which commands do later. torch's threads spin while they wait for
    # each other: beside an encoder, or another program, that takes the cores from those waited for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    interrupted = False

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    # A pipe that says nothing more is left behind on purpose when the program ends.
    warnings.filterwarnings("ignore", message="stage .* did not stop", category=RuntimeWarning)
    stops = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    # A program started under nohup ignores SIGHUP, and goes on doing so.
    stops = [stop for stop in stops if signal.getsignal(stop) is not signal.SIG_IGN]
    previous = {stop: signal.signal(stop, terminate) for stop in stops}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        return _run(arguments)
    except UsageError as error:
        say(f"vdeblur: {error}")
        return 2
    except VdeblurError as error:
        say(f"vdeblur: {error}")
        return 1
    except KeyboardInterrupt:
        say("vdeblur: stopped; nothing unfinished was left behind")
        return 130
    except _Terminated as signalled:
        say("vdeblur: stopped; nothing unfinished was left behind")
        return 128 + int(signalled.args[0])
    except BrokenPipeError:
        # Whoever read standard output has gone: that is theirs to decide.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # What no command foresaw: a folder that may not be read, a name that is too long.
        what = os.strerror(error.errno) if error.errno else str(error)
        say(f"vdeblur: {error.filename or 'a file'} cannot be used ({what}): check it")
        return 1
    except Exception:
        # A package whose import is interrupted may make another error of it (numpy's recurses).
        if not interrupted:
            raise
        say("vdeblur: stopped; nothing unfinished was left behind")
        return 130
    finally:
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    return int(args.run(args))


class _Parser(argparse.ArgumentParser):
    """Bad usage in one line: the whole usage of a command is what --help is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vdeblur", description="Deblur video: every frame restored, everything else kept."
    )
    parser.add_argument("--version", action="version", version=f"vdeblur {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
