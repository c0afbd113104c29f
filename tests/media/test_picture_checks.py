"""Metadata of TIFF and others, and the checks of `verify` on pictures, each of which can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from vdeblur import deblur_video
from vdeblur.media.metadata import others, tiff
from vdeblur.media.verify import Check, verify

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
RGB = Image.fromarray(np.stack([COLUMNS * 4, ROWS * 5, 255 - COLUMNS], -1).astype(np.uint8))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>a packet</x:xmpmeta>"


def with_metadata(path: Path, orientation: int = 6, **settings: Any) -> Path:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Canon of Tokyo"
    exif.get_ifd(0x8769)[0x829A] = IFDRational(1, 250)
    if path.suffix == ".tif":
        settings |= {"dpi": (300, 300), "compression": "tiff_lzw"}
        exif[700] = XMP
    else:
        settings["xmp"] = XMP
    RGB.copy().save(path, exif=exif, icc_profile=PROFILE, **settings)
    return path


def failing(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("target", [".tif", ".jpg", ".png", ".webp"])
@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".webp"])
def test_exif_profile_and_xmp_are_kept(tmp_path: Path, suffix: str, target: str) -> None:
    source = with_metadata(tmp_path / f"source{suffix}")
    output = tmp_path / f"output{target}"
    report = deblur_video(source, output, model="identity")
    assert not report.differences
    assert not [line for line in report.lost if "metadata" in line or "EXIF" in line]
    with Image.open(output) as after:
        exif = after.getexif()
        assert (exif[0x0112], exif[0x010F]) == (6, "Canon of Tokyo")
        if suffix != ".tif":  # Pillow writes no directories into a TIFF
            assert float(exif.get_ifd(0x8769)[0x829A]) == pytest.approx(1 / 250)
        assert after.info["icc_profile"] == PROFILE
        assert b"a packet" in output.read_bytes()
        after.load()
        if suffix == target == ".tif":
            assert after.info["dpi"] == (300, 300)


def test_tags_of_both_byte_orders() -> None:
    tags: tiff.Directory = {
        271: tiff.Value(2, b"Maker of cameras\0"),
        274: tiff.Value(3, b"\0\6"),
        282: tiff.Value(5, b"\0\0\1\x2c\0\0\0\1"),
        296: tiff.Value(3, b"\0\2"),
        34665: {33434: tiff.Value(5, b"\0\0\0\1\0\0\0\xfa")},
    }
    for order, head in (("<", b"II*\0\x08\0\0\0"), (">", b"MM\0*\0\0\0\x08")):
        data = head + tiff.build(tags, order, 8)
        assert tiff.parse(data) == tags
        for end in range(len(data)):  # a file that is cut off has fewer tags, and no error
            tiff.parse(data[:end])
    tags[283] = tags[282]
    assert tiff.density_of(tags) == (11811, 11811)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_alpha_stays_multiplied_or_not(tmp_path: Path, kind: int) -> None:
    """Tag 338 says it; libav's coder writes its own."""
    source, output = tmp_path / "source.tif", tmp_path / "output.tif"
    Image.merge("RGBA", (*RGB.split(), RGB.getchannel(0))).save(source)
    tags = tiff.parse(source.read_bytes()) | {338: tiff.Value(3, bytes([0, kind]))}
    data = source.read_bytes()
    head = data[:4] + len(data).to_bytes(4, "little")
    source.write_bytes(head + data[8:] + tiff.build(tags, "<", len(data)))
    deblur_video(source, output, model="identity")
    assert tiff.parse(output.read_bytes())[338] == tags[338]


@pytest.mark.parametrize("suffix", [".jp2", ".bmp", ".tga"])
def test_what_a_format_cannot_hold_is_said(tmp_path: Path, suffix: str) -> None:
    source, output = with_metadata(tmp_path / "source.jpg"), tmp_path / f"output{suffix}"
    report = deblur_video(source, output, model="identity")
    said = " ".join(report.lost)
    assert all(word in said for word in ("EXIF", "XMP"))
    assert ("ICC" in said) is (suffix != ".bmp")
    assert not report.differences


def test_metadata_that_is_not_carried_is_named(tmp_path: Path) -> None:
    avif = with_metadata(tmp_path / "a.avif", orientation=1)
    assert others.names_of(avif.read_bytes()) == ["EXIF data", "XMP", "ICC profile"]
    report = deblur_video(avif, tmp_path / "b.png", model="identity")
    assert any("EXIF data, XMP, ICC profile" in line for line in report.lost)
    box = (40).to_bytes(4, "big") + b"uuidJpgTiffExif->JP2" + bytes(16)
    assert others.names_of(b"\0\0\0\x0cjP  \r\n\x87\n" + box) == ["EXIF data"]


def test_checks_pass_and_can_fail(tmp_path: Path) -> None:
    source = with_metadata(tmp_path / "source.tif")
    good = tmp_path / "good.tif"
    deblur_video(source, good, model="identity")
    assert failing(verify(source, good, conversion=True)) == set()

    RGB.copy().save(tmp_path / "bare.tif")
    assert failing(verify(source, tmp_path / "bare.tif")) == {"picture metadata", "display matrix"}

    RGB.copy().save(tmp_path / "trick.tif", "JPEG", quality=95)
    assert "picture coding" in failing(verify(source, tmp_path / "trick.tif", conversion=True))

    red, green, blue = RGB.split()
    Image.merge("RGB", (blue, green, red)).save(tmp_path / "swapped.tif")
    assert "picture colours" in failing(verify(source, tmp_path / "swapped.tif", conversion=True))

    RGB.convert("L").save(tmp_path / "gray.tif")
    found = failing(verify(source, tmp_path / "gray.tif"))
    assert {"pixel format", "picture colours"} <= found

    deep = tmp_path / "deep.png"
    Image.fromarray((COLUMNS * 1000).astype(np.uint16)).save(deep)
    Image.fromarray((COLUMNS * 1000 // 257).astype(np.uint8)).save(tmp_path / "flat.png")
    assert failing(verify(deep, tmp_path / "flat.png")) == {"pixel format"}

    alpha = Image.merge("RGBA", (*RGB.split(), RGB.getchannel(0)))
    alpha.save(tmp_path / "alpha.png")
    RGB.copy().save(tmp_path / "opaque.png")
    checks = verify(tmp_path / "alpha.png", tmp_path / "opaque.png")
    assert failing(checks) == {"pixel format"}

    RGB.copy().save(tmp_path / "lossless.webp", lossless=True)
    RGB.copy().save(tmp_path / "lossy.webp", quality=95)
    checks = verify(tmp_path / "lossless.webp", tmp_path / "lossy.webp", conversion=True)
    assert "picture coding" in failing(checks)


@pytest.mark.parametrize("coding", ["adobe", "none"])
def test_colors_of_another_coding_are_seen(tmp_path: Path, coding: str) -> None:
    """An Adobe segment of the source before the samples of the output."""
    source, output = tmp_path / "source.jpg", tmp_path / "output.jpg"
    RGB.copy().save(source, quality=95, keep_rgb=True)
    deblur_video(source, output, model="identity")
    assert "picture colours" not in failing(verify(source, output))
    if coding == "adobe":
        data = output.read_bytes()
        segment = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"
        output.write_bytes(data[:2] + segment + data[2:])
        assert "picture colours" in failing(verify(source, output))


def test_a_sequence_is_verified(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for number in range(5):
        with_metadata(tmp_path / f"{number}.tif")
    patterns = tmp_path / "%d.tif", tmp_path / "out" / "%d.tif"
    report = deblur_video(*patterns, model="identity")
    assert not report.differences
    assert failing(verify(*patterns)) == set()
    red, green, blue = RGB.split()
    Image.merge("RGB", (blue, green, red)).save(tmp_path / "out" / "3.tif")
    checks = {check.name: check for check in verify(*patterns)}
    assert not checks["picture colours"].passed
    assert checks["picture colours"].detail.startswith("3.tif: ")
    (tmp_path / "out" / "3.tif").unlink()
    assert failing(verify(*patterns)) == {"frame count"}
