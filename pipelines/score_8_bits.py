"""Measure the loss of quality by bf16, and by int8 and fp8 in residual blocks, without such a GPU.

python pipelines/score_8_bits.py PAIRS --weights FILE [--model mimo-unet] [--calibrate CLIP]

Uses the arithmetic of the kernels of `vdeblur.inference.kernels.quantised` in torch, on any device;
everything else is fp32. Ranges are measured on CLIP, or for each pair on all other pairs. The
default network has no such blocks.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path

from torch import Tensor

from vdeblur import Deblurrer, InputError, ModelError, VdeblurError
from vdeblur.datasets import open_pairs
from vdeblur.evaluation import psnr
from vdeblur.inference.calibration import samples_of, to_tensor
from vdeblur.inference.kernels.quantised import KINDS, blocks_of, measure_ranges, quantise
from vdeblur.media.sample_frames import sample_frames
from vdeblur.networks import Network
from vdeblur.weights import load


def coded(network: Network, pictures: list[Tensor], kind: str, device: str) -> Deblurrer:
    """Return the network in bf16, or with codes for the ranges of these pictures."""
    if kind == "bf16":
        plain = copy.deepcopy(network)
        return Deblurrer(plain, device=device, precision="bf16", backend="torch")
    samples = samples_of(pictures, network.size_multiple)
    ranges = measure_ranges(network, network.correction, samples)
    quantised = quantise(network, ranges, KINDS[kind], kernels=False)
    return Deblurrer(quantised, device=device, precision="fp32", backend="torch")


def main() -> None:
    """Score fp32 and each kind; print a line per pair and kind, and the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--model", default="mimo-unet")
    parser.add_argument("--weights")
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    pairs = list(open_pairs(args.pairs))
    clip = [to_tensor(p) for p in sample_frames([args.calibrate])] if args.calibrate else []
    if not clip and len(pairs) < 2:
        raise InputError("ranges are measured on other pictures: give two pairs, or --calibrate")
    network = load(args.model, args.weights).network.eval()
    if not isinstance(network, Network) or not blocks_of(network):
        raise ModelError(
            f"{args.model} has no residual blocks of 32, 64, … channels to quantise: give weights "
            "of a MIMO-UNet"
        )

    kinds = (*KINDS, "bf16")
    full = Deblurrer(network, device=args.device, precision="fp32", backend="torch")
    ready = {kind: coded(network, clip, kind, args.device) for kind in kinds} if clip else {}
    lost: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number, pair in enumerate(pairs):
        restored = full(pair.blurred)
        score = psnr(restored * 255, pair.sharp * 255)
        print(f"{pair.name}: fp32 {score:.3f} dB")
        for kind, losses in lost.items():
            others = [other.blurred for other in pairs[:number] + pairs[number + 1 :]]
            deblurrer = ready.get(kind) or coded(network, others, kind, args.device)
            picture = deblurrer(pair.blurred)
            losses.append(score - psnr(picture * 255, pair.sharp * 255))
            near = psnr(picture * 255, restored * 255)
            print(f"  {kind}: loses {losses[-1]:+.4f} dB, {near:.1f} dB to fp32", flush=True)
    for kind, losses in lost.items():
        print(f"{kind}: loses {statistics.mean(losses):+.4f} dB, {max(losses):+.4f} at worst")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
