"""The options of a session."""

from __future__ import annotations

from dataclasses import dataclass, field

from vdeblur.live.encoding import LiveEncoding
from vdeblur.live.sinks.sink import SinkOptions
from vdeblur.live.sources.receiver import RetryOptions
from vdeblur.live.sources.source import SourceOptions


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
    """

    max_latency: float = 0.3
    degrade: bool = False
    together: bool = False
    source: SourceOptions = field(default_factory=SourceOptions)
    retry: RetryOptions = field(default_factory=RetryOptions)
    sink: SinkOptions = field(default_factory=SinkOptions)
    encoding: LiveEncoding = field(default_factory=LiveEncoding)
