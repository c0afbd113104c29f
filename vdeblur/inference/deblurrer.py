"""A batch of pictures in, the same batch restored out: synchronous, on one device.

Pads, tiles, chooses precision, recovers from running out of memory, and lets no damaged picture
out. Knows no files, threads, streams or video containers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.color import (
    add_correction,
    as_int16,
    correction_to_planes,
    merge_fields,
    planes_to_rgb,
    split_fields,
)
from vdeblur.errors import DeviceError, ModelError, UsageError
from vdeblur.frames import PlaneLayout
from vdeblur.inference import runtimes, settings
from vdeblur.inference.export import random_guided
from vdeblur.inference.guidance import KEPT_VALUES, Inputs, fitted, padded
from vdeblur.inference.kernels import color
from vdeblur.inference.runtimes import Backend, torch_cpu
from vdeblur.inference.steadying import steadied_in_order
from vdeblur.motion.neighbours import Around
from vdeblur.motion.single_picture import estimate_motions
from vdeblur.networks import GlobalMean, Identity, Network, share_means, taps
from vdeblur.system.allocator import keep_pages
from vdeblur.system.memory import available_bytes
from vdeblur.system.thread_shares import SideBySide
from vdeblur.weights import load

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"]

MIN_TILE = settings.MIN_TILE
CONTEXT = 32  # pixels at a tile's edge that are computed and dropped, if the network says nothing
FEATHER = 16  # pixels over which neighbouring tiles fade into each other
# What is kept free of the memory that was found free: convolution workspaces, other programs.
_MEMORY_SHARE = 0.8
# float32 values per pixel beside the network: RGB, its padded copy, the correction, chroma grids.
_COLOR_VALUES = 24
_UNKNOWN_ACTIVATIONS = 1024  # for a network that does not say `activations_per_pixel`
# A batch on a CPU is no faster a pixel, and allocations past 32 MB fault their pages in every time.
_CPU_BATCH_PIXELS = 1 << 20
# With more threads than this, several work on each picture: memory is not for this alone.
_SIDE_BY_SIDE = 8
# A deblurrer moves detail; it does not change what a neighbourhood amounts to.
_HARM_BLOCK, _HARM_BLOCK_MEAN, _HARM_MEAN = 16, 0.35, 0.15
# Of tensors in torch: 8 bits are inside OpenVINO, or inside the residual blocks of a half network.
_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "fp8": torch.float16,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How pictures of one size are run: at most `batch` at once, in square tiles of `tile` pixels.

    tile None: the whole picture.
    """

    batch: int
    tile: int | None


class Deblurrer:
    """A network with all that it takes to restore pictures with it.

    network: a name of `vdeblur.networks.names()`, or any module that maps (N, 3, H, W) RGB in [0,
    1] to the same shape (see `vdeblur.networks` for what it may say of itself); it is moved, not
    copied. None is what the weights are for, or mimo-unet-guided. weights: a file, or the name of
    kept ones (see `vdeblur.weights`); None for those that ship. What was loaded is named in
    `name`, and in `about` as lines for a report. device: "auto" is CUDA, else Apple's MPS, else the
    CPU. precision: "auto" is fp16 on CUDA where the network can; bf16 on a CPU with instructions
    for it (AVX-512 BF16, AMX) where a network of the catalogue gives the same picture to 50 dB;
    fp32 elsewhere; or what the environment's VDEBLUR_PRECISION says. tile: side in pixels of the
    square the network sees at once, overlap included; None is the whole picture, "auto" the whole
    picture unless it would not fit the memory that is free. halo: pixels at a tile's edge that are
    computed and dropped; "auto" is the network's own choice, its seams under half an 8-bit level,
    "full" all that it sees, which makes tiles exact. strength: share of the network's correction
    that is applied, from 0. steady: whether restored frames of a film are steadied along their
    motion (see `vdeblur.inference.steadying`), as far as what is around them is known. ensemble:
    average the corrections of the picture's eight rotations and reflections (Timofte et al., CVPR
    2016), at eight times the cost; None is what the catalogue says of the network. stage: which of
    the network's `stages` to take. backend: the runtime, see `vdeblur.inference.runtimes`; "auto"
    is what `vdeblur bench --tune` found fastest here, else OpenVINO on a CPU where it is installed,
    else torch. precision "int8" is OpenVINO's on a CPU and Triton's on CUDA, "fp8" Triton's; their
    ranges are measured on `calibration`, pictures (N, 3, H, W) of the kind to come, or else on the
    first pictures given.

    Running out of memory halves the batch, then tiles, then halves the tile down to MIN_TILE; what
    worked is kept in `plans` (by picture height and width), and each step is a line in `notes`.

    ModelError for unfit weights; DeviceError for a device that is not there, or has too little
    memory for a tile of MIN_TILE; UsageError for an unknown network and impossible options.
    """

    def __init__(
        self,
        network: nn.Module | str | None = None,
        *,
        weights: Path | str | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        tile: int | Literal["auto"] | None = "auto",
        halo: int | Literal["auto", "full"] = "auto",
        strength: float = 1.0,
        steady: bool = True,
        ensemble: bool | None = None,
        stage: str | None = None,
        backend: Backend = "auto",
        calibration: Sequence[Tensor] = (),
    ) -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise UsageError(f"strength is {strength}: choose a number from 0 (no change) upwards")
        if isinstance(tile, int) and tile < MIN_TILE:
            raise UsageError(f"tile is {tile}: choose at least {MIN_TILE} pixels, auto or none")
        if precision != "auto" and precision not in _DTYPES:
            raise UsageError(f"precision is {precision!r}: choose auto, {', '.join(_DTYPES)}")
        if weights is not None and isinstance(network, nn.Module):
            raise UsageError("weights go with a network's name: load them into the module instead")
        self.device = find_device(device)
        self.strength = strength
        self.steady = steady
        self.tile = tile
        self.plans: dict[tuple[int, int], Plan] = {}
        self.notes: list[str] = []
        self.name, self.about = type(network).__name__, tuple[str, ...]()
        if not isinstance(network, nn.Module):
            loaded = load(network, weights)
            network, self.name, self.about = loaded.network, loaded.name, loaded.notes
            if ensemble is None:
                ensemble = loaded.ensemble
        #: Settings that were measured on this device, by height and width; see
        #: `vdeblur.inference.settings`.
        self.tuned: dict[tuple[int, int], settings.Setting] = {}
        self.facts = settings.facts_of(network, self.device)
        asked = backend
        if precision == "auto":
            precision = cast("Precision", os.environ.get(runtimes.PRECISION_VARIABLE, "auto"))
            if precision != "auto" and precision not in _DTYPES:
                raise UsageError(
                    f"{runtimes.PRECISION_VARIABLE} is {precision!r}: set it to one of auto, "
                    f"{', '.join(_DTYPES)}"
                )
        open_precision = precision == "auto"
        if "auto" in (precision, backend):
            tuned = settings.recall(self.facts)
            fitting = settings.fitting(tuned, precision=precision, backend=backend)
            precision, backend = cast("Precision", fitting[0]), cast("Backend", fitting[1])
            self.tuned = fitting[2]
        if unsaid := precision == "auto":
            half = self.device.type == "cuda" and getattr(network, "supports_half", True)
            precision = "fp16" if half and backend in ("auto", *runtimes.HALF) else "fp32"
            if self.device.type == "cpu" and runtimes.prefers_bf16(network, backend):
                precision = "bf16"
        self.precision = precision
        self.backend = runtimes.choose(backend, network, self.device, precision)
        # Other runtimes are given fp32, and round inside.
        self.dtype = _DTYPES[precision] if self.backend in runtimes.HALF else torch.float32
        if precision == "int8" and self.device.type == "cuda":
            self.dtype = torch.float16
        self.ensemble = bool(ensemble)
        if stage is not None:
            _choose_stage(network, stage)
        self.multiple = int(getattr(network, "size_multiple", 1))
        self.context = _context(network, halo)
        self._least_context = min(self.context, CONTEXT) if halo == "auto" else self.context
        values = int(getattr(network, "activations_per_pixel", _UNKNOWN_ACTIVATIONS))
        self._bytes_per_pixel = values * _DTYPES[precision].itemsize + 4 * _COLOR_VALUES
        on_cpu = self.device.type == "cpu"  # there, fp32 first: `cpu.fuse` computes with weights
        kept = torch.float32 if on_cpu else self.dtype
        self.network = network.eval().to(device=self.device, dtype=kept)
        for parameter in self.network.parameters():
            if parameter.ndim == 4:  # Module.to would ask it of five dimensions too, and fail
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        #: Whether the network takes motion; others are given the picture alone.
        self.guided = bool(getattr(network, "guided", False))
        self._leaves: Callable[[Tensor], bool] | None = getattr(network, "leaves", None)
        if self.guided:
            # Without motion, its channels would be 0 and their ranges nothing.
            calibration = [random_guided(pictures.float()) for pictures in calibration]
        self._inputs = Inputs(self.device)
        self._global = any(isinstance(layer, GlobalMean) for layer in network.modules())
        # Its correction is 0 by construction: nothing needs to be computed.
        self._changes_nothing = isinstance(network, Identity) or strength == 0
        if self.backend != "torch" and not self._changes_nothing:
            try:
                with made_current(self.device):
                    self.network = runtimes.attach(
                        self.network,
                        backend=self.backend,
                        device=self.device,
                        precision=precision,
                        calibration=calibration,
                        note=self.notes.append,
                    )
            except (ModelError, DeviceError) as error:
                if asked != "auto" or precision in runtimes.EIGHT_BITS:
                    raise
                self.backend, self.tuned = "torch", {}
                self.precision = "fp32" if unsaid and on_cpu else precision
                self.dtype = _DTYPES[self.precision]
                self.notes.append(f"going on with torch: {error}")
        # Guidance is made picture by picture, and OpenVINO is fastest at that. What torch gives of
        # one would depend on the others: it takes other ways for small ones together.
        most = min(torch.get_num_threads(), _SIDE_BY_SIDE)
        apart = self.backend == "openvino" or (self.backend == "torch" and self.guided)
        self._beside = SideBySide(most) if on_cpu and apart else None
        if not self._changes_nothing:
            count = sum(len(pictures) for pictures in calibration)
            self.about += self._about(open_precision, calibrated=count)
        #: How many of `notes` were said before any picture came: they are of each use.
        self.notes_at_first = len(self.notes)
        #: Planes to the network's input and back, in kernels where those are.
        self.colour: color.Kernels | None = None
        if self.device.type == "cuda" and color.available():
            self.colour = color.Kernels(self.notes.append)
        if on_cpu:
            keep_pages()
            if self.backend == "torch":
                self.network = torch_cpu.fuse(self.network, self.dtype).to(self.dtype)
        # Of what the network is given; other runtimes take planes.
        half = self.backend in runtimes.HALF  # torch's own kernels and ours
        self._layout = torch_cpu.layout_for(self.network) if half else torch.contiguous_format

    def _about(self, open_precision: bool, *, calibrated: int) -> tuple[str, ...]:
        """What was chosen for who asks, or changes the picture, as lines for a report."""
        lines = []
        if self.tuned:
            sizes = [
                f"{width}x{height} in batches of {one.batch}"
                + (
                    f" and tiles of {one.tile}"
                    if one.tile is not None and self.tile == "auto"
                    else ""
                )
                for (height, width), one in self.tuned.items()
                if one.tile is not None
                or self.device.type != "cpu"
                or one.batch != self.side_by_side(height, width)
            ]
            also = f"; unless asked otherwise, {', '.join(sizes)}" if sizes else ""
            lines.append(
                f"taken from `vdeblur bench --tune`: {self.backend}, {self.precision}{also}"
            )
        if open_precision and self.precision == "bf16" and self.device.type == "cpu":
            lines.append(
                "computed in bf16, which this CPU has instructions for: --precision fp32 is exact, "
                "and half as fast"
            )
        if self.precision in runtimes.EIGHT_BITS:
            on = f"{calibrated} pictures of the source" if calibrated else "the first pictures"
            lines.append(
                f"computed in {self.precision}, its ranges measured on {on}: "
                "--precision fp32 is exact"
            )
        return tuple(lines)

    @property
    def changes_nothing(self) -> bool:
        """Whether its correction is 0 by construction: then nothing is computed."""
        return self._changes_nothing

    @torch.no_grad()
    def __call__(self, images: Tensor, motion: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) float RGB in [0, 1] on any device → the same shape, dtype and device,
        restored.

        motion: (N, 4, h, w), how each place moves while the shutter is open, in pixels of the
        pictures, at any size (see `vdeblur.networks.taps`); of use to guided networks alone. None:
        it is read off each picture by itself (`vdeblur.motion.single_picture`). The result is
        clamped to [0, 1]. A picture that the network damages comes back as it was.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype}: pass (N, 3, H, W) floats"
            )
        if self._changes_nothing or not images.numel():
            return images.clone()

        guides = self._usable(motion, None, images)

        def restore(start: int, end: int, tile: int | None) -> Tensor:
            rgb = images[start:end].to(self.device, torch.float32)
            delta, _ = self._correction(lambda: rgb, images.shape[2:], tile, guides[start:end])
            return rgb.add(delta).clamp_(0, 1).to(images)

        height, width = images.shape[2:]
        return torch.cat(self._in_batches(restore, len(images), height, width))

    @torch.no_grad()
    def restore_planes(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Planes (N, rows, columns) of `layout`, restored, on `self.device`; the given ones are
        kept.

        motion: (N, 4, h, w) in pixels of the luma plane, as for `__call__`. around: what a film
        shows around each picture, if it has a motion (see `vdeblur.motion.neighbours`): it is
        restored by its neighbours, and steadied by the one before, if that was restored. Also
        returns which pictures were replaced by their source, bool (N,): those where the network's
        output was not finite or far from what a deblurrer does (`harmed`). Unchanged planes may be
        returned as the tensors that came in. The fields of interlaced pictures are restored apart.
        """
        planes = [plane.to(self.device, non_blocking=True) for plane in planes]
        count = len(planes[0])
        if self._changes_nothing or not count:
            return planes, torch.zeros(count, dtype=torch.bool, device=self.device)
        guides = self._usable(motion, around, planes[0])

        def restore(start: int, end: int, tile: int | None) -> tuple[list[Tensor], Tensor]:
            part, pictures = [plane[start:end] for plane in planes], layout
            told = guides[start:end]
            if self._untouched(told.motion):
                return part, torch.zeros(end - start, dtype=torch.bool, device=self.device)
            if layout.interlaced:
                part, pictures = split_fields(part, layout)
                told = told.of_fields()
            together = 2 if layout.interlaced else 1
            size = self._legal(pictures.height, pictures.width)
            if self.colour and self.colour.usable(part, pictures, size=size, dtype=self.dtype):
                part, replaced = self._in_few_passes(part, pictures, tile, told, together=together)
            else:
                delta, replaced = self._correction(
                    lambda: planes_to_rgb(part, pictures),
                    (pictures.height, pictures.width),
                    tile,
                    told,
                    together=together,
                )
                part = add_correction(part, correction_to_planes(delta, pictures), pictures)
            return merge_fields(part, layout) if layout.interlaced else part, replaced

        parts = self._in_batches(restore, count, layout.height, layout.width)
        if len(parts) == 1:
            restored, replaced = parts[0]
        else:
            restored = [
                # torch moves uint16, but does not promise to concatenate it.
                torch.cat([as_int16(part[i]) for part, _ in parts]).view(plane.dtype)
                for i, plane in enumerate(planes)
            ]
            replaced = torch.cat([replaced for _, replaced in parts])
        if self.steady and guides.around is not None:
            restored = steadied_in_order(restored, layout, guides.around)
        return restored, replaced

    @torch.no_grad()
    def correction(
        self,
        rgb: Tensor,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> Tensor:
        """(N, 3, H, W) float32 RGB on the device → what is added to it, of the same kind.

        The network's part of `restore_planes`, without colour conversion; motion, around: as there.
        """
        guides = self._usable(motion, around, rgb)

        def correct(start: int, end: int, tile: int | None) -> Tensor:
            part = rgb[start:end]
            return self._correction(lambda: part, rgb.shape[2:], tile, guides[start:end])[0]

        return torch.cat(self._in_batches(correct, len(rgb), *rgb.shape[2:]))

    def _usable(
        self,
        motion: Tensor | None,
        around: Sequence[Around | None] | None,
        pictures: Tensor,
    ) -> _Told:
        """What of it the network takes, on the device; ValueError for a wrong shape."""
        if motion is None or not self.guided:
            return _Told()
        if motion.ndim != 4 or motion.shape[:2] != (len(pictures), taps.MOTION_CHANNELS):
            raise ValueError(
                f"motion is {tuple(motion.shape)}: pass ({len(pictures)}, {taps.MOTION_CHANNELS}, "
                "h, w), chord x, y and bend x, y of each picture"
            )
        if around is not None and len(around) != len(pictures):
            raise ValueError(f"around is of {len(around)} pictures, and there are {len(pictures)}")
        return _Told(motion.to(self.device, torch.float32, non_blocking=True), around)

    def _correction(
        self,
        rgb: Callable[[], Tensor],
        size: Sequence[int],
        tile: int | None,
        told: _Told,
        *,
        together: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) float32 → Δ of the same shape, and which of N/together pictures it is 0 for.

        rgb: asked for where it is needed; size: its height and width. `together` neighbours in the
        batch (the fields of a frame) are kept or replaced as one.
        """
        height, width = size
        legal = self._legal(height, width)
        told = told.fitted((height, width), legal)
        # What follows works channel by channel: twice as fast on planes of their own.
        delta = self._computed(lambda: padded(rgb(), legal), legal, tile, told).float().contiguous()
        delta = delta[..., :height, :width]
        replaced = harmed(delta).view(-1, together).any(1)
        if self.strength != 1:
            delta = delta * self.strength
        # On a GPU, asking whether any is costs a wait for the device; filling costs nothing.
        if self.device.type != "cpu" or bool(replaced.any()):
            damaged = replaced.repeat_interleave(together)
            delta = delta.masked_fill(damaged[:, None, None, None], 0)
        return delta, replaced

    def _in_few_passes(
        self,
        planes: list[Tensor],
        layout: PlaneLayout,
        tile: int | None,
        told: _Told,
        *,
        together: int,
    ) -> tuple[list[Tensor], Tensor]:
        """What else `planes_to_rgb`, `_correction` and `add_correction` do, by `fused_color`."""
        size = self._legal(layout.height, layout.width)
        told = told.fitted((layout.height, layout.width), size)

        def seen() -> Tensor:
            return color.planes_to_input(planes, layout, size=size, dtype=self.dtype)

        delta = self._computed(seen, size, tile, told)
        if min(layout.height, layout.width) >= _HARM_BLOCK:
            replaced = color.judge(
                delta, layout, block=_HARM_BLOCK, block_mean=_HARM_BLOCK_MEAN, mean=_HARM_MEAN
            )
        else:
            replaced = harmed(delta[..., : layout.height, : layout.width].float())
        replaced = replaced.view(-1, together).any(1)
        restored = color.add_to_planes(
            planes, delta, layout, strength=self.strength, replaced=replaced
        )
        return restored, replaced

    def _legal(self, height: int, width: int) -> tuple[int, int]:
        """The size that the network takes pictures of this size in."""
        return height + -height % self.multiple, width + -width % self.multiple

    def _computed(
        self, rgb: Callable[[], Tensor], size: tuple[int, int], tile: int | None, told: _Told
    ) -> Tensor:
        """(N, 3, *size) of legal size → Δ, in the network's precision or in fp32."""
        if not self.guided:
            return self._over_turns(rgb(), tile, None)
        motion = told.motion
        # The whole picture's, so that no tile cuts a motion off.
        if motion is None or told.around is None:
            pictures = rgb()
            motion = estimate_motions(pictures) if motion is None else motion
            if self._untouched(motion):
                return torch.zeros_like(pictures)
            given = self._inputs.alone(pictures, motion)
        else:
            dtype = torch.float32 if self.ensemble else self.dtype
            given = self._inputs.of(rgb, motion, told.around, size, dtype)
        delta = self._over_turns(given, tile, motion)
        self._inputs.done(given)
        return delta

    def _untouched(self, motion: Tensor | None) -> bool:
        """Whether the network is known to change nothing, so that it need not be asked.

        A GPU is not waited for to know it.
        """
        if motion is None or self._leaves is None or self.device.type != "cpu":
            return False
        return self._leaves(motion)

    def _over_turns(self, given: Tensor, tile: int | None, motion: Tensor | None) -> Tensor:
        """The network's input of legal size, and its motion → Δ, of one view or the ensemble's."""
        if not self.ensemble:
            return self._tiled(given, tile)
        rgb, known = given[:, :3], given[:, 3 + taps.OWN_CHANNELS :]
        views = [(turns, mirror) for mirror in (False, True) for turns in range(4)]
        delta = torch.zeros_like(rgb, dtype=torch.float32)
        for turns, mirror in views:
            seen = _turned(rgb, turns, mirror)
            if self.guided:
                view = None if motion is None else taps.turned(motion, turns, mirror)
                seen = taps.with_guidance(seen, view)
                seen[:, 3 + taps.OWN_CHANNELS :] = taps.turned_around(known, turns, mirror)
            part = self._tiled(seen, tile)
            delta += _turned_back(part, turns, mirror).float().div_(len(views))
        return delta

    def _tiled(self, rgb: Tensor, tile: int | None) -> Tensor:
        """The network's input of legal size → Δ (N, 3, H, W), computed whole or in tiles."""
        if tile is None or max(rgb.shape[2:]) <= tile:
            return self._delta(rgb)

        def tiles(images: Tensor) -> Tensor:
            return in_tiles(
                lambda part: self._delta(part).contiguous(),
                images,
                tile=tile,
                context=self._edge(tile),
                multiple=self.multiple,
            )

        if not self._global:
            return tiles(rgb)
        # Channel attention weighs by means over what it sees: one set of them for a whole picture,
        # or its tiles would differ in tone.
        deltas = []
        for picture in rgb[:, None]:
            crops = sample_crops(picture, area=tile * tile, multiple=self.multiple)
            with share_means(self.network, crops.to(self.dtype)):
                deltas.append(tiles(picture))
        return torch.cat(deltas)

    def _delta(self, rgb: Tensor) -> Tensor:
        """What the network adds to what it sees: exactly 0 if it returns its input."""
        seen = rgb.to(self.dtype, memory_format=self._layout)
        correction = getattr(self.network, "correction", None)
        with best_algorithms(self.device):
            if correction is not None:
                delta: Tensor = correction(seen)
            else:
                output: Tensor = self.network(seen)
                delta = output.float() - seen[:, :3].float()
        return delta

    def _in_batches(
        self, run: Callable[[int, int, int | None], T], count: int, height: int, width: int
    ) -> list[T]:
        """run(start, end, tile) over 0…count in parts that fit the memory."""
        parts: list[T] = []
        start = 0
        while start < count:
            plan = self.plans.get((height, width)) or self._first_plan(height, width)
            end = min(start + plan.batch, count)
            try:
                threads = self._threads(plan.tile)
                if threads is not None:
                    parts += threads.map(partial(_one, run, plan.tile), range(start, end))
                else:
                    with made_current(self.device):
                        parts.append(run(start, end, plan.tile))
                start = end
                continue
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                # The traceback would hold the failed attempt's tensors.
                cause = error.with_traceback(None)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.plans[height, width] = self._shrink(plan, end - start, height, width, cause)
        return parts

    def _threads(self, tile: int | None) -> SideBySide | None:
        """What the pictures of a batch are restored in; None: all at once, in the caller's."""
        # Tiles of one picture may share means, which the network holds meanwhile. And the first
        # pictures are those that ranges are measured on, all together.
        shares = tile is not None and self._global
        return None if shares or not getattr(self.network, "ready", True) else self._beside

    def _first_plan(self, height: int, width: int) -> Plan:
        """Decided once per picture size, from the memory that is free then."""
        pixels = height * width
        plan = Plan(batch=1 << 30, tile=None if self.tile == "auto" else self.tile)
        if plan.tile is not None:
            self._tell_work(height, width, plan.tile)
        if self.device.type == "cpu":
            together = self.side_by_side(height, width)
            plan = replace(plan, batch=max(together, _CPU_BATCH_PIXELS // pixels))
        free = free_memory(self.device)
        if free is not None and self.tile == "auto":
            left = free * _MEMORY_SHARE - self._kept(height, width)
            fitting = max(0, int(left / self._bytes_per_pixel))
            if fitting >= pixels:
                plan = replace(plan, batch=min(plan.batch, fitting // pixels))
            elif max(height, width) > MIN_TILE:
                tile = max(MIN_TILE, math.isqrt(fitting))
                plan = Plan(batch=1, tile=tile)
                self.notes.append(
                    f"{width}×{height} would take "
                    f"{(pixels * self._bytes_per_pixel + self._kept(height, width)) / 1e9:.1f} GB "
                    f"and {free / 1e9:.1f} GB are free: going on with tiles of {tile}"
                )
        tuned = self.tuned.get((height, width))
        if tuned is not None and self.tile == "auto" and plan.tile is None:
            batch = tuned.batch if self.device.type == "cpu" else plan.batch
            plan = Plan(max(1, min(batch, self._fitting(free, height, width))), tuned.tile)
        self.plans[height, width] = plan
        return plan

    def _edge(self, tile: int) -> int:
        """Pixels to compute and drop at the edge of such tiles: a halo that nobody asked for is not
        to be most of a small tile."""
        return min(self.context, max(self._least_context, (tile - FEATHER) // 4))

    def _tell_work(self, height: int, width: int, tile: int) -> None:
        """A note where tiles that were asked for are mostly overlap."""
        overlap = 2 * self._edge(tile) + FEATHER
        sides, work = [], 1.0
        for size in self._legal(height, width):
            places = _places(size, tile, overlap, self.multiple)
            sides.append(places[0][1])
            work *= len(places) * sides[-1] / size
        if work >= 2:
            self.notes.append(
                f"tiles of {sides[1]}x{sides[0]} compute {work:.1f} times the picture, for they "
                f"overlap by {overlap} pixels or more: larger ones or --tile none are faster"
            )

    def memory_needed(self, height: int, width: int, *, batch: int = 1) -> int:
        """Bytes that restoring `batch` pictures at once is predicted to take, in tiles or whole."""
        plan = self.plans.get((height, width))
        tile = plan.tile if plan is not None else None if self.tile == "auto" else self.tile
        seen = height * width if tile is None else min(tile, height) * min(tile, width)
        # Tiles are computed one after another; colour is computed on whole pictures.
        colour = 4 * _COLOR_VALUES
        each = height * width * colour + seen * (self._bytes_per_pixel - colour)
        return batch * each + self._kept(height, width)

    def _kept(self, height: int, width: int) -> int:
        """Bytes that are kept of a film's neighbouring frames, whatever the batch."""
        return 4 * KEPT_VALUES * height * width if self.guided else 0

    def fitting_batch(self, height: int, width: int) -> int:
        """The largest batch that is predicted to fit the memory that is free now; at least 1."""
        return max(1, self._fitting(free_memory(self.device), height, width))

    def side_by_side(self, height: int, width: int) -> int:
        """How many pictures on a CPU are restored side by side, a thread or more each, as far as
        memory goes; 1 where one after another is no slower.
        """
        most = 1 if self._beside is None else self._beside.most
        return max(1, min(most, self.fitting_batch(height, width)))

    def _fitting(self, free: int | None, height: int, width: int) -> int:
        if free is None:
            return 1
        kept = self._kept(height, width)
        each = self.memory_needed(height, width) - kept
        return int((free * _MEMORY_SHARE - kept) / each)

    def _shrink(
        self, plan: Plan, batch: int, height: int, width: int, cause: BaseException
    ) -> Plan:
        if batch > 1:
            self.notes.append(f"out of memory at batch {batch}: going on with batch {batch // 2}")
            return replace(plan, batch=batch // 2)
        side = max(height, width) if plan.tile is None else min(plan.tile, max(height, width))
        if side <= MIN_TILE:
            raise DeviceError(
                f"{self.device} has too little memory for the network even at {side} pixels: "
                "close other programs, or use --device cpu or a smaller network"
            ) from cause
        tile = max(MIN_TILE, side // 2)
        failed = f"{width}×{height}" if plan.tile is None else f"tiles of {plan.tile}"
        self.notes.append(f"out of memory at {failed}: going on with tiles of {tile}")
        return Plan(batch=1, tile=tile)


def _one(run: Callable[[int, int, int | None], T], tile: int | None, number: int) -> T:
    return run(number, number + 1, tile)


def _choose_stage(network: nn.Module, stage: str) -> None:
    if not isinstance(network, Network):
        raise UsageError(f"stage {stage}: this network has one prediction only, leave it out")
    try:
        network.stage = stage
    except ValueError as error:
        raise UsageError(
            f"stage is {stage!r}: this network has {', '.join(network.stages)}"
        ) from error


def _context(network: nn.Module, halo: int | Literal["auto", "full"]) -> int:
    """Pixels to compute and drop at a tile's edge."""
    own: int | None = getattr(network, "halo", CONTEXT)
    if halo == "full":
        if own is None:
            raise UsageError(
                "halo is full, but this network weighs its channels by the whole picture: "
                "no halo makes tiles exact, use --tile none"
            )
        return own
    if halo != "auto":
        if halo < 0:
            raise UsageError(f"halo is {halo}: choose a number of pixels from 0, auto or full")
        return halo
    context = int(getattr(network, "context", CONTEXT))
    return context if own is None else min(own, context)


@dataclass(frozen=True)
class _Told:
    """What a guided network is told of N pictures: motion (N, 4, h, w), and what is around each."""

    motion: Tensor | None = None
    around: Sequence[Around | None] | None = None

    def __getitem__(self, part: slice) -> _Told:
        if self.motion is None:
            return self
        around = None if self.around is None else self.around[part]
        return _Told(self.motion[part], around if around and any(around) else None)

    def of_fields(self) -> _Told:
        """The same of the fields of interlaced pictures, which have half the rows."""
        if self.motion is None:
            return self
        motion = self.motion.repeat_interleave(2, dim=0)
        return _Told(motion * motion.new_tensor([1.0, 0.5, 1.0, 0.5])[:, None, None])

    def fitted(self, size: tuple[int, int], padded: tuple[int, int]) -> _Told:
        """The same of the pictures of `size` (height, width) padded below and to the right."""
        if self.motion is None:
            return self
        return replace(self, motion=fitted(self.motion, size, padded))


def _turned(images: Tensor, turns: int, mirror: bool) -> Tensor:
    return torch.rot90(images.flip(3) if mirror else images, turns, (2, 3))


def _turned_back(images: Tensor, turns: int, mirror: bool) -> Tensor:
    images = torch.rot90(images, -turns, (2, 3))
    return images.flip(3) if mirror else images


def sample_crops(picture: Tensor, *, area: int, multiple: int) -> Tensor:
    """Square crops spread evenly over a (1, C, H, W) picture, `area` pixels or less together.

    Returns (K, C, side, side); sides and places are multiples of `multiple`. Four crops, as large
    as the picture allows: small ones would be mostly border.
    """
    height, width = picture.shape[2:]
    side = min(math.isqrt(area) // 2, height, width) // multiple * multiple
    side = max(side, multiple)

    def starts(size: int) -> list[int]:
        # The middles of the halves.
        middles = (size // 4, size - size // 4)
        return [
            min(max(middle - side // 2, 0), size - side) // multiple * multiple
            for middle in middles
        ]

    return torch.cat(
        [
            picture[..., top : top + side, left : left + side]
            for top in starts(height)
            for left in starts(width)
        ]
    )


def find_device(device: str | torch.device) -> torch.device:
    """The device that is meant, checked to be there; DeviceError when it is not, UsageError for a
    kind of device that there is not.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"there is no device {device!r}: choose auto, cpu, cuda or mps") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            have = f"PyTorch sees {count} of them" if count else "PyTorch sees no CUDA GPU here"
            raise DeviceError(
                f"there is no {found}: {have}; use --device cpu, or install a driver and "
                "a CUDA build of PyTorch"
            )
        return torch.device("cuda", found.index or 0)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("there is no Apple GPU that PyTorch can use here: use --device cpu")
    return found


def made_current(device: torch.device) -> AbstractContextManager[object]:
    """Within it, the device is CUDA's current one: Triton launches its kernels there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def best_algorithms(device: torch.device) -> AbstractContextManager[None]:
    """Within it, cuDNN measures which of its algorithms is fastest for a shape, and keeps to it."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=True,
        allow_tf32=torch.backends.cudnn.allow_tf32,
    )
    return flags


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new computation can have on the device; None when nothing says so."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has reserved and does not use is free too, to torch.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return available_bytes()
    return None


def harmed(delta: Tensor) -> Tensor:
    """Which of N corrections (N, 3, H, W) no deblurrer would make, bool (N,).

    One that is not finite; one whose mean over any whole 16×16 block of a channel is beyond ±0.35
    (a blot, a shift of colour); one whose mean absolute value is above 0.15 (a pattern all over).
    Text in black and white blurred to gray moves single pixels by 0.5, its blocks hardly at all.
    """
    block = (min(_HARM_BLOCK, delta.shape[2]), min(_HARM_BLOCK, delta.shape[3]))
    worst = F.avg_pool2d(delta, block).abs_().amax(dim=(1, 2, 3))
    mean = delta.abs().mean(dim=(1, 2, 3))
    # Asked this way round, NaN is harm.
    return ~((worst <= _HARM_BLOCK_MEAN) & (mean <= _HARM_MEAN))


def in_tiles(
    run: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    tile: int,
    context: int,
    multiple: int = 1,
    feather: int = FEATHER,
) -> Tensor:
    """run(images) computed in tiles of one shape, faded into each other: (N, C, H, W) →
    (N, 3, H, W) float32.

    run keeps all but the channels. tile: side of the squares it is given, overlap included; rounded
    up to the `multiple`, of which H and W are multiples and all tiles start at one. context: pixels
    at the edge of a tile that are not used, unless the picture ends there; with the network's full
    halo, the result is that of the whole picture to rounding. feather: pixels of the linear fade,
    at least 1.
    """
    height, width = images.shape[2:]
    overlap = 2 * context + feather
    rows = _places(height, tile, overlap, multiple)
    columns = _places(width, tile, overlap, multiple)
    row_weights = _fades(rows, height, context, feather, images.device)
    column_weights = _fades(columns, width, context, feather, images.device)
    shape = (len(images), 3, height, width)
    result = torch.zeros(shape, dtype=torch.float32, device=images.device)
    for (top, bottom), down in zip(rows, row_weights, strict=True):
        for (left, right), across in zip(columns, column_weights, strict=True):
            part = run(images[..., top:bottom, left:right])
            weights = down[:, None] * across
            # A weight of 0 does not silence a NaN: that is for `harmed` to see.
            result[..., top:bottom, left:right].addcmul_(part.float(), weights)
    return result


def _places(size: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """(start, end) of equal tiles that cover 0…size, overlapping by `overlap` pixels or more."""
    # Counted in multiples, so that rounding can neither misalign a tile nor eat the overlap.
    whole, side, over = (-(-n // multiple) for n in (size, tile, overlap))
    if side >= whole:
        return [(0, size)]
    side = min(max(side, over + 1), whole)
    last = whole - side
    count = 1 + -(-last // (side - over))
    starts = [multiple * (i * last // max(count - 1, 1)) for i in range(count)]
    return [(start, start + side * multiple) for start in starts]


def _fades(
    places: list[tuple[int, int]], size: int, context: int, feather: int, device: torch.device
) -> list[Tensor]:
    """Weights along each tile: 0 in the context, then a ramp; together 1 at every pixel."""
    total = torch.zeros(size, device=device)
    fades = []
    for start, end in places:
        inside = torch.arange(end - start, device=device)
        fade = torch.ones(end - start, device=device)
        if start > 0:
            fade = ((inside - context + 0.5) / feather).clamp(0, 1)
        if end < size:
            from_end = inside.flip(0)
            fade = fade.minimum(((from_end - context + 0.5) / feather).clamp(0, 1))
        total[start:end] += fade
        fades.append(fade)
    return [fade / total[start:end] for fade, (start, end) in zip(fades, places, strict=True)]


def _out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError has this name since torch 2.0, its short one only since 2.5.
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    # What CUDA, torch's CPU allocator, oneDNN and cuDNN say.
    phrases = "out of memory", "not enough memory", "can't allocate memory", "alloc_failed"
    return any(phrase in str(error).lower() for phrase in phrases)
