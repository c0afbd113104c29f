"""Servers of a test's own on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import TypeVar

import pytest

S = TypeVar("S", bound=ThreadingHTTPServer)


@contextmanager
def served(server: S, monkeypatch: pytest.MonkeyPatch) -> Iterator[S]:
    """Run a server for the block, and have no proxy stand between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
