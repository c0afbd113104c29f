"""`Deblurrer`: a batch of pictures in, the same batch restored out; synchronous, on one device.

Chooses settings, recovers from running out of memory, and lets no damaged picture out. Knows no
files, threads, streams or video containers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from vdeblur.color import as_int16
from vdeblur.errors import DeviceError, UsageError
from vdeblur.frames import PlaneLayout
from vdeblur.inference import setup, steadying
from vdeblur.inference.devices import (
    current_device,
    device_name,
    empty_cache,
    find_device,
    free_memory,
    has_streams,
    is_out_of_memory,
)
from vdeblur.inference.guidance import Guidance
from vdeblur.inference.kernels import color
from vdeblur.inference.memory_plan import MemoryPlan, Plan
from vdeblur.inference.network_pass import NetworkPass
from vdeblur.inference.notes import Notes, setup_report, slow_precision
from vdeblur.inference.restoration import guarded_correction, restored_planes
from vdeblur.inference.runtimes import Runtime, RuntimeRequest, torch_cpu
from vdeblur.inference.settings import (
    Precision,
    PrecisionRequest,
    Setting,
    Size,
    resolve,
)
from vdeblur.motion.neighbours import Around
from vdeblur.networks import Identity, taps
from vdeblur.system.allocator import keep_pages
from vdeblur.system.thread_shares import SideBySide

_log = logging.getLogger(__name__)

#: With more threads than this, several work on each picture, since memory is shared with others.
_MOST_AT_ONCE = 8

T = TypeVar("T")


class Deblurrer:
    """A network with all that it takes to restore pictures with it.

    Running out of memory halves the batch, then tiles, then halves the tile down to MIN_TILE; what
    worked is kept in `plans` (by picture height and width), and each step is a line in `notes`.
    Where it does not suffice to steady frames, they are not.
    The options are keywords of their own, not a dataclass: they are what users of Python type most.

    Args:
        network: A name of `vdeblur.networks.names()`, or any module that maps (N, 3, H, W) RGB in
            [0, 1] to the same shape (see `vdeblur.networks` for the attributes it may have); it is
            moved, not copied. If None, the network that `weights` belong to; without weights,
            mimo-unet-guided.
        weights: A file, or the name of stored weights (see `vdeblur.weights.load`); None for
            those that ship. What was loaded is named in `name`, and in `about` as report lines.
        device: "auto" is CUDA (or ROCm), else Intel's XPU, else Apple's MPS, else the CPU.
        precision: "auto" is fp16 on CUDA and XPU where the network supports it; bf16 on a CPU with
            instructions for it (AVX-512 BF16, AMX) where a network of the catalogue restores the
            same picture to 50 dB; fp32 elsewhere; or the environment's VDEBLUR_PRECISION. "int8"
            is computed by OpenVINO on a CPU.
        tile: Side in pixels of the squares that the network gets, overlap included; None is the
            whole picture, "auto" the whole picture unless it would not fit the free memory.
        halo: Pixels at a tile's edge that are computed and dropped; "auto" is the network's own
            choice, its seams under half an 8-bit level; "full" is the network's receptive radius,
            which makes tiles exact.
        strength: Share of the network's correction that is applied, from 0.
        steady: Whether restored frames of a film are steadied along their motion (see
            `vdeblur.inference.steadying`), as far as their neighbors are known.
        ensemble: Average the corrections of the picture's eight rotations and reflections (Timofte
            et al., CVPR 2016), at eight times the cost; None is the catalogue's choice.
        stage: Which of the network's `stages` to take.
        backend: The runtime, see `vdeblur.inference.runtimes`; "auto" is what `vdeblur bench
            --tune` found fastest here, else OpenVINO on a CPU where it is installed, cudagraphs on
            CUDA, else torch.
        calibration: Pictures (N, 3, H, W) of the kind to come, on which the ranges of int8 are
            measured; without any, they are measured on the first pictures that are restored.

    Raises:
        ModelError: The weights do not fit.
        DeviceError: The device is not there, or has too little memory for a tile of MIN_TILE.
        UsageError: The network is unknown, or the options do not go together.
    """

    def __init__(
        self,
        network: nn.Module | str | None = None,
        *,
        weights: Path | str | None = None,
        device: str | torch.device = "auto",
        precision: PrecisionRequest = "auto",
        tile: int | Literal["auto"] | None = "auto",
        halo: int | Literal["auto", "full"] = "auto",
        strength: float = 1.0,
        steady: bool = True,
        ensemble: bool | None = None,
        stage: str | None = None,
        backend: RuntimeRequest = "auto",
        calibration: Sequence[Tensor] = (),
    ) -> None:
        setup.check_options(precision, tile, strength)
        if weights is not None and isinstance(network, nn.Module):
            raise UsageError("weights go with a network's name: load them into the module instead")
        self.device = find_device(device)
        self.strength, self.steady = strength, steady
        #: What a user should know, in order.
        self.notes = Notes()
        loaded = setup.loaded(network, weights)
        self.name, self.about = loaded.name, loaded.notes
        settings = resolve(loaded.network, self.device, precision=precision, runtime=backend)
        if stage is not None:
            setup.choose_output(loaded.network, stage)
        self.ensemble = bool(loaded.ensemble if ensemble is None else ensemble)
        cost = setup.cost_of(loaded.network, self.device, settings.precision, halo)
        # Its correction is 0 by construction: nothing needs to be computed.
        self._changes_nothing = isinstance(loaded.network, Identity) or strength == 0
        self.network = setup.moved(loaded.network, self.device, settings.dtype)
        if not self._changes_nothing:
            self.network, settings = setup.in_runtime(
                self.network, settings, self.device, calibration=calibration, notes=self.notes
            )
        #: The runtime; with `precision` and `dtype`, as chosen.
        self.backend: Runtime = settings.runtime
        self.precision: Precision = settings.precision
        self.dtype = settings.dtype
        #: Settings that were measured on this device, by height and width.
        self.tuned: dict[Size, Setting] = settings.tuned
        self._beside = setup.threads_for(self.network, self.device, self.backend)
        most = 1 if self._beside is None else self._beside.most
        self.memory = MemoryPlan(replace(cost, most_at_once=most), tile, self.tuned, self.notes)
        #: A line if another precision is much faster here; else "".
        self.slow_precision = ""
        if not self._changes_nothing:
            self.slow_precision = slow_precision(settings, self.device)
            if self.slow_precision:
                self.about += (self.slow_precision,)
            self.about += setup_report(
                settings,
                self.device,
                tile=tile,
                calibrated=sum(len(pictures) for pictures in calibration),
                side_by_side=self.side_by_side,
            )
        self.notes.end_setup()
        _log_setup(self)
        if self.device.type == "cpu":
            keep_pages()
            if self.backend == "torch":
                self.network = torch_cpu.fuse(self.network, self.dtype).to(self.dtype)
        self._pass = NetworkPass(
            self.network,
            self.device,
            self.dtype,
            layout=setup.layout_for(self.network, self.device, self.backend),
            ensemble=self.ensemble,
            margin=self.memory.margin,
        )
        if has_streams(self.device) and color.available():
            self.use_kernels()
        self._steady: Callable[..., Any] = steadying.steady
        if self.device.type == "cuda":  # hundreds of kernels, which take longer to launch than run
            self._steady = steadying.recorded(self.notes.append)
        self.guided, self.multiple = self._pass.guided, self._pass.multiple

    def use_kernels(self, wanted: bool = True) -> None:
        """Convert color and make guidance by Triton kernels, where they can, or by torch alone."""
        self._pass.use_kernels(self.notes.append if wanted else None)

    @property
    def color_kernels(self) -> color.Kernels | None:
        """Planes to the network's input and back, in kernels; None leaves them to torch."""
        return self._pass.color_kernels

    @classmethod
    def of(cls, model: nn.Module | str | Deblurrer | None, **options: Any) -> Deblurrer:
        """Return `model` if it is a Deblurrer, which has its own options, else one made of it.

        Args:
            model: As `network` of the constructor, or a Deblurrer.
            options: Keywords of the constructor.
        """
        return model if isinstance(model, Deblurrer) else cls(model, **options)

    @property
    def changes_nothing(self) -> bool:
        """Whether its correction is 0 by construction: then nothing is computed."""
        return self._changes_nothing

    @property
    def tile(self) -> int | Literal["auto"] | None:
        """The tile that was asked for; for pictures of sizes that have no plan yet."""
        return self.memory.tile

    @tile.setter
    def tile(self, tile: int | Literal["auto"] | None) -> None:
        self.memory.tile = tile

    @property
    def plans(self) -> dict[Size, Plan]:
        """Batch and tile by height and width, as they worked last; may be edited."""
        return self.memory.plans

    @torch.no_grad()
    def __call__(self, images: Tensor, motion: Tensor | None = None) -> Tensor:
        """Restore pictures; a picture that the network damages comes back as it was.

        Args:
            images: (N, 3, H, W) floating RGB in [0, 1], on any device.
            motion: (N, 4, h, w), how each place moves while the shutter is open, in pixels of the
                pictures, at any size (see `vdeblur.networks.taps`); only guided networks use it.
                If None, it is estimated from each picture (`vdeblur.motion.single_picture`).

        Returns:
            The same shape, dtype and device, clamped to [0, 1].

        Raises:
            ValueError: A shape or dtype is wrong.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images are {tuple(images.shape)} {images.dtype}: pass (N, 3, H, W) floats"
            )
        if self._changes_nothing or not images.numel():
            return images.clone()

        guidance = self._guidance(motion, None, len(images))

        def restore(start: int, end: int, tile: int | None) -> Tensor:
            rgb = images[start:end].to(self.device, torch.float32)
            delta, _ = guarded_correction(
                self._pass, lambda: rgb, size, tile, guidance[start:end], strength=self.strength
            )
            return rgb.add(delta).clamp_(0, 1).to(images)

        height, width = size = images.shape[2], images.shape[3]
        return torch.cat(self._in_batches(restore, len(images), height, width))

    @torch.no_grad()
    def restore_planes(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Restore planes of a layout; the fields of interlaced pictures are restored apart.

        Args:
            planes: (N, rows, columns) each, uint8 or uint16, on any device; they are kept.
            layout: What they are.
            motion: (N, 4, h, w) in pixels of the luma plane, as for `__call__`.
            around: What a film shows around each picture, for those with a motion (see
                `vdeblur.motion.neighbours`): they are restored with the help of their neighbors,
                and steadied by the frame before, if that was restored.

        Returns:
            The restored planes, on `device`; unchanged planes may be the tensors that came in. And
            bool (N,): which pictures were replaced by their source, since the network's output was
            not finite or far from what a deblurrer does (`vdeblur.inference.guard`).

        Raises:
            ValueError: The shape of the motion is wrong.
        """
        planes = [plane.to(self.device, non_blocking=has_streams(self.device)) for plane in planes]
        count = len(planes[0])
        if self._changes_nothing or not count:
            return planes, torch.zeros(count, dtype=torch.bool, device=self.device)
        guidance = self._guidance(motion, around, count)

        def restore(start: int, end: int, tile: int | None) -> tuple[list[Tensor], Tensor]:
            part = [plane[start:end] for plane in planes]
            return restored_planes(
                self._pass, part, layout, tile, guidance[start:end], strength=self.strength
            )

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
        if self.steady and guidance.around is not None:
            restored = _steadied(self, restored, layout, guidance.around, self._steady)
        return restored, replaced

    @torch.no_grad()
    def correction(
        self,
        rgb: Tensor,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> Tensor:
        """Return what is added to pictures: the network's part of `restore_planes`, without color.

        Args:
            rgb: (N, 3, H, W) float32 in [0, 1], on the device.
            motion: As for `restore_planes`.
            around: As for `restore_planes`.

        Returns:
            (N, 3, H, W) float32.
        """
        guidance = self._guidance(motion, around, len(rgb))

        def correct(start: int, end: int, tile: int | None) -> Tensor:
            part = rgb[start:end]
            delta, _ = guarded_correction(
                self._pass, lambda: part, size, tile, guidance[start:end], strength=self.strength
            )
            return delta

        height, width = size = rgb.shape[2], rgb.shape[3]
        return torch.cat(self._in_batches(correct, len(rgb), height, width))

    def memory_needed(self, height: int, width: int, *, batch: int = 1) -> int:
        """Predict the bytes that restoring `batch` pictures at once takes, in tiles or whole."""
        return self.memory.memory_needed(height, width, batch=batch)

    def fitting_batch(self, height: int, width: int) -> int:
        """Return the largest batch predicted to fit the memory that is free now; at least 1."""
        return self.memory.fitting_batch(height, width, free=free_memory(self.device))

    def side_by_side(self, height: int, width: int) -> int:
        """Return how many pictures a CPU restores side by side, a thread or more each, as far as
        memory goes; 1 where one after another is no slower.
        """
        return self.memory.side_by_side(height, width, free=free_memory(self.device))

    def _guidance(
        self, motion: Tensor | None, around: Sequence[Around | None] | None, count: int
    ) -> Guidance:
        """The part of it that the network takes, on the device; ValueError for a wrong shape."""
        if motion is None or not self.guided:
            return Guidance()
        if motion.ndim != 4 or motion.shape[:2] != (count, taps.MOTION_CHANNELS):
            raise ValueError(
                f"motion is {tuple(motion.shape)}: pass ({count}, {taps.MOTION_CHANNELS}, "
                "h, w), chord x, y and bend x, y of each picture"
            )
        if around is not None and len(around) != count:
            raise ValueError(f"around is of {len(around)} pictures, and there are {count}")
        there = motion.to(self.device, torch.float32, non_blocking=has_streams(self.device))
        return Guidance(there, around)

    def _in_batches(
        self, run: Callable[[int, int, int | None], T], count: int, height: int, width: int
    ) -> list[T]:
        """run(start, end, tile) over 0…count in parts that fit the memory."""
        parts: list[T] = []
        start = 0
        while start < count:
            plan = self.plans.get((height, width))
            if plan is None:
                plan = self.memory.plan_for(height, width, free=free_memory(self.device))
            end = min(start + plan.batch, count)
            try:
                threads = self._threads(plan.tile)
                if threads is not None:
                    parts += threads.map(partial(_one, run, plan.tile), range(start, end))
                else:
                    with current_device(self.device):
                        parts.append(run(start, end, plan.tile))
                start = end
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # The traceback would hold the failed attempt's tensors.
                cause = error.with_traceback(None)
            empty_cache(self.device)
            try:
                self.memory.shrink(end - start, height, width)
            except DeviceError as error:
                raise error from cause
        return parts

    def _threads(self, tile: int | None) -> SideBySide | None:
        """The threads that restore the pictures of a batch; None: all at once, in the caller's."""
        # Tiles of one picture may share means, which the network holds meanwhile. And the
        # ranges of int8 are measured on the first pictures, all together.
        shares = tile is not None and self._pass.shares_means
        return None if shares or not getattr(self.network, "ready", True) else self._beside


def _log_setup(made: Deblurrer) -> None:
    _log.info(
        "network %s on %s (%s): runtime %s, precision %s; %d threads, torch %s",
        *(made.name, made.device, device_name(made.device), made.backend, made.precision),
        *(torch.get_num_threads(), torch.__version__),
    )
    for line in (*made.about, *made.notes):
        _log.info("%s", line)


def _steadied(
    made: Deblurrer,
    restored: list[Tensor],
    layout: PlaneLayout,
    around: Sequence[Around | None],
    run: Callable[..., Any],
) -> list[Tensor]:
    """Steady restored planes; from then on none, where the memory does not suffice."""
    try:
        return steadying.steadied_in_order(restored, layout, around, run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # The network's graphs and workspaces may hold most of it; the pictures are restored.
    made.steady = False
    made.notes.append("out of memory: going on without steadying frames")
    return restored


def _one(run: Callable[[int, int, int | None], T], tile: int | None, number: int) -> T:
    return run(number, number + 1, tile)
