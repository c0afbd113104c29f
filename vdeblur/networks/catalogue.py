"""The catalogue of networks: names, specifications, and how each is built.

A network is a module with a subclass of `Network`, a line in FAMILIES and an entry here. Knows no
files: `vdeblur.weights` reads weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vdeblur.errors import ModelError
from vdeblur.networks.base import Network
from vdeblur.networks.identity import Identity
from vdeblur.networks.limits import check_config
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.networks.mimo_unet_cfa import MIMOUNetCFA
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided
from vdeblur.networks.mimo_unet_lite import MIMOUNetLite
from vdeblur.networks.mprnet import MPRNet
from vdeblur.networks.pss_nsc import PSSNSC


@dataclass(frozen=True)
class PublishedScore:
    """A published result on a dataset: mean PSNR in dB, mean SSIM, and the paper."""

    dataset: str
    psnr: float
    ssim: float
    source: str


@dataclass(frozen=True)
class NetworkSpec:
    """An entry of the catalogue.

    Attributes:
        name: the name that `build` and `load` take.
        family: the architecture, a key of FAMILIES, as weights files name it.
        summary: one line about the network.
        config: keyword arguments of the family's class; the config in a weights file overrides
            them.
        ships: whether weights come with the package.
        trained: whether the network has weights at all.
        ensemble: whether it is run with the geometric self-ensemble.
        paper: the publication.
        licence: license of the published weights.
        page: where its authors publish weights.
        url: a file of theirs that `vdeblur models fetch` downloads.
        sha256: checksum of that file.
        scores: published results.
    """

    name: str
    family: str
    summary: str
    config: Mapping[str, Any] = field(default_factory=dict)
    ships: bool = False
    trained: bool = True
    ensemble: bool = False
    paper: str = ""
    licence: str = ""
    page: str = ""
    url: str = ""
    sha256: str = ""
    scores: tuple[PublishedScore, ...] = ()


#: The network that is used when neither a name nor weights are given.
DEFAULT = "mimo-unet-guided"

#: Architectures by the names in weights files.
FAMILIES: dict[str, type[Network]] = {
    "mimo-unet": MIMOUNet,
    "mimo-unet-cfa": MIMOUNetCFA,
    "mimo-unet-guided": MIMOUNetGuided,
    "mimo-unet-lite": MIMOUNetLite,
    "pss-nsc": PSSNSC,
    "mprnet": MPRNet,
    "identity": Identity,
}

_MIMO_UNET: dict[str, Any] = {
    "paper": "Cho et al., Rethinking Coarse-to-Fine Approach in Single Image Deblurring, ICCV 2021",
    "licence": "the authors' repository names none: their weights are theirs, ask them",
    "page": "https://github.com/chosj95/MIMO-UNet",
}

_CATALOGUE = {
    entry.name: entry
    for entry in (
        NetworkSpec(
            "mimo-unet-guided",
            "mimo-unet-guided",
            "guided by the motion of each pixel during the exposure; near real time without a GPU",
            ships=True,
        ),
        NetworkSpec(
            "mimo-unet-guided-large",
            "mimo-unet-guided",
            "mimo-unet-guided twice as wide, and deeper; 3.5 million parameters; for GPUs",
            {"widths": [32, 80, 160], "blocks": [2, 2, 3]},
            ships=True,
        ),
        NetworkSpec(
            "mimo-unet",
            "mimo-unet",
            "MIMO-UNet as published (Cho et al., ICCV 2021), 6.8 million parameters",
            {"base": 32, "blocks": 8},
            **_MIMO_UNET,
            scores=(PublishedScore("GoPro", 31.73, 0.951, "Cho et al., ICCV 2021"),),
        ),
        NetworkSpec(
            "mimo-unet-plus",
            "mimo-unet",
            "MIMO-UNet+ as published (Cho et al., ICCV 2021), 16.1 million parameters",
            {"base": 32, "blocks": 20},
            **_MIMO_UNET,
            scores=(PublishedScore("GoPro", 32.45, 0.957, "Cho et al., ICCV 2021"),),
        ),
        NetworkSpec(
            "mimo-unet-plusplus",
            "mimo-unet",
            "MIMO-UNet+ run with the geometric self-ensemble (Cho et al., ICCV 2021)",
            {"base": 32, "blocks": 20},
            ensemble=True,
            **_MIMO_UNET,
            scores=(PublishedScore("GoPro", 32.68, 0.959, "Cho et al., ICCV 2021"),),
        ),
        NetworkSpec(
            "mimo-unet-cfa",
            "mimo-unet-cfa",
            "MIMO-UNet+ with cross-scale feature aggregation; 16.2 million parameters",
            {"base": 32, "blocks": 20, "scales": 3},
        ),
        NetworkSpec(
            "mimo-unet-lite",
            "mimo-unet-lite",
            "MIMO-UNet with depthwise-separable convolutions, for CPUs and laptops",
            {"base": 32, "blocks": 4, "unshuffle": 4},
        ),
        NetworkSpec(
            "pss-nsc",
            "pss-nsc",
            "PSS-NSC as published (Gao et al., CVPR 2019), 3.9 million parameters; colors apart",
            {"sharing": "both", "base": 32, "units": 4, "scales": 3},
            paper="Gao et al., Dynamic Scene Deblurring with Parameter Selective Sharing and "
            "Nested Skip Connections, CVPR 2019",
            licence="the authors' repository names none: their weights are theirs, ask them",
            page="https://github.com/firenxygao/deblur",
            scores=(PublishedScore("GoPro", 30.92, 0.942, "Gao et al., CVPR 2019"),),
        ),
        NetworkSpec(
            "mprnet",
            "mprnet",
            "MPRNet as published (Zamir et al., CVPR 2021), 20.1 million parameters; three stages",
            {
                "n_feat": 96,
                "scale_unetfeats": 48,
                "scale_orsnetfeats": 32,
                "num_cab": 8,
                "reduction": 4,
            },
            paper="Zamir et al., Multi-Stage Progressive Image Restoration, CVPR 2021",
            licence="academic, non-commercial use only",
            page="https://github.com/swz30/MPRNet",
            scores=(
                PublishedScore("GoPro", 32.66, 0.959, "Zamir et al., CVPR 2021"),
                PublishedScore("HIDE", 30.96, 0.939, "Zamir et al., CVPR 2021"),
            ),
        ),
        NetworkSpec("identity", "identity", "returns its input; for tests", trained=False),
    )
}

#: Names that have left the catalogue; weights of such networks are still recognized.
REMOVED = frozenset({"mimo-unet-small"})


def names() -> tuple[str, ...]:
    """Return the names that `spec` and `build` take, the default first."""
    return tuple(_CATALOGUE)


def spec(name: str) -> NetworkSpec:
    """Return an entry of the catalogue.

    Raises:
        ModelError: the name is not in the catalogue, or has left it.
    """
    try:
        return _CATALOGUE[name]
    except KeyError:
        if name in REMOVED:
            raise ModelError(
                f"the network {name!r} has left vdeblur, and {DEFAULT} is the default: leave "
                "`model` out; weights of your own for it load by `weights=FILE` alone"
            ) from None
        raise ModelError(
            f"there is no network {name!r}: choose one of {', '.join(names())}"
        ) from None


def build(name: str, config: Mapping[str, Any] | None = None) -> Network:
    """Build an untrained network.

    Args:
        name: a name in the catalogue.
        config: keyword arguments of the family's class; None for those of the catalogue.

    Raises:
        ModelError: the name is unknown, or the family cannot have this configuration.
    """
    entry = spec(name)
    chosen = dict(entry.config if config is None else config)
    try:
        check_config(chosen)
        return FAMILIES[entry.family](**chosen)
    # torch reports a size below 0 by a RuntimeError.
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelError(
            f"a {entry.family} network cannot have the config {chosen}: {error}"
        ) from error
