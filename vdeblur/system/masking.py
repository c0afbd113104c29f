"""Addresses and messages without the passwords, keys and tokens in them.

Cameras and services take secrets in every part of an address: `user:password@`, paths such as
`/user=admin_password=…_channel=1`, parameters of any name, stream keys. Therefore only what is
known to be harmless is shown, and everything else is `***`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import ipaddress
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_plus

_HIDDEN = "***"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words of paths and values; a number may follow each, and they may be joined by . _ - (`ch01.264`,
# `h264Preview_01_main`, `axis-cgi`, `media.amp`).
_WORD = _words(
    """
    264 265 3gp amp api asf asp av avi axis bin caller cam camera cgi ch channel channels cif
    demo false fcgi flv frame full fullhd h264 h264preview h265 h265preview hd hevc high hls
    httppreview image img index input isapi jpeg jpg listener live low m3u8 main major media
    medium minor mjpeg mjpg motion mov mp2t mp4 mpd mpeg mpeg4 mpegts mpg multicast no
    nphmotionjpeg off on onvif php picture playlist preview profile psia qcif quality qvga ra
    real realmonitor rendezvous rtmp rtp rtsp s screen sd sdp smp snap snapshot stream streaming
    streams sub tcp test track trackid true ts ucast udp uhd unicast v vga video videomain
    videostream videosub webm yes
    """
)
_ANY = "|".join(sorted(_WORD))
_FORM = re.compile(
    rf"(?:(?:{_ANY})\d{{0,4}}|\d{{1,4}}|\d{{2,4}}x\d{{2,4}})"
    rf"(?:[._-](?:(?:{_ANY})\d{{0,4}}|\d{{1,4}}|\d{{2,4}}x\d{{2,4}}))*",
    re.IGNORECASE,
)
# Parameters whose values are shown if they are numbers or such words.
_HARMLESS = _words(
    """
    analyzeduration audio bitrate cam camera camid ch channel channelid channelno chn codec
    compression connect_timeout download fifo_size fps framerate height latency linger listen
    maxbw mode mss overrun_nonfatal part payload_size pkt_size profile quality rate rcvlatency
    reorder res resolution rotation sndbuf stream streamno streamprofile streamtype subtype
    timeout tlpktdrop track trackid transport transportmode transtype ttl videocodec
    videoresolution width
    """
)
# Names that are shown, with *** for the value.
_NAMES = _words(
    """
    access_token accesskey account api_key apikey auth authorization code credential expires
    hash id jwt key login loginpas loginuse nonce pas pass passphrase passwd password policy psw
    pw pwd secret session sessionid sid sig signature streamid token user userid username usr
    x-amz-credential x-amz-security-token x-amz-signature x-goog-credential x-goog-signature
    """
)
_USERS = _words(
    """
    admin camera default guest onvif operator root service ubnt user viewer
    """
)

_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30})(:(?:\\?/){2}|%3a%2f%2f)(\S+)")
_HOST = re.compile(r"(?:[\w.~-]{0,253}|\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\])(?::\d{1,5})?", re.ASCII)
# Ends of sentences and quotes around an address.
_AROUND = "'\"`)]}>,.;:!…"
# In text that is no address, or only the rest of one.
_SETTING = re.compile(
    r"(?i)(?<![a-z0-9])(?P<name>[\w-]{0,40}(?:passw(?:or)?d|passphrase|pwd|token|secret|signature|"
    r"credential)[\w-]{0,40}|(?:login|user)?pas|pass|psw|pw|sig|auth|"
    r"(?:api|access|account|stream)?[_-]?key|playpath|stream_?id)"
    r"(?P<equals>\s*=\s*['\"]?|%3d|['\"]?\s*[:,]\s*['\"])(?P<value>[^&;,\s'\"#]+)"
)
_AUTHORIZATION = re.compile(
    r"(?i)\b((?:basic|bearer|digest)\s+|(?:proxy-)?authorization:\s*[\w-]+\s+)"
    r"(?:[\w+/.=-]{8,}|\w+=.*)"
)
# Headers of HTTP whose whole value is secret (RFC 6265, and keys of services).
_HEADER = re.compile(
    r"(?i)(?<![a-z0-9-])((?:set-)?cookie|x-(?:[\w-]*-)?(?:key|token|secret))(:\s*)[^\r\n\\'\"]+"
)
_REST = re.compile(
    r"//(?!\w+:\*{3}@)[^\s@/]*:\S*@|"
    r"\b[\w.-]{1,100}:(?!\*{3}@)[^\s@/:]{1,200}@(?=[\w.-]+[:/])",
    re.ASCII,
)


class _Parts(NamedTuple):
    """An address as it is shown, its host, and what is hidden of it.

    Attributes:
        shown: With `***`.
        host: With its port; empty if it is unclear which part that is.
        secrets: Surely secret: passwords, and keys.
        unknown: Not known to be harmless: other names and values.
    """

    shown: str
    host: str
    secrets: tuple[str, ...]
    unknown: tuple[str, ...]


def masked(text: str, *, of: str = "") -> str:
    """Return `text` with `***` for all of the addresses in it that is not known to be harmless.

    What is shown: the scheme, host and port, names such as `admin`, and common words and numbers of
    paths and parameters (`/live/ch1.sdp?subtype=0`). Addresses of files (`file://`) stay.

    Args:
        text: an address, or any text with addresses in it.
        of: the address that the text is about. What is hidden of it is hidden wherever it stands
            in the text, also decoded, and also where only a part of the address stands.
    """
    return _masked(text, [of] if of else [], paths=False, settings=True)


def masked_message(text: str) -> str:
    """Return a message of the program without the secrets of the addresses in it.

    As `masked`, but paths of `http` addresses are shown, since messages name files and pages; and
    without what is to be hidden of all addresses `in_use`.
    """
    addresses = in_use()
    return _masked(text, addresses, paths=True, settings=bool(addresses))


def masked_download(url: str) -> str:
    """Return the address of a file with its path, without its secrets and its user's name."""
    return _masked(url, [], paths=True, settings=False)


def hide(address: str) -> None:
    """Have `masked_message` hide what is secret of this address; the last 64 are remembered."""
    if "://" in address:
        with _lock:
            _in_use.pop(address, None)
            _in_use[address] = None
            for oldest in list(_in_use)[:-64]:
                del _in_use[oldest]


def in_use() -> list[str]:
    """Return the addresses that `hide` was called with."""
    with _lock:
        return list(_in_use)


_in_use: dict[str, None] = {}
_lock = threading.Lock()


def secret(address: str) -> bool:
    """Return whether an address carries something that `masked` hides."""
    return masked(address) != address


def host_of(address: str) -> str:
    """Return the host of an address, without its port; empty if there is none, or it is unclear.

    A password may hold `@` and `/` as they are, which `urllib.parse` would take for separators.
    """
    match = _ADDRESS.match(address)
    host = _parts(match[1], match[3], False).host if match else ""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


# -- text ------------------------------------------------------------------------------------------


def _masked(text: str, addresses: list[str], *, paths: bool, settings: bool) -> str:
    """Mask a text; `settings` such as `password=…` outside of addresses, too.

    Without addresses in use, such a text is rather a folder's name (`key=5/`).
    """
    for address in addresses:
        text = text.replace(address, masked(address))
        text = _without_pieces(text, address)
    text = _ADDRESS.sub(lambda match: _shown(match, paths), text)
    for address in addresses:
        for pattern in _hidden(address):
            text = pattern.sub(_HIDDEN, text)
    if not settings:
        return text
    text = _REST.sub(lambda m: ("//" if m[0].startswith("//") else "") + f"{_HIDDEN}@", text)
    text = _AUTHORIZATION.sub(rf"\1{_HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{_HIDDEN}", text)
    return _SETTING.sub(lambda m: f"{m['name']}{m['equals']}{_HIDDEN}", text)


def _shown(match: re.Match[str], paths: bool) -> str:
    scheme, mark, rest = match.groups()
    if scheme.lower() == "file":
        return match[0]
    if "%" in mark:  # encoded as a whole
        return f"{scheme}://{_HIDDEN}"
    end = len(rest.rstrip(_AROUND))
    body, tail = rest[:end].replace("\\/", "/"), rest[end:]
    return scheme + "://" + _parts(scheme, body, paths).shown + tail


def _without_pieces(text: str, address: str) -> str:
    """Hide what libav shows of an address that it cuts: its beginning, its end or its middle."""
    known = masked(address)

    def replaced(match: re.Match[str]) -> str:
        whole = match[0].strip("'\"`()[]{}<>,;:")
        if any(pattern.fullmatch(whole) for pattern in _hidden(address)):
            return match[0].replace(whole, _HIDDEN)  # a password may end with !
        piece = match[0].strip(_AROUND + "([{<")
        telling = re.search(r"[:/@=&?]", piece) or (len(piece) > 4 and _is_key(piece))
        if len(piece) > 3 and telling and piece in address and piece not in known:
            return match[0].replace(piece, _HIDDEN)
        return match[0]

    return re.sub(r"\S+", replaced, text)


@functools.lru_cache(256)
def _hidden(address: str) -> tuple[re.Pattern[str], ...]:
    """Return patterns of what is to be hidden of an address in any text, longest first."""
    match = _ADDRESS.match(address)
    if match is None or match[1].lower() == "file":
        return ()
    parts = _parts(match[1], match[3], False)
    found = set(parts.secrets) | {value for value in parts.unknown if _is_key(value)}
    for value in parts.secrets:
        pieces = {piece for piece in re.split(r"[\s/:@?&=#;,]", value) if len(piece) > 3}
        found |= {piece for piece in pieces if piece.lower() not in _USERS}
    for value in list(found):
        found |= {p for p in re.split(r"[\W_]+", unquote(value)) if len(p) > 4 and _is_key(p)}
    every = {form for value in found for form in _forms(value)}
    # Hiding one of a letter or two would hide half of the message; those of up to five only where
    # they are a word.
    return tuple(
        re.compile(
            re.escape(v) if len(v) > 5 else rf"(?<![a-zA-Z0-9]){re.escape(v)}(?![a-zA-Z0-9])"
        )
        for v in sorted(every, key=len, reverse=True)
        if len(v) > 2
    )


def _forms(value: str) -> Iterator[str]:
    """Yield a secret as written, decoded, and encoded."""
    plain = unquote(value)
    yield from (value, plain, unquote_plus(value), quote(plain, safe=""), quote(plain))
    yield repr(plain)[1:-1]
    # HTTP's basic authentication, RFC 7617.
    if ":" in plain:
        yield base64.b64encode(plain.encode(errors="surrogateescape")).decode()
    with contextlib.suppress(ValueError):  # it is no Base64 of a text
        basic = base64.b64decode(plain, validate=True).decode()
        yield from (basic, *basic.split(":", 1)[1:])


def _is_key(value: str) -> bool:
    """Return whether a name looks like a key rather than like a word that others use, too."""
    return len(value) > 3 and not re.fullmatch(r"[A-Z]?[a-z]{0,11}|[a-z]{2,8}[._-]?\d{0,2}", value)


# -- addresses -------------------------------------------------------------------------------------


@functools.lru_cache(1024)
def _parts(scheme: str, rest: str, paths: bool) -> _Parts:
    """Take an address apart: what follows `scheme://`."""
    secrets: list[str] = []
    unknown: list[str] = []
    user, host, path = _split(rest)
    if host is None:
        pieces = [piece for piece in re.split(r"[:@/?&=#]", rest) if piece]
        return _Parts(_HIDDEN, "", (rest, *pieces), ())
    shown = ""
    if user:
        name, colon, password = user.partition(":")
        shown = f"{name}:{_HIDDEN}@" if colon and name.lower() in _USERS else f"{_HIDDEN}@"
        secrets += [user, password] if colon else [user]
        if name.lower() not in _USERS:
            unknown.append(name)
    elif user is not None:
        shown = "@"  # udp://@239.0.0.1:1234
    before, mark, fragment = path.partition("#")
    before, question, query = before.partition("?")
    pages = paths and scheme.lower() in ("http", "https")
    shown += host + _path(before, scheme.lower(), pages, secrets, unknown)
    if question:
        shown += "?" + _query(query, secrets, unknown)
    if mark:
        shown += f"#{_HIDDEN}" if fragment else "#"
        secrets += re.split(r"[,&=]", fragment)
        secrets.append(fragment)
    return _Parts(shown, host, tuple(filter(None, secrets)), tuple(filter(None, unknown)))


def _split(rest: str) -> tuple[str | None, str | None, str]:
    """Split into user and password, host and port, and the path; the host is None if unclear.

    People write passwords with `@` and `/` in them as they are, and `@` in paths and parameters.
    """

    def split(at: int) -> tuple[str | None, str | None, str]:
        tail = rest[at + 1 :]
        end = match.start() if (match := re.search(r"[/?#]", tail)) else len(tail)
        host = tail[:end] if _HOST.fullmatch(tail[:end]) else None
        return (rest[:at] if at >= 0 else None), host, tail[end:]

    first = match.start() if (match := re.search(r"[/?#]", rest)) else len(rest)
    plain, last = split(rest.rfind("@", 0, first)), split(rest.rfind("@"))
    if plain == last:
        return plain
    if plain[1] is None or last[1] is None:
        return last if plain[1] is None else plain
    if _is_host(plain[1]) != _is_host(last[1]):
        return plain if _is_host(plain[1]) else last
    return None, None, ""


def _is_host(text: str) -> bool:
    """Return whether a text is surely a host, rather than a part of a password."""
    name = text.strip("[]") if text.startswith("[") else text.partition(":")[0]
    try:
        ipaddress.ip_address(name.partition("]")[0])
        return True
    except ValueError:
        return name == "localhost" or bool(re.fullmatch(r"[\w-]+(\.[\w-]+)*\.[a-zA-Z]{2,}", name))


def _path(path: str, scheme: str, pages: bool, secrets: list[str], unknown: list[str]) -> str:
    shown: list[str] = []
    for number, segment in enumerate(path.split("/")):
        before = shown[-1] if shown else ""
        form = _FORM.fullmatch(segment)
        page = pages and before.lower() not in _NAMES and not re.search("[:@!$]", segment)
        # rtmp://host/application/key: services give the key as a secret.
        if scheme.startswith("rtmp") and number > 1 and segment:
            secrets.append(segment)
            shown.append(_HIDDEN)
        elif re.search(r"[=;&,]", segment):
            shown.append(_settings(segment, secrets, unknown))
        elif not segment or page or (form and not (segment.isdigit() and _HIDDEN in before)):
            shown.append(segment)
        else:
            unknown += [segment, *segment.split(".")]
            shown.append(_HIDDEN)
    return "/".join(shown)


_SETTINGS = re.compile(
    rf"(?i)(?:^|(?<=[;&,_!?]))(?:{'|'.join(sorted(_HARMLESS))})="
    rf"(?:{_FORM.pattern})(?=$|[;&,_!?])"
)


def _settings(segment: str, secrets: list[str], unknown: list[str]) -> str:
    """Return a path's segment of settings: `user=admin_password=…_channel=1_stream=0.sdp`."""
    shown, at = "", 0

    def hide_until(end: int) -> str:
        gap = segment[at:end]
        inner = gap.strip(";&,_!?")
        if not inner:
            return gap
        for piece in re.split(r"[;&,_!?=]", inner):
            if piece.lower() not in _NAMES | _USERS | _HARMLESS:
                secrets.append(piece)
        unknown.append(inner)
        left = gap[: len(gap) - len(gap.lstrip(";&,_!?"))]
        return left + _HIDDEN + gap[len(left) + len(inner) :]

    for match in _SETTINGS.finditer(segment):
        shown += hide_until(match.start()) + match[0]
        at = match.end()
    return shown + hide_until(len(segment))


def _query(query: str, secrets: list[str], unknown: list[str]) -> str:
    shown = ""
    for word in re.split(r"([&;])", query):
        name, equals, value = word.partition("=")
        low = name.lower()
        harmless = equals and low in _HARMLESS and _FORM.fullmatch(value)
        plain = not equals and _FORM.fullmatch(name) and not name.isdigit()
        if word in ("&", ";", "") or harmless or plain:
            shown += word
        elif equals and low in _NAMES | _HARMLESS:
            shown += f"{name}={_HIDDEN}"
            (unknown if value.lower() in _USERS else secrets).append(value)
        else:
            shown += _HIDDEN
            secrets += [value] if equals else [name]
            unknown.append(name)
    return re.sub(r"\*\*\*(?:[&;]\*\*\*)+", _HIDDEN, shown)
