"""Dead channels: how to count them, avoid them and revive them. Knows tensors only.

A ReLU whose input is never above zero passes nothing on and receives no gradient: its filter is
lost for good (a "dead" ReLU). Adam moves every weight by about the learning rate a step, whatever
the gradient. A filter over many inputs of one sign (RGB in 0..1, 48 channels of it after a fourfold
rearrangement) then moves far, and at rates that suit narrow layers most of a network may die within
its first steps while the loss still falls. Hence: first weights that do not depend on the mean of
the input, a count of dead channels during training, and new weights for dead filters of residual
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vdeblur.networks.base import Network
from vdeblur.networks.layers import BasicConv, ResBlock

_MEAN = 0.45  # of photographs in 0..1, about


def dead_share(network: Network, x: Tensor) -> float:
    """Return the share of the ReLUs' channels that are zero everywhere on some pictures.

    Args:
        network: 0 is returned if it has no ReLU layers.
        x: The pictures, (N, 3, H, W) in 0..1.
    """
    seen: dict[nn.Module, Tensor] = {}
    layers = [layer for layer in network.modules() if isinstance(layer, nn.ReLU)]
    with _recorded(layers, seen), torch.no_grad():
        network.forward_scales(x)
    counts = [(int((most <= 0).sum()), most.numel()) for most in seen.values()]
    return sum(dead for dead, _ in counts) / max(sum(total for _, total in counts), 1)


def start_well(network: Network) -> None:
    """Draw the weights of a MIMO-UNet's convolutions anew, for training from scratch.

    By He et al., ICCV 2015, where a ReLU follows (PyTorch's default is a sixth of that variance).
    The weights of a residual block's second convolution are 0.3 times these, so that depth does not
    make features grow. Convolutions of the picture itself are centered on its mean. Layers of other
    kinds stay as they are.
    """
    image = 3 * getattr(network, "unshuffle", 1) ** 2
    for layer in network.modules():
        if not isinstance(layer, BasicConv) or not isinstance(layer.main[0], nn.Conv2d):
            continue
        convolution = layer.main[0]
        weight, bias = convolution.weight, convolution.bias
        if len(layer.main) == 2:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if bias is not None:
            nn.init.zeros_(bias)
            if convolution.in_channels == image:
                bias.data -= _MEAN * weight.data.sum(dim=(1, 2, 3))
    for block in network.modules():
        if isinstance(block, ResBlock):
            second = _conv(block, 1)
            nn.init.kaiming_normal_(second.weight, nonlinearity="relu")
            second.weight.data *= 0.3


def revive(network: Network, x: Tensor) -> int:
    """Give the residual blocks' dead channels a new start.

    What the network computes stays the same: a revived channel is read with weight 0 until training
    finds a use for it.

    Args:
        network: Changed in place.
        x: Pictures, (N, 3, H, W) in 0..1, on the network's device.

    Returns:
        How many channels were dead.
    """
    blocks = [block for block in network.modules() if isinstance(block, ResBlock)]
    seen: dict[nn.Module, Tensor] = {}
    inputs: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[layer] = given[0].mean(dim=(0, 2, 3))

    hooks = [_conv(block, 0).register_forward_pre_hook(note) for block in blocks]
    relus = [_relu(block) for block in blocks]
    with _recorded(relus, seen), torch.no_grad():
        network.forward_scales(x)
    for hook in hooks:
        hook.remove()
    revived = 0
    with torch.no_grad():
        for block, relu in zip(blocks, relus, strict=True):
            dead = (seen[relu] <= 0).nonzero()[:, 0]
            if not len(dead):
                continue
            first, second = _conv(block, 0), _conv(block, 1)
            fresh = torch.randn(len(dead), *first.weight.shape[1:]).to(first.weight)
            fresh *= math.sqrt(2 / fresh[0].numel())
            first.weight[dead] = fresh
            if first.bias is not None:  # as often above zero as below, whatever comes in
                first.bias[dead] = -(fresh.sum(dim=(2, 3)) * inputs[first]).sum(dim=1)
            second.weight[:, dead] = 0
            revived += len(dead)
    return revived


@contextmanager
def _recorded(layers: list[nn.ReLU], seen: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Keep the largest output of each channel of these layers, over all their uses."""

    def note(layer: nn.Module, given: object, output: Tensor) -> None:
        most = output.detach().amax(dim=(0, 2, 3))
        seen[layer] = torch.maximum(seen[layer], most) if layer in seen else most

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _conv(block: ResBlock, number: int) -> nn.Conv2d:
    convolution = block.main[number].main[0]  # type: ignore[index]
    assert isinstance(convolution, nn.Conv2d)
    return convolution


def _relu(block: ResBlock) -> nn.ReLU:
    relu = block.main[0].main[1]  # type: ignore[index]
    assert isinstance(relu, nn.ReLU)
    return relu
