"""Runtimes that compute a network in torch's place: OpenVINO, ONNX Runtime, GPU compilers.

Converted networks are kept in the user's cache, under keys of all that they depend on, and are held
to torch each time they are loaded. Knows no video, and no files but the cache's.
"""

from vdeblur.inference.runtimes.choice import (
    ABILITIES,
    AGREEMENT,
    PRECISION_VARIABLE,
    REQUESTS,
    RUNTIME_VARIABLE,
    RUNTIMES,
    TENSOR_RUNTIMES,
    Runtime,
    RuntimeRequest,
    choose_runtime,
    prefers_bf16,
    with_runtime,
)
from vdeblur.inference.runtimes.conversion import NOT_KEPT, cache_key_parts
from vdeblur.inference.runtimes.runner import (
    Correction,
    ExternalNetwork,
    Runner,
)

__all__ = [
    "ABILITIES",
    "AGREEMENT",
    "NOT_KEPT",
    "PRECISION_VARIABLE",
    "REQUESTS",
    "RUNTIMES",
    "RUNTIME_VARIABLE",
    "TENSOR_RUNTIMES",
    "Correction",
    "ExternalNetwork",
    "Runner",
    "Runtime",
    "RuntimeRequest",
    "cache_key_parts",
    "choose_runtime",
    "prefers_bf16",
    "with_runtime",
]
