"""Each picture comes out in the format of its name, at its depth, in its colors, or is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.helpers.clips import picture, write_frames
from vdeblur import EncodeOptions, EncoderError, InputError, OutputError, deblur_video
from vdeblur.media.default_names import default_output
from vdeblur.media.image_sequences import IMAGE_SUFFIXES, is_image
from vdeblur.media.picture_formats import check_picture, is_lossless

ROWS, COLUMNS = np.mgrid[0:96, 0:128]
PIXELS = np.stack([COLUMNS * 2, ROWS * 2, 255 - COLUMNS], -1).clip(0, 255).astype(np.uint8)
RGB = Image.fromarray(PIXELS)
GRAY = RGB.convert("L")
DEEP = Image.fromarray((COLUMNS * 500).astype(np.uint16))
ALPHA = Image.fromarray(np.dstack([PIXELS, COLUMNS + 10]).astype(np.uint8))
GRAY_ALPHA = Image.merge("LA", (GRAY, ALPHA.getchannel(3)))
PICTURES = {
    "RGB": RGB,
    "gray": GRAY,
    "deep": DEEP,
    "alpha": ALPHA,
    "gray alpha": GRAY_ALPHA,
    "palette": RGB.quantize(64),
    "bits": RGB.convert("1"),
}


def gradient(pix_fmt: str) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(PIXELS, "rgb24").reformat(format=pix_fmt)


def restored(source: Path, output: str | None = None) -> tuple[Path, list[str]]:
    """The restored picture, and what was not kept."""
    target = source.with_name(output) if output else Path(default_output(source))
    report = deblur_video(source, target, model="identity")
    assert report.frames == 1
    assert not report.damage
    return target, report.lost


def values(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        deep = image.mode.startswith("I")
        return np.asarray(image if deep else image.convert("RGBA")).astype(float)


LOSSLESS = [
    (kind, suffix)
    for suffix, kinds in {
        ".tif": "RGB gray deep alpha palette bits",
        ".TIFF": "RGB gray alpha",
        ".png": "RGB gray deep alpha palette bits",
        ".bmp": "RGB gray palette bits",
        ".ppm": "RGB",
        ".pgm": "gray deep",
        ".tga": "RGB gray alpha palette",
        ".jp2": "RGB gray deep alpha",
        ".j2k": "RGB gray",
        ".sgi": "RGB gray alpha",
        ".pcx": "RGB gray palette",
        ".qoi": "RGB alpha",
    }.items()
    for kind in kinds.split()
] + [("gray alpha", ".png"), ("gray alpha", ".tif")]


@pytest.mark.parametrize(("kind", "suffix"), LOSSLESS)
def test_formats_without_loss(tmp_path: Path, kind: str, suffix: str) -> None:
    source = tmp_path / f"source{suffix}"
    PICTURES[kind].save(source)
    output, lost = restored(source)
    with Image.open(source) as before, Image.open(output) as after:
        assert after.format == before.format
        if kind in ("RGB", "deep", "alpha", "gray alpha"):
            assert after.mode == before.mode
    assert np.array_equal(values(source), values(output))
    assert is_lossless(output) is True
    with Image.open(source) as before:
        if before.mode == "P":
            assert "palette" in " ".join(lost)


@pytest.mark.parametrize("pix_fmt", ["gbrp10le", "gbrp12le", "rgb48le", "rgb24"])
def test_dpx_keeps_its_depth(tmp_path: Path, pix_fmt: str) -> None:
    source = tmp_path / "source.dpx"
    write_frames(source, [picture(1, pix_fmt, (64, 48))], "dpx", form="image2")
    output, _ = restored(source)
    frames = []
    for path in (source, output):
        with av.open(str(path)) as container:
            frames.append(next(container.decode(video=0)))
    assert frames[0].format.name == frames[1].format.name
    pairs = zip(frames[0].planes, frames[1].planes, strict=True)
    assert all(bytes(a) == bytes(b) for a, b in pairs)


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_rgb": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"restart_marker_blocks": 2},
    ],
    ids=lambda s: next(iter(s)) + str(next(iter(s.values()))),
)
@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jfif", ".jpe"])
def test_jpeg_colors(tmp_path: Path, settings: dict[str, Any], suffix: str) -> None:
    source = tmp_path / f"source{suffix}"
    RGB.save(source, "JPEG", quality=95, **settings)
    output, _ = restored(source)
    assert output.suffix == suffix
    with Image.open(output) as after:
        assert (after.format, after.mode) == ("JPEG", "RGB")
    assert np.abs(values(source) - values(output)).mean() < 1.2


@pytest.mark.parametrize("kind", ["gray", "deep"])
def test_gray_stays_gray_in_jpeg(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source.png"
    PICTURES[kind].save(source)
    output, lost = restored(source, "output.jpg")
    with Image.open(output) as after:
        assert after.mode == "L"
    scale = 257 if kind == "deep" else 1
    grays = values(source) if kind == "deep" else values(source)[..., 0]
    assert np.abs(grays / scale - values(output)[..., 0]).mean() < 1
    assert bool(lost) == (kind == "deep")  # 16 bits are said to be lost


def test_webp(tmp_path: Path) -> None:
    lossless, lossy = tmp_path / "lossless.webp", tmp_path / "lossy.webp"
    ALPHA.save(lossless, lossless=True)
    RGB.save(lossy, quality=95)
    output, _ = restored(lossless)
    assert np.array_equal(values(lossless), values(output))
    assert is_lossless(output) is True
    output, _ = restored(lossy)
    assert is_lossless(output) is False
    assert np.abs(values(lossy) - values(output)).mean() < 1.2


@pytest.mark.parametrize("source", ["rgb.png", "yuv.jpg", "yuv.webp", "deep.tif", "yuv.jp2"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".jp2", ".ppm"])
def test_conversions_keep_colors(tmp_path: Path, source: str, suffix: str) -> None:
    path = tmp_path / source
    if source == "deep.tif":
        write_frames(path, [gradient("rgb48le")], "tiff", form="image2")
    elif source == "yuv.jp2":
        RGB.convert("YCbCr").save(path)
    else:
        RGB.save(path, quality=95)
    output, lost = restored(path, "output" + suffix)
    shapes = {values(path).shape, values(output).shape}
    assert len(shapes) == 1
    assert np.abs(values(path) - values(output)).mean() < 2.5
    if source == "deep.tif" and suffix in (".jpg", ".webp", ".bmp"):
        assert any("rgb48le" in line for line in lost)
    if source == "deep.tif" and suffix in (".png", ".tif", ".jp2", ".ppm"):
        with av.open(str(output)) as container:
            assert "48" in next(container.decode(video=0)).format.name


def test_a_name_with_another_format_behind_it(tmp_path: Path) -> None:
    for name, form in (("a.png", "JPEG"), ("b.jpg", "PNG"), ("c.tif", "BMP"), ("d.webp", "TIFF")):
        RGB.save(tmp_path / name, form)
        output, _ = restored(tmp_path / name)
        with Image.open(output) as after:
            assert after.format == {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}.get(
                output.suffix, "WEBP"
            )


def saved(path: Path, image: Image.Image, **settings: Any) -> Path:
    image.copy().save(path, **settings)  # Pillow keeps the settings of an earlier coder
    return path


def test_refusals(tmp_path: Path) -> None:
    """What libav reads as another picture is refused in a sentence, and nothing is written."""
    twelve = bytearray(saved(tmp_path / "12.jpg", RGB).read_bytes())
    twelve[twelve.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "12.jpg").write_bytes(twelve)
    codes = bytearray(saved(tmp_path / "arithmetic.jpg", RGB).read_bytes())
    codes[codes.index(b"\xff\xc0") + 1] = 0xC9
    (tmp_path / "arithmetic.jpg").write_bytes(codes)
    (tmp_path / "float.pfm").write_bytes(b"PF\n2 2\n-1.0\n" + bytes(48))
    (tmp_path / "light.hdr").write_bytes(b"#?RADIANCE\n\n" + bytes(48))
    (tmp_path / "light.exr").write_bytes(b"v/1\x01" + bytes(48))
    (tmp_path / "new.jxl").write_bytes(b"\xff\x0a" + bytes(48))
    frames = [Image.new("RGB", (64, 48), (k * 40, 0, 0)) for k in range(4)]
    moving: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 100}
    expected = {
        saved(tmp_path / "inks.jpg", RGB.convert("CMYK")): "CMYK",
        saved(tmp_path / "inks.tif", RGB.convert("CMYK")): "CMYK",
        saved(tmp_path / "lab.tif", RGB.convert("LAB")): "other colors",
        saved(tmp_path / "float.tif", GRAY.convert("F")): "floating-point",
        saved(tmp_path / "jpeg.tif", RGB, compression="jpeg"): "compression 7",
        saved(tmp_path / "big.tif", RGB, big_tiff=True): "BigTIFF",
        saved(tmp_path / "pages.tif", RGB, save_all=True, append_images=[GRAY.copy()]): "2 pages",
        saved(tmp_path / "la.tga", GRAY_ALPHA): "gray with alpha",
        saved(tmp_path / "icon.ico", RGB): "ICO",
        saved(tmp_path / "moving.webp", frames[0], **moving): "animated WebP",
        tmp_path / "12.jpg": "12 bits",
        tmp_path / "arithmetic.jpg": "arithmetic",
        tmp_path / "float.pfm": "PFM",
        tmp_path / "light.hdr": "Radiance",
        tmp_path / "light.exr": "OpenEXR",
        tmp_path / "new.jxl": "JPEG XL",
    }
    for path, words in expected.items():
        with pytest.raises(InputError, match=words):
            deblur_video(path, tmp_path / "output.png", model="identity")
    assert set(tmp_path.iterdir()) == set(expected)


def heif(brand: bytes, meta: bytes) -> bytes:
    def box(kind: bytes, data: bytes) -> bytes:
        return (len(data) + 8).to_bytes(4, "big") + kind + data

    head = box(b"ftyp", brand + bytes(4) + brand + b"mif1")
    return head + box(b"meta", bytes(4) + meta) + box(b"mdat", bytes(9))


@pytest.mark.parametrize(
    ("brand", "meta", "words"),
    [
        (b"heic", b"....grid....", "in tiles"),
        (b"avif", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", "with alpha"),
        (b"avif", b"irot", "turned"),
        (b"avis", b"", "animated AVIF"),
    ],
)
def test_refusals_of_heif(tmp_path: Path, brand: bytes, meta: bytes, words: str) -> None:
    path = tmp_path / "picture.avif"
    path.write_bytes(heif(brand, meta))
    with pytest.raises(InputError, match=words):
        check_picture(path)


def test_avif_is_read_and_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    RGB.save(path, quality=95)
    output, _ = restored(path, "b.png")
    assert np.abs(values(path) - values(output)).mean() < 1.5
    assert default_output(path).endswith("a_deblurred.avif")
    with pytest.raises(OutputError, match="AVIF are not written; name one such as"):
        deblur_video(path, model="identity")


@pytest.mark.parametrize(
    "suffix", [".avif", ".heic", ".jxl", ".exr", ".hdr", ".pfm", ".ico", ".psd"]
)
def test_formats_that_are_not_written(tmp_path: Path, suffix: str) -> None:
    RGB.save(tmp_path / "a.png")
    assert is_image("a" + suffix)
    assert suffix not in IMAGE_SUFFIXES
    with pytest.raises(OutputError, match="are not written"):
        deblur_video(tmp_path / "a.png", tmp_path / f"b{suffix}", model="identity")
    assert len(list(tmp_path.iterdir())) == 1


def test_an_encoder_of_another_format_is_refused(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png")
    with pytest.raises(EncoderError, match=r"\.png pictures are not made by encoder mjpeg"):
        deblur_video(
            tmp_path / "a.png",
            tmp_path / "b.png",
            model="identity",
            encode=EncodeOptions(encoder="mjpeg"),
        )


@pytest.mark.parametrize("name", ["moving.png", "moving.apng"])
def test_apng_stays_animated(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (64, 48), (k * 40, 0, 0)) for k in range(4)]
    data = io.BytesIO()
    frames[0].save(data, "PNG", save_all=True, append_images=frames[1:], duration=100)
    (tmp_path / name).write_bytes(data.getvalue())
    output = tmp_path / default_output(tmp_path / name)
    assert deblur_video(tmp_path / name, model="identity").frames == 4
    with Image.open(output) as after:
        assert (after.format, getattr(after, "n_frames", 1)) == ("PNG", 4)


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".tga", ".jp2", ".ppm", ".webp", ".dpx"])
def test_sequences_and_films(tmp_path: Path, suffix: str) -> None:
    for n in range(3):
        frame = gradient("rgb24")
        coder = {".tif": "tiff", ".dpx": "dpx"}.get(suffix)
        path = tmp_path / f"{n:03d}{suffix}"
        if coder:
            write_frames(path, [frame], coder, form="image2")
        else:
            Image.fromarray(frame.to_ndarray()).save(path)
    report = deblur_video(tmp_path / f"%03d{suffix}", tmp_path / "film.mkv", model="identity")
    assert report.frames == 3
    (tmp_path / "out").mkdir()
    deblur_video(tmp_path / "film.mkv", tmp_path / "out" / f"%03d{suffix}", model="identity")
    made = sorted((tmp_path / "out").iterdir())
    assert len(made) == 3
    with av.open(str(made[0])) as a, av.open(str(tmp_path / f"000{suffix}")) as b:
        x, y = (next(c.decode(video=0)) for c in (a, b))
        assert x.format.is_rgb == y.format.is_rgb
        difference = x.reformat(format="rgb24").to_ndarray().astype(int)
        difference -= y.reformat(format="rgb24").to_ndarray()
        assert np.abs(difference).mean() < 4


def test_a_film_of_10_bits_becomes_pictures_of_16(tmp_path: Path) -> None:
    film = tmp_path / "film.mkv"
    write_frames(film, [picture(n, "yuv420p10le", (64, 48)) for n in range(2)], "ffv1")
    for suffix, form in ((".tif", "rgb48le"), (".png", "rgb48be"), (".dpx", "rgb48le")):
        (tmp_path / suffix).mkdir()
        deblur_video(film, tmp_path / suffix / f"%d{suffix}", model="identity")
        with av.open(str(tmp_path / suffix / f"1{suffix}")) as container:
            assert next(container.decode(video=0)).format.name in (form, "gbrp10le")


@pytest.mark.parametrize(("name", "mode"), [("a.jpg", "RGB"), ("a.png", "RGB"), ("a.png", "L")])
def test_odd_sizes_become_a_film(
    tmp_path: Path, name: str, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    RGB.resize((125, 95)).convert(mode).save(tmp_path / name)
    deblur_video(tmp_path / name, tmp_path / "film.mp4", model="identity")
    with av.open(str(tmp_path / "film.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (125, 95)
        assert "420" in frame.format.name or frame.format.name == "gray"
    assert "x26" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_an_odd_size_is_named(
    tmp_path: Path, encoder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    RGB.resize((125, 95)).save(tmp_path / "odd.jpg")
    with pytest.raises(EncoderError, match=r"even width and height only in yuv.*, and .* 125x95"):
        deblur_video(
            tmp_path / "odd.jpg",
            tmp_path / "film.mp4",
            model="identity",
            encode=EncodeOptions(encoder=encoder),
        )
    assert "x26" not in "".join(capfd.readouterr())


def shown(path: Path) -> list[tuple[int, np.ndarray[Any, Any]]]:
    """The pictures of an animation, with how many milliseconds each is shown."""
    with Image.open(path) as image:
        frames = ImageSequence.Iterator(image)
        return [(f.info.get("duration", 0), np.array(f.convert("RGBA"), int)) for f in frames]


def test_an_animation_keeps_its_colors_and_times(tmp_path: Path) -> None:
    """Transparent pictures, each with colors of its own: 256 fixed ones would be other colors."""
    pictures = []
    for number in range(4):
        image = Image.new("RGBA", (120, 80))
        inside = RGB.resize((40, 30)).rotate(90 * number).quantize(200).convert("RGBA")
        image.paste(inside, (12 * number, 20))
        pictures.append(image)
    source, times = tmp_path / "a.gif", [20, 50, 200, 1000]
    pictures[0].save(
        source, save_all=True, append_images=pictures[1:], duration=times, loop=0, disposal=2
    )
    report = deblur_video(source, tmp_path / "b.gif", model="identity")
    assert not report.differences
    assert report.lost == ["more than 256 colors a picture: gif has none"]
    for (before, pixels), (after, other) in zip(
        shown(source), shown(tmp_path / "b.gif"), strict=True
    ):
        assert before == after
        assert np.array_equal(pixels[..., 3], other[..., 3])
        opaque = pixels[..., 3] > 0
        assert np.abs(pixels[opaque] - other[opaque]).max() <= 1  # palettes round


def test_a_film_as_animation(tmp_path: Path) -> None:
    """In the colors of each picture, dithered."""
    source = tmp_path / "film.mkv"
    write_frames(source, [gradient("yuv444p")] * 3, colour=(1, 2, 2, 5))
    deblur_video(source, tmp_path / "film.gif", model="identity")
    for _, pixels in shown(tmp_path / "film.gif"):
        assert np.abs(pixels[..., :3] - PIXELS).mean() < 6
