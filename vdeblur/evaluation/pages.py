"""HTML pages made of the templates of this folder."""

from __future__ import annotations

import html
import re
from pathlib import Path

from vdeblur.system.printable import printable


def filled(template: str, title: str, **parts: str) -> str:
    """Return a page.

    Args:
        template: Name of a file of this folder, in which `{{name}}` stands for a part.
        title: Text, shown as it is; for `{{title}}`.
        parts: HTML of the other parts, by name.
    """
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    parts["title"] = html.escape(printable(title))
    # At once: a part may hold what stands for another.
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], text)
