"""The command `vdeblur`: the only module that prints or exits.

Exit codes: 0 done; 1 an error, reported in a single sentence (a file or device is missing, damaged,
taken or refused here); 2 bad usage (options that could not work anywhere); 3 done, but the source
was damaged, something differs, or frames were kept from the source because the network's result
was unsound (reported on stderr); 130, 143 and 129 stopped by Ctrl-C, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
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
from vdeblur.cli.flags import flags_of
from vdeblur.cli.logs import add_log_options, logging_to
from vdeblur.cli.output import name_options, say
from vdeblur.cli.streams import mask_tracebacks, printable_streams
from vdeblur.errors import MissingPackageError, UsageError, VdeblurError
from vdeblur.system.masking import masked_message
from vdeblur.system.printable import printable
from vdeblur.version import __version__

_log = logging.getLogger(__name__)
# In the order that --help lists them.
_COMMANDS = (video, camera, gopro, verify, bench, eval, compare, export, models, train, data)


class _Terminated(BaseException):
    """SIGTERM, or SIGHUP of a closed terminal: unwinds like Ctrl-C and leaves nothing behind."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    interrupted = False

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    # A worker blocked on a silent pipe is left behind on purpose when the program ends.
    warnings.filterwarnings("ignore", message="worker .* did not stop", category=RuntimeWarning)
    stops = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    # Under nohup, the command continues to ignore SIGHUP.
    stops = [stop for stop in stops if signal.getsignal(stop) is not signal.SIG_IGN]
    previous = {stop: signal.signal(stop, terminate) for stop in stops}
    if arguments is None:
        mask_tracebacks()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    streams = contextlib.ExitStack()
    streams.enter_context(printable_streams())
    try:
        return _run(arguments)
    except VdeblurError as error:
        say(f"vdeblur: {error}")
        # A package that is missing here could be installed.
        anywhere = isinstance(error, UsageError) and not isinstance(error, MissingPackageError)
        return 2 if anywhere else 1
    except KeyboardInterrupt:
        say("vdeblur: stopped; nothing unfinished was left behind")
        return 130
    except _Terminated as signalled:
        say("vdeblur: stopped; nothing unfinished was left behind")
        return 128 + int(signalled.args[0])
    except BrokenPipeError:
        # The reader of standard output has gone: not an error to report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # No command handles these: a folder without permission, a name that is too long.
        what = os.strerror(error.errno) if error.errno else str(error)
        say(f"vdeblur: {error.filename or 'a file'} cannot be used ({what}): check it")
        return 1
    except Exception:
        # A package may turn the interruption of its import into another error (numpy recurses).
        if not interrupted:
            raise
        say("vdeblur: stopped; nothing unfinished was left behind")
        return 130
    finally:
        streams.close()
        for stop, handler in previous.items():
            signal.signal(stop, handler)


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    name_options(args.options)
    words = sys.argv[1:] if arguments is None else arguments
    with logging_to(getattr(args, "verbose", 0), getattr(args, "log_file", None), words):
        try:
            code = int(args.run(args))
        except BaseException:
            _log.debug("the command ended by an exception", exc_info=True)
            raise
        _log.info("exit code %d", code)
        return code


class _Parser(argparse.ArgumentParser):
    """Reports bad usage in one line; --help has the usage of a command."""

    def error(self, message: str) -> NoReturn:
        text = printable(masked_message(f"{self.prog}: {message}; see {self.prog} --help"))
        self.exit(2, f"{text}\n")

    def commands(self) -> Iterator[_Parser]:
        """Yield the parsers below this one that have no further subcommands."""
        below = [
            p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values()
        ]
        for parser in below:
            yield from parser.commands()
        if not below:
            yield self

    def flags(self) -> dict[str, str]:
        """Return the option of each parameter that this parser fills."""
        return flags_of(self._actions)

    def all_flags(self) -> dict[str, str]:
        """Return the option of each parameter that a command below this parser takes."""
        return {name: flag for leaf in self.commands() for name, flag in leaf.flags().items()}


def _parser() -> _Parser:
    parser = _Parser(
        prog="vdeblur", description="Deblur video: every frame restored, everything else kept."
    )
    parser.add_argument("--version", action="version", version=f"vdeblur {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    every = parser.all_flags()
    for leaf in parser.commands():
        add_log_options(leaf)
        # Messages may name options of other commands, too.
        leaf.set_defaults(options=every | leaf.flags())
    parser.set_defaults(options=every)
    return parser


def flags_of_commands() -> list[dict[str, str]]:
    """Return the options that messages may name, by parameter, for each command."""
    return [leaf.get_default("options") for leaf in _parser().commands()]
