"""Prove that an output kept everything of its source: `vdeblur verify IN OUT`.

    from vdeblur.media.verify import format_checks, verify

    print(format_checks(verify("ride.mp4", "ride_deblurred.mp4")))

`probe` reads both files from scratch, with libav and with the box reader; the modules of checks
compare what a deblurred copy must not change: every frame's time and form, every packet of the
other streams, tags, chapters, attachments, telemetry. Knows nothing of how the output was made, and
never compares the picture itself, which is meant to change.

Adding a check: put its name into `CHECKS` (`checks`), in the place where it is reported. If it
needs a new fact of a file, add a field to `ProbedFile` or `ProbedStream` (`probe`), which is read
there. Write a checker, a function that takes a `Match` and yields one `Finding` under that name, in
the module of its kind (`streams`, `times`, `pictures`, `container`), and list it in `_CHECKERS`
(`run`). Add an entry to `DAMAGE` in `tests/media/test_verify.py`: a damaged output, and the name
that must fail.
"""

from __future__ import annotations

from vdeblur.media.verify.checks import BY_CONTAINER, CHECKS, Check
from vdeblur.media.verify.matching import Expectations
from vdeblur.media.verify.report import as_json, format_checks
from vdeblur.media.verify.run import verify

__all__ = [
    "BY_CONTAINER",
    "CHECKS",
    "Check",
    "Expectations",
    "as_json",
    "format_checks",
    "verify",
]
