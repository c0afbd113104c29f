"""The trials: each kind prepares an input, runs the program against it, and returns its faults."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.torture import judge
from tests.torture.mutations import damaged
from tests.torture.processes import (
    Outcome,
    SmallDisk,
    Stop,
    call,
    fresh,
    mount_private,
    run,
    stop_signals,
)
from tests.torture.samples import SEQUENCE, Samples

_IDENTITY = ("--model", "identity")


@dataclass(frozen=True)
class Result:
    """What one trial showed.

    Attributes:
        what: The trial in words.
        outcomes: The commands that it ran, in order.
        faults: What was wrong, each as `kind: detail`.
    """

    what: str
    outcomes: list[Outcome]
    faults: list[str]


@dataclass(frozen=True)
class Job:
    """A command that writes files, and what complete ones hold.

    Attributes:
        name: What it does.
        words: Arguments; its sources are in `in`, its outputs in `out`.
        films: Frames of each film that it writes, by its path.
        pictures: Paths of the pictures that it writes.
    """

    name: str
    words: tuple[str, ...]
    films: dict[str, int]
    pictures: tuple[str, ...] = ()

    def faults(self, folder: Path, *, complete: bool) -> list[str]:
        """Return what is wrong with the outputs: half written, or absent though complete."""
        found = []
        for name, frames in self.films.items():
            found += judge.film(folder / name, frames)
            if complete and not (folder / name).exists():
                found.append(f"lost: {name} is not there")
        for name in self.pictures:
            path = folder / name
            if path.exists():
                found += judge.film(path, 1)
            elif complete:
                found.append(f"lost: {name} is not there")
        return found


def jobs(samples: Samples) -> list[tuple[Job, list[Path]]]:
    """Return the jobs that are killed, starved and interrupted, each with its sources."""
    film = samples.films[0]
    numbered = [f"out/{n:03d}.png" for n in range(SEQUENCE)]
    pattern = "in/sequence/%03d.png"
    joined = "out/GX010042_deblurred.MP4"
    return [
        (
            Job(
                "film",
                ("video", f"in/{film.name}", "-o", "out/o.mp4", *_IDENTITY),
                {"out/o.mp4": 24},
            ),
            [film],
        ),
        (
            Job(
                "film to Matroska",
                ("video", f"in/{film.name}", "-o", "out/o.mkv", *_IDENTITY),
                {"out/o.mkv": 24},
            ),
            [film],
        ),
        (
            Job(
                "sequence",
                ("video", pattern, "-o", "out/%03d.png", *_IDENTITY),
                {},
                tuple(numbered),
            ),
            [samples.sequence],
        ),
        (
            Job(
                "sequence to film",
                ("video", pattern, "-o", "out/o.mkv", *_IDENTITY),
                {"out/o.mkv": SEQUENCE},
            ),
            [samples.sequence],
        ),
        (
            Job(
                "folder of pictures",
                ("video", "in/sequence", "-o", "out/", *_IDENTITY),
                {},
                tuple(f"out/{n:03d}_deblurred.png" for n in range(SEQUENCE)),
            ),
            [samples.sequence],
        ),
        (
            Job("recording", ("gopro", "in/recording", "-o", "out", *_IDENTITY), {joined: 24}),
            [samples.recording],
        ),
        (
            Job(
                "compare",
                ("compare", f"in/{film.name}", f"in/{film.name}", "-o", "out/c.mp4"),
                {"out/c.mp4": 24},
            ),
            [film],
        ),
    ]


class Trials:
    """Runs trials in a folder.

    Args:
        samples: Inputs.
        folder: An empty folder for one trial after another.
    """

    def __init__(self, samples: Samples, folder: Path) -> None:
        self._samples, self._folder = samples, folder
        self._jobs = jobs(samples)
        self._times: dict[str, float] = {}  # seconds of an undisturbed run, by job

    # -- damage ----------------------------------------------------------------------------------

    def fuzz(self, rng: random.Random) -> Result:
        """Give the program a randomly damaged input."""
        samples = self._samples
        kind = rng.choices(("film", "picture", "recording", "weights", "verify"), (9, 5, 2, 2, 2))[
            0
        ]
        source = rng.choice(
            {
                "film": samples.films,
                "verify": samples.films,
                "picture": samples.pictures,
                "recording": sorted(samples.recording.iterdir()),
                "weights": samples.weights,
            }[kind]
        )
        with self._place() as place:
            bent = place / "in" / source.name
            bent.write_bytes(damaged(source.read_bytes(), rng))
            output = place / "out" / f"o{source.suffix}"
            if kind == "recording":
                words = ["gopro", "in", "-o", "out", *_IDENTITY]
            elif kind == "weights":
                shutil.copy(samples.pictures[0], place / "in")
                picture = f"in/{samples.pictures[0].name}"
                words = ["video", picture, "-o", "out/o.png", "--weights", f"in/{source.name}"]
            elif kind == "verify":
                words = ["verify", str(source), f"in/{source.name}"]
            else:
                to = rng.choice((output, output, place / "out" / "o.mkv"))
                words = ["video", f"in/{source.name}", "-o", f"out/{to.name}", *_IDENTITY]
                output = to
            before = judge.digest_of(place / "in")
            outcome = run(words, place)
            found = judge.faults_of(outcome) + self._left(place, before)
            if kind in ("film", "picture"):
                found += _silently_lost(bent, output, outcome)
            return Result(f"{kind} {source.name}: {' '.join(words)}", [outcome], found)

    # -- death -----------------------------------------------------------------------------------

    def kill(self, rng: random.Random) -> Result:
        """Kill the program at a random moment, and run it again."""
        with self._job(rng) as (job, place, seconds):
            stop = Stop((signal.SIGKILL,), (rng.uniform(0, seconds),))
            before = judge.digest_of(place / "in")
            killed = run(job.words, place, stop=stop)
            found = judge.faults_of(killed, ends=(*judge.ENDS, -signal.SIGKILL))
            found += job.faults(place, complete=False)
            again = run([*job.words, "--force"], place)
            found += judge.faults_of(again, ends=(0, 3))
            found += job.faults(place, complete=True) + self._left(place, before)
            return Result(f"{job.name}: killed after {stop.after[0]:.3f} s", [killed, again], found)

    def stop(self, rng: random.Random) -> Result:
        """Send the signals that end the program in order, at random moments."""
        with self._job(rng) as (job, place, seconds):
            imports = rng.random() < 0.2  # a Python started anew: the imports take most of it
            signals = [rng.choice(stop_signals())]
            first = rng.uniform(0, 4.0 if imports else seconds)
            after = [first]
            if rng.random() < 0.2:
                signals.append(rng.choice(stop_signals()))
                after.append(first + rng.uniform(0, 0.2))
            stop = Stop(tuple(signals), tuple(after))
            before = judge.digest_of(place / "in")
            outcome = (fresh if imports else run)(job.words, place, stop=stop)
            # Before the program's first line, Python itself dies of the signal.
            ends = (*judge.ENDS, *(128 + n for n in signals), *(-n for n in signals))
            found = judge.faults_of(outcome, ends=ends)
            if imports and "vdeblur" not in outcome.text:
                found = []  # Python had not come to the program
            found += job.faults(place, complete=False) + self._left(place, before)
            names = " and ".join(signal.Signals(n).name for n in signals)
            return Result(f"{job.name}: {names} after {first:.3f} s", [outcome], found)

    # -- want ------------------------------------------------------------------------------------

    def disk(self, rng: random.Random) -> Result:
        """Give the program a file system that is too small, or hardly large enough."""
        with self._job(rng) as (job, place, _):
            kib = round(4 * 2 ** rng.uniform(0, 7))
            listing = place / "listing"
            outcome = run(job.words, place, prepare=SmallDisk(place / "out", kib, listing))
            found = judge.faults_of(outcome)
            if outcome.code in (0, 3):
                lines = listing.read_text().splitlines() if listing.exists() else []
                wanted = len(job.films) + len(job.pictures)
                if len(lines) < wanted:
                    found.append(f"lost: {len(lines)} of {wanted} files")
            elif "full" not in outcome.text:
                found.append(f"message: {outcome.text.strip()[-160:]}")
            found += judge.leftovers_named(listing)
            return Result(f"{job.name}: a disk of {kib} KiB", [outcome], found)

    def refusal(self, rng: random.Random) -> Result:
        """Let one system call on files fail, as network and FUSE file systems do."""
        with self._job(rng) as (job, place, _):
            fault = Refusal(rng.choice(Refusal.CALLS), rng.choice(Refusal.ERRORS), rng.randrange(4))
            before = judge.digest_of(place / "in")
            outcome = run(job.words, place, prepare=fault)
            found = judge.faults_of(outcome)
            found += job.faults(place, complete=outcome.code in (0, 3))
            if fault.call != "unlink":  # what may not be removed stays
                found += self._left(place, before)
            return Result(f"{job.name}: {fault}", [outcome], found)

    # -- places ----------------------------------------------------------------------------------

    @contextmanager
    def _place(self) -> Iterator[Path]:
        place = self._folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        (place / "in").mkdir(parents=True)
        (place / "out").mkdir()
        yield place
        shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def _job(self, rng: random.Random) -> Iterator[tuple[Job, Path, float]]:
        """Prepare a random job; also yield about the time that it takes undisturbed."""
        job, sources = rng.choice(self._jobs)
        with self._place() as place:
            for source in sources:
                target = place / "in" / source.name
                if source.is_dir():
                    shutil.copytree(source, target)
                else:
                    shutil.copy(source, target)
            if job.name not in self._times:
                took = run(job.words, place)
                if wrong := judge.faults_of(took, ends=(0,)) + job.faults(place, complete=True):
                    raise RuntimeError(f"undisturbed, {job.name} fails: {wrong} {took.text}")
                self._times[job.name] = took.seconds
                shutil.rmtree(place / "out")
                (place / "out").mkdir()
            yield job, place, 1.1 * self._times[job.name]

    @staticmethod
    def _left(place: Path, before: dict[str, str]) -> list[str]:
        found = judge.leftovers(place / "in") + judge.leftovers(place / "out")
        after = judge.digest_of(place / "in")
        found += [f"lost: source {name}" for name, sha in before.items() if after.get(name) != sha]
        return found


@dataclass(frozen=True)
class Refusal:
    """Makes one call of a function of `os` fail, in the process that calls this.

    Attributes:
        call: The function's name.
        error: Name of the error number.
        number: Calls that go through before.
    """

    call: str
    error: str
    number: int

    #: What atomic, durable files may use.
    CALLS = ("replace", "rename", "link", "fsync", "chmod", "fchmod", "utime", "unlink", "rmdir")
    #: Of network and FUSE file systems, quotas, and media that fail.
    ERRORS = ("EPERM", "ENOTSUP", "EIO", "EDQUOT", "EROFS", "ESTALE", "ENOSYS", "EXDEV", "EINVAL")

    def __call__(self) -> None:
        """Begin to count."""
        original = getattr(os, self.call)
        left = self.number
        number = getattr(errno, self.error)

        def refused(*args: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                name = args[0] if args and isinstance(args[0], str | os.PathLike) else None
                raise OSError(number, os.strerror(number), name)
            return original(*args, **named)

        setattr(os, self.call, refused)

    def __str__(self) -> str:
        return f"os.{self.call} fails by {self.error} at call {self.number + 1}"


def _silently_lost(source: Path, output: Path, outcome: Outcome) -> list[str]:
    """Return a fault if less came out than a plain reading of the source decodes, unsaid."""
    if outcome.code != 0:
        if outcome.code in (1, 2) and output.exists():
            return [f"leaked: {output.name} stands though the command failed"]
        return []
    expected, seen = call(judge.frames_in, source), call(judge.frames_in, output)
    if expected is None or seen is None or seen >= expected:
        return []
    return [f"lost: {seen} of {expected} frames, exit 0"]


def can_mount() -> str:
    """Return why no file system can be mounted here; an empty string if it can."""
    if not sys.platform.startswith("linux"):
        return "only on Linux"
    return call(_try_mount) or ""


def _try_mount() -> str:
    try:
        mount_private()
    except OSError as error:
        return f"mounting is not permitted here ({error.strerror})"
    return ""


#: The kinds of trial, and how often each is made in a round.
KINDS: dict[str, tuple[int, Callable[[Trials, random.Random], Result]]] = {
    "fuzz": (20, Trials.fuzz),
    "kill": (3, Trials.kill),
    "stop": (2, Trials.stop),
    "disk": (1, Trials.disk),
    "refusal": (2, Trials.refusal),
}
