"""vdeblur models: describe the networks and the weights on this machine; add and remove weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.cli.output import say
from vdeblur.cli.stopping import answered
from vdeblur.errors import ModelError, UsageError
from vdeblur.system.printable import printable

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.networks import Network

_USAGE = """vdeblur models [NAME] [--json]
       vdeblur models add FILE --name N [--force]
       vdeblur models remove N
       vdeblur models fetch NAME [--url URL] [--sha256 HEX] [--force]"""
_TEXT = """\
Without an argument, print a table of all networks and of the weights on this machine.

  NAME         describe one network, or weights that were added
  add FILE     recognize a checkpoint and keep a copy as N, for --weights N;
               under the name of a network, --model alone uses it
  remove N     delete that copy
  fetch NAME   download weights from the address of the authors or of --url,
               resuming an earlier attempt, and keep them

Nothing is downloaded without this command."""


def add(commands: Commands) -> None:
    """Register the subcommand."""
    models = commands.add_parser(
        "models",
        help="list the networks; add your own weights",
        usage=_USAGE,
        description=_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models.add_argument("words", nargs="*", metavar="NAME | add FILE | remove N | fetch NAME")
    models.add_argument("--name", help="name to keep the weights under")
    models.add_argument("--url", help="address to download from")
    models.add_argument("--sha256", metavar="HEX", help="expected sha256 of the downloaded file")
    models.add_argument(
        "--force", dest="replace", action="store_true", help="replace the weights of that name"
    )
    models.add_argument("--json", action="store_true", help="print as JSON")
    models.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    action = args.words[0] if args.words else ""
    options = {"name": args.name, "url": args.url, "sha256": args.sha256, "force": args.replace}
    actions: dict[str, tuple[Any, int, set[str]]] = {
        "add": (_add, 2, {"name", "force"}),
        "remove": (_remove, 2, set()),
        "fetch": (_fetch, 2, {"url", "sha256", "force"}),
    }
    run, words, taken = actions.get(action, (_show, min(len(args.words), 1), set[str]()))
    if len(args.words) != words:
        raise UsageError(
            f"`vdeblur models {' '.join(args.words)}` is not complete, or too much: give NAME, "
            "add FILE --name N, remove N or fetch NAME"
        )
    command = f"vdeblur models {action}" if action in actions else "the list of models"
    for name, value in (options | {"json": args.json and action in actions}).items():
        if value and name not in taken:
            raise UsageError(f"--{name} does not go with {command}: leave it out")
    return int(run(args))


# --- what there is -------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    from vdeblur.networks import REMOVED, names, spec
    from vdeblur.weights import store

    if args.words:
        name = args.words[0]
        kept = store.find_weights(name)
        if name not in names():
            if kept is None:
                meant = store.closest_name(
                    name, [*names(), *(entry.name for entry in store.stored_weights())]
                )
                try:
                    spec(name)  # says which names there are
                except ModelError as error:
                    hint = f"; did you mean {meant}?" if meant and name not in REMOVED else ""
                    raise ModelError(f"{error}{hint}") from error
            facts = _facts_of_kept(kept)
        else:
            facts = _facts(name)
        print(json.dumps(facts) if args.json else _details(facts))
        return 0
    networks = [_facts(name) for name in names() if spec(name).trained]
    added = [_facts_of_kept(kept) for kept in store.stored_weights()]
    if args.json:
        print(json.dumps({"networks": networks, "added": added}))
        return 0
    print(
        _table(
            ("network", "parameters", "GMAC", "fp32", "fp16", "weights here", "published scores"),
            [
                (
                    facts["name"],
                    f"{facts['parameters'] / 1e6:.2f} M",
                    f"{facts['gmac_720p']:.0f}",
                    _gigabytes(facts["memory_720p_bytes"]["fp32"]),
                    _gigabytes(facts["memory_720p_bytes"]["fp16"]),
                    facts["weights"] or "none",
                    "; ".join(map(_score, facts["scores"])) or "–",
                )
                for facts in networks
            ],
            right=(1, 2, 3, 4),
        )
    )
    print(
        "\nGMAC and memory: for one picture of 1280×720. Scores: mean PSNR and SSIM, as published."
    )
    if added:
        rows = [(f["name"], f["network"], f["added"], f["source"]) for f in added]
        print("\n" + _table(("added weights", "recognised as", "on", "from"), rows))
    published = [
        (f["name"], f["page"] or "–", "can" if f["url"] else "–", f["licence"] or "–")
        for f in networks
        if f["page"] or f["licence"] or f["url"]
    ]
    if published:
        header = ("network", "its authors publish weights at", "fetch", "licence")
        print("\n" + _table(header, published))
    return 0


def _facts(name: str) -> dict[str, Any]:
    """Return all facts of a network of the catalogue."""
    import torch

    from vdeblur.networks import spec
    from vdeblur.networks.cost import memory_bytes
    from vdeblur.weights import store
    from vdeblur.weights.recognition import sharing_weights

    entry = spec(name)
    network = _sketch(entry.family, json.dumps(dict(entry.config)))
    parameters = sum(p.numel() for p in network.parameters())
    if entry.trained and not entry.ships:
        here = "added" if any(store.find_weights(own) for own in sharing_weights(entry)) else ""
    else:
        here = "shipped" if entry.ships else "needs none"
    # Views of an ensemble are run one after another: their memory is that of one.
    views = 8 if entry.ensemble else 1
    return asdict(entry) | {
        "config": dict(network.config),
        "parameters": parameters,
        "gmac_720p": _gmac(entry.family, json.dumps(dict(entry.config))) * views,
        "memory_720p_bytes": {
            precision: memory_bytes(network, 720, 1280, dtype)
            for precision, dtype in (("fp32", torch.float32), ("fp16", torch.float16))
        },
        "size_multiple": network.size_multiple,
        "halo": network.receptive_radius,
        "stages": list(network.stages),
        "weights": here,
    }


@lru_cache
def _sketch(family: str, config: str) -> Network:
    """Return a network of shapes without values; `config` is JSON."""
    import torch

    from vdeblur.networks import FAMILIES

    with torch.device("meta"):
        return FAMILIES[family](**json.loads(config)).eval()


@lru_cache
def _gmac(family: str, config: str) -> float:
    """Multiply-accumulates of one 1280×720 picture, in 10⁹; counted on shapes, nothing computed."""
    from vdeblur.networks.cost import count_work

    return count_work(_sketch(family, config), 720, 1280).macs / 1e9


def _facts_of_kept(kept: Any) -> dict[str, Any]:
    return asdict(kept) | {"path": str(kept.path)}


def _details(facts: dict[str, Any]) -> str:
    """Return a text on one network or kept file, one fact per line."""
    from vdeblur.weights.recognition import describe

    if "file" in facts:
        rows = [
            ("network", facts["network"]),
            ("file", facts["path"]),
            ("size", f"{facts['size_bytes'] / 1e6:.1f} MB"),
            ("sha256", facts["sha256"]),
            ("from", facts["source"]),
            ("added", facts["added"]),
        ]
    else:
        memory = facts["memory_720p_bytes"]
        sees = "the whole picture" if facts["halo"] is None else f"{facts['halo']} pixels around"
        rows = [
            ("what it is", facts["summary"]),
            ("configuration", describe(facts["family"], facts["config"])),
            ("parameters", f"{facts['parameters']:,}"),
            (
                "at 1280×720",
                f"{facts['gmac_720p']:.1f} GMAC; {_gigabytes(memory['fp32'])} in fp32, "
                f"{_gigabytes(memory['fp16'])} in fp16",
            ),
            ("sees", f"{sees}; sizes in multiples of {facts['size_multiple']}"),
            ("stages", ", ".join(facts["stages"]) if len(facts["stages"]) > 1 else ""),
            ("paper", facts["paper"]),
            *(("scores", f"{_score(score)}, {score['source']}") for score in facts["scores"]),
            ("licence", facts["licence"]),
            ("authors' page", facts["page"]),
            ("fetched from", facts["url"]),
            ("weights here", facts["weights"] or _how_to_get(facts)),
        ]
    width = max(len(label) for label, _ in rows)
    lines = [printable(f"  {label:<{width}}  {text}") for label, text in rows if text]
    return "\n".join([facts["name"], *lines])


def _how_to_get(facts: dict[str, Any]) -> str:
    if facts["url"]:
        return f"none; `vdeblur models fetch {facts['name']}`"
    return f"none; {_manual(facts['name'], facts['page'])}"


def _score(score: dict[str, Any]) -> str:
    return f"{score['dataset']} {score['psnr']:.2f} dB, {score['ssim']:.3f}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    from tabulate import tabulate

    alignment = ["right" if i in right else "left" for i in range(len(header))]
    cells = [[printable(cell) for cell in line] for line in (header, *rows)]
    table = tabulate(cells, (), "plain", colalign=alignment, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())


# --- the user's own weights ----------------------------------------------------------------------


def _add(args: argparse.Namespace) -> int:
    if not args.name:
        raise UsageError("--name is missing: say under which name to keep the weights")
    _keep(Path(args.words[1]), args.name, source=str(Path(args.words[1]).resolve()), args=args)
    return 0


def _keep(file: Path, name: str, *, source: str, args: argparse.Namespace) -> None:
    from vdeblur.networks import names, spec
    from vdeblur.system.files import sha256_of
    from vdeblur.weights import store
    from vdeblur.weights.loading import identify
    from vdeblur.weights.recognition import sharing_weights

    store.check_free(name, replace=args.replace)
    if name in names() and (spec(name).ships or not spec(name).trained):
        raise UsageError(f"{name!r} needs no weights of yours: choose another name")
    loaded = identify(file)
    # Under a network's name, they will be what --model NAME uses.
    if name in names() and loaded.name not in sharing_weights(spec(name)):
        raise UsageError(
            f"{file} is {loaded.description}, but {name!r} is another network: choose another name"
        )
    kept = store.store_weights(
        file,
        name=name,
        network=loaded.description,
        source=source,
        sha256=sha256_of(file),
        replace=args.replace,
    )
    use = f"--model {name}" if name in names() else f"--weights {name}"
    say(f"{kept.path}: {loaded.description}; {use} uses it")


def _remove(args: argparse.Namespace) -> int:
    from vdeblur.weights import store

    store.remove_weights(args.words[1])
    say(f"{args.words[1]} is removed")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vdeblur.networks import names, spec
    from vdeblur.system.masking import masked_download
    from vdeblur.weights import store
    from vdeblur.weights.download import download

    name = args.words[1]
    store.check_free(name, replace=args.replace)
    entry = spec(name) if name in names() else None
    if entry is not None and (entry.ships or not entry.trained):
        raise UsageError(f"{name!r} needs no weights of yours: choose another name")
    page = entry.page if entry else ""
    url = args.url or (entry.url if entry else "")
    if not url:
        meant = None if entry else store.closest_name(name, names())
        hint = f"; did you mean {meant}?" if meant else ""
        raise UsageError(
            f"no address is known for the weights of {name!r}: give --url, or "
            f"{_manual(name, page)}{hint}"
        )
    shown = masked_download(url)
    digest = args.sha256 or (entry.sha256 if entry and not args.url else "")
    target = store.weights_folder() / "fetched" / (name + store.suffix_of(url.partition("?")[0]))
    bar = tqdm(desc=name, unit="B", unit_scale=True, disable=None, dynamic_ncols=True)

    def progress(size: int, total: int | None) -> None:
        bar.total = total
        bar.update(size - bar.n)

    try:
        with bar:
            download(url, target, sha256=digest, on_progress=progress)
    except ModelError as error:
        raise ModelError(f"{error}; or {_manual(name, page)}") from error
    except KeyboardInterrupt:
        say("vdeblur: stopped; what has come is kept, the same command goes on from there")
        return answered(130)
    try:
        _keep(target, name, source=shown, args=args)
    except ModelError as error:
        # The file goes: its address is what tells the user which it was.
        raise ModelError(str(error).replace(str(target), f"what {shown} gave")) from error
    finally:
        target.unlink(missing_ok=True)
    return 0


def _manual(name: str, page: str) -> str:
    """Return how to get the weights by hand."""
    first = f"open {page}, download the file there" if page else "download the file yourself"
    return f"{first} and run `vdeblur models add FILE --name {name}`"
