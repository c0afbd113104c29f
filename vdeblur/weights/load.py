"""Weights on disk: name or path → checked file → the network that they are for. Knows no video.

A checkpoint's network, width and depth are recognised from the names and shapes of its tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.networks import DEFAULT, NetworkSpec, build, catalogue, names, spec
from vdeblur.networks.spandrel import load_from_zoo, zoo_state
from vdeblur.system.files import replacing
from vdeblur.weights import store
from vdeblur.weights.tensor_files import TensorFile, read_tensors, stated_config, unwrapped

SHIPPED = Path(__file__).parent / "shipped"


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    network: str,
    config: Mapping[str, Any],
    half: bool = True,
) -> None:
    """Write tensors as safetensors (fp16 unless `half` is False) with the network's family and
    config in its metadata; OutputError when it cannot be written.
    """
    # Copies: safetensors refuses tensors that share memory, as one layer used twice does.
    kept = {
        name: t.detach().cpu().to(torch.float16 if half else torch.float32).clone().contiguous()
        for name, t in tensors.items()
    }
    metadata = {"network": network, "config": json.dumps(dict(config))}
    try:
        with replacing(path) as temporary:
            save_file(kept, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "is the disk full?"
        raise OutputError(f"{path} cannot be written ({reason}): choose another place") from error


def write_card(weights: Path, facts: dict[str, Any]) -> Path:
    """Write the model card beside a weights file: `facts` and the file's sha256, as JSON."""
    card = weights.with_suffix(".json")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = json.dumps(facts | {"file": weights.name, "sha256": digest}, indent=2)
    card.write_text(text + "\n", encoding="utf-8")
    return card


def shipped_weights(name: str) -> Path:
    """The weights that come with the package, their sha256 held to that of their model card.

    ModelError when there are none for this network, or the file is not the one the card describes.
    """
    path = SHIPPED / f"{name}.safetensors"
    if not path.exists():
        ships = [other for other in names() if spec(other).ships]
        raise ModelError(
            f"no weights ship for {name!r}: pass --weights FILE, or choose {' or '.join(ships)}"
        )
    return checked_weights(path)


def checked_weights(path: Path) -> Path:
    """The weights file, its sha256 held to that of the model card beside it; ModelError."""
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} has no readable model card beside it: reinstall vdeblur"
        ) from error
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): reinstall vdeblur") from error
    if digest != expected:
        raise ModelError(f"{path} is not the file that its model card describes: reinstall vdeblur")
    return path


# --- which network is it for ---------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A network of FAMILIES, and how far tensors fit it.

    tensors: under the network's own names. fitting: how many have the right name and shape.
    misshaped: as (name, shape received, shape right).
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
        """Nothing is missing, nothing is left over, every shape is right."""
        return not (self.missing or self.extra or self.misshaped)

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Orders candidates: the largest is the likeliest."""
        odd = len(self.missing) + len(self.extra) + len(self.misshaped)
        return self.exact, self.fitting, -odd

    @property
    def entry(self) -> NetworkSpec | None:
        """The catalogue's entry of this family and configuration, if there is one."""
        entries = [spec(name) for name in names() if same_network(spec(name), self)]
        return min(entries, key=lambda entry: entry.ensemble, default=None)

    @property
    def description(self) -> str:
        """Such as "mimo-unet-plus (base 32, blocks 20, unshuffle 1)"."""
        entry = self.entry
        return describe(entry.name if entry else self.family, self.config)

    def misfits(self) -> str:
        """What does not fit, counted, the first of each named."""
        shapes = [
            f"{n}: {_shape(has)} instead of {_shape(right)}" for n, has, right in self.misshaped
        ]
        parts = [
            f"{len(items)} {what} ({', '.join(items[:3])}{', …' if len(items) > 3 else ''})"
            for what, items in (
                ("missing", self.missing),
                ("too many", self.extra),
                ("of another shape", shapes),
            )
            if items
        ]
        return ", ".join(parts)


def describe(name: str, config: Mapping[str, Any]) -> str:
    """A network and its configuration, for a person."""

    def shown(value: Any) -> str:
        if isinstance(value, (list, tuple)) and value:
            return f"{min(value)} to {max(value)}"  # a width for each of many layers
        return str(value)

    values = ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in config.items())
    return f"{name} ({values})" if values else name


def same_network(entry: NetworkSpec, found: Found) -> bool:
    """Whether the entry is of the found family and configuration, defaults counted in."""
    if entry.family != found.family:
        return False
    # As JSON says it: weights files know no tuples.
    return bool(_config_of_entry(entry) == json.loads(json.dumps(found.config)))


def sharing_weights(entry: NetworkSpec) -> list[str]:
    """The names in the catalogue that the same weights fit, the entry's own first."""
    kin = [spec(name) for name in names() if spec(name).family == entry.family]
    same = [
        other.name
        for other in kin
        if other.name != entry.name and _config_of_entry(other) == _config_of_entry(entry)
    ]
    return [entry.name, *same]


def recognise(tensors: Mapping[str, Tensor]) -> Found | None:
    """The network of FAMILIES that these tensors fit best; None if they look like none of them."""
    candidates = [
        found
        for names_as in unwrapped(tensors)
        for family in catalogue.FAMILIES
        if (found := _fit(family, names_as)) is not None
    ]
    return max(candidates, key=lambda found: found.rank, default=None)


def _fit(
    family: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None
) -> Found | None:
    """How far tensors fit a family; in `config`, or else in the one that their shapes tell."""
    try:
        own = catalogue.FAMILIES[family].from_published(tensors)
        if own is None:
            return None
        received = {name: tuple(t.shape) for name, t in own.items()}
        chosen = catalogue.FAMILIES[family].config_of(received) if config is None else dict(config)
        if chosen is None:
            return None
        with torch.device("meta"):
            network = catalogue.FAMILIES[family](**chosen)
    # Shapes that no such network can have: it is not this one.
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
        own,
        fitting,
        missing=tuple(name for name in expected if name not in received),
        extra=tuple(name for name in received if name not in expected),
        misshaped=tuple(
            (name, received[name], expected[name])
            for name in both
            if received[name] != expected[name]
        ),
    )


def _config_of_entry(entry: NetworkSpec) -> dict[str, Any]:
    """The entry's configuration with the defaults of its family."""
    full: dict[str, Any] = json.loads(_full_config(entry.family, json.dumps(dict(entry.config))))
    return full


@lru_cache
def _full_config(family: str, config: str) -> str:
    with torch.device("meta"):
        return json.dumps(catalogue.FAMILIES[family](**json.loads(config)).config)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"


# --- loading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, on the CPU in fp32, for inference only.

    name: of the catalogue where it is in it, else its family's or spandrel's. description: the name
    and the configuration. path: the weights file; None for a network without weights. ensemble: the
    catalogue runs it with the self-ensemble. notes: what a user should know of the choice, as
    lines.
    """

    network: nn.Module
    name: str
    description: str
    path: Path | None = None
    ensemble: bool = False
    notes: tuple[str, ...] = ()


def load_network(name: str | None = None, weights: Path | str | None = None) -> nn.Module:
    """`load(name, weights)`, the network alone."""
    return load(name, weights).network


def load(name: str | None = None, weights: Path | str | None = None) -> Loaded:
    """A network with its weights.

    name: of the catalogue; None is what the weights are for, or the catalogue's first. weights: a
    file (see `vdeblur.weights.tensor_files`), or the name of kept ones (`vdeblur models add`); None
    for those that ship, or were kept under the network's name. Weights of the named network's
    family in a configuration that has no name of its own (trained with `--config`, pruned) are
    taken, and a note says so.

    ModelError when a name is unknown, or the weights are missing, damaged, of another network or
    fit none; UsageError for weights of a network without any.
    """
    if weights is None:
        entry = _spec(DEFAULT if name is None else name)
        if not entry.trained:
            return Loaded(build(entry.name).eval(), entry.name, entry.name)
        if entry.ships:
            return _loaded(shipped_weights(entry.name), entry)
        for own in sharing_weights(entry):
            if path := store.kept_for(own):
                loaded = _loaded(path, entry)
                return _with_note(loaded, f"weights kept as {own}: {loaded.description}")
        raise ModelError(_no_weights(entry))
    asked = None if name is None else _spec(name)
    if asked is not None and not asked.trained:
        raise UsageError(f"{name!r} has no weights to load: leave --weights {weights} out")
    path = store.locate(weights)
    loaded = _loaded(path, asked)
    shown = path.name if path == Path(weights) else f"kept as {weights}"
    return _with_note(loaded, f"weights {shown}: {loaded.description}")


def _spec(name: str) -> NetworkSpec:
    """`models.spec` of a name that was typed, with a word for who meant weights that are kept.

    UsageError for a name that is in no catalogue.
    """
    try:
        return spec(name)
    except ModelError as error:
        have = [entry.name for entry in store.kept()]
        if name in have:
            raise UsageError(
                f"{name!r} is a name of kept weights, not of a network: give --weights {name}"
            ) from error
        meant = store.near(name, [*names(), *have])
        if not meant or name in catalogue.LEFT:
            raise UsageError(str(error)) from error
        option = "--model" if meant in names() else "--weights"
        raise UsageError(f"{error}; did you mean {option} {meant}?") from error


def identify(path: Path) -> Loaded:
    """What `load(None, path)` makes of a file, whichever name it will have."""
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
    notes: tuple[str, ...] = ()
    chosen = entry if entry is not None and entry.family == found.family else found.entry
    if entry is not None:
        other = found.entry
        if entry.family != found.family or (other is not None and not same_network(entry, found)):
            named = f"give --model {other.name}" if other else "name that network"
            raise ModelError(
                f"{path} holds weights of {found.description}, not of {entry.name!r}: leave "
                f"--model out, or {named}"
            )
        if other is None:  # a width or depth of somebody's own, which no name stands for
            chosen = None
            notes = (f"they are not of {entry.name}, as asked for: taken as what they are",)
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
    """The best match among all groups of tensors in a file."""
    stated = stated_config(content.metadata)
    if stated and stated[0] in catalogue.FAMILIES:
        found = _fit(stated[0], content.groups[0], stated[1])
        if found is not None and found.exact:
            return found
    candidates = [found for group in content.groups if (found := recognise(group)) is not None]
    best = max(candidates, key=lambda found: found.rank, default=None)
    if entry is None or (best is not None and (best.exact or best.family == entry.family)):
        return best
    # Asked for by name: what is said of the misfit is said of that network.
    asked = (
        _fit(entry.family, tensors, _config_of_entry(entry))
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
                "--model out"
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
            f"{path} holds nothing of {entry.name!r}: leave --model out to have its network "
            "recognised"
        )
    known = ", ".join(family for family in catalogue.FAMILIES if family != "identity")
    return f"{path} is of no network known here (tried {known}): {zoo_state()}"


def _no_weights(entry: NetworkSpec) -> str:
    ships = [other for other in names() if spec(other).ships]
    where = f" (its authors publish some at {entry.page})" if entry.page else ""
    return (
        f"no weights of {entry.name!r} are here: pass --weights FILE{where}, keep them with "
        f"`vdeblur models add FILE --name {entry.name}`, or choose {' or '.join(ships)}"
    )


def _with_note(loaded: Loaded, note: str) -> Loaded:
    return replace(loaded, notes=(note, *loaded.notes))
