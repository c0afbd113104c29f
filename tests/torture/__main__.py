"""Torture the program for a while, and print what it survived.

    python -m tests.torture --minutes 60                 all kinds of trial
    python -m tests.torture --rounds 100                 2,000 damaged files, 300 kills, …
    python -m tests.torture --minutes 5 --kinds kill     one kind
    python -m tests.torture --seed 7 --only fuzz:1234    one trial again

A line for each trial that fails, then a table in Markdown. Exit code 0 if all were survived. The
files of a failed trial are not kept: --only makes them again (moments of kills and signals vary).
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.samples import Samples, make_samples
from tests.torture.trials import KINDS, Result, Trials, can_mount

_FAULTS = ("traceback", "lost", "leaked", "hang", "crash")


@dataclass
class Tally:
    """What the trials of one kind showed so far."""

    tries: int = 0
    survived: int = 0
    slowest: float = 0.0
    peak_mib: float = 0.0
    codes: Counter[int | None] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        """Count a trial."""
        self.tries += 1
        self.survived += not result.faults
        for outcome in result.outcomes:
            self.slowest = max(self.slowest, outcome.seconds)
            self.peak_mib = max(self.peak_mib, outcome.peak_mib)
        self.codes[result.outcomes[0].code] += 1
        self.faults.update({fault.split(":")[0] for fault in result.faults})


class Shared:
    """An iterator that several threads may draw from."""

    def __init__(self, items: Iterator[tuple[str, int]]) -> None:
        self._items, self._lock = items, threading.Lock()

    def next(self) -> tuple[str, int] | None:
        """Return the next item, or None at the end."""
        with self._lock:
            return next(self._items, None)


def main(arguments: list[str] | None = None) -> int:
    """Run the trials; return the exit code."""
    args = _parser().parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        root = Path(name)
        for variable in ("VDEBLUR_CACHE", "VDEBLUR_DATA"):
            os.environ[variable] = str(root / variable.lower())
        os.environ |= {"VDEBLUR_BACKEND": "torch", "VDEBLUR_PRECISION": "fp32"}
        os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        # Killed and forked processes do not sign off their progress bars' locks.
        os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
        (root / "samples").mkdir()
        samples = make_samples(root / "samples")
        kinds = args.kinds.split(",")
        if "disk" in kinds and (why := can_mount()):
            print(f"no trials with a full disk: {why}")
            kinds.remove("disk")
        tallies = {kind: Tally() for kind in kinds}
        plan = Shared(_plan(kinds, args, began))
        with ThreadPoolExecutor(args.jobs) as pool:
            workers = [
                pool.submit(
                    _work, samples, root / f"work{n}", plan, tallies, args.seed, args.verbose
                )
                for n in range(args.jobs)
            ]
            for worker in workers:
                worker.result()
    _print_table(tallies, time.monotonic() - began, args.seed)
    return int(any(t.survived < t.tries for t in tallies.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time to spend (%(default)s)")
    parser.add_argument("--rounds", type=int, help="number of rounds, in place of --minutes")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of trials (%(default)s)")
    parser.add_argument("--only", metavar="KIND:N", help="one trial of the seed")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="print what failed commands said")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="trials at once (%(default)s)"
    )
    return parser


def _plan(kinds: list[str], args: argparse.Namespace, began: float) -> Iterator[tuple[str, int]]:
    """Yield the trials in order: their kind and number."""
    if args.only:
        kind, _, number = args.only.partition(":")
        yield kind, int(number)
        return
    numbers = Counter[str]()
    rounds = 0
    while args.rounds is None or rounds < args.rounds:
        rounds += 1
        for kind in kinds:
            for _ in range(KINDS[kind][0]):
                if args.rounds is None and time.monotonic() > began + 60 * args.minutes:
                    return
                yield kind, numbers[kind]
                numbers[kind] += 1


def _work(
    samples: Samples,
    folder: Path,
    plan: Shared,
    tallies: dict[str, Tally],
    seed: int,
    verbose: bool,
) -> None:
    folder.mkdir()
    trials = Trials(samples, folder)
    while (trial := plan.next()) is not None:
        kind, number = trial
        result = KINDS[kind][1](trials, random.Random(f"{seed}:{kind}:{number}"))
        tallies.setdefault(kind, Tally()).add(result)
        for fault in result.faults:
            print(f"{kind}:{number} {result.what} | {fault}", flush=True)
        if verbose and result.faults:
            for outcome in result.outcomes:
                print(*outcome.text.splitlines(), f"exit {outcome.code}", sep="\n    ", flush=True)


def _print_table(tallies: dict[str, Tally], seconds: float, seed: int) -> None:
    head = ["trials", "tries", "survived", *_FAULTS, "other", "exit codes", "slowest", "memory"]
    print(f"\n{seconds / 60:.1f} minutes, seed {seed}, Python {sys.version.split()[0]}\n")
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for kind, tally in tallies.items():
        other = sum(n for fault, n in tally.faults.items() if fault not in _FAULTS)
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(tally.codes.items(), key=str))
        cells = [kind, tally.tries, tally.survived, *(tally.faults[f] for f in _FAULTS), other,
                 codes, f"{tally.slowest:.1f} s", f"{tally.peak_mib:.0f} MiB"]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    sys.exit(main())
