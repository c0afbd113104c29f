"""Knowledge distillation: the outputs of a large trained network are a small one's second targets.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, with images in place of
class scores: the teacher shows what can be restored at all, while the sharp picture asks for more
than a small network can achieve. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdeblur.training.losses import l1


def distance_to_teacher(
    outputs: Sequence[Tensor], taught: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Compute the L1 distance to the teacher's outputs.

    Each output of the student is compared with the teacher's last output of its size, if any.

    Args:
        outputs: The student's, (N, 3, h, w) each.
        taught: The teacher's, likewise, in its own order.
        weights: One for each output of the student.

    Returns:
        A scalar in fp32.
    """
    by_size = {image.shape[-2:]: image for image in taught}  # the last of each size stays
    total = torch.zeros((), device=outputs[-1].device)
    for output, weight in zip(outputs, weights, strict=True):
        target = by_size.get(output.shape[-2:])
        if target is not None and weight:
            total = total + weight * l1(output.float(), target.float())
    return total
