"""Whether kernels may be used: they are held to torch on the device itself before they are.

Knows callables only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Checks:
    """Checks kernels once for each kind of input; the first fault ends their use.

    Args:
        note: Called once if they cannot be used, or compute something else than torch.
        instead: What happens then, as the beginning of a sentence.
    """

    def __init__(self, note: Callable[[str], object], instead: str) -> None:
        self._note, self._instead = note, instead
        self._checked: set[Hashable] = set()
        self._usable = True

    def passed(self, kind: Hashable, differs: Callable[[], str | None]) -> bool:
        """Return whether the kernels can be used.

        Args:
            kind: Of the input; each is checked once.
            differs: Runs the kernels and torch, and describes how their results differ as a part
                of a sentence; None if they agree.

        Raises:
            torch.OutOfMemoryError: Its remedy is less memory, not torch.
        """
        if not self._usable or kind in self._checked:
            return self._usable
        try:
            wrong = differs()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # Triton's compiler and driver have many
            wrong = str(error).strip().split("\n")[0] or type(error).__name__
        if wrong:
            self._usable = False
            self._note(f"{self._instead}, its kernels cannot be used here ({wrong})")
        self._checked.add(kind)
        return self._usable
