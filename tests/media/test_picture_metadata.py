"""Metadata of pictures: kept where it is the picture's, dropped where it is the old coding's."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.helpers.pictures import scenery
from vdeblur import deblur_video
from vdeblur.media.metadata import carry, exif, jpeg, loops, png, tiff, xmp

EXIF = exif.exif_of(6)
ICC = bytes(16) + b"RGB XYZ " + b"profile" * 40
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
POINTING = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:Camera="http://ns.google.com/photos/1.0/camera/" '
    b'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" xmlns:dc="urn:dc">'
    b'<rdf:Description Camera:MicroVideo="1" Camera:MicroVideoOffset="4000" dc:title="kept" '
    b'Camera:SpecialTypeID="kept too"><Container:Directory><rdf:li Item:Length="4000"/>'
    b"</Container:Directory></rdf:Description></x:xmpmeta>"
)
FILM = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 9
C2PA = b"JP\0\1\0\0\0\1" + struct.pack(">I4s", 60, b"jumb") + b"\0\0\0\x1ejumdc2pa" + bytes(30)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scenery(60, 42)).save(file, kind, **options)
    return file.getvalue()


def with_segments(data: bytes, *segments: tuple[int, bytes]) -> bytes:
    return data[:2] + b"".join(jpeg.segment(m, d) for m, d in segments) + data[2:]


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    return (
        data[:33]
        + b"".join(part for k, d in chunks for part in png.Chunk(k, d).parts())
        + data[33:]
    )


def rich(kind: str) -> bytes:
    """A picture with EXIF data, ICC profile, XMP and a comment."""
    if kind == "JPEG":
        return encoded(kind, exif=b"Exif\0\0" + EXIF, icc_profile=ICC, xmp=XMP, comment=b"hello")
    if kind == "WEBP":
        return encoded(kind, exif=EXIF, icc_profile=ICC, xmp=XMP, lossless=True)
    note = PngInfo()
    note.add_text("Comment", "hello")
    note.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return encoded(kind, exif=EXIF, icc_profile=ICC, pnginfo=note)


def facts(data: bytes) -> dict[str, object]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        comment = image.info.get("comment", image.info.get("Comment"))
        found = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
        return {
            "orientation": image.getexif().get(0x0112),
            "icc": image.info.get("icc_profile"),
            "xmp": found.encode() if isinstance(found, str) else found,
            "comment": comment.decode() if isinstance(comment, bytes) else comment,
        }


@pytest.mark.parametrize("after", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("before", ["JPEG", "PNG", "WEBP"])
def test_formats(before: str, after: str) -> None:
    source = rich(before)
    data, lost = carry.carry(source, encoded(after))
    expected = facts(source)
    if after == "WEBP" and before != "WEBP":
        assert lost == ["comments: not in this format of pictures"]
        expected["comment"] = None
    else:
        assert not lost
    assert facts(data) == expected
    assert expected["orientation"] == 6
    plain = Image.open(io.BytesIO(encoded(after)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(plain))


@pytest.mark.parametrize("before", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("after", ["jpg", "png", "webp", "tif"])
def test_data_stand_once(tmp_path: Path, before: str, after: str) -> None:
    """libav's coders write EXIF data of their own beside those that are carried."""
    block = Image.Exif()
    block[0x0112], block[0x013B] = 6, "Ann"
    source, output = tmp_path / f"a.{before}", tmp_path / f"b.{after}"
    Image.fromarray(scenery(60, 42)).save(source, exif=block)
    deblur_video(source, output, model="identity")
    data = output.read_bytes()
    if after == "png":
        assert [chunk.kind for chunk in png.parse(data)[0]].count(b"eXIf") == 1
    elif after == "jpg":
        blocks = [one for one in jpeg.Jpeg.parse(data).segments if one.is_metadata]
        assert sum(one.data.startswith(b"Exif") for one in blocks) == 1
        assert not [one for one in blocks if one.marker == jpeg.COM]
    with Image.open(output) as image:
        assert dict(image.getexif()).items() >= {0x0112: 6, 0x013B: "Ann"}.items()


def test_coding_is_not_copied() -> None:
    """Adobe's color model, palettes, significant bits and animations are the source's coding."""
    source = with_segments(encoded("JPEG"), (0xEE, b"Adobe\0d\0\0\0\0\0"), (0xEC, b"Ducky\0\1"))
    data, lost = carry.carry(source, encoded("JPEG"))
    assert b"Adobe" not in data
    assert b"Ducky" not in data
    assert not lost
    chunks = [
        *((b"acTL", bytes(8)), (b"sBIT", b"\5\6\5"), (b"tRNS", bytes(6)), (b"bKGD", bytes(6))),
        *((b"iDOT", bytes(28)), (b"prVt", b"safe"), (b"prVT", b"unsafe")),
    ]
    data, lost = carry.carry(with_chunks(encoded("PNG"), *chunks), encoded("PNG"))
    kinds = [chunk.kind for chunk in png.parse(data)[0]]
    assert kinds == [b"IHDR", b"bKGD", b"prVt", b"IDAT", b"IEND"]
    assert lost == ["PNG chunk prVT: it depends on the coding"]
    gray = io.BytesIO()
    Image.new("L", (60, 42)).save(gray, "PNG")
    data, lost = carry.carry(with_chunks(encoded("PNG"), (b"bKGD", bytes(6))), gray.getvalue())
    assert b"bKGD" not in data
    assert len(lost) == 1


@pytest.mark.parametrize(("space", "components"), [(b"GRAY", 3), (b"CMYK", 3), (b"RGB ", 1)])
def test_profile_of_other_colors(space: bytes, components: int) -> None:
    profile = ICC.replace(b"RGB ", space)
    output = io.BytesIO()
    Image.new("RGB" if components == 3 else "L", (60, 42)).save(output, "JPEG")
    data, lost = carry.carry(encoded("JPEG", icc_profile=profile), output.getvalue())
    assert profile not in data
    assert lost == [f"ICC profile: it is for {space.decode().strip()} pictures"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_content_credentials(kind: str) -> None:
    """They vouch for pixels that are not the output's."""
    source = encoded(kind)
    if kind == "JPEG":
        source = with_segments(source, (0xEB, C2PA), (0xEB, C2PA[:8] + C2PA[8:16] + bytes(40)))
    elif kind == "PNG":
        source = with_chunks(source, (b"caBX", C2PA))
    else:
        source += b"C2PA" + struct.pack("<I", len(C2PA)) + C2PA
        source = source[:4] + struct.pack("<I", len(source) - 8) + source[8:]
    for after in ("JPEG", "PNG", "WEBP"):
        data, lost = carry.carry(source, encoded(after))
        assert b"jumb" not in data
        assert lost == ["content credentials (C2PA): they vouch for the pixels of the source"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_stands_behind(kind: str) -> None:
    """It is appended again; in another format it is lost, and nothing points at it."""
    source = encoded(kind) + FILM
    data, lost = carry.carry(source, encoded(kind))
    assert data.endswith(FILM)
    assert data.count(FILM) == 1
    assert not lost
    data, lost = carry.carry(source, encoded("PNG" if kind != "PNG" else "JPEG"))
    assert FILM not in data
    assert "behind the picture" in lost[0]


def test_xmp_that_points_behind() -> None:
    source = encoded("JPEG", xmp=POINTING) + FILM
    data, _ = carry.carry(source, encoded("JPEG"))
    assert POINTING in data
    data, _ = carry.carry(source, encoded("PNG"))
    assert b"MicroVideo" not in data
    assert b"Item:Length" not in data
    assert b'dc:title="kept"' in data
    assert b'SpecialTypeID="kept too"' in data
    assert xmp.without_pointers(XMP) == XMP


def test_pictures_behind_move() -> None:
    """Their places in an MPF segment are counted from that segment (CIPA DC-007)."""
    second = encoded("JPEG", quality=30)

    def directory(first: int, offset: int) -> bytes:
        entries = struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
        entries += struct.pack("<HHII", 0xB001, 4, 1, 2) + struct.pack("<HHII", 0xB002, 7, 32, 50)
        head = b"MPF\0" + struct.pack("<2sHIH", b"II", 42, 8, 3) + entries + bytes(4)
        places = (0x030000, first, 0, 0, 0, 0, len(second), offset, 0, 0)
        return head + struct.pack("<IIIHHIIIHH", *places)

    exif_block = (0xE1, b"Exif\0\0" + EXIF)
    first = with_segments(encoded("JPEG"), exif_block, (0xE2, directory(0, 0)))
    base = first.index(b"MPF\0") + 4
    filled = directory(len(first), len(first) - base)
    source = first.replace(directory(0, 0), filled) + second
    output = encoded("JPEG", quality=99)
    data, lost = carry.carry(source, output)
    assert not lost
    base = data.index(b"MPF\0") + 4
    (size, zero) = struct.unpack_from("<II", data, base + 50 + 4)
    (length, offset) = struct.unpack_from("<II", data, base + 66 + 4)
    assert (zero, length) == (0, len(second))
    assert data[base + offset : base + offset + length] == second
    assert data[size - 2 : size] == b"\xff\xd9"
    assert size + length == len(data)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_hostile_bytes_raise_nothing(kind: str) -> None:
    rng = random.Random(1)
    source = rich(kind) + FILM
    output = encoded(kind)
    for n in range(400):
        data = bytearray(source)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(min(len(data), 1500))] = rng.choice([0, 1, 0x7F, 0xFF, n % 256])
        cut = bytes(data[: rng.randrange(4, len(data))] if n % 2 else data)
        for after in (output, encoded("PNG" if kind != "PNG" else "JPEG")):
            carry.carry(cut, after)
        carry.inspect(cut)
    bomb = b"ICC\0\0" + zlib.compress(bytes(1 << 28))
    found = carry.read(with_chunks(encoded("PNG"), (b"iCCP", bomb)))
    assert found.other == ["a damaged ICC profile"]


def tiff_of(entries: list[tuple[int, int, int, int]], *, size: int = 0) -> bytes:
    """A TIFF file of a directory with entries of (tag, type, count, place)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    return (head + body + bytes(4)).ljust(size, b"\0")


def test_tags_that_share_all_bytes_of_a_file() -> None:
    """60,000 tags of a megabyte each, all of them the same."""
    size = 1 << 20
    tags = [
        (tag, 1, size - 16, 8) for tag in range(1000, 60_000) if tag not in (34665, 34853, 40965)
    ]
    data = tiff_of(tags, size=size)
    found = tiff.parse(data)
    assert 0 < sum(len(value[1]) for value in found.values()) <= 2 * len(data)


def test_directories_that_point_at_each_other() -> None:
    """60,000 entries that each lead to 60,000 entries, and so on."""
    data = tiff_of([(tag, 4, 1, 8) for tag in (34665, 34853, 40965) for _ in range(20_000)])
    assert tiff.parse(data) == {34665: {}, 34853: {}, 40965: {}}
    assert exif.orientation_of(data) == 1


@pytest.mark.parametrize("before", ["WEBP", "JPEG"])
def test_a_density_beyond_any_number(before: str) -> None:
    """As TIFF: 2³² pixels in a hundredth of a centimeter."""
    source = io.BytesIO()
    Image.fromarray(scenery(60, 42)).save(source, "TIFF")
    endless = tiff.Value(5, b"\xff" * 4 + b"\0\0\0\1")
    tags: tiff.Directory = {282: endless, 283: endless, 296: tiff.Value(3, b"\0\3")}
    data = tiff.with_tags(source.getvalue(), tags)
    assert tiff.density_of(tiff.parse(data)) is None
    assert carry.carry(data, encoded(before))[1] == []
    assert carry.carry(data, encoded("PNG"))[1] == []


def test_text_that_grows_without_bound() -> None:
    """A thousand comments of 64 MB each, in 64 KB each."""
    bomb = (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (1 << 26)))
    found = carry.read(with_chunks(encoded("PNG"), *[bomb] * 100))
    assert sum(map(len, found.comments)) <= 1 << 26
    assert "text Comment" in found.other


def test_xmp_of_tags_that_never_close() -> None:
    start = b'<x xmlns:i="http://ns.google.com/photos/1.0/container/item/" i:gone="1">'
    many = b"".join(b"<i:a%d>" % number for number in range(200_000))
    assert xmp.without_pointers(start + many) == start.replace(b' i:gone="1"', b"") + many
    spaces = start + b" i:a" + b" " * 200_000 + b"<i:b>" * 100_000
    assert len(xmp.without_pointers(spaces)) == len(spaces) - len(b' i:gone="1"')
    nested = start + b"<i:b><i:b>1</i:b></i:b><kept/><i:c/><i:d></i:d>"
    assert xmp.without_pointers(nested).endswith(b'container/item/"><kept/>')


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_orientation_of_a_film_and_back(tmp_path: Path, orientation: int, suffix: str) -> None:
    """A film turns as its pictures do, and the pictures of a film as the film does."""
    block = Image.Exif()
    block[0x0112] = orientation
    source = tmp_path / f"a{suffix}"
    Image.fromarray(scenery(60, 42)).save(source, exif=block)
    for name in ("film.mp4", "film.mov", "film.mkv"):
        report = deblur_video(source, tmp_path / name, model="identity")
        assert not any("display matrix" in line or "rotation" in line for line in report.lost)
        back = tmp_path / f"{name}.jpg"
        deblur_video(tmp_path / name, back, model="identity")
        with Image.open(back) as image:
            assert image.getexif().get(0x0112, 1) == orientation
    (tmp_path / "film.mp4.jpg").unlink()


@pytest.mark.parametrize("suffix", [".avi", ".ts", ".y4m", ".gif", ".nut"])
def test_films_that_cannot_be_turned(tmp_path: Path, suffix: str) -> None:
    block = Image.Exif()
    block[0x0112] = 6
    source = tmp_path / "a.jpg"
    Image.fromarray(scenery(64, 48)).save(source, exif=block)
    report = deblur_video(source, tmp_path / f"film{suffix}", model="identity")
    assert any("rotation" in line or "display matrix" in line for line in report.lost)


def test_pictures_of_several_orientations(tmp_path: Path) -> None:
    for number, orientation in enumerate((6, 6, 1)):
        block = Image.Exif()
        block[0x0112] = orientation
        Image.fromarray(scenery(64, 48)).save(tmp_path / f"{number}.jpg", exif=block)
    report = deblur_video(tmp_path / "%d.jpg", tmp_path / "film.mp4", model="identity")
    assert any("have several" in line for line in report.lost)
    assert "EXIF data of the source: not in a film" in report.lost
    deblur_video(tmp_path / "%d.jpg", tmp_path / "out_%d.png", model="identity")
    for number, orientation in enumerate((6, 6, 1)):
        with Image.open(tmp_path / f"out_{number}.png") as image:
            assert image.getexif()[0x0112] == orientation


def animation(path: Path, **options: int) -> Path:
    pictures = [Image.fromarray(scenery(48, 36, seed=n)) for n in range(3)]
    form = "GIF" if path.suffix == ".gif" else "PNG"
    pictures[0].save(path, form, save_all=True, append_images=pictures[1:], duration=120, **options)
    return path


@pytest.mark.parametrize("after", [".gif", ".apng", ".mp4"])
@pytest.mark.parametrize(
    ("before", "options", "plays"),
    [
        (".gif", {}, 1),
        (".gif", {"loop": 0}, 0),
        (".gif", {"loop": 3}, 4),
        (".apng", {"loop": 0}, 0),
        (".apng", {"loop": 1}, 1),
        (".apng", {"loop": 2}, 2),
    ],
)
def test_loop_counts(
    tmp_path: Path, before: str, options: dict[str, int], plays: int, after: str
) -> None:
    source = animation(tmp_path / f"source{before}", **options)
    output = tmp_path / f"output{after}"
    assert loops.plays_of(source) == plays
    report = deblur_video(source, output, model="identity")
    assert report.frames == 3
    said = [line for line in report.lost if "loop count" in line]
    if after == ".mp4":
        assert len(said) == (plays != 1)
    else:
        assert not said
        assert loops.plays_of(output) == plays


def test_loop_counts_of_no_animation(tmp_path: Path) -> None:
    file = tmp_path / "a.gif"
    for data in (b"GIF89a", b"GIF89a" + bytes([1, 0, 1, 0, 0xF7]), b"\x89PNG\r\n\x1a\nacTL", b""):
        file.write_bytes(data)
        assert loops.plays_of(file) in (1, None)
