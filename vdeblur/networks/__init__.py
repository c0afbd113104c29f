"""Deblurring networks as torch modules, and their catalogue. Knows no files and no video.

    from vdeblur.networks import build, names, spec

    network = build("mimo-unet", {"base": 8, "blocks": 2})   # a `Network`, untrained
    spec("mimo-unet").scores                                 # published results

The modules:

    catalogue      names → specifications, and building
    base           `Network`: the facts and methods that every network has
    global_mean    channel means that the tiles of a picture can share
    cost           operations, bytes and memory of a pass
    spandrel       networks of the spandrel package
    taps           the guidance channels: samples along the motion
    blur_field     a network that reads motion off spectra
    layers         blocks that several families share

and a module for each family: identity, mimo_unet, mimo_unet_cfa, mimo_unet_guided, mimo_unet_lite,
mprnet, pss_nsc.
"""

from vdeblur.networks.base import Network
from vdeblur.networks.catalogue import (
    DEFAULT,
    FAMILIES,
    REMOVED,
    NetworkSpec,
    PublishedScore,
    build,
    names,
    spec,
)
from vdeblur.networks.cost import operations
from vdeblur.networks.global_mean import GlobalMean, share_means
from vdeblur.networks.identity import Identity

__all__ = [
    "DEFAULT",
    "FAMILIES",
    "REMOVED",
    "GlobalMean",
    "Identity",
    "Network",
    "NetworkSpec",
    "PublishedScore",
    "build",
    "names",
    "operations",
    "share_means",
    "spec",
]
