"""Recognise the network, width and depth that tensors belong to, by their names and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vdeblur.networks import NetworkSpec, catalogue, names, spec
from vdeblur.networks.limits import check_config, limited_building
from vdeblur.weights.tensor_files import shortened, unwrapped

#: Parameters that a network may lack in a file that is damaged, at least.
_FEW_PARAMETERS = 1000
#: Numbers in all parameters: 100 GB in fp32.
_MOST_VALUES = 25_000_000_000


@dataclass(frozen=True)
class Found:
    """A network of FAMILIES, and how far tensors fit it.

    Attributes:
        family: key of FAMILIES.
        config: keyword arguments of the family's class.
        tensors: the tensors under the network's own names.
        fitting: number of tensors with the right name and shape.
        missing: names of parameters without a tensor.
        extra: names of tensors without a parameter.
        misshaped: (name, shape received, shape right).
    """

    family: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    fitting: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def exact(self) -> bool:
        """Whether nothing is missing or left over and every shape is right."""
        return not (self.missing or self.extra or self.misshaped)

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Sort key of candidates; the largest is the likeliest."""
        odd = len(self.missing) + len(self.extra) + len(self.misshaped)
        return self.exact, self.fitting, -odd

    @property
    def entry(self) -> NetworkSpec | None:
        """The catalogue's entry of this family and configuration, or None."""
        entries = [spec(name) for name in names() if same_network(spec(name), self)]
        return min(entries, key=lambda entry: entry.ensemble, default=None)

    @property
    def description(self) -> str:
        """The name and configuration, as in "mimo-unet-plus (base 32, blocks 20, unshuffle 1)"."""
        entry = self.entry
        return describe(entry.name if entry else self.family, self.config)

    def misfits(self) -> str:
        """Return counts of what does not fit, with the first of each kind by name."""
        shapes = [
            f"{shortened(n)}: {_shape(has)} instead of {_shape(right)}"
            for n, has, right in self.misshaped
        ]
        parts = [
            f"{len(items)} {what} ({', '.join(map(shortened, items[:3]))}"
            f"{', …' if len(items) > 3 else ''})"
            for what, items in (
                ("missing", self.missing),
                ("too many", self.extra),
                ("of another shape", shapes),
            )
            if items
        ]
        return ", ".join(parts)


def describe(name: str, config: Mapping[str, Any]) -> str:
    """Return a network's name and configuration in words."""

    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)) and value:
            return f"{min(value)} to {max(value)}"  # a width for each of many layers
        return str(value)

    values = ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in config.items())
    return f"{name} ({values})" if values else name


def same_network(entry: NetworkSpec, found: Found) -> bool:
    """Return whether an entry has the found family and configuration, defaults included."""
    if entry.family != found.family:
        return False
    # Compared as JSON, since weights files have no tuples.
    return bool(full_config(entry) == json.loads(json.dumps(found.config)))


def sharing_weights(entry: NetworkSpec) -> list[str]:
    """Return the names in the catalogue that the same weights fit, the entry's own first."""
    kin = [spec(name) for name in names() if spec(name).family == entry.family]
    same = [
        other.name
        for other in kin
        if other.name != entry.name and full_config(other) == full_config(entry)
    ]
    return [entry.name, *same]


def recognise(tensors: Mapping[str, Tensor]) -> Found | None:
    """Return the network of FAMILIES that tensors fit best, or None if they resemble none."""
    candidates = [
        found
        for names_as in unwrapped(tensors)
        for family in catalogue.FAMILIES
        if (found := fit(family, names_as)) is not None
    ]
    return max(candidates, key=lambda found: found.rank, default=None)


def fit(
    family: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Found | None:
    """Return how far tensors fit a family in `config`, or in the configuration of their shapes.

    None when no tensor fits, or the shapes are of no such network.
    """
    try:
        own = catalogue.FAMILIES[family].from_published(tensors)
        if own is None:
            return None
        received = {name: tuple(t.shape) for name, t in own.items()}
        chosen = catalogue.FAMILIES[family].config_of(received) if config is None else dict(config)
        if chosen is None:
            return None
        check_config(chosen)
        # A damaged file may lack some tensors, but hardly most of them.
        most = 2 * len(own) + _FEW_PARAMETERS
        with torch.device("meta"), limited_building(most, _MOST_VALUES):
            network = catalogue.FAMILIES[family](**chosen)
    # These are shapes that no such network can have.
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError):
        return None
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    both = [name for name in expected if name in received]
    fitting = sum(received[name] == expected[name] for name in both)
    if not fitting:
        return None
    return Found(
        family,
        dict(network.config),
        {name: tensor for name, tensor in own.items() if name in expected},
        fitting,
        missing=tuple(name for name in expected if name not in received),
        # Counters, such as of averages and batches, are no weights.
        extra=tuple(n for n, shape in received.items() if n not in expected and shape),
        misshaped=tuple(
            (name, received[name], expected[name])
            for name in both
            if received[name] != expected[name]
        ),
    )


def full_config(entry: NetworkSpec) -> dict[str, Any]:
    """Return the entry's configuration with the defaults of its family."""
    full: dict[str, Any] = json.loads(_config_as_json(entry.family, json.dumps(dict(entry.config))))
    return full


@lru_cache
def _config_as_json(family: str, config: str) -> str:
    with torch.device("meta"):
        return json.dumps(catalogue.FAMILIES[family](**json.loads(config)).config)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"
