"""How networks are trained, as data: one frozen recipe for each paper, and our own.

A recipe holds what decides the weights: network, losses, optimizer, schedule, length, crops. What
only decides how fast they come (device, precision, workers) is in `RunOptions`. Knows no files.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from vdeblur.datasets.films import FilmOptions
from vdeblur.datasets.motion_errors import MotionErrors
from vdeblur.datasets.pool import PoolOptions
from vdeblur.errors import UsageError
from vdeblur.networks import spec
from vdeblur.training.losses import SCALE_WEIGHTS, parse_loss
from vdeblur.training.schedules import Schedule

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OPTIMISERS = ("adam", "adamw")


@dataclass(frozen=True)
class Recipe:
    """What decides the weights of a run.

    The length of a run is the first of `seconds`, `steps` and `epochs` that is not 0.

    Args:
        name: The recipe's name.
        summary: A line about it.
        network: A name of the catalog.
        config: The network's configuration, where it is not the catalog's.
        loss: A sum of terms over all outputs, see `losses.parse_loss`.
        scales: Weights of the outputs, see `losses.scale_weights`.
        optimiser: "adam" or "adamw".
        betas: Decay of the optimizer's two moments.
        weight_decay: Decay of the weights.
        learning_rate: The rate that the schedule starts from.
        schedule: How the rate changes in the course of the run.
        seconds: Length as a budget of time.
        steps: Length in batches.
        epochs: Length in epochs. An epoch is one crop of every pair.
        batch: Crops of a batch, over all processes.
        crop: Side of the crops in pixels.
        patches: (share of the run, side): from that share on, crops are cut into as many squares of
            that side as fit, so that small patches come first. () leaves crops whole.
        updates: (share of the run, count): from that share on, the weights are changed `count`
            times a batch, each time by a part of it, so that small batches come first.
        coarse_first: The share of the run by which the outputs have joined the loss one after
            another.
        pool: How pairs are made from photographs.
        errors: What is wrong with the motion that a guided network receives.
        films: Whether a guided network receives the frames around its input, too.
        ema: Decay of the averaged weights, which are the ones kept; 0 keeps the last ones.
        clip: Largest norm of the gradient; 0 for any.
        identity_start: Start with a network that returns its input.
        start_well: Draw the first weights so that no channel dies, see `dead_channels.start_well`.
        revive: Give dead channels of the starting weights a new start, see `dead_channels.revive`.
        keep_sharp: Share of the pictures whose input is their sharp target, so that sharp input
            comes back as it was.
        init: Weights to start from, "shipped" for the package's own, "" for none.
        teacher_weight: Weight of the distance to a teacher's outputs, see `distillation`.
        prune: Share of the residual blocks' work to cut away before training, see `pruning`.
        source: Where the figures come from, and where the paper leaves them open.

    Raises:
        UsageError: A value is out of its range, or values contradict each other.
    """

    name: str
    summary: str
    network: str
    config: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "huber"
    scales: str = "equal"
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    learning_rate: float = 1e-3
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup=0.02))
    seconds: float = 0.0
    steps: int = 0
    epochs: int = 0
    batch: int = 8
    crop: int = 192
    patches: tuple[tuple[float, int], ...] = ()
    updates: tuple[tuple[float, int], ...] = ()
    coarse_first: float = 0.0
    pool: PoolOptions = field(default_factory=PoolOptions)
    errors: MotionErrors = field(default_factory=MotionErrors)
    films: FilmOptions = field(default_factory=FilmOptions)
    ema: float = 0.999
    clip: float = 0.5
    identity_start: bool = True
    start_well: bool = True
    revive: bool = False
    keep_sharp: float = 0.0
    init: str = ""
    teacher_weight: float = 0.0
    prune: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        spec(self.network)
        parse_loss(self.loss)
        wrong = [
            (
                self.scales not in SCALE_WEIGHTS,
                f"scales {self.scales!r}",
                "one of " + ", ".join(SCALE_WEIGHTS),
            ),
            (self.optimiser not in OPTIMISERS, f"optimiser {self.optimiser!r}", "adam or adamw"),
            (
                not 0 < self.learning_rate < math.inf,
                f"learning rate {self.learning_rate:g}",
                "above 0",
            ),
            (self.batch < 1, f"batch {self.batch}", "1 or more"),
            (self.crop < 16, f"crop {self.crop}", "16 pixels or more"),
            (min(self.seconds, self.steps, self.epochs) < 0, "a length below 0", "above 0"),
            (not 0 <= self.ema < 1, f"ema {self.ema}", "from 0 to below 1"),
            (not 0 <= self.keep_sharp < 1, f"keep_sharp {self.keep_sharp}", "from 0 to below 1"),
            (
                self.keep_sharp > 0 and self.films.neighbours,
                f"keep_sharp {self.keep_sharp} with neighboring frames",
                "0: set sharp_share of `blur`",
            ),
            (not 0 <= self.prune < 1, f"prune {self.prune}", "from 0 to below 1"),
            (self.teacher_weight < 0, f"teacher weight {self.teacher_weight}", "0 or more"),
            (
                any(not 16 <= side <= self.crop for _, side in self.patches),
                f"patches {self.patches}",
                f"of 16 to {self.crop} pixels, the crop's side",
            ),
            (
                any(not 1 <= count <= self.batch for _, count in self.updates),
                f"updates {self.updates}",
                f"1 to {self.batch} a batch, the crops in it",
            ),
        ]
        for bad, received, right in wrong:
            if bad:
                raise UsageError(f"a recipe cannot have {received}: it must be {right}")

    def total_steps(self, pairs: int | None) -> int | None:
        """Return the run's length in steps; None if it is counted in seconds.

        Args:
            pairs: Pairs of an epoch; None for data without end.

        Raises:
            UsageError: The recipe has no length, or counts epochs of data without end.
        """
        if self.seconds:
            return None
        if self.steps:
            return self.steps
        if not self.epochs:
            raise UsageError("a run needs a length: give `seconds`, `steps` or `epochs`")
        if not pairs:
            raise UsageError("this data has no end and so no epochs: give `seconds` or `steps`")
        return max(1, self.epochs * pairs // self.batch)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, for model cards and state files."""
        return dataclasses.asdict(self)


def with_values(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """Return the recipe with fields set from text, as in `--set KEY=VALUE`.

    Args:
        recipe: The recipe to change.
        values: Text by field. Fields of the schedule are named "schedule.warmup" and so on; those
            of the pool, of the motion's errors and of films likewise.

    Raises:
        UsageError: A field is unknown, or a text is no value of its type.
    """
    whole: dict[str, Any] = {}
    rest = dict(values)
    for name in ("schedule", "pool", "errors", "films"):
        of = f"{name}."
        inner = {key: rest.pop(key) for key in values if key.startswith(of)}
        if inner:
            texts = {key.removeprefix(of): text for key, text in inner.items()}
            whole[name] = from_texts(getattr(recipe, name), texts)
    return from_texts(replace(recipe, **whole), rest)


_T = TypeVar("_T", bound="DataclassInstance")


def from_texts(options: _T, values: Mapping[str, str]) -> _T:
    """Return a frozen dataclass of options with fields set from text.

    Args:
        options: The dataclass to change.
        values: Text by field. Tuples are written with commas, tuples in them with colons:
            "1.8,2.6", "0:128,0.5:256".

    Raises:
        UsageError: A field is unknown, or a text is no value of its type.
    """
    kinds = typing.get_type_hints(type(options))
    settable = {name: kind for name, kind in kinds.items() if _parser(kind) is not None}
    changed = {}
    for key, text in values.items():
        if key not in settable:
            raise UsageError(f"there is no {key!r} to set: choose of {', '.join(sorted(settable))}")
        parse = _parser(settable[key])
        assert parse is not None
        try:
            changed[key] = parse(text)
        except (ValueError, KeyError) as error:
            now = getattr(options, key)
            raise UsageError(f"{key}={text} is no value: give one such as {key}={now}") from error
    return replace(options, **changed)


def _parser(kind: Any) -> Callable[[str], Any] | None:
    """The function that makes a value of this type from text; None if there is none."""
    if kind is bool:
        return lambda text: {"true": True, "false": False}[text.lower()]
    if kind in (str, int, float):
        return typing.cast("Callable[[str], Any]", kind)
    if typing.get_origin(kind) is not tuple:
        return None
    first, *rest = typing.get_args(kind)
    if rest != [...]:
        return lambda text: tuple(
            kind(part) for kind, part in zip((first, *rest), text.split(","), strict=True)
        )
    inner = typing.get_args(first)
    if not inner:
        return lambda text: tuple(first(part) for part in text.split(",") if part)
    return lambda text: tuple(
        tuple(kind(x) for kind, x in zip(inner, part.split(":"), strict=True))
        for part in text.split(",")
        if part
    )


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the fields in which two recipes, as plain data, belong to different runs.

    Lengths may differ: a run may be made longer. So may the learning rate: a run that ran away
    continues with a lower one.
    """
    free = {"name", "summary", "source", "seconds", "steps", "epochs", "init", "learning_rate"}
    return sorted(key for key in {*a, *b} - free if a.get(key) != b.get(key))


_FAST = "our own: a loss that leaves the identity, a start that keeps channels: docs/training.md"


def _published(name: str, summary: str, network: str, **settings: Any) -> Recipe:
    """A recipe as in a paper: Adam as first described, and none of our own additions."""
    return Recipe(
        name,
        summary,
        network,
        optimiser="adam",
        betas=(0.9, 0.999),
        weight_decay=0.0,
        ema=0.0,
        clip=0.0,
        identity_start=False,
        start_well=False,
        **settings,
    )


_GUIDED: dict[str, Any] = {
    "loss": "log_mse",
    "scales": "tenth",
    "films": FilmOptions(neighbours=True),
    "start_well": False,  # it draws its weights well itself
    "source": "our own: motion with the errors of its estimate, frames around it, a log of squared "
    "errors, each pair used several times: docs/training.md",
}

_GUIDED_GPU: dict[str, Any] = {
    **_GUIDED,
    "seconds": 1500,
    "batch": 64,
    "crop": 256,
    # Pairs of 304²: large crops differ enough with little room, and making pairs is what costs.
    "pool": PoolOptions(reuse=4, pairs=512, room=0.1875, clean_first=1.0, clean_last=0.3),
}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "mimo-unet-guided",
            "our default: guided by motion, for any budget of time on a CPU; small batches first",
            "mimo-unet-guided",
            seconds=3600,
            batch=4,
            crop=128,
            updates=((0.0, 2), (0.6, 1)),
            pool=PoolOptions(reuse=8, pairs=128, clean_first=1.0, clean_last=0.3),
            **_GUIDED,
        ),
        Recipe(
            "mimo-unet-guided-gpu",
            "the same network on a GPU: larger crops and batches",
            "mimo-unet-guided",
            **_GUIDED_GPU,
        ),
        Recipe(
            "mimo-unet-guided-large-gpu",
            "its larger sister on a GPU",
            "mimo-unet-guided-large",
            **_GUIDED_GPU,
        ),
        Recipe(
            "mimo-unet-gpu",
            "MIMO-UNet within a budget on one GPU; small patches first",
            "mimo-unet",
            learning_rate=4e-4,
            seconds=1500,
            batch=32,
            crop=256,
            patches=((0.0, 128), (0.4, 256)),
            source=_FAST,
        ),
        _published(
            "mimo-unet-gopro",
            "MIMO-UNet on GoPro as published",
            "mimo-unet",
            loss="l1 + 0.1*msfr",
            learning_rate=1e-4,
            schedule=Schedule("step", every=1 / 6, factor=0.5),
            epochs=3000,
            batch=4,
            crop=256,
            source="Cho et al., ICCV 2021: λ 0.1, 10⁻⁴ halved every 500 of 3000 epochs",
        ),
        _published(
            "mimo-unet-plus-gopro",
            "MIMO-UNet+ on GoPro as published",
            "mimo-unet-plus",
            loss="l1 + 0.1*msfr",
            learning_rate=1e-4,
            schedule=Schedule("step", every=1 / 6, factor=0.5),
            epochs=3000,
            batch=4,
            crop=256,
            source="Cho et al., ICCV 2021, as mimo-unet-gopro",
        ),
        _published(
            "mprnet-gopro",
            "MPRNet on GoPro as published",
            "mprnet",
            loss="charbonnier + 0.05*edge",
            learning_rate=2e-4,
            schedule=Schedule("cosine", last=0.005, warmup=0.001),
            epochs=3000,
            batch=16,
            crop=256,
            source="Zamir et al., CVPR 2021, and the authors' settings file: 2·10⁻⁴ to 10⁻⁶ in "
            "3000 epochs (4·10⁵ steps), of which 3 are a warm-up",
        ),
        _published(
            "pss-nsc-gopro",
            "PSS-NSC on GoPro as published",
            "pss-nsc",
            loss="mse",
            learning_rate=1e-4,
            schedule=Schedule("power", power=0.3),
            epochs=4000,
            batch=16,
            crop=256,
            source="Gao et al., CVPR 2019: 4000 epochs, power 0.3; not certain are the batch and "
            "the last rate, 0, which are those of SRN (Tao et al., CVPR 2018)",
        ),
        Recipe(
            "mimo-unet-cfa",
            "MIMO-UNet with features across scales, on pairs",
            "mimo-unet-cfa",
            loss="l1 + 0.1*ssim",
            scales="halving",
            learning_rate=2e-4,
            schedule=Schedule("cosine", last=0.005, warmup=0.01),
            epochs=1000,
            batch=8,
            crop=256,
            source="our own rate and length; structural similarity weighs 0.1, scale i 1/2^i",
        ),
        Recipe(
            "mimo-unet-lite",
            "depthwise-separable convolutions for CPUs and laptops, for any budget of time",
            "mimo-unet-lite",
            seconds=3600,
            batch=4,
            crop=160,
            source=_FAST,
        ),
        Recipe(
            "distill",
            "a large network teaches a light one: `teacher=FILE`",
            "mimo-unet-lite",
            seconds=3600,
            batch=4,
            crop=160,
            teacher_weight=0.5,
            source="outputs of the teacher as second targets (Hinton et al., 2015, for images)",
        ),
        Recipe(
            "prune",
            "half of a MIMO-UNet's residual blocks cut away, then fine-tuned: `init=FILE`",
            "mimo-unet",
            prune=0.5,
            learning_rate=2e-4,
            seconds=1800,
            batch=4,
            crop=160,
            source="channels by first-order Taylor importance (Molchanov et al., CVPR 2019)",
        ),
        Recipe(
            "fine-tune",
            "trained weights to a domain of their own (text, faces): a tenth of the rate",
            "mimo-unet-guided",
            init="shipped",
            learning_rate=5e-5,
            seconds=900,
            batch=4,
            crop=160,
            **_GUIDED,
        ),
    )
}


def recipe_of(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        UsageError: There is none.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise UsageError(
            f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}"
        ) from None
