"""Pack photographs as WebP of the best quality that fits a limit, to train on another machine.

python pipelines/pack_photos.py PHOTOS --out packed --limit-mib 40
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

QUALITIES = range(94, 49, -4)
PROBED = 8  # one in so many photographs is packed first


def packed(file: Path, quality: int) -> bytes:
    """A photograph as WebP, at its size."""
    buffer = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def main() -> None:
    """Pack at the best quality that a few photographs suggest, or the next that fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit-mib", type=float, default=40.0)
    args = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
    files = sorted(file for file in args.photos.rglob("*") if file.suffix.lower() in suffixes)
    if not files:
        raise SystemExit(f"no photographs under {args.photos}: give a folder that has some")
    some = files[::PROBED]
    limit = args.limit_mib * 2**20
    args.out.mkdir(parents=True, exist_ok=True)
    for quality in QUALITIES:
        if sum(len(packed(file, quality)) for file in some) > limit * len(some) / len(files):
            continue
        total = 0
        for number, file in enumerate(files):  # photographs of several folders may share a name
            data = packed(file, quality)
            (args.out / f"{number:05d}-{file.stem}.webp").write_bytes(data)
            total += len(data)
        if total <= limit:
            told = f"{len(files)} photographs at quality {quality}: {total / 2**20:.1f} MiB"
            print(f"{told} in {args.out}")
            return
    raise SystemExit(f"{len(files)} photographs do not fit: give fewer, or a larger limit")


if __name__ == "__main__":
    main()
