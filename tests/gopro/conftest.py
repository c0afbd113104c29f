"""A recording in three chapters, what is made of it, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.gopro_clips import Footage, footage
from vdeblur import gopro
from vdeblur.cli import main as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`vdeblur COMMAND ARGUMENTS`: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = cli.main([str(word) for word in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """A recording in three chapters, with highlights in the first and the second."""
    folder = tmp_path_factory.mktemp("three") / "100GOPRO"
    return footage(folder, frames=36, marks=[[100, 900], [50], []], overlong=True)


@pytest.fixture(scope="session")
def joined(three: Footage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `vdeblur gopro` makes of it."""
    (job,) = gopro.jobs(
        [gopro.recording_of(three.chapters[1])], folder=tmp_path_factory.mktemp("joined")
    )
    report = gopro.restore(job, model="identity")
    assert (report.frames, report.lost, report.damage, report.differences) == (108, [], [], [])
    return job.output
