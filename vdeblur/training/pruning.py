"""Structured pruning: cut channels inside residual blocks, which makes the network smaller.

A hidden channel of a residual block is read and written by that block alone, so cutting it changes
no other layer's shape: fewer filters in the first convolution, fewer inputs in the second. The
channels that go are those that the loss misses least for each operation saved (first-order Taylor
importance: Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network
Pruning", CVPR 2019). Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.networks.base import Network
from vdeblur.networks.layers import ResBlock
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.training.losses import multi_scale


def prune(
    network: Network,
    share: float,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    terms: Mapping[str, float] | None = None,
    multiple: int = 8,
) -> MIMOUNet:
    """Return a smaller network with the most useful hidden channels of `network`, to train further.

    Args:
        network: The network to prune.
        share: Share of the residual blocks' operations to cut, 0 to 1.
        batches: Some of the training data, (blurred, sharp) as `train` takes them, on the network's
            device.
        terms: The loss, see `losses.parse_loss`; multi-scale L1 by default.
        multiple: Each block keeps at least so many channels, and its width stays a multiple of it
            (kernels on all devices prefer that), so that a little less may go.

    Raises:
        ModelError: The network is of another family than mimo-unet.
    """
    if not isinstance(network, MIMOUNet):
        raise ModelError(
            f"{type(network).__name__} cannot be pruned: only networks of the family mimo-unet can"
        )
    blocks = _blocks(network)
    scores = _importance(network, blocks, batches, terms or {"l1": 1.0})
    # A stage at 1/2 the size has a quarter of the positions; two 3×3 convolutions a channel.
    base = network.base
    costs = [18 * _first(b).in_channels / (_first(b).in_channels // base) ** 2 for b in blocks]
    kept = _choose(scores, costs, share, multiple)
    config = dict(network.config) | {"hidden": [len(channels) for channels in kept]}
    smaller = MIMOUNet(**config).to(next(network.parameters()).device)
    tensors = dict(network.state_dict())
    for block, channels in zip(blocks, kept, strict=True):
        name = next(n for n, module in network.named_modules() if module is block)
        for key, dim in (
            ("main.0.main.0.weight", 0),
            ("main.0.main.0.bias", 0),
            ("main.1.main.0.weight", 1),
        ):
            tensors[f"{name}.{key}"] = tensors[f"{name}.{key}"].index_select(dim, channels)
    smaller.load_state_dict(tensors)
    return smaller


def _blocks(network: MIMOUNet) -> list[ResBlock]:
    """The residual blocks in the order of the configuration's `hidden`."""
    stages = [*network.Encoder, *network.Decoder]
    return [m for stage in stages for m in stage.modules() if isinstance(m, ResBlock)]


def _first(block: ResBlock) -> nn.Conv2d:
    conv = block.main[0].main[0]  # type: ignore[index]
    assert isinstance(conv, nn.Conv2d)
    return conv


def _importance(
    network: MIMOUNet,
    blocks: list[ResBlock],
    batches: Iterable[tuple[Tensor, Tensor]],
    terms: Mapping[str, float],
) -> list[Tensor]:
    """Σ over batches of (Σ gradient · weight)² for each hidden channel's filter, block by block."""
    scores = [torch.zeros(_first(b).out_channels, device=_first(b).weight.device) for b in blocks]
    frozen = [p.requires_grad for p in network.parameters()]
    network.requires_grad_(True)
    for blurred, sharp in batches:
        x, y = (t if t.is_floating_point() else t.float().div(255) for t in (blurred, sharp))
        network.zero_grad(set_to_none=True)
        multi_scale(network.forward_scales(x), y, terms).backward()  # type: ignore[no-untyped-call]
        for score, block in zip(scores, blocks, strict=True):
            conv = _first(block)
            assert conv.weight.grad is not None
            effect = (conv.weight * conv.weight.grad).sum(dim=(1, 2, 3))
            if conv.bias is not None and conv.bias.grad is not None:
                effect = effect + conv.bias * conv.bias.grad
            score += effect.detach() ** 2
    network.zero_grad(set_to_none=True)
    for parameter, wanted in zip(network.parameters(), frozen, strict=True):
        parameter.requires_grad_(wanted)
    return scores


def _choose(scores: list[Tensor], costs: list[float], share: float, multiple: int) -> list[Tensor]:
    """The channels to keep in each block, ascending; the groups least useful for their cost go."""
    orders = [score.argsort() for score in scores]  # least useful first
    to_save = share * sum(c * len(s) for c, s in zip(costs, scores, strict=True))
    candidates = []
    for i, (score, order) in enumerate(zip(scores, orders, strict=True)):
        # The first group takes what is beyond a multiple; the last `multiple` channels stay.
        ends = range(len(score) % multiple or multiple, len(score) - multiple + 1, multiple)
        start, worth = 0, 0.0
        for end in ends:
            # A later group goes only after those before it, even where one of them costs more.
            worth = max(worth, float(score[order[start:end]].sum()) / (costs[i] * (end - start)))
            candidates.append((worth, i, end, costs[i] * (end - start)))
            start = end
    cut = [0] * len(scores)
    for _, i, end, cost in sorted(candidates):
        if to_save - cost < -0.5 * cost:  # nearer to the goal without it
            continue
        cut[i], to_save = end, to_save - cost
    return [order[n:].sort().values for order, n in zip(orders, cut, strict=True)]
