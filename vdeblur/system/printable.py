"""Text of files and other programs, fit to be printed: what a terminal would act on is shown.

Names of files, streams, tags and attachments may hold anything: escape sequences that set the
title or clear the screen (ECMA-48), ends of lines that forge a message, or the controls of
bidirectional text (Unicode UAX #9), which put the end of a name before its beginning.
"""

from __future__ import annotations

import re

# C0 and C1 controls, DEL; line and paragraph separators; embeddings, overrides and isolates; halves
# of surrogate pairs, in which Python keeps bytes that are no text (PEP 383).
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES, _IN_LINE = re.compile(f"[{_CONTROLS}]"), re.compile(f"[{_CONTROLS}\t\n]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text with its control characters as Python writes them: `\x1b`, `\n`, `\u202e`.

    Args:
        text: any text.
        lines: whether it may have several lines, with tabs in them.
    """
    return (_IN_LINES if lines else _IN_LINE).sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
