"""Knowledge distillation: a large trained network's outputs are a small one's second targets.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, with images for class
scores: the teacher shows what can be restored at all, where the sharp picture asks for more than a
small network can give. Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdeblur.training.losses import l1


def distance_to_teacher(
    outputs: Sequence[Tensor], taught: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """L1 to the teacher's outputs: a scalar in fp32.

    outputs, taught: (N, 3, h, w) each, in each network's own order. The last ones are compared, and
    each other output of the student with the teacher's last of its size, where there is one.
    weights: one for each output of the student.
    """
    by_size = {image.shape[-2:]: image for image in taught}  # the last of each size stays
    total = torch.zeros((), device=outputs[-1].device)
    for output, weight in zip(outputs, weights, strict=True):
        target = by_size.get(output.shape[-2:])
        if target is not None and weight:
            total = total + weight * l1(output.float(), target.float())
    return total
