"""Secrets of addresses, in every form that cameras and services use, in everything that is said."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from vdeblur.cli import output
from vdeblur.cli.logs import logging_to
from vdeblur.cli.main import main
from vdeblur.live.addresses import resolve
from vdeblur.live.systemd import unit
from vdeblur.system import masking
from vdeblur.system.masking import hide, host_of, masked, masked_download, masked_message

S = "S3CRETPW"
FORMS = [
    # user and password
    f"rtsp://admin:{S}@127.0.0.1:9/h264Preview_01_main",
    f"rtsp://{S}:@127.0.0.1:9/live",
    f"http://{S}@127.0.0.1:9/live",
    f"rtsp://admin:pa:{S}@127.0.0.1:9/stream1",
    f"rtsp://admin:pa@{S}@127.0.0.1:9/stream1",
    f"rtsp://admin:pa/{S}@127.0.0.1:9/stream1",
    f"rtsp://admin:1234/{S}@127.0.0.1:9/stream1",
    f"rtsp://user:pa:ss@wo/{S}@host/live",
    f"rtsp://admin:{S}%23%40@127.0.0.1:9/Streaming/Channels/101",
    f"RTSP://ADMIN:{S}@127.0.0.1:9/ISAPI/Streaming/channels/102/httpPreview",
    f"rtsp://admin:{S}@[::1]:9/onvif1",
    f"rtsp://admin:{S}@[fe80::1%25eth0]:554/onvif1",
    f"rtsps://admin:#{S}@127.0.0.1:9/live",
    f"rtsp://admin:?{S}@127.0.0.1:9/live",
    # paths: XMeye, Foscam, D-Link and others
    f"rtsp://127.0.0.1:9/user=admin_password={S}_channel=1_stream=0.sdp?real_stream",
    f"rtsp://127.0.0.1:9/user=admin&password={S}&channel=1&stream=0.sdp",
    f"rtsp://127.0.0.1:9/user=admin;password={S};channel=1",
    f"rtsp://127.0.0.1:9/admin/{S}/ch1/main",
    f"rtsp://127.0.0.1:9/{S}",
    f"rtsp://127.0.0.1:9/live/{S}",
    f"rtsp://127.0.0.1:9/live/{S}.sdp",
    f"rtsp://127.0.0.1:9/live/ch1_{S}",
    f"rtsp://127.0.0.1:9/cam/realmonitor;token={S}?channel=1",
    f"rtsp://127.0.0.1:9/user%3Dadmin%26password%3D{S}",
    f"rtsp://127.0.0.1:9/live/1/{S}/trackID=1",
    f"http://127.0.0.1:9/{S}/video.mjpg",
    # parameters: Foscam, Vivotek, Axis, Reolink, Dahua, Amcrest
    f"http://127.0.0.1:9/videostream.cgi?loginuse=admin&loginpas={S}",
    f"http://127.0.0.1:9/videostream.cgi?user=admin&pwd={S}&resolution=32",
    f"http://127.0.0.1:9/cgi-bin/CGIProxy.fcgi?cmd=snapPicture2&usr=admin&pwd={S}",
    f"http://127.0.0.1:9/video.cgi?u=admin&p={S}",
    f"http://127.0.0.1:9/video.cgi?user=admin;pass={S};rate=0",
    f"http://127.0.0.1:9/cgi-bin/api.cgi?cmd=Snap&channel=0&rs={S}&user=admin&password={S}",
    f"http://127.0.0.1:9/flv?port=1935&app=bcs&stream=channel0_main.bcs&user=admin&password={S}",
    f"http://127.0.0.1:9/cgi?user=admin&pwd=P@{S}",
    f"http://127.0.0.1:9/video.mjpg?{S}",
    f"http://127.0.0.1:9/video.mjpg?{S}=",
    f"http://127.0.0.1:9/video.mjpg?auth={base64.b64encode(f'admin:{S}'.encode()).decode()}",
    f"http://127.0.0.1:9/live.m3u8?channel={S}",
    f"http://127.0.0.1:9/live.m3u8#{S}",
    f"rtsp://127.0.0.1:9/live?x=1&y={S}%20%26",
    # servers and services
    f"rtmp://127.0.0.1:9/live2/{S}",
    f"rtmp://127.0.0.1:9/{S}/live",
    f"rtmps://127.0.0.1:443/rtmp/{S}?s_bl=1",
    f"srt://127.0.0.1:9000?mode=caller&passphrase={S}&latency=120",
    f"srt://127.0.0.1:9000?streamid=#!::u=x,r={S},m=request",
    f"srt://127.0.0.1:9000?streamid=publish/live/{S}",
    f"https://bucket.s3.amazonaws.com/live.m3u8?X-Amz-Credential={S}%2Fus&X-Amz-Signature={S}",
    f"https://account.blob.core.windows.net/c/live.m3u8?sv=2022&sp=r&sig={S}%3D",
    f"https://storage.googleapis.com/b/live.m3u8?GoogleAccessId=x&Expires=1&Signature={S}",
    f"https://cdn.example/live.m3u8?Policy={S}&Key-Pair-Id={S}",
]
SECRETS = {S, S.lower(), base64.b64encode(f"admin:{S}".encode()).decode()}


@pytest.fixture(autouse=True)
def _nothing_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_in_use", {})


def leaks(text: str) -> bool:
    return any(s.lower() in text.lower() for s in SECRETS)


def said_of(address: str) -> Iterator[str]:
    """What libav, a server and Python say about an address."""
    yield address
    yield f"cannot open {address}: refused, again in 3 s"
    yield f"{address!r} is no address"
    yield f"{address} and then {address}, twice; ({address})"
    yield json.dumps({"source": address, "state": "live"})
    yield json.dumps({"source": address}).replace("/", "\\/")


@pytest.mark.parametrize("address", FORMS)
def test_no_text_shows_a_secret(address: str) -> None:
    for text in said_of(address):
        shown = masked(text)
        assert not leaks(shown), shown
        assert "***" in shown
        assert masked(shown) == shown
        assert not leaks(masked(text, of=address))


@pytest.mark.parametrize("address", FORMS)
def test_nor_is_it_shown_in_another_form(address: str) -> None:
    """Decoded, encoded, alone, and where libav cuts the address."""
    said = [f"Server returned 401 ({S})", f"stream {S} is taken", quote(f"as {S}", safe="")]
    if S in address:
        start, end = address.index(S), address.index(S) + len(S)
        said += [f"error in {address[:n]}" for n in range(start + 5, len(address))]
        said += [f"error in {address[n:]}" for n in range(end - 5)]
    hide(address)
    for text in said:
        for shown in (masked(text, of=address), masked_message(text)):
            assert not leaks(shown), text
            assert S[:5] not in shown, text
            assert S[-5:] not in shown, text


@pytest.mark.parametrize("address", FORMS)
def test_nothing_that_is_printed_or_logged_shows_it(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert resolve(address) == address
    log = tmp_path / "log.txt"
    with logging_to(2, str(log), ["camera", address, f"-o={address}"]):
        logger = logging.getLogger("vdeblur.live")
        logger.info("connecting to %s", address)
        try:
            try:
                raise OSError(address)
            except OSError as error:
                raise ValueError(f"{address} refused") from error
        except ValueError:
            logger.exception("it failed")
    output.say(f"vdeblur: {address} is gone")
    output.print_json({"event": "outage", "facts": [{"reason": f"{address}: gone"}]})
    print(unit(["camera", address, "-o", "cam.mkv"]))
    said = capfd.readouterr()
    for text in (said.out, said.err, log.read_text("utf-8")):
        assert "***" in text or "env:" in text
        assert not leaks(text), text


@pytest.mark.parametrize("address", [FORMS[0], FORMS[14], FORMS[26], FORMS[40]])
def test_the_command_does_not_say_it(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, sink = tmp_path / "log.txt", tmp_path / "cam.mkv"
    words = ["camera", address, "-o", str(sink), "--model", "identity", "--retry", "0"]
    assert main([*words, "--json", "--log-file", str(log), "-vv"]) == 1
    with pytest.raises(SystemExit):
        main(["camera", "test", "--retry", address])
    monkeypatch.setenv("CAMERA", address)
    assert main(["camera", "env:CAMERA", *words[2:]]) == 1
    said = capfd.readouterr()
    assert "***" in said.err
    for text in (said.out, said.err, log.read_text("utf-8")):
        assert not leaks(text), text


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://10.0.0.5:554/stream",
        "rtsp://camera/cam/realmonitor?channel=1&subtype=0",
        "rtsp://10.0.0.5/h264Preview_01_main",
        "rtsp://[fe80::1]:8554/Streaming/Channels/101",
        "http://10.0.0.5/axis-cgi/mjpg/video.cgi?resolution=640x480&fps=15",
        "http://10.0.0.5/axis-media/media.amp?videocodec=h264&camera=1",
        "https://a.example/hls/live.m3u8",
        "udp://@239.0.0.1:1234?pkt_size=1316&ttl=4",
        "srt://10.0.0.5:9000?mode=caller&latency=120",
        "rtmp://10.0.0.5/live",
        "file:///home/user/cameras/cam.mkv",
    ],
)
def test_what_is_harmless_is_shown(address: str) -> None:
    assert masked(address) == masked_message(address) == address
    assert masked(f"{address}: nothing came", of=address) == f"{address}: nothing came"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (FORMS[0], "rtsp://admin:***@127.0.0.1:9/h264Preview_01_main"),
        (FORMS[14], "rtsp://127.0.0.1:9/***_channel=1_stream=0.sdp?real_stream"),
        (FORMS[26], "http://127.0.0.1:9/videostream.cgi?loginuse=***&loginpas=***"),
        ("rtsp://u:p@w@10.0.0.5/live", "rtsp://***@10.0.0.5/live"),
    ],
)
def test_of_a_secret_address_the_harmless_part_is_shown(address: str, shown: str) -> None:
    assert masked(address) == shown


def test_messages_keep_words_that_a_path_shares() -> None:
    hide("rtsp://garage.example/garage")
    assert masked_message("writing garage.mkv (garage)") == "writing garage.mkv (garage)"
    assert masked_message("fetched https://a.example/dir/w.pth") == (
        "fetched https://a.example/dir/w.pth"
    )


def test_names_of_files_are_no_secrets() -> None:
    for name in ("/data/key=5/token=a/ride.mp4", "pass=2.mp4", "a:b@c/d.mp4"):
        assert masked_message(f"{name}: 25 frames") == f"{name}: 25 frames"


def test_addresses_of_files_keep_their_path() -> None:
    url = f"https://user:{S}@a.example/a/b.pth?download=1&token={S}"
    assert masked_download(url) == "https://user:***@a.example/a/b.pth?download=1&token=***"
    assert not leaks(masked_download(f"https://a.example/token/{S}/b.pth"))
    assert not leaks(masked_download(f"https://a.example/bot1:{S}/b.pth"))


@pytest.mark.parametrize(
    "text",
    [
        f"rtmp://127.0.0.1:9/live playpath={S}",
        f"password='{S}'",
        f'"passphrase": "{S}"',
        f"['-passphrase', '{S}']",
        f"Cookie: session={S}; a=1",
        f"X-Api-Key: {S}",
        f"x-auth-token: {S}",
        f"headers='Authorization: Token {S}{S}\\r\\nX: y'",
        f"streamid=publish/{S}",
    ],
)
def test_settings_and_headers_beside_an_address(text: str) -> None:
    assert not leaks(masked(f"cannot open {text}: refused"))
    hide("rtsp://127.0.0.1:9/live")
    assert not leaks(masked_message(text))


def test_long_texts_take_no_time() -> None:
    texts = ["a" * 20_000, "a://" * 5_000, "a:b@" * 5_000, "rtsp://h/" + "a_" * 10_000]
    texts += ["-" * 20_000, "rtsp://h/" + "s." * 10_000, "token" * 4_000, "a-" * 10_000]
    for text in texts:
        began = time.monotonic()
        masked(text, of=FORMS[0])
        assert time.monotonic() - began < 5, text[:20]


def test_hosts() -> None:
    assert host_of("rtsp://u:pa@s3cr3t/x@a.example:554/x") == "a.example"
    assert host_of("rtsp://[fe80::1]:554/x") == "fe80::1"
    assert host_of("/dev/video0") == ""


def test_arguments_of_argparse(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["video", f"--crf=rtsp://a:{S}@h"], [f"rtsp://a:{S}@h"]):
        with pytest.raises(SystemExit):
            main(words)
    assert not leaks(capsys.readouterr().err)
