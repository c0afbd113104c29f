"""Make a guided network's input from a film (`vdeblur.networks.taps`), each picture's part once.

Samples along a picture's motion cost as much as part of the network, and both neighbors use their
results, which are therefore kept in the picture's `vdeblur.motion.neighbours.View`. Knows
tensors and views; no files and no networks. Safe to call from several threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.color import planes_to_rgb
from vdeblur.frames import PlaneLayout
from vdeblur.inference.devices import has_streams
from vdeblur.inference.kernels import color
from vdeblur.inference.kernels import guidance as by_kernels
from vdeblur.motion.neighbours import Around, Link, View
from vdeblur.networks import taps

Size = tuple[int, int]  # height, width
_OWN = slice(3, 3 + taps.OWN_CHANNELS)
_AROUND = slice(3 + taps.OWN_CHANNELS, 3 + taps.CHANNELS)
#: float32 values per pixel kept of a film's pictures, beside the network's own: two inputs, of the
#: current frame and of the next; luma and the filters' additions, of both and of the frame before.
KEPT_VALUES = 2 * (3 + taps.CHANNELS) + 3 * (1 + len(taps.FILTERS))
#: Unused inputs kept for reuse: as many as are ever computed in parallel, and a few for the next
#: frames.
_MAX_SPARE = 10


@dataclass(frozen=True)
class Guidance:
    """Inputs of a guided network beside N pictures; empty for other networks.

    Attributes:
        motion: (N, 4, h, w) in pixels; None if unknown.
        around: The neighbors of each picture in a film; None if none has any.
    """

    motion: Tensor | None = None
    around: Sequence[Around | None] | None = None

    def __getitem__(self, part: slice) -> Guidance:
        if self.motion is None:
            return self
        around = None if self.around is None else self.around[part]
        return Guidance(self.motion[part], around if around and any(around) else None)

    def of_fields(self) -> Guidance:
        """Return the guidance of the fields of interlaced pictures, which have half the rows."""
        if self.motion is None:
            return self
        motion = self.motion.repeat_interleave(2, dim=0)
        half = taps.constant((1.0, 0.5, 1.0, 0.5), motion.device)
        return Guidance(motion * half[:, None, None])

    def fitted(self, size: tuple[int, int], padded: tuple[int, int]) -> Guidance:
        """Return the guidance of pictures of `size` (height, width) padded below and right."""
        if self.motion is None:
            return self
        return replace(self, motion=taps.fitted(self.motion, size, padded))


class Inputs:
    """Makes the inputs of one deblurrer's network, on its device.

    Args:
        device: Where.
        dtype: Of inputs that kernels make, and of several pictures; others are float32.

    Attributes:
        color_kernels: Convert planes, where they can.
        kernels: Make guidance, where they can; None leaves it to torch, and OpenCV on a CPU.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self.color_kernels: color.Kernels | None = None
        self.kernels: by_kernels.Kernels | None = None
        self._spare: dict[object, deque[Tensor]] = {}

    def alone(self, rgb: Tensor, motion: Tensor | None) -> Tensor:
        """Make the input of pictures whose neighbors are not known.

        Args:
            rgb: (N, 3, H, W) RGB in [0, 1].
            motion: (N, 4, h, w) in pixels; None for no motion.

        Returns:
            (N, 3 + CHANNELS, H, W), float32 or the kernels' dtype.
        """
        shape = (len(rgb), 3 + taps.CHANNELS, *rgb.shape[2:])
        if motion is None or not self._guides():
            out = self._buffer(shape, torch.float32)
            return taps.with_guidance(rgb.float(), motion, out=out)
        out = self._like_network(shape)
        out[:, :3] = rgb
        luma, size = taps.luma_of(rgb.float()), (rgb.shape[2], rgb.shape[3])
        for number, field in enumerate(motion):
            one = slice(number, number + 1)
            by_kernels.guidance(luma[one], field, size, out[one, _OWN])
        out[:, _AROUND].zero_()
        return out

    def of(
        self,
        rgb: Callable[[], Tensor],
        motion: Tensor,
        around: Sequence[Around | None],
        size: Size,
    ) -> Tensor:
        """Make the input of N pictures of a film.

        Args:
            rgb: Makes the pictures (N, 3, *size); called only if a picture has no known neighbors.
            motion: (N, 4, h, w) in pixels, used only for such pictures.
            around: The neighbors of each picture in the film.
            size: Height and width that pictures are padded to.

        Returns:
            (N, 3 + CHANNELS, *size); float32 for a single picture that kernels did not make.
        """
        if len(around) == 1 and around[0] is not None:
            return self._input_of(around[0], size)
        shape = (len(around), 3 + taps.CHANNELS, *size)
        out = self._like_network(shape) if self._guides() else self._buffer(shape, self._dtype)
        pictures: Tensor | None = None
        for number, known in enumerate(around):
            if known is not None:
                part = self._input_of(known, size)
            else:
                pictures = rgb() if pictures is None else pictures
                part = self.alone(pictures[number : number + 1], motion[number : number + 1])
            out[number] = part[0]
            self.done(part)
        return out

    def done(self, given: Tensor) -> None:
        """Keep the memory of an input that is no longer needed for the next one.

        A CPU's allocator would fault in every page of such a large block again, which costs as much
        as the samples.
        """
        if given.device.type == "cpu":
            # A tensor made in inference mode cannot be written outside it.
            key = tuple(given.shape), given.dtype, given.is_inference()
            if key not in self._spare and len(self._spare) > 1:  # of one picture, and of a batch
                self._spare.clear()
            self._spare.setdefault(key, deque(maxlen=_MAX_SPARE)).append(given)

    def _buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with suppress(KeyError, IndexError):
            return self._spare[shape, dtype, torch.is_inference_mode_enabled()].pop()
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _like_network(self, shape: tuple[int, ...]) -> Tensor:
        """Return memory in the network's precision and layout, so that nothing is copied again."""
        return torch.empty(
            shape, dtype=self._dtype, device=self._device, memory_format=torch.channels_last
        )

    def _guides(self) -> bool:
        return self.kernels is not None and self.kernels.usable(self._device, self._dtype)

    def _converts(self, planes: Sequence[Tensor], layout: PlaneLayout, size: Size) -> bool:
        """Return whether kernels convert planes to this size, and make the guidance."""
        return (
            self._guides()
            and self.color_kernels is not None
            and self.color_kernels.usable(planes, layout, size=size, dtype=self._dtype)
        )

    def _input_of(self, around: Around, size: Size) -> Tensor:
        """Return a frame's input (1, 3 + CHANNELS, *size) with its neighbors; keep it no longer."""
        here = around.here
        # The neighbors come first, the next frame last: meanwhile another thread begins that frame
        # with its own next one, and then finds the input of its frame made here.
        shown = [self._neighbor(link, size, around.at_hand) for link in around.links]
        with here.making:
            # From here on only this caller owns the input; the next request makes another.
            (luma, _), given = self._shown(here, size), self._given(here, size)
            here.given = None
        for number, (link, own) in enumerate(zip(around.links, shown, strict=True)):
            parts = taps.parts_of(given[:, _AROUND], number)
            if link is None or own is None:
                for part in parts:
                    part.zero_()
            elif self._guides():
                fields = self._moved(link[0].motion), self._moved(link[1])
                by_kernels.neighbour(luma, *own, *fields, _size_of(here), parts)
            else:
                wide = (self._field(field, link[0], size) for field in (link[0].motion, link[1]))
                taps.place_one(taps.neighbour(luma, *own, *wide), parts)
        return given

    def _neighbor(
        self, link: Link | None, size: Size, at_hand: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Return luma and filter additions of a neighbor; None without one, or without time."""
        if link is None or (at_hand and not self._is_shown(link[0], size)):
            return None
        return self._shown(link[0], size)

    def _is_shown(self, view: View, size: Size) -> bool:
        return view.made_for == self._purpose(size) and view.added is not None

    def _purpose(self, size: Size) -> object:
        # A tensor made in inference mode cannot be written outside it.
        return self._device, size, torch.is_inference_mode_enabled()

    def _shown(self, view: View, size: Size) -> tuple[Tensor, Tensor]:
        """Return a picture's luma (1, 1, *size) in [0, 1] and its filters' additions."""
        with view.making:
            if not self._is_shown(view, size):
                given = self._given(view, size)
                view.added = taps.filtered(given[:, _OWN]) if view.added is None else view.added
            assert view.luma is not None
            assert view.added is not None
            return view.luma, view.added

    def _given(self, view: View, size: Size) -> Tensor:
        """Return a picture's input (1, 3 + CHANNELS, *size) without its neighbors."""
        with view.making:
            if view.made_for != self._purpose(size):
                view.given = view.luma = view.added = None
                view.made_for = self._purpose(size)
            if view.given is None:
                planes = [self._moved(plane)[None] for plane in view.planes]
                quick = self._converts(planes, view.layout, size)
                make = self._given_by_kernels if quick else self._given_by_torch
                view.given = make(view, planes, size)
            return view.given

    def _given_by_torch(self, view: View, planes: Sequence[Tensor], size: Size) -> Tensor:
        rgb = padded(planes_to_rgb(planes, view.layout), size)
        given = self._buffer((1, 3 + taps.CHANNELS, *size), torch.float32)
        given[:, :3] = rgb
        view.luma = taps.luma_of(rgb)
        taps.guidance(view.luma, self._field(view.motion, view, size), out=given[:, _OWN])
        return given

    def _given_by_kernels(self, view: View, planes: Sequence[Tensor], size: Size) -> Tensor:
        given = self._like_network((1, 3 + taps.CHANNELS, *size))
        luma = torch.empty((1, 1, *size), device=self._device)
        rgb, own = given[:, :3], given[:, _OWN]
        color.planes_to_input(
            planes, view.layout, size=size, dtype=self._dtype, target=rgb, luma=luma
        )
        view.added = by_kernels.guidance(luma, self._moved(view.motion), _size_of(view), own)
        view.luma = luma
        return given

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=has_streams(self._device))

    def _field(self, field: Tensor, view: View, size: Size) -> Tensor:
        """Return a field (C, h, w) of the picture as (1, C, *size) on the device, padded."""
        return taps.fitted(self._moved(field)[None], _size_of(view), size)


def _size_of(view: View) -> Size:
    return view.layout.height, view.layout.width


def padded(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad pictures (N, 3, H, W) to `size` (height, width) by reflection, below and to the right."""
    height, width = rgb.shape[2:]
    below, right = size[0] - height, size[1] - width
    if not (below or right):
        return rgb
    # A reflection needs something to reflect; smaller pictures repeat their edge.
    mode = "reflect" if below < height and right < width else "replicate"
    return F.pad(rgb, (0, right, 0, below), mode=mode)
