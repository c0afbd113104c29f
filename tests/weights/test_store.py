"""The user's own weights, what fetches them, and `vdeblur models`, by the command itself."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.web_servers import served
from vdeblur.cli import main as cli
from vdeblur.errors import ModelError, UsageError
from vdeblur.networks import catalogue, names, spec
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.weights import download, load, store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VDEBLUR_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "weights"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`vdeblur models ARGUMENTS`: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = cli.main(["models", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


def checkpoint(path: Path, *, blocks: int = 1, **config: int) -> Path:
    network = MIMOUNet(**({"base": 8, "blocks": blocks} | config))  # type: ignore[arg-type]
    torch.save({"model": network.state_dict()}, path)
    return path


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# --- what there is -------------------------------------------------------------------------------


def test_the_table_tells_of_every_network(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    table = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert {name for name in names() if spec(name).trained} <= set(table)
    assert "shipped" in table["mimo-unet-guided"]
    row = next(line for line in out.splitlines() if line.startswith("mimo-unet "))
    assert row.split()[1:4] == ["6.81", "M", "896"]
    assert "GoPro 31.73 dB, 0.951" in row
    assert "https://github.com/swz30/MPRNet" in out
    code, out, _ = run("--json")
    facts = {network["name"]: network for network in json.loads(out)["networks"]}
    assert facts["mimo-unet-plus"]["parameters"] == 16_107_651
    assert round(facts["mimo-unet-plus"]["gmac_720p"]) == 2119
    memory = facts["mimo-unet"]["memory_720p_bytes"]
    assert memory["fp32"] == 2 * memory["fp16"] > 2e9
    ratio = facts["mimo-unet-plusplus"]["gmac_720p"] / facts["mimo-unet-plus"]["gmac_720p"]
    assert round(ratio) == 8


def test_details_of_one_network_and_of_weights_that_were_added(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("mprnet")
    assert code == 0
    assert "20,127,0" in out
    assert "vdeblur models add FILE --name mprnet" in out
    assert json.loads(run("identity", "--json")[1])["weights"] == "needs none"
    run("add", checkpoint(tmp_path / "a.pth"), "--name", "mine")
    code, out, _ = run("mine")
    assert "mimo-unet (base 8, blocks 1, unshuffle 1)" in out
    assert str(tmp_path / "a.pth") in out
    code, out, _ = run()
    assert "added weights" in out
    code, _, err = run("nafnet")
    assert code == 1
    assert "no network 'nafnet'" in err


# --- keeping -------------------------------------------------------------------------------------


def test_added_weights_are_used_by_name_until_removed(
    run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkpoint(tmp_path / "MIMO-UNet.pkl", blocks=2)
    code, out, err = run("add", file, "--name", "GoPro-v1.2")
    assert (code, out) == (0, "")
    assert "mimo-unet (base 8, blocks 2, unshuffle 1); --weights GoPro-v1.2 uses it" in err
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert left(folder) == {f"GoPro-v1.2-{digest[:12]}.pkl", "GoPro-v1.2.json"}
    assert json.loads((folder / "GoPro-v1.2.json").read_text())["sha256"] == digest
    file.unlink()
    loaded = load(None, "GoPro-v1.2")
    assert loaded.notes[0].startswith("weights kept as GoPro-v1.2: mimo-unet (base 8, blocks 2")
    # A file of that name goes first.
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "GoPro-v1.2", blocks=3)
    assert "blocks 3" in load(None, "GoPro-v1.2").description
    assert run("remove", "GoPro-v1.2")[0] == 0
    assert left(folder) == set()
    code, _, err = run("remove", "GoPro-v1.2")
    assert code == 1
    assert "nothing is kept as 'GoPro-v1.2'" in err
    (tmp_path / "GoPro-v1.2").unlink()
    with pytest.raises(ModelError, match=r"file or name GoPro-v1.2 does not exist: .*none yet"):
        load(None, "GoPro-v1.2")
    run("add", checkpoint(tmp_path / "b.pth"), "--name", "other")
    with pytest.raises(ModelError, match=r"kept by name: other$"):
        load(None, "GoPro-v1.2")
    with pytest.raises(ModelError, match=r"kept by name: other; did you mean other\?$"):
        load(None, "othr")
    with pytest.raises(UsageError, match=r"'other' is a name of kept .*: give `weights='other'`$"):
        load("other")
    with pytest.raises(
        UsageError, match=r"no network 'otter': .*; did you mean `weights='other'`\?$"
    ):
        load("otter")
    with pytest.raises(UsageError, match=r"did you mean `model='mimo-unet-plus'`\?$"):
        load("mimounet-plus")
    assert "did you mean other?" in run("othr")[2]


def test_under_a_network_s_name_they_are_what_it_uses(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mimo-unet-plus", "mimo-unet-plusplus"):
        entry = replace(spec(name), config={"base": 8, "blocks": 3})
        monkeypatch.setitem(catalogue._CATALOGUE, name, entry)
    file = checkpoint(tmp_path / "x.pkl", blocks=3)
    code, _, err = run("add", file, "--name", "mimo-unet")
    assert code == 2
    assert "'mimo-unet' is another network" in err
    code, _, err = run("add", file, "--name", "mimo-unet-plus")
    assert code == 0
    assert "--model mimo-unet-plus uses it" in err
    loaded = load("mimo-unet-plus")
    assert loaded.notes[0].startswith("weights kept as mimo-unet-plus")
    assert not loaded.ensemble
    # The same weights, another way to run them.
    assert load("mimo-unet-plusplus").ensemble
    facts = json.loads(run("mimo-unet-plusplus", "--json")[1])
    assert facts["weights"] == "added"
    for name in ("mimo-unet-guided", "identity"):
        code, _, err = run("add", file, "--name", name)
        assert (code, "needs no weights of yours" in err) == (2, True)


def test_what_is_no_checkpoint_is_not_kept(run: Run, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "x.pth").write_text("hello")
    code, _, err = run("add", tmp_path / "x.pth", "--name", "mine")
    assert code == 1
    assert "not a PyTorch checkpoint" in err
    assert not folder.exists() or left(folder) == set()


def test_a_name_is_taken_once(run: Run, tmp_path: Path, folder: Path) -> None:
    first, second = checkpoint(tmp_path / "a.pth"), checkpoint(tmp_path / "b.pth", blocks=2)
    assert run("add", first, "--name", "mine")[0] == 0
    code, _, err = run("add", second, "--name", "mine")
    assert (code, "kept as 'mine' already" in err) == (2, True)
    assert "blocks 1" in load(None, "mine").description
    assert run("add", second, "--name", "mine", "--force")[0] == 0
    assert "blocks 2" in load(None, "mine").description
    assert len(left(folder)) == 2


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", ".hidden", "-x", "a.", "x" * 65, "ä", "add", "CON", "nul.txt"]
)
def test_names_that_cannot_be(name: str, run: Run, tmp_path: Path, folder: Path) -> None:
    code, _, err = run("add", checkpoint(tmp_path / "a.pth"), "--name=" + name)
    assert code == 2
    assert err.startswith("vdeblur")
    assert err.count("\n") == 1
    assert not folder.exists()


def test_kept_weights_are_held_to_their_sha256(run: Run, tmp_path: Path, folder: Path) -> None:
    run("add", checkpoint(tmp_path / "a.pth"), "--name", "mine")
    (file,) = folder.glob("mine-*.pth")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(ModelError, match=r"not the file that was added as 'mine'.*remove mine"):
        load(None, "mine")
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load(None, "mine")
    (folder / "mine.json").write_text("{")
    with pytest.raises(ModelError, match=r"mine\.json is damaged"):
        load(None, "mine")
    assert run()[0] == 0
    assert run("remove", "mine")[0] == 0
    assert left(folder) == set()


def test_a_copy_that_fails_leaves_nothing(
    run: Run, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    file = checkpoint(tmp_path / "a.pth")
    monkeypatch.setattr("shutil.copyfile", full)
    code, _, err = run("add", file, "--name", "mine")
    assert code == 1
    assert "cannot be written (No space left on device)" in err
    assert left(folder) == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "x.pth"], "--name is missing"),
        (["add"], "not complete"),
        (["mprnet", "more"], "or too much"),
        (["--url", "https://x"], "--url does not go with"),
        (["remove", "x", "--json"], "--json does not go with vdeblur models remove"),
        (["fetch", "x", "--name", "y"], "--name does not go with"),
    ],
)
def test_wrong_usage_is_said(words: list[str], said: str, run: Run) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err


# --- fetching ------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """One file at /weights.pth; counts what it was asked and gave."""

    daemon_threads = False
    content = b""
    etag = '"one"'
    ranges = True
    break_after: int | None = None  # bytes of the body, once
    kind = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.given: list[tuple[int, int]] = []  # status, bytes of body

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, body, status = self.server, self.server.content, 200
        if self.path.partition("?")[0] != "/weights.pth":
            return self.send_error(404)
        wanted = self.headers.get("Range", "")
        fresh = self.headers.get("If-Range") in (None, server.etag)
        headers = {"Content-Type": server.kind}
        if server.etag:
            headers["ETag"] = server.etag
        if wanted and server.ranges and fresh:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                server.given.append((416, 0))  # before the client can have it
                self.end_headers()
                return None
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if server.break_after is not None:
            body, server.break_after = body[: server.break_after], None
            self.close_connection = True
        server.given.append((status, len(body)))
        self.wfile.write(body)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with served(Server(), monkeypatch) as server:
        server.content = checkpoint(tmp_path / "served.pth").read_bytes()
        yield server


def test_secrets_of_an_address_are_neither_shown_nor_kept(
    run: Run, server: Server, folder: Path
) -> None:
    url = server.url + "?X-Amz-Signature=5ecret5&part=1"
    server.break_after = len(server.content) // 2
    code, out, err = run("fetch", "mine", "--url", url)
    assert code == 1
    assert f"{server.url}?X-Amz-Signature=***&part=1 broke off" in err
    record = folder / "fetched" / "mine.pth.part.json"
    assert json.loads(record.read_text())["url"] == f"{server.url}?X-Amz-Signature=***&part=1"
    shown = [out, err, record.read_text()]
    code, out, err = run("fetch", "mine", "--url", url)
    assert (code, [status for status, _ in server.given]) == (0, [200, 206])
    shown += [out, err, (folder / "mine.json").read_text()]
    assert "5ecret5" not in "".join(shown)
    stored = store.find_weights("mine")
    assert stored is not None
    assert stored.source == f"{server.url}?X-Amz-Signature=***&part=1"
    # Records of earlier versions hold the address as it was given.
    file = folder / "mine.json"
    file.write_text(file.read_text().replace("=***", "=5ecret5"))
    stored = store.find_weights("mine")
    assert stored is not None
    assert "5ecret5" not in stored.source


@pytest.mark.parametrize(
    "address",
    ["http://me:5ecret5@127.0.0.1:1/w.pth", "http://5ecret5@127.0.0.1:1/w", "ftp://a:5ecret5@x/w"],
)
def test_the_user_of_an_address_is_not_shown(address: str, run: Run) -> None:
    code, out, err = run("fetch", "mine", "--url", address)
    assert code != 0
    assert "5ecret5" not in out + err
    assert "://***@" in err


def test_a_file_is_fetched_checked_and_kept(run: Run, server: Server, folder: Path) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    code, out, err = run("fetch", "mine", "--url", server.url, "--sha256", digest.upper())
    assert (code, out) == (0, "")
    assert "mimo-unet (base 8, blocks 1, unshuffle 1); --weights mine uses it" in err
    kept = store.find_weights("mine")
    assert kept is not None
    assert (kept.source, kept.sha256) == (server.url, digest)
    assert load(None, "mine").name == "mimo-unet"
    assert len(left(folder)) == 2  # nothing of the way there
    # What is kept is not fetched again.
    code, _, err = run("fetch", "mine", "--url", server.url)
    assert (code, "already" in err, len(server.given)) == (2, True, 1)


def test_an_interrupted_fetch_goes_on_where_it_ended(
    run: Run, server: Server, folder: Path
) -> None:
    server.break_after = 5000
    code, _, err = run("fetch", "mine", "--url", server.url)
    assert code == 1
    assert "broke off after 0.0 of 0." in err
    assert "the same command goes on" in err
    assert not store.stored_weights()
    assert run("fetch", "mine", "--url", server.url)[0] == 0
    assert server.given == [(200, 5000), (206, len(server.content) - 5000)]
    assert load(None, "mine").name == "mimo-unet"


@pytest.mark.parametrize("change", ["no ranges", "another version", "no version"])
def test_a_fetch_begins_anew_where_the_halves_may_not_match(
    change: str, run: Run, server: Server, tmp_path: Path
) -> None:
    server.break_after = 5000
    server.etag = "" if change == "no version" else server.etag
    assert run("fetch", "mine", "--url", server.url)[0] == 1
    if change == "no ranges":
        server.ranges = False
    elif change == "another version":
        server.etag = '"two"'
        server.content = checkpoint(tmp_path / "two.pth", blocks=2).read_bytes()
    assert run("fetch", "mine", "--url", server.url)[0] == 0
    assert server.given[1] == (200, len(server.content))
    kept = store.find_weights("mine")
    assert kept is not None
    assert kept.sha256 == hashlib.sha256(server.content).hexdigest()


def test_a_checksum_lets_a_fetch_go_on_without_versions(run: Run, server: Server) -> None:
    server.etag, server.break_after = "", 5000
    digest = hashlib.sha256(server.content).hexdigest()
    assert run("fetch", "mine", "--url", server.url, "--sha256", digest)[0] == 1
    assert run("fetch", "mine", "--url", server.url, "--sha256", digest)[0] == 0
    assert server.given[1] == (206, len(server.content) - 5000)


def test_a_part_that_is_whole_needs_nothing_more(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "x.pth"
    target.with_name("x.pth.part").write_bytes(server.content)
    facts = {"url": server.url, "version": server.etag}
    target.with_name("x.pth.part.json").write_text(json.dumps(facts))
    download.download(server.url, target)
    assert server.given == [(416, 0)]
    assert target.read_bytes() == server.content
    # A part longer than the file is of something else.
    target.with_name("x.pth.part").write_bytes(server.content + b"more")
    target.with_name("x.pth.part.json").write_text(json.dumps(facts))
    download.download(server.url, target)
    assert target.read_bytes() == server.content


def test_what_is_not_as_stated_is_deleted(run: Run, server: Server, folder: Path) -> None:
    code, _, err = run("fetch", "mprnet", "--url", server.url, "--sha256", "0" * 64)
    assert code == 1
    assert f"gave a file with sha256 {hashlib.sha256(server.content).hexdigest()}, not 000" in err
    assert "open https://github.com/swz30/MPRNet, download the file" in err
    assert left(folder) == set()
    # The right sum, and the wrong network.
    code, _, err = run("fetch", "mprnet", "--url", server.url)
    assert code == 2
    assert "'mprnet' is another network" in err
    assert left(folder) == set()


def test_a_fetch_that_cannot_be_says_why_and_what_to_do(
    run: Run, server: Server, folder: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/x.pth"
        code, _, err = run("fetch", "mimo-unet", "--url", dead)
    assert code == 1
    assert "connection refused" in err
    assert "open https://github.com/chosj95/MIMO-UNet, download the file there" in err
    code, _, err = run("fetch", "mine", "--url", server.url.replace("weights", "gone"))
    assert "the server answers 404, the file is not there any more" in err
    assert err.count("\n") == 1
    code, _, err = run("fetch", "mine", "--url", "http://no-such-host.invalid/x.pth")
    assert (code, "name is not known" in err) == (1, True)
    content, server.content = server.content, b"no weights at all"
    code, _, err = run("fetch", "mine", "--url", server.url)
    assert code == 1
    assert f"what {server.url} gave is not a PyTorch checkpoint" in err
    assert left(folder) == set()
    server.content = content
    server.kind = "text/html; charset=utf-8"
    code, _, err = run("fetch", "mine", "--url", server.url)
    assert (code, "gives a web page" in err) == (1, True)
    for url in ("file:///etc/passwd", "ftp://x/y", "x.pth", "http://"):
        code, _, err = run("fetch", "mine", "--url", url)
        assert (code, "is no address to fetch from" in err) == (2, True)
    code, _, err = run("fetch", "mine", "--url", server.url, "--sha256", "12")
    assert (code, "is no sha256" in err) == (2, True)
    assert not store.stored_weights()


def test_a_server_that_stops_answering_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth"
        with pytest.raises(ModelError, match=r"cannot be fetched: .*(not answer|timed out)"):
            download.download(url, tmp_path / "x.pth")


def test_an_entry_s_own_address_and_sum_are_used(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("fetch", "mimo-unet")
    assert code == 2
    assert "no address is known" in err
    assert "open https://github.com/chosj95/MIMO-UNet, download the file there and run" in err
    code, _, err = run("fetch", "mine")
    assert code == 2
    assert "or download the file yourself and run `vdeblur models add FILE --name mine`" in err
    assert "did you mean mprnet?" in run("fetch", "mprnett")[2]
    assert "needs no weights of yours" in run("fetch", "mimo-unet-guided", "--url", server.url)[2]
    digest = hashlib.sha256(server.content).hexdigest()
    tiny = {"base": 8, "blocks": 1}
    entry = replace(spec("mimo-unet"), config=tiny, url=server.url, sha256=digest)
    monkeypatch.setitem(catalogue._CATALOGUE, "mimo-unet", entry)
    assert server.url in run("mimo-unet")[1]
    assert run("fetch", "mimo-unet")[0] == 0
    assert load("mimo-unet").notes[0].startswith("weights kept as mimo-unet")
    monkeypatch.setitem(catalogue._CATALOGUE, "mimo-unet", replace(entry, sha256="1" * 64))
    code, _, err = run("fetch", "mimo-unet", "--force")
    assert (code, "not 1111" in err) == (1, True)
    assert load("mimo-unet").name == "mimo-unet"


def test_stopping_a_fetch_keeps_what_came(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(download, "_PIECE", 4096)
    calls = 0
    real = download.download

    def stopped(url: str, target: Path, **options: Any) -> None:
        def progress(have: int, total: int | None) -> None:
            nonlocal calls
            calls += 1
            assert total == len(server.content)
            if have > 8000:
                raise KeyboardInterrupt

        real(url, target, **(options | {"on_progress": progress}))

    monkeypatch.setattr(download, "download", stopped)
    code, _, err = run("fetch", "mine", "--url", server.url)
    assert (code, "the same command goes on" in err) == (130, True)
    assert calls >= 2
    (part,) = folder.rglob("*.part")
    assert 8000 < part.stat().st_size < len(server.content)


def test_names_are_checked_where_they_are_used() -> None:
    with pytest.raises(UsageError, match="a word of `vdeblur models` itself"):
        store.check_name("fetch")
    assert store.find_weights("../../etc/passwd") is None
