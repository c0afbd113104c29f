"""Restore a batch of pictures on any device: a batch in, the same batch out.

`deblurrer.Deblurrer` is the class to open first; `transfers.Overlap` runs it on frames, and
`batching.restore` on the items of a film.

The modules:

    deblurrer      `Deblurrer`: a batch in, the same batch restored out
    setup          the steps of making a `Deblurrer`
    settings       runtime, precision and dtype from what is requested; tuned settings
    devices        names, free memory and abilities of devices
    memory_plan    how many pictures are restored at once, and in tiles of which size
    batching       frames into batches and back
    restoration    color, the network, the guard and fields, for pictures that fit the memory
    network_pass   one pass: padded pictures in, their correction out
    tiling         a picture in overlapping tiles that fade into each other
    guard          rejects implausible results and keeps the source frame
    guidance       the input of a guided network
    steadying      averages flicker away along the motion
    transfers      copies next to computation: pinned buffers, streams, events
    gpu_frames     frames decoded on the GPU → tensors on the same GPU
    calibration    crops on which an int8 network's ranges are measured
    export         ONNX, OpenVINO and TorchScript files for other programs
    notes          what reports say of a `Deblurrer`
    runtimes/      OpenVINO, ONNX Runtime, CUDA kernels, torch on CPUs
    kernels/       Triton kernels for CUDA devices

Knows tensors, frames in memory, devices and the user's cache; no files, no video containers, no
live sources. Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.inference.devices import find_device
    from vdeblur.inference.export import random_motion

__all__ = ["Deblurrer", "find_device", "random_motion"]

_HOMES = {
    "deblurrer": ("Deblurrer",),
    "devices": ("find_device",),
    "export": ("random_motion",),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
