"""Deblur a file with vdeblur's reader, deblurrer and writer: an example to copy and adapt.

python pipelines/deblur_file.py INPUT OUTPUT [--model mimo-unet-guided] [--device auto]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from vdeblur import Deblurrer, Frame, VdeblurError, VideoReader, VideoWriter
from vdeblur.motion import Guide


def restore(frame: Frame, deblurrer: Deblurrer) -> bool:
    """Restore the planes of a frame in place; return True if the source's picture was kept."""
    planes = [torch.from_numpy(np.ascontiguousarray(plane))[None] for plane in frame.planes]
    motion = None if frame.motion is None else torch.from_numpy(frame.motion)[None]
    restored, replaced = deblurrer.restore_planes(planes, frame.layout, motion)
    for plane, tensor in zip(frame.planes, restored, strict=True):
        plane[...] = tensor[0].cpu().numpy()
    return bool(replaced[0])


def main() -> None:
    """Read, restore and write the frames in order; write all other packets unchanged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", default="mimo-unet-guided")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    deblurrer = Deblurrer(args.model, device=args.device)
    replaced = 0
    with VideoReader(args.input) as reader, VideoWriter(args.output, reader) as writer:
        # Guide adds the motion during the exposure to every frame.
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
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
