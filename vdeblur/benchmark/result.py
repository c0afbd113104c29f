"""What a benchmark measured."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

#: Parts of restoring.
PARTS = ("colour", "network")
#: Steps that run beside each other in the pipeline, and the parts of one.
STEPS = (
    "decode", "motion", "upload", "colour", "network", "restoring", "download", "encode",
)  # fmt: skip
#: What is measured beside them.
MORE = ("asynchronous", "planes to planes", "pipeline", "published network", "published frames")
#: Ratios to the authors' way, by their names in JSON: the rate here, and theirs.
AGAINST = {
    "network_against_published": ("network", "published network"),
    "frames_against_published": ("planes to planes", "published frames"),
}


@dataclass(frozen=True)
class Rates:
    """Frames per second, by round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median round."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest round."""
        return min(self.rounds), max(self.rounds)


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        clip: The file's name.
        size: "WIDTHxHEIGHT".
        frames: How many each step took.
        rounds: How often each step was measured.
        model: The network.
        device: Its name, for people.
        backend: The runtime of the network.
        precision: The precision of the network.
        tile: Pixels a side; None for whole pictures.
        batch: Frames that go through the network together.
        encoder: The encoder of libav.
        rates: Frames per second, by names of STEPS and MORE. Upload and download are missing where
            nothing is copied, motion for networks that take none, colour, network and restoring
            where nothing is computed, the published ones unless they were asked for. "network" is
            the network alone, on its own input; "restoring" all that the device does from planes to
            planes; "planes to planes" is in memory, without codecs; "asynchronous" is the network
            by a clock that does not wait for the device.
        network_flop: Floating-point operations of a frame; None if they cannot be counted.
        peak_flops: Operations per second of large products in `precision` (`roofline.peaks`).
        copy_bytes: Bytes per second of a copy, reads and writes counted.
        ceiling: Frames/s of a network whose convolutions, each with its bias, ReLU and addition,
            run at these peaks; None where its layers are not known.
        memory_bytes: The peak of `memory_of`.
        memory_predicted: Bytes that a batch was predicted to take of it.
        copies_hidden: Share of the time of copies in which the device computed (see
            `timing.hidden_copies`); None where nothing is copied.
        busy: Share of the pipeline's time in which each thread worked.
        memory_of: "GPU" for the allocations on the GPU, "process" for the whole process.
        notes: Lines for people.
    """

    clip: str
    size: str
    frames: int
    rounds: int
    model: str
    device: str
    backend: str
    precision: str
    tile: int | None
    batch: int
    encoder: str
    rates: dict[str, Rates]
    network_flop: float | None
    peak_flops: float
    copy_bytes: float
    ceiling: float | None
    memory_bytes: int | None
    memory_predicted: int
    copies_hidden: float | None = None
    busy: dict[str, float] = field(default_factory=dict)
    memory_of: str = "process"
    notes: list[str] = field(default_factory=list)

    def rate(self, name: str) -> float:
        """Median frames per second of a step."""
        return self.rates[name].median

    @property
    def slowest(self) -> str:
        """The step that bounds the pipeline."""
        beside = [step for step in STEPS if step in self.rates and step not in PARTS]
        return min(beside, key=self.rate)

    @property
    def efficiency(self) -> float:
        """Pipeline rate over that of the slowest step."""
        return self.rate("pipeline") / self.rate(self.slowest)

    @property
    def network_flops(self) -> float | None:
        """Floating-point operations per second of the network."""
        if self.network_flop is None or "network" not in self.rates:
            return None
        return self.network_flop * self.rate("network")

    def ratio(self, ours: str, theirs: str) -> Rates:
        """Rates of one name over those of another, round by round."""
        pairs = zip(self.rates[ours].rounds, self.rates[theirs].rounds, strict=True)
        return Rates(tuple(a / b for a, b in pairs))

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        more: dict[str, Any] = {
            "rates": {
                name: {"median": rates.median, "rounds": list(rates.rounds)}
                for name, rates in self.rates.items()
            },
            "slowest": self.slowest,
            "efficiency": self.efficiency,
            "network_ms": 1000 / self.rate("network") if "network" in self.rates else None,
            "network_flops": self.network_flops,
        }
        if "published frames" in self.rates:
            for name, (ours, theirs) in AGAINST.items():
                ratio = self.ratio(ours, theirs)
                more[name] = {"median": ratio.median, "spread": ratio.spread}
        return asdict(self) | more
