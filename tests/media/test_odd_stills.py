"""Pictures of unusual forms, as other programs write them: nothing of them changes unsaid."""

from __future__ import annotations

import io
import struct
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.helpers.clips import picture, write_frames
from vdeblur import InputError, deblur_video, verify
from vdeblur.media.metadata import bmp, carry, loops, others, png, tiff
from vdeblur.media.picture_formats import check_picture

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
RGB = np.stack([COLUMNS * 4, ROWS * 5, 255 - COLUMNS], -1).astype(np.uint8)
ALPHA = np.dstack([RGB, COLUMNS * 4]).astype(np.uint8)


@cache
def srgb() -> bytes:
    """One profile for all: each bears the second in which it was made."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return bytes(profile.tobytes())


def restored(source: Path) -> tuple[Path, list[str]]:
    target = source.with_name(f"restored{source.suffix}")
    report = deblur_video(source, target, model="identity")
    assert not report.damage
    assert [check for check in verify(source, target) if not check.passed] == []
    return target, report.lost


def bmp_5(profile: bytes, *, alpha: bool = True) -> bytes:
    """A BMP with the header of Windows 5, 32 bits a pixel."""
    pixels = ALPHA[::-1, :, [2, 1, 0, 3]].tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, 64, 48, 1, 32, 3, len(pixels), 2835, 1000, 0, 0)
    head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000 if alpha else 0)
    head += (b"DEBM" if profile else b"BGRs") + bytes(48) + struct.pack("<I", 4)
    head += struct.pack("<III", 124 + len(pixels) if profile else 0, len(profile), 0)
    size = 14 + len(head) + len(pixels) + len(profile)
    return struct.pack("<2sIII", b"BM", size, 0, 14 + len(head)) + head + pixels + profile


@pytest.mark.parametrize("with_profile", [True, False])
def test_bmp_keeps_alpha_resolution_and_profile(tmp_path: Path, with_profile: bool) -> None:
    profile = srgb() if with_profile else b""
    source = tmp_path / "a.bmp"
    source.write_bytes(bmp_5(profile))
    output, lost = restored(source)
    data = output.read_bytes()
    assert lost == []
    assert bmp.profile_of(data) == profile
    assert bmp.density_of(data) == (2835, 1000)
    assert int.from_bytes(data[2:6], "little") == len(data)
    with Image.open(output) as image:
        assert image.mode == "RGBA"
        assert np.array_equal(np.asarray(image), ALPHA)


def test_bmp_without_a_mask_has_no_alpha(tmp_path: Path) -> None:
    source = tmp_path / "a.bmp"
    source.write_bytes(bmp_5(b"", alpha=False))
    with Image.open(restored(source)[0]) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), RGB)


def test_facts_go_to_bmp_and_from_it(tmp_path: Path) -> None:
    source, output = tmp_path / "a.png", tmp_path / "a.bmp"
    Image.fromarray(RGB).save(source, dpi=(300, 200), icc_profile=srgb(), exif=Image.Exif())
    deblur_video(source, output, model="identity")
    again = tmp_path / "b.png"
    deblur_video(output, again, model="identity")
    with Image.open(again) as image:
        assert np.array_equal(np.asarray(image), RGB)
        assert image.info["icc_profile"] == srgb()
        assert np.allclose(image.info["dpi"], (300, 200), atol=0.1)


@pytest.mark.parametrize("cut", range(54, 160, 7))
def test_bmp_that_is_cut_off_raises_nothing(cut: int) -> None:
    whole = bmp_5(srgb())
    carry.read(whole[:cut])
    carry.carry(whole[:cut], whole)


def test_several_pictures_in_a_file_are_refused(tmp_path: Path) -> None:
    for name, one in {
        "a.ppm": b"P6 64 # c\n48\n255\n" + RGB.tobytes(),
        "b.pgm": b"P5\n64 48 65535\n" + bytes(2 * 64 * 48),
        "a.pam": b"P7\nWIDTH 64\nHEIGHT 48\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n"
        + RGB.tobytes(),
    }.items():
        (tmp_path / name).write_bytes(one)
        check_picture(tmp_path / name)
        (tmp_path / name).write_bytes(one + one)
        with pytest.raises(InputError, match="holds several pictures, of which one would be kept"):
            deblur_video(tmp_path / name, tmp_path / f"out-{name}", model="identity")


def test_jpeg_ls_has_an_end(tmp_path: Path) -> None:
    """Its coded data has bytes that would be markers of JPEG."""
    source = tmp_path / "a.jls"
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, "rgb24")
    write_frames(source, [frame], "jpegls", form="image2")
    output, lost = restored(source)
    assert lost == []
    with av.open(str(output)) as container:
        assert np.array_equal(next(container.decode(video=0)).to_ndarray(format="rgb24"), noise)
    data = source.read_bytes()
    scan = data.index(b"\xff\xda")
    at = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big") - 2
    source.write_bytes(data[:at] + b"\2" + data[at + 1 :])
    with pytest.raises(InputError, match="a JPEG-LS of interleaved samples"):
        deblur_video(source, tmp_path / "b.jls", model="identity")


@pytest.mark.parametrize("mode", ["L", "1"])
def test_tiff_where_zero_is_white(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "a.tif"
    image = Image.fromarray(RGB).convert(mode)
    image.save(source, tiffinfo={262: 0})
    output, _ = restored(source)
    with Image.open(source) as before, Image.open(output) as after:
        assert np.array_equal(np.asarray(before.convert("L")), np.asarray(after.convert("L")))


def test_tiff_keeps_its_curve_and_texts_of_utf_8(tmp_path: Path) -> None:
    source = tmp_path / "a.tif"
    Image.fromarray(RGB).save(source)
    curve = tiff.Value(3, bytes(range(256)) * 2 * 3)
    text = tiff.Value(129, "Bjørn\0".encode())
    tags: tiff.Directory = {301: curve, 34665: {42032: text}}
    source.write_bytes(tiff.with_tags(source.read_bytes(), tiff.parse(source.read_bytes()) | tags))
    found = tiff.parse(restored(source)[0].read_bytes())
    assert found[301] == curve
    assert found[34665] == {42032: text}
    # A curve has an entry for each value of a sample.
    deep = io.BytesIO()
    Image.fromarray((COLUMNS * 500).astype(np.uint16)).save(deep, "TIFF")
    assert 301 not in tiff.parse(carry.carry(source.read_bytes(), deep.getvalue())[0])


def test_animated_png_keeps_its_metadata(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    pictures = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    pictures[0].save(source, save_all=True, append_images=pictures[1:], duration=100, loop=3)
    data = source.read_bytes()
    words = png.Chunk(b"tEXt", b"Comment\0not acTL 1234 but text")
    more = [words, png.Chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))]
    source.write_bytes(data[:33] + b"".join(p for c in more for p in c.parts()) + data[33:])
    assert loops.plays_of(source) == 3
    output, lost = restored(source)
    assert lost == []
    assert loops.plays_of(output) == 3
    chunks, _ = png.parse(output.read_bytes())
    assert [c for c in chunks if c.kind in (b"tEXt", b"pHYs")] == more
    with Image.open(output) as image:
        assert getattr(image, "n_frames", 1) == 2
    # A file that ends within that chunk has no count.
    source.write_bytes(data[: data.index(b"acTL") + 8])
    assert loops.plays_of(source) is None


def with_facts(path: Path, *, profile: bytes, exif: int, words: str) -> Path:
    """A picture with metadata of these values."""
    facts = Image.Exif()
    facts[274] = exif
    more = {"comment": words} if path.suffix == ".jpg" else {"xmp": f"<x>{words}</x>".encode()}
    Image.fromarray(RGB).save(path, icc_profile=profile, exif=facts, lossless=True, **more)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".tif"])
def test_metadata_of_another_picture_is_seen(tmp_path: Path, suffix: str) -> None:
    source = with_facts(tmp_path / f"a{suffix}", profile=srgb(), exif=6, words="a")
    same = with_facts(tmp_path / f"b{suffix}", profile=srgb(), exif=6, words="a")
    other_profile = srgb()[:100] + b"x" + srgb()[101:]
    changes = {
        "ICC profile is another": {"profile": other_profile, "exif": 6, "words": "a"},
        "EXIF data is another": {"profile": srgb(), "exif": 6, "words": "a"},
        "is another": {"profile": srgb(), "exif": 6, "words": "b"},
    }
    changes["EXIF data is another"]["exif"] = 1

    def said(output: Path) -> str:
        checks = verify(source, output)
        return "".join(c.detail for c in checks if c.name == "picture metadata" and not c.passed)

    assert said(same) == ""
    for words, change in changes.items():
        if suffix == ".tif" and words != "ICC profile is another":
            continue  # a TIFF's tags are written anew
        if suffix == ".png" and words == "is another":
            continue  # Pillow writes no XMP there
        other = with_facts(tmp_path / f"c{suffix}", **change)  # type: ignore[arg-type]
        assert words in said(other), words


def test_dpx_without_headers_of_film(tmp_path: Path) -> None:
    source = tmp_path / "a.dpx"
    write_frames(source, [picture(1, "rgb24", (64, 48))], "dpx", form="image2")
    data = source.read_bytes()
    assert data[:8] == b"XPDS" + struct.pack("<I", 1664)
    assert others.names_of(data) == []
    longer = data[:4] + struct.pack("<I", 2048) + data[8:1664] + b"film".ljust(384, b"\0")
    assert others.names_of(longer + data[1664:]) == ["film and television information (timecode)"]


def test_what_a_gif_says_beside_is_named(tmp_path: Path) -> None:
    source = tmp_path / "a.gif"
    pictures = [Image.fromarray(RGB).quantize(32), Image.fromarray(255 - RGB).quantize(32)]
    pictures[0].save(source, save_all=True, append_images=pictures[1:], comment=b"by me")
    assert others.names_of(source.read_bytes()) == ["comments"]
    report = deblur_video(source, tmp_path / "b.gif", model="identity")
    assert any("comments of the source" in line for line in report.lost)
    data = source.read_bytes()
    for end in range(0, len(data), 37):
        others.names_of(data[:end])
    plain = tmp_path / "c.gif"
    pictures[0].save(plain, save_all=True, append_images=pictures[1:])
    assert others.names_of(plain.read_bytes()) == []
