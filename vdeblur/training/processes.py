"""The processes of a run under torchrun: which one this is, and what they agree on."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from vdeblur.inference.devices import exact_dtype, has_streams


def processes() -> tuple[int, int]:
    """Return (rank of this process, number of processes); (0, 1) outside torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def start_processes(chosen: torch.device) -> torch.device:
    """Join the other processes that torchrun started, if it did.

    Call `torch.distributed.destroy_process_group` at the end where `processes()` counts several.

    Args:
        chosen: The device that the user asked for.

    Returns:
        The device of this process: under torchrun on GPUs, the one of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if has_streams(chosen):
            chosen = torch.device(chosen.type, int(os.environ.get("LOCAL_RANK", "0")))
            getattr(torch, chosen.type).set_device(chosen)
        dist.init_process_group({"cuda": "nccl", "xpu": "xccl"}.get(chosen.type, "gloo"))
    return chosen


def agree(value: float, flag: bool, device: torch.device) -> tuple[float, bool]:
    """Return the largest value of all processes, and whether any of them has the flag.

    Processes that decide by the result end at the same step. All of them must call.
    """
    if processes()[1] == 1:
        return value, flag
    both = torch.tensor([value, float(flag)], dtype=exact_dtype(device), device=device)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1])


def all_have(flag: bool, device: torch.device) -> bool:
    """Return whether every process has the flag. All of them must call."""
    return not agree(0.0, not flag, device)[1]
