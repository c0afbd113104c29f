"""The command `vdeblur`: the only module that prints or exits.

Exit codes: 0 done; 1 an error, reported in a single sentence (a file or device is missing, damaged,
taken or refused here); 2 bad usage (options that could not work anywhere); 3 done, but the source
was damaged, something differs, or frames were kept from the source because the network's result
was unsound (reported on stderr); 130, 143 and 129 stopped by Ctrl-C, SIGTERM and SIGHUP.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Commands and what they need are imported by `main`, which answers a signal meanwhile.
from vdeblur.cli.stopping import Stops

_log = logging.getLogger(__name__)

# Whole numbers beside those of plain integers, and the bounds that differ from the usual one.
_COUNTS = ("batch", "tile", "halo")
_MOST = {"seed": 1 << 63, "crop": 1 << 14, "height": 1 << 14, "workers": 1 << 10}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    # The process ends behind main, and no signal may break in on that.
    with Stops(keep=arguments is None) as stops:
        try:
            _open_standard_streams()
            # A worker blocked on a silent pipe is left behind on purpose when the program ends.
            warnings.filterwarnings("ignore", "worker .* did not stop", RuntimeWarning)
            code = _printed(arguments)
        except BaseException as error:
            if stops.number is None and not isinstance(error, Exception | KeyboardInterrupt):
                raise
            # A package may turn the interruption of its import into another error.
            code = _failed(error) if stops.number is None else 128 + stops.number
            stops.ended(code)
            if code > 128:
                _say("vdeblur: stopped; nothing unfinished was left behind")
        stops.ended(code)
        return code


def _printed(arguments: Sequence[str] | None) -> int:
    """Run the command, with nothing on the standard streams that a terminal would act on."""
    from vdeblur.cli.streams import mask_tracebacks, printable_streams

    if arguments is None:
        mask_tracebacks()
    with printable_streams():
        code = _run(arguments)
        sys.stdout.flush()
        return code


def _failed(error: BaseException) -> int:
    """Say what ended the command, and return its exit code."""
    from vdeblur.cli.output import sentence_of
    from vdeblur.errors import MissingPackageError, UsageError

    if not isinstance(error, Exception):
        return 128 + signal.SIGINT
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        # Python would fail again when it flushes the rest.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError) and error.filename is None:
        return 1
    _say(f"vdeblur: {sentence_of(error)}")
    # A package that is missing here could be installed.
    anywhere = isinstance(error, UsageError) and not isinstance(error, MissingPackageError)
    return 2 if anywhere else 1


def _say(text: str) -> None:
    from vdeblur.cli.output import say

    say(text)


def _open_standard_streams() -> None:
    """Take the numbers of standard streams that are closed, before a file of the run gets them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Reading finds nothing; writing to standard output fails, and messages go nowhere.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115


def _run(arguments: Sequence[str] | None) -> int:
    from vdeblur.cli.logs import logging_to
    from vdeblur.cli.output import name_options
    from vdeblur.errors import InputError

    parser = _parser()
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser.check_command(words[0] if words else "")
    args = parser.parse_args(words)
    if not hasattr(args, "run"):
        parser.print_help(sys.stderr)
        return 2
    name_options(args.options)
    try:
        Path.cwd()
    except FileNotFoundError:
        # Names are relative to it, and packages end the process where there is none.
        raise InputError("the present folder does not exist any more: change to another") from None
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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what a command does not know; argparse would leave it to the parser above."""
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return known, unknown

    def _meant(self, unknown: Sequence[str]) -> str:
        words = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        options = [word for word in self._option_string_actions if word.startswith("--")]
        near = [word for each in words for word in difflib.get_close_matches(each, options, 1, 0.7)]
        return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""

    def check_command(self, word: str) -> None:
        """Refuse a word that is no command, and name the one that was meant."""
        names = [name for a in self._actions if isinstance(a.choices, dict) for name in a.choices]
        if not word or word.startswith("-") or word in names:
            return
        near = difflib.get_close_matches(word.lower(), names, 1, 0.7)
        if near:
            self.error(f"there is no command {word!r} (did you mean {near[0]}?)")
        if "." in word or "/" in word:
            self.error(f"{word!r} is no command: vdeblur video restores a file or a folder")
        self.error(f"there is no command {word!r}: name one of {', '.join(names)}")

    def error(self, message: str) -> NoReturn:
        from vdeblur.system.masking import masked_message
        from vdeblur.system.printable import printable

        text = printable(masked_message(f"{self.prog}: {message}; see {self.prog} --help"))
        self.exit(2, f"{text}\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # A variable of a shell that has no value; Path("") would be the present folder.
        if not arg_string and arg_string not in (action.const, action.default):
            raise argparse.ArgumentError(action, "the value is empty: give one, or leave it out")
        if "\0" in arg_string:
            raise argparse.ArgumentError(action, "no file or value has a NUL in it: leave it out")
        value = super()._get_value(action, arg_string)
        whole = isinstance(value, int) and (action.type is int or action.dest in _COUNTS)
        if whole and abs(value) >= _MOST.get(action.dest, 1 << 31):
            raise argparse.ArgumentError(action, f"{arg_string} is too large")
        return value

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
        from vdeblur.cli.flags import flags_of

        return flags_of(self._actions)

    def all_flags(self) -> dict[str, str]:
        """Return the option of each parameter that a command below this parser takes."""
        return {name: flag for leaf in self.commands() for name, flag in leaf.flags().items()}


def _parser() -> _Parser:
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
    from vdeblur.cli.logs import add_log_options
    from vdeblur.version import __version__

    parser = _Parser(
        prog="vdeblur", description="Deblur video: every frame restored, everything else kept."
    )
    parser.add_argument("--version", action="version", version=f"vdeblur {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    # In the order that --help lists them.
    order = (video, camera, gopro, verify, bench, eval, compare, export, models, train, data)
    for command in order:
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
