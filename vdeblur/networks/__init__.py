"""Deblurring networks as torch modules, and their catalogue. Knows no files and no video."""

from vdeblur.networks.base import GlobalMean, Network, share_means
from vdeblur.networks.catalogue import (
    DEFAULT,
    FAMILIES,
    LEFT,
    NetworkSpec,
    Score,
    build,
    names,
    spec,
)
from vdeblur.networks.identity import Identity

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "LEFT",
    "GlobalMean",
    "Identity",
    "Network",
    "NetworkSpec",
    "Score",
    "build",
    "names",
    "share_means",
    "spec",
]
