"""One pass of a network: padded pictures in, what it adds to them out.

Makes the network's input, and computes it whole or in tiles, by one view or the ensemble's eight.
Knows tensors on one device; no planes, no memory limits, no files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vdeblur.inference.devices import fastest_convolutions
from vdeblur.inference.guidance import Guidance, Inputs
from vdeblur.inference.kernels import color
from vdeblur.inference.kernels import guidance as by_kernels
from vdeblur.inference.tiling import in_tiles, sample_crops
from vdeblur.motion.single_picture import estimate_motions
from vdeblur.networks import GlobalMean, share_means, taps
from vdeblur.networks.base import traits_of


class NetworkPass:
    """Computes a network's corrections. May be called by several threads if the network may.

    Args:
        network: Prepared for inference on the device.
        device: Where it is.
        dtype: Of what the network takes.
        layout: Memory format of what the network takes.
        ensemble: Whether the corrections of eight rotations and reflections are averaged.
        margin: Side of a tile in pixels → pixels at its edge that are computed and dropped.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        *,
        layout: torch.memory_format,
        ensemble: bool,
        margin: Callable[[int], int],
    ) -> None:
        self.network, self.device, self.dtype = network, device, dtype
        self.ensemble = ensemble
        traits = traits_of(network)
        self.multiple = traits.size_multiple
        #: Whether the network takes motion; others get the picture alone.
        self.guided = traits.guided
        #: Whether it weighs channels by the whole picture, so that tiles share means.
        self.shares_means = any(isinstance(layer, GlobalMean) for layer in network.modules())
        self._layout, self._margin = layout, margin
        #: Planes to the network's input and back; None leaves them to torch.
        self.color_kernels: color.Kernels | None = None
        self._leaves: Callable[[Tensor], bool] | None = getattr(network, "leaves", None)
        self._inputs = Inputs(device, torch.float32 if ensemble else dtype)

    def use_kernels(self, note: Callable[[str], object] | None) -> None:
        """Convert color and make guidance by Triton kernels, where they can.

        Args:
            note: Called if they cannot; None leaves all to torch.
        """
        self.color_kernels = self._inputs.color_kernels = note and color.Kernels(note)
        self._inputs.kernels = note and by_kernels.Kernels(note)

    def legal_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in which the network takes pictures of this size."""
        return height + -height % self.multiple, width + -width % self.multiple

    def untouched(self, motion: Tensor | None) -> bool:
        """Return whether the network is known to change nothing, so that it need not be called.

        Finding out would wait for a GPU, so there the answer is always False.
        """
        if motion is None or self._leaves is None or self.device.type != "cpu":
            return False
        return self._leaves(motion)

    def __call__(
        self,
        rgb: Callable[[], Tensor],
        size: tuple[int, int],
        tile: int | None,
        guidance: Guidance,
    ) -> Tensor:
        """Return Δ (N, 3, *size), in the network's precision or in fp32.

        Args:
            rgb: Makes the pictures (N, 3, *size), if they are needed.
            size: Height and width, multiples of the network's.
            tile: Side of tiles in pixels; None for whole pictures.
            guidance: Fitted to `size`; empty for networks that are not guided.
        """
        if not self.guided:
            return self._over_views(rgb(), tile, None)
        motion = guidance.motion
        # The whole picture's, so that no tile cuts a motion off.
        if motion is None or guidance.around is None:
            pictures = rgb()
            motion = estimate_motions(pictures) if motion is None else motion
            if self.untouched(motion):
                return torch.zeros_like(pictures)
            given = self._inputs.alone(pictures, motion)
        else:
            given = self._inputs.of(rgb, motion, guidance.around, size)
        delta = self._over_views(given, tile, motion)
        self._inputs.done(given)
        return delta

    def _over_views(self, given: Tensor, tile: int | None, motion: Tensor | None) -> Tensor:
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

    def _tiled(self, given: Tensor, tile: int | None) -> Tensor:
        """The network's input of legal size → Δ (N, 3, H, W), computed whole or in tiles."""
        if tile is None or max(given.shape[2:]) <= tile:
            return self._delta(given)

        def tiles(images: Tensor) -> Tensor:
            return in_tiles(
                lambda part: self._delta(part).contiguous(),
                images,
                tile=tile,
                margin=self._margin(tile),
                multiple=self.multiple,
            )

        if not self.shares_means:
            return tiles(given)
        # Channel attention weighs by means over its input: one set of them for a whole picture, or
        # its tiles would differ in tone.
        deltas = []
        for picture in given[:, None]:
            crops = sample_crops(picture, area=tile * tile, multiple=self.multiple)
            with share_means(self.network, crops.to(self.dtype)):
                deltas.append(tiles(picture))
        return torch.cat(deltas)

    def _delta(self, given: Tensor) -> Tensor:
        """What the network adds to its input: exactly 0 if it returns it."""
        seen = given.to(self.dtype, memory_format=self._layout)
        correction = getattr(self.network, "correction", None)
        with fastest_convolutions(self.device):
            if correction is not None:
                delta: Tensor = correction(seen)
            else:
                output: Tensor = self.network(seen)
                delta = output.float() - seen[:, :3].float()
        return delta


def _turned(images: Tensor, turns: int, mirror: bool) -> Tensor:
    return torch.rot90(images.flip(3) if mirror else images, turns, (2, 3))


def _turned_back(images: Tensor, turns: int, mirror: bool) -> Tensor:
    images = torch.rot90(images, -turns, (2, 3))
    return images.flip(3) if mirror else images
