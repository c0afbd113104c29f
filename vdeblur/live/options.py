"""The options of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdeblur.errors import UsageError
from vdeblur.live.encoding import LiveEncoding
from vdeblur.live.sinks.sink import SinkOptions
from vdeblur.live.sources.receiver import RetryOptions
from vdeblur.live.sources.source import SourceOptions

_LONGEST_LATENCY = 60.0  # seconds: more is no live picture, but another unit


@dataclass(frozen=True)
class SessionOptions:
    """Everything about a session except its addresses and its network.

    Attributes:
        max_latency: Seconds from capture to the end of encoding.
        degrade: Whether the scheduler may go on to the restorer's cheaper levels.
        together: Whether frames of several cameras share a batch.
        source: How sources are opened.
        retry: When and how often to reconnect.
        sink: How sinks write.
        encoding: How the picture is encoded.

    Raises:
        UsageError: The latency is none that a live picture can have.
    """

    max_latency: float = 0.3
    degrade: bool = False
    together: bool = False
    source: SourceOptions = field(default_factory=SourceOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    sink: SinkOptions = field(default_factory=SinkOptions)
    encoding: LiveEncoding = field(default_factory=LiveEncoding)

    def __post_init__(self) -> None:
        if not 0 < self.max_latency <= _LONGEST_LATENCY:
            raise UsageError(
                f"max_latency is {self.max_latency:g} s: choose more than 0 and at most "
                f"{_LONGEST_LATENCY:g} s, such as 0.3 (300ms on the command line)"
            )
