"""Second moments C = E[k k^T] of what a down-projection is given: which inputs are common.

Methods that write a fact into a matrix keep what the matrix does to common inputs, and C tells
which these are (ROME, section 3.1; MEMIT, section 4.3). Computed once per model, layer and text,
and kept in the bench's folder.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from ..errors import ConfigError
from ..llm.twin import inputs_of, up_to_block
from ..memory.gates.features import background, padded

if TYPE_CHECKING:
    from torch import Tensor

    from .workbench import Workbench

BATCH = 16
PASSAGE = 64
"""Words that are read at once."""

SHRINKAGE = 0.01
"""How far a second moment is drawn to a multiple of the identity: a sample of a few thousand tokens
does not span all directions, and what it did not see is not impossible."""


def covariances(
    bench: Workbench, layers: Sequence[int], *, text: str = "", samples: int = 20_000
) -> dict[int, Tensor]:
    """C [D_ff, D_ff] in float32 on the CPU, by layer.

    Args:
        text: a .txt or .txt.gz file, or a folder of such; "": sentences from public-domain novels
            that come with the package, about 7,000 tokens.
        samples: tokens that are read at most.

    Raises:
        ConfigError: there is no such text, or none in it.
    """
    passages = tuple(_passages(text))
    stem = _stem(bench, passages, samples)
    paths = {layer: bench.folder / f"covariance-{stem}-{layer}.safetensors" for layer in layers}
    found = {layer: load_file(path)["C"] for layer, path in paths.items() if path.exists()}
    missing = sorted(set(layers) - found.keys())
    if missing:
        for layer, moment in _computed(bench, missing, passages, samples).items():
            keep(paths[layer], {"C": moment})
            found[layer] = moment
    return found


def spectrum(
    bench: Workbench, layer: int, *, text: str = "", samples: int = 20_000
) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D_ff], ascending, and eigenvectors [D_ff, D_ff], in columns, of C."""
    stem = _stem(bench, tuple(_passages(text)), samples)
    path = bench.folder / f"spectrum-{stem}-{layer}.safetensors"
    if not path.exists():
        [moment] = covariances(bench, [layer], text=text, samples=samples).values()
        values, vectors = torch.linalg.eigh(moment)
        keep(path, {"values": values, "vectors": vectors.contiguous()})
    kept = load_file(path)
    return kept["values"], kept["vectors"]


@torch.no_grad()
def _computed(
    bench: Workbench, layers: Sequence[int], passages: Sequence[str], samples: int
) -> dict[int, Tensor]:
    """One pass for all layers. The first token of a passage is left out: its state is the same in
    every text, and far larger than any other."""
    model = bench.model
    names = {layer: bench.down(layer) for layer in layers}
    sums = {layer: torch.zeros(2 * [bench.weight(names[layer]).shape[1]]) for layer in layers}
    count = 0
    with up_to_block(model, layers[-1]), inputs_of(model, *names.values()) as seen:
        for at in range(0, len(passages), BATCH):
            rows = [bench.prober.ids(passage) for passage in passages[at : at + BATCH]]
            ids, mask = padded(rows, model.device)
            model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
            counted = mask.bool()
            counted[:, 0] = False
            for layer, name in names.items():
                keys = seen[name][counted].float().cpu()[: samples - count]
                sums[layer].addmm_(keys.T, keys)
            count += min(int(counted.sum()), samples - count)
            if count >= samples:
                break
    return {layer: _shrunk(moment / count) for layer, moment in sums.items()}


def _shrunk(moment: Tensor) -> Tensor:
    even = torch.eye(len(moment)) * moment.trace() / len(moment)
    return (1 - SHRINKAGE) * moment + SHRINKAGE * even


def _passages(text: str) -> Iterator[str]:
    if not text:
        yield from background()
        return
    found = False
    for path in _files(Path(text).expanduser()):
        words = _read(path).split()
        for at in range(0, len(words), PASSAGE):
            found = True
            yield " ".join(words[at : at + PASSAGE])
    if not found:
        raise ConfigError(f"text={text!r} holds no words; name a .txt or .txt.gz file or a folder")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.name.endswith((".txt", ".txt.gz")))
    if not path.is_file():
        raise ConfigError(
            f"text={str(path)!r} is not there; name a .txt or .txt.gz file or a folder"
        )
    return [path]


def _read(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def _stem(bench: Workbench, passages: Sequence[str], samples: int) -> str:
    seal = hashlib.sha256(f"{samples} {SHRINKAGE}".encode())
    for passage in passages:
        seal.update(passage.encode() + b"\n")
    return f"{bench.fingerprint[:16]}-{seal.hexdigest()[:16]}"


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of tensors, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    save_file(dict(tensors), new)
    new.replace(path)
