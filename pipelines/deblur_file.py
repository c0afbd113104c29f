"""Deblur one file, spelled out of vdeblur's parts: copy this and change it.

python pipelines/deblur_file.py INPUT OUTPUT [--model mimo-unet-guided] [--device auto]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from vdeblur import Deblurrer, Frame, VdeblurError, VideoReader, VideoWriter
from vdeblur.motion.guide import Guide


def restore(frame: Frame, deblurrer: Deblurrer) -> bool:
    """Restore the planes of a frame in place; True when the source's picture was kept instead."""
    planes = [torch.from_numpy(np.ascontiguousarray(plane))[None] for plane in frame.planes]
    motion = None if frame.motion is None else torch.from_numpy(frame.motion)[None]
    restored, replaced = deblurrer.restore_planes(planes, frame.layout, motion)
    for plane, tensor in zip(frame.planes, restored, strict=True):
        plane[...] = tensor[0].cpu().numpy()
    return bool(replaced[0])


def main() -> None:
    """Read, restore, write: the frames in order, every other packet as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", default="mimo-unet-guided")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    deblurrer = Deblurrer(args.model, device=args.device)
    replaced = 0
    with VideoReader(args.input) as reader, VideoWriter(args.output, reader) as writer:
        # Guide tells every frame how its places moved while the shutter was open.
        for item in Guide().run(reader.items()):
            if isinstance(item, Frame):
                replaced += restore(item, deblurrer)
            writer.write(item)
        writer.close()
        writer.finish()
    print(f"{args.output}: {writer.frames_written} frames, {replaced} left as they were")
    for line in writer.lost:
        print(f"not kept: {line}")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # one sentence for the person at the keyboard
        raise SystemExit(str(error)) from error
