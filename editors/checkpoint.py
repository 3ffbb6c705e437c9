"""A model with its edits merged into the weights, as a folder that plain transformers opens."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.pytorch_utils import Conv1D

from ..errors import ConfigError
from .registry import METHODS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def exporting() -> str:
    """Names of the methods whose edits a checkpoint can hold."""
    found = [name for name in METHODS if getattr(METHODS.load(name), "mergeable", False)]
    return ", ".join(found) or "none is installed"


def write_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    changes: Mapping[str, Tensor],
    folder: Path,
) -> Path:
    """Write the model with `changes` [D_out, D_in] added to its named layers, and the tokenizer. A
    parameter that is no layer's weight, such as stacked experts, goes by its own name and shape.
    The model in use is only read. All of it is there, or nothing.

    Raises:
        ConfigError: the folder is there already.
    """
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ConfigError(f"folder={str(folder)!r} is there already; name a new one")
    state = dict(model.state_dict())
    for name, change in changes.items():
        own = name in state
        key = name if own else f"{name}.weight"
        turned = not own and isinstance(model.get_submodule(name), Conv1D)
        change = change.T if turned else change
        state[key] = (state[key].float() + change.to(state[key].device).float()).to(
            state[key].dtype
        )
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        model.save_pretrained(new, state_dict=state)
        tokenizer.save_pretrained(new)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.replace(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder
