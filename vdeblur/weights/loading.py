"""Load a network with its weights, by name or from a file, which is checked first."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from vdeblur.errors import ModelError, UsageError
from vdeblur.networks import DEFAULT, NetworkSpec, build, catalogue, names, spec
from vdeblur.networks.spandrel import load_from_zoo, zoo_state
from vdeblur.weights import store
from vdeblur.weights.packaged import shipped_weights
from vdeblur.weights.recognition import (
    Found,
    describe,
    fit,
    full_config,
    recognise,
    same_network,
    sharing_weights,
)
from vdeblur.weights.tensor_files import TensorFile, read_tensors, stated_config, unwrapped

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, on the CPU in fp32, for inference only.

    Attributes:
        network: the module, in eval mode, its parameters without gradients.
        name: the catalogue's name of the network, or else its family's or spandrel's.
        description: the name and the configuration, in words.
        path: the weights file; None for a network without weights.
        ensemble: whether the catalogue runs this network with the self-ensemble.
        notes: lines for the user about the choice.
    """

    network: nn.Module
    name: str
    description: str
    path: Path | None = None
    ensemble: bool = False
    notes: tuple[str, ...] = ()


def load_network(name: str | None = None, weights: Path | str | None = None) -> nn.Module:
    """Return the network of `load(name, weights)`."""
    return load(name, weights).network


def load(name: str | None = None, weights: Path | str | None = None) -> Loaded:
    """Load a network with its weights.

    Weights of the named network's family in a configuration without a name of its own (trained
    with another `config`, or pruned) are taken, and a note says so.

    Args:
        name: name in the catalogue. None: the network that the weights belong to, or, without
            weights, the catalogue's first.
        weights: a file of any kind in `vdeblur.weights.tensor_files`, or the name of stored
            weights (`vdeblur models add`). None: the weights that ship, or that are stored under
            the network's name.

    Raises:
        ModelError: the weights are missing, damaged, of another network, or fit no network.
        UsageError: the name is unknown, or is of a network without weights and some are given.
    """
    if weights is None:
        entry = _spec(DEFAULT if name is None else name)
        if not entry.trained:
            return Loaded(build(entry.name).eval(), entry.name, entry.name)
        if entry.ships:
            return _loaded(shipped_weights(entry.name), entry)
        for own in sharing_weights(entry):
            if path := store.stored_file(own):
                loaded = _loaded(path, entry)
                return _with_note(loaded, f"weights kept as {own}: {loaded.description}")
        raise ModelError(_no_weights(entry))
    asked = None if name is None else _spec(name)
    if asked is not None and not asked.trained:
        raise UsageError(f"{name!r} has no weights to load: leave `weights` out")
    path = store.locate(weights)
    _log.info("weights: %s", path)
    loaded = _loaded(path, asked)
    shown = path.name if path == Path(weights) else f"kept as {weights}"
    return _with_note(loaded, f"weights {shown}: {loaded.description}")


def _spec(name: str) -> NetworkSpec:
    """Look up a network; if the name is one of stored weights, the error says so.

    Raises:
        UsageError: the name is not in the catalogue.
    """
    try:
        return spec(name)
    except ModelError as error:
        have = [entry.name for entry in store.stored_weights()]
        if name in have:
            raise UsageError(
                f"{name!r} is a name of kept weights, not of a network: give `weights={name!r}`"
            ) from error
        meant = store.closest_name(name, [*names(), *have])
        if not meant or name in catalogue.REMOVED:
            raise UsageError(str(error)) from error
        option = "model" if meant in names() else "weights"
        raise UsageError(f"{error}; did you mean `{option}={meant!r}`?") from error


def identify(path: Path) -> Loaded:
    """Load a file as `load(None, path)` does, without a note that names the file."""
    return _loaded(path, None)


def _loaded(path: Path, entry: NetworkSpec | None) -> Loaded:
    content = read_tensors(path)
    found = _find(content, entry)
    if found is None or not found.exact:
        zoo = _from_zoo(content, path, entry)
        if zoo is not None:
            return zoo
        raise ModelError(_unfit(path, found, entry))
    wild = [n for n, t in found.tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    if wild:
        raise ModelError(
            f"{path} holds numbers that are not finite in {len(wild)} of {len(found.tensors)} "
            f"tensors ({wild[0]} first): its training failed, use an earlier checkpoint"
        )
    whole = [name for name, tensor in found.tensors.items() if not tensor.is_floating_point()]
    if whole:
        raise ModelError(
            f"{path} holds whole numbers in {len(whole)} of {len(found.tensors)} tensors "
            f"({whole[0]} first): quantized weights are not read, use those in fp32 or fp16"
        )
    notes: tuple[str, ...] = ()
    chosen = entry if entry is not None and entry.family == found.family else found.entry
    if entry is not None:
        other = found.entry
        if entry.family != found.family or (other is not None and not same_network(entry, found)):
            named = f"give `model={other.name!r}`" if other else "name that network"
            raise ModelError(
                f"{path} holds weights of {found.description}, not of {entry.name!r}: leave "
                f"`model` out, or {named}"
            )
        if other is None:  # a width or depth that has no name in the catalogue
            chosen = None
            notes = (f"not weights of {entry.name}; using the network they belong to",)
    network = catalogue.FAMILIES[found.family](**found.config)
    network.load_state_dict(found.tensors)
    return Loaded(
        network.eval().requires_grad_(False),
        chosen.name if chosen else found.family,
        describe(chosen.name if chosen else found.family, found.config),
        path,
        ensemble=entry.ensemble if entry else bool(chosen and chosen.ensemble),
        notes=notes,
    )


def _find(content: TensorFile, entry: NetworkSpec | None) -> Found | None:
    """Return the best match among all groups of tensors in a file."""
    stated = stated_config(content.metadata)
    if stated and stated[0] in catalogue.FAMILIES:
        found = fit(stated[0], content.groups[0], stated[1])
        if found is not None and found.exact:
            return found
    candidates = [found for group in content.groups if (found := recognise(group)) is not None]
    best = max(candidates, key=lambda found: found.rank, default=None)
    if entry is None or (best is not None and (best.exact or best.family == entry.family)):
        return best
    # The error about a misfit is about the network that was asked for by name.
    asked = (
        fit(entry.family, tensors, full_config(entry))
        for group in content.groups
        for tensors in unwrapped(group)
    )
    return max((f for f in asked if f), key=lambda found: found.rank, default=best)


def _from_zoo(content: TensorFile, path: Path, entry: NetworkSpec | None) -> Loaded | None:
    for tensors in _each_unwrapped(content.groups):
        try:
            network = load_from_zoo(tensors)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        if network is None:
            continue
        if entry is not None:
            raise ModelError(
                f"{path} holds weights of {network.description}, not of {entry.name!r}: leave "
                "`model` out"
            )
        tiles = f"{network.architecture} looks at whole pictures: tiles may differ in tone"
        return Loaded(
            network.eval().requires_grad_(False),
            network.architecture,
            f"{network.description}, by spandrel",
            path,
            notes=() if network.tiles_well else (tiles,),
        )
    return None


def _each_unwrapped(groups: Iterable[Mapping[str, Tensor]]) -> Iterable[dict[str, Tensor]]:
    return (tensors for group in groups for tensors in unwrapped(group))


def _unfit(path: Path, found: Found | None, entry: NetworkSpec | None) -> str:
    if found is not None and (2 * found.fitting >= len(found.tensors) or entry is not None):
        return (
            f"{path} does not fit {found.description}, the likeliest network: of its tensors "
            f"{found.misfits()}; use the file as its authors published it"
        )
    if entry is not None:
        return (
            f"{path} holds nothing of {entry.name!r}: leave `model` out to have its network "
            "recognised"
        )
    known = ", ".join(family for family in catalogue.FAMILIES if family != "identity")
    return f"{path} is of no network known here (tried {known}): {zoo_state()}"


def _no_weights(entry: NetworkSpec) -> str:
    ships = [other for other in names() if spec(other).ships]
    where = f" (its authors publish some at {entry.page})" if entry.page else ""
    return (
        f"no weights of {entry.name!r} are here: pass `weights=FILE`{where}, keep them with "
        f"`vdeblur models add FILE --name {entry.name}`, or choose {' or '.join(ships)}"
    )


def _with_note(loaded: Loaded, note: str) -> Loaded:
    return replace(loaded, notes=(note, *loaded.notes))
