"""Addresses and messages without the passwords, keys and tokens in them."""

from __future__ import annotations

import re
from urllib.parse import unquote

# Up to the last @, since people write passwords with @ and / in them as they are.
_PASSWORD = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s:@/?#]*):(\S*)@")
_USER_INFO = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s@/?#]*@")
# Query parameters in which cameras and services carry secrets; SRT's passphrase is one.
_SECRET = re.compile(
    r"(?i)(?P<name>(?:^|[?&;,\s])(?:[\w-]*(?:pass|pwd|token|secret|key|auth|sig)[\w-]*))="
    r"(?P<value>[^&;,\s'\"#]+)"
)
# rtmp://host/application/key: services give the key as a secret.
_STREAM_KEY = re.compile(r"(rtmps?://[^/\s]+/[^/\s]+/)([^\s'\"]+)")


def masked(text: str, *, of: str = "") -> str:
    """Return `text` with `***` for every password, key and token of the URLs in it.

    These are passwords (`user:password@`), query parameters with a telling name, and RTMP stream
    keys (the part after the application's name).

    Args:
        text: an address, or any text with addresses in it.
        of: the address that the text is about. Its secrets are hidden wherever they stand in the
            text, also outside a URL.
    """
    for value in _secrets(of):
        text = text.replace(value, "***")
    text = _PASSWORD.sub(r"\1:***@", text)
    text = _SECRET.sub(lambda m: f"{m['name']}=***", text)
    return _STREAM_KEY.sub(r"\1***", text)


def masked_download(url: str) -> str:
    """Return the address of a file with its secrets as `***`, and its user's name, too.

    Servers of files take a token in place of a user's name; cameras do not.
    """
    return _USER_INFO.sub(r"\1***@", masked(url))


def secret(address: str) -> bool:
    """Return whether an address carries something that `masked` hides."""
    return masked(address) != address


def without_password(address: str) -> str:
    """Return an address with `user@` for `user:password@`."""
    return _PASSWORD.sub(r"\1@", address)


def _secrets(address: str) -> list[str]:
    """Return the passwords and keys of an address, as written and decoded, longest first."""
    found = [m[2] for pattern in (_PASSWORD, _STREAM_KEY) for m in pattern.finditer(address)]
    found += [m["value"] for m in _SECRET.finditer(address)]
    # Hiding one of a letter or two would hide half of the message.
    return sorted({s for f in found for s in (f, unquote(f)) if len(s) > 2}, key=len, reverse=True)
