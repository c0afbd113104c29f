"""The metrics' server: for Prometheus, not for pages in a browser."""

from __future__ import annotations

import http.client
import socket

import pytest

from vdeblur.errors import UsageError
from vdeblur.live.counters import Prometheus

pytest.importorskip("prometheus_client")


def status(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> int:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, path, None, names)
    answer = client.getresponse()
    answer.read()
    assert answer.getheader("Access-Control-Allow-Origin") is None
    client.close()
    return answer.status


@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:0"])
def test_only_scrapers_are_answered(address: str) -> None:
    metrics = Prometheus(address, list)
    try:
        port = metrics.port
        assert status(port) == status(port, Host=f"localhost:{port}") == 200
        assert status(port, Origin="https://other.example") == 403
        assert status(port, Origin="null") == 403
        assert status(port, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
        # Scrapers name other hosts as their network does.
        named = status(port, Host=f"camera.example:{port}")
        assert named == (403 if address.startswith("127") else 200)
        assert status(port, "/etc/passwd") == 404
        assert status(port, method="POST") == 501
    finally:
        metrics.close()


def test_clients_that_say_nothing_do_not_add_up() -> None:
    metrics = Prometheus("127.0.0.1:0", list)
    silent = [socket.create_connection(("127.0.0.1", metrics.port)) for _ in range(16)]
    try:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            status(metrics.port)
    finally:
        for client in silent:
            client.close()
        metrics.close()


def test_a_port_that_is_taken() -> None:
    first = Prometheus("127.0.0.1:0", list)
    try:
        with pytest.raises(UsageError, match="name another port"):
            Prometheus(f"127.0.0.1:{first.port}", list)
    finally:
        first.close()
