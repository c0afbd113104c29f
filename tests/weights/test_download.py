"""Servers that lie, lead astray, or never end: the download says so, and nothing wrong is kept."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.web_servers import served
from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.weights import download, redirects

BODY = bytes(range(256)) * 100


class Server(ThreadingHTTPServer):
    """Answers each path as a test tells it to; keeps the headers that it was sent."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[Handler], object]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str, *, host: str = "127.0.0.1", user: str = "") -> str:
        return f"http://{user}{host}:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((path, {k.lower(): v for k, v in self.headers.items()}))
        self.server.answers[path](self)
        self.close_connection = True

    def answer(self, status: int = 200, body: bytes = BODY, **headers: str | None) -> None:
        self.send_response(status)
        shown = {"content-length": str(len(body))} | headers
        for name, value in shown.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def to(self, url: str) -> None:
        self.answer(302, b"", location=url)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with served(Server(), monkeypatch) as server:
        yield server


def refused(url: str, target: Path) -> str:
    with pytest.raises((ModelError, UsageError)) as caught:
        download.download(url, target)
    said = str(caught.value)
    assert said.isprintable()
    assert "5ecret5" not in said
    assert not target.exists()
    return said


def test_redirections_within_the_web_are_followed(server: Server, tmp_path: Path) -> None:
    server.answers = {"/a": lambda h: h.to("/b"), "/b": lambda h: h.answer()}
    download.download(server.url("/a"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/x?token=5ecret5", "data:text/plain,x", "gopher:x"]
)
def test_redirections_out_of_the_web_are_refused(to: str, server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = lambda h: h.to(to)
    assert "which is not on the web" in refused(server.url("/a"), tmp_path / "x")


def test_redirections_that_never_end_are_given_up(server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = lambda h: h.to("/a")
    assert "redirects without end" in refused(server.url("/a"), tmp_path / "x")
    assert len(server.asked) < 20


def test_redirections_inwards_are_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/a"] = lambda h: h.to("http://169.254.169.254/secrets")
    assert "inside this machine or its network" in refused(server.url("/a"), tmp_path / "x")
    # A server on the internet, as far as its name tells.
    inside = redirects._depth
    monkeypatch.setattr(redirects, "_depth", lambda h: 0 if h == "localhost" else inside(h))
    for to in (
        "127.0.0.1", "[::1]", "192.168.1.1", "[::ffff:10.0.0.1]", "0.0.0.0", "2130706433", "127.1",
        "127.0.0.%31", "%31%32%37.0.0.1", "1.1.1.1%00", "[::7f00:1]", "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a00:1]", "[2002:a00:1::]", "[::]", "[fe80::1%25eth0]", "[fd00::1]",
    ):  # fmt: skip
        server.answers["/b"] = lambda h, to=to: h.to(f"http://{to}/x")  # type: ignore[misc]
        said = refused(server.url("/b", host="localhost"), tmp_path / "x")
        assert "inside this machine or its network" in said


def test_a_name_that_leads_inwards_once_it_was_checked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what is connected to decides."""
    depth = redirects._depth
    monkeypatch.setattr(redirects, "_depth", lambda h: 0 if h == "localhost" else depth(h))
    server.answers["/a"] = lambda h: h.answer()
    said = refused(server.url("/a", host="localhost"), tmp_path / "x")
    assert "leads to 127.0.0.1, inside this machine or its network" in said
    assert not server.asked


def test_what_a_redirection_sends_beside_is_not_read(server: Server, tmp_path: Path) -> None:
    sent = []

    def endless(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("location", "/b")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(2000):  # megabytes
                handler.wfile.write(bytes(1 << 20))
                sent.append(1)

    server.answers = {"/a": endless, "/b": lambda h: h.answer()}
    download.download(server.url("/a"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    assert len(sent) < 100


def test_a_redirection_does_not_give_up_encryption(tmp_path: Path) -> None:
    handler = redirects.Redirects("https://example.org/a")
    request = download._request("https://example.org/a", 0, "")
    headers = Message()
    headers["Location"] = "http://example.org/b?sig=5ecret5"
    with pytest.raises(
        ModelError, match=r"without encryption: fetch that address itself"
    ) as caught:
        handler.http_error_302(request, io.BytesIO(), 302, "Found", headers)
    assert "5ecret5" not in str(caught.value)


def test_a_password_goes_to_its_own_server_alone(server: Server, tmp_path: Path) -> None:
    other = server.url("/c", host="localhost")
    server.answers = {
        "/a": lambda h: h.to("/b"),
        "/b": lambda h: h.to(other),
        "/c": lambda h: h.answer(),
    }
    download.download(server.url("/a", user="me:5ecret5@"), tmp_path / "x")
    given = {path: headers.get("authorization") for path, headers in server.asked}
    assert given == {"/a": "Basic bWU6NWVjcmV0NQ==", "/b": "Basic bWU6NWVjcmV0NQ==", "/c": None}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"content-length": "-5"}, "a length that is none"),
        ({"content-length": "many"}, "a length that is none"),
        ({"content-length": "99999999999999999"}, "more than weights have"),
        ({"content-length": str(len(BODY) + 10)}, "broke off after"),
        ({"content-type": "application/xhtml+xml"}, "gives a web page"),
        ({"content-encoding": "gzip"}, "in a coding that was not asked for"),
        ({"content-range": "bytes 5-9/10"}, ""),
    ],
)
def test_what_a_server_states_is_checked(
    headers: dict[str, str], said: str, server: Server, tmp_path: Path
) -> None:
    body = gzip.compress(BODY) if "content-encoding" in headers else BODY
    server.answers["/a"] = lambda h: h.answer(200, body, **headers)
    if said:
        assert said in refused(server.url("/a"), tmp_path / "x")
    else:
        download.download(server.url("/a"), tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == BODY


def test_statuses_and_their_words_are_said_on_one_line(server: Server, tmp_path: Path) -> None:
    def loud(handler: Handler) -> None:
        handler.send_response(500, "\x1b[31mred " + "x" * 5000)
        handler.end_headers()

    server.answers = {"/a": loud, "/b": lambda h: h.answer(204, b""), "/c": lambda h: h.answer(403)}
    assert "the server answers 500" in refused(server.url("/a"), tmp_path / "x")
    assert "the server answers 204" in refused(server.url("/b"), tmp_path / "x")
    assert "it wants a password or a token" in refused(server.url("/c?key=5ecret5"), tmp_path / "x")


def test_a_file_without_a_length_that_never_ends(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGEST_UNSTATED", 100_000)

    def endless(handler: Handler) -> None:
        handler.answer(200, b"", **{"content-length": None})
        try:
            while True:
                handler.wfile.write(BODY)
        except OSError:
            pass

    server.answers = {
        "/a": endless,
        "/b": lambda h: h.answer(200, BODY, **{"content-length": None}),
    }
    assert "does not end" in refused(server.url("/a"), tmp_path / "x")
    download.download(server.url("/b"), tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == BODY


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_is_given_up(
    part: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(redirects, "OPENING_SECONDS", 0.5)

    def drip(handler: Handler) -> None:
        start = b"HTTP/1.1 200 OK\r\n"
        handler.wfile.write(
            start + (b"" if part == "headers" else b"Content-Length: 999999\r\n\r\n")
        )
        for _ in range(30):
            try:
                handler.wfile.write(b"X-A: b\r\n")
            except OSError:
                return
            time.sleep(0.05)

    server.answers["/a"] = drip
    assert "the server does not answer" in refused(server.url("/a"), tmp_path / "x")


def broken_off(server: Server, target: Path, *, etag: str = '"one"') -> None:
    server.answers["/a"] = lambda h: h.answer(
        200, BODY[:1000], **{"content-length": str(len(BODY)), "etag": etag}
    )
    assert "broke off" in refused(server.url("/a"), target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"content-range": f"bytes 500-{len(BODY) - 1}/{len(BODY)}", "etag": '"one"'},
        {"content-range": f"bytes 1000-{len(BODY) - 1}/{len(BODY)}", "etag": '"two"'},
        {"content-range": "nonsense", "etag": '"one"'},
        {"etag": '"one"'},
    ],
)
def test_a_part_that_does_not_fit_is_not_joined(
    wrong: dict[str, str], server: Server, tmp_path: Path
) -> None:
    broken_off(server, tmp_path / "x")

    def answer(handler: Handler) -> None:
        if "range" in server.asked[-1][1]:
            handler.answer(206, BODY[500:], **wrong)
        else:
            handler.answer(200, BODY, etag='"two"')

    server.answers["/a"] = answer
    download.download(server.url("/a"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_part_that_nobody_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    server.answers["/a"] = lambda h: h.answer(206, BODY, content_range="bytes 5-9/10")
    assert "that nobody asked for" in refused(server.url("/a"), tmp_path / "x")


@pytest.mark.parametrize("facts", [[1], {"url": 1}, {"url": "x", "version": "a\r\nX: y"}, "["])
def test_damaged_records_of_a_part_are_no_matter(
    facts: Any, server: Server, tmp_path: Path
) -> None:
    broken_off(server, tmp_path / "x")
    text = "[" * 100_000 if facts == "[" else json.dumps(facts)
    (tmp_path / "x.part.json").write_text(text)
    server.answers["/a"] = lambda h: h.answer()
    download.download(server.url("/a"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_link_in_the_place_of_the_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "x.part").symlink_to(precious)
    server.answers["/a"] = lambda h: h.answer()
    download.download(server.url("/a"), tmp_path / "x")
    assert precious.read_text() == "mine"
    assert (tmp_path / "x").read_bytes() == BODY


def test_no_link_in_the_place_of_what_is_written_is_followed(
    server: Server, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "x.part.json").symlink_to(precious)
    (tmp_path / "x.part").hardlink_to(precious)
    server.answers["/a"] = lambda h: h.answer()
    download.download(server.url("/a"), tmp_path / "x")
    assert precious.read_text() == "mine"
    assert (tmp_path / "x").read_bytes() == BODY
    (tmp_path / "x.part.lock").symlink_to(precious)
    with pytest.raises(OutputError, match="cannot be written"):
        download.download(server.url("/a"), tmp_path / "x")


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_downloads_of_one_file_do_not_meet(server: Server, tmp_path: Path) -> None:
    refused = []

    def meanwhile(handler: Handler) -> None:
        with pytest.raises(OutputError, match="by another run") as caught:
            download.download(server.url("/b"), tmp_path / "x")
        refused.append(caught)
        handler.answer()

    server.answers["/a"] = meanwhile
    download.download(server.url("/a"), tmp_path / "x")
    assert refused
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == BODY


def test_a_disk_without_room_is_said_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    server.answers["/a"] = lambda h: h.answer()
    with pytest.raises(OutputError, match="has no room for the"):
        download.download(server.url("/a"), tmp_path / "x")


def test_addresses_of_unusual_letters(server: Server, tmp_path: Path) -> None:
    server.answers["/a%20%C3%A9.pth"] = lambda h: h.answer()
    download.download(server.url("/a é.pth#part"), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == BODY
    for url in ("http://x/\r\nHost: y", "http:///x", "http://[::1/x", "http://x:port/y", "//x/y"):
        refused(url, tmp_path / "y")
