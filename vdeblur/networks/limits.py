"""Limits of networks that are built from what a file says, before any cost arises."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

#: Largest width or count in a configuration; published networks stay below 2048.
LARGEST_NUMBER = 16_384
_LONGEST_LIST = 16_384


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless a configuration consists of words and moderate whole numbers."""
    for key, value in config.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if len(items) > _LONGEST_LIST:
            raise ValueError(f"{key} has {len(items)} values")
        for item in items:
            if type(item) is int and 0 <= item <= LARGEST_NUMBER:
                continue
            if not (isinstance(item, str) and item is value):
                raise ValueError(
                    f"{key} must be a whole number from 0 to {LARGEST_NUMBER}, not {item!r:.40}"
                )


@contextmanager
def limited_building(most_parameters: int, most_values: int) -> Iterator[None]:
    """Within this block, building modules in this thread fails once they are too many.

    Args:
        most_parameters: Number of parameters, each a tensor.
        most_values: Numbers in all of them.

    Raises:
        ValueError: From the constructor of the parameter that is too many; its values are not
            filled yet.
    """
    here = threading.get_ident()
    parameters, values = 0, 0

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal parameters, values
        if parameter is None or threading.get_ident() != here:
            return
        parameters += 1
        values += parameter.numel()
        if parameters > most_parameters or values > most_values:
            raise ValueError("the network has far more parameters than its weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
