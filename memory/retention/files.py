"""A cache in a file: safetensors, with what is no tensor as JSON in its header.

Whoever has the file has the text: token ids are in it, and keys and values besides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...errors import ConfigError, PalimpsestError, StoreError
from ...llm.fingerprint import fingerprint
from .base import settings
from .cache import RetentionCache
from .formats.registry import open_format
from .plan import places
from .policies.registry import open_policy
from .rope import attentions
from .tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1

_HEADER = "palimpsest"


def save(cache: RetentionCache, path: Path, model: PreTrainedModel) -> None:
    """Write `cache` into the file `path`, whole or not at all.

    Args:
        model: the one it was read with; `restore` takes no other.

    Raises:
        InputError: it has read nothing.
        StoreError: there is no room for it, or no right to write there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"tokens.{name}": table for name, table in cache.tokens}
    tensors |= cache.carried()
    for number, layer in enumerate(cache.layers):
        tensors |= {f"{number}.{name}": tensor for name, tensor in layer.state().items()}
    header = {
        "version": VERSION,
        "model": fingerprint(model),
        "policy": cache.policy.name,
        "options": settings(cache.policy),
        "form": cache.form.name,
        "form_options": settings(cache.form),
        "counts": cache.counters(),
    }
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    new = path.with_name(f"{path.name}.new")
    try:
        save_file(whole, new, metadata={_HEADER: json.dumps(header)})
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the cache cannot be written to {path} ({error}); make room there, or choose another"
            " folder"
        ) from error
    finally:
        new.unlink(missing_ok=True)


def restore(path: Path, model: PreTrainedModel) -> RetentionCache:
    """The cache that `save` wrote; it goes on as if it had never been away.

    Raises:
        ConfigError: another model wrote it.
        StoreError: the file is missing, damaged or of another version.
    """
    header, tensors = _opened(path)
    if header["model"] != fingerprint(model):
        raise ConfigError(
            f"the cache in {path} was made with another model than {type(model).__name__} as it is"
            " loaded here (weights or dtype differ), and keys mean nothing to another; load the"
            " model it was made with, or read the text again"
        )
    try:
        return _rebuilt(header, tensors, model)
    except PalimpsestError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error
    if header.get("version") != VERSION:
        raise StoreError(
            f"the cache in {path} is of version {header.get('version')!r}, and this release reads"
            f" version {VERSION}; read the text again"
        )
    return header, tensors


def _rebuilt(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: PreTrainedModel
) -> RetentionCache:
    policy = open_policy(header["policy"], **header["options"])
    cache = RetentionCache(model, policy, open_format(header["form"], **header["form_options"]))
    tokens = Tokens(**{name: tensors[f"tokens.{name}"] for name, _ in Tokens.empty(1)})
    cache.resume(tokens, header["counts"], tensors)
    angles = cache.rope.angles(places(tokens, policy.reach))
    heads = model.config.get_text_config(decoder=True).num_attention_heads
    devices = {each.layer_idx: next(each.parameters()).device for each in attentions(model)}
    for number, layer in enumerate(cache.layers):
        state = {
            name.removeprefix(f"{number}."): tensor.to(devices[number])
            for name, tensor in tensors.items()
            if name.startswith(f"{number}.")
        }
        layer.restore(state, heads, angles)
    return cache


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the cache in {path} cannot be read ({type(error).__name__}: {error}); delete it, and read"
        " the text again"
    )
