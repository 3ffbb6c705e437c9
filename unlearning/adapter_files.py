"""What was learnt of a request, as a folder that `peft` opens: an adapter for other runtimes.

Such a folder holds no gate. What a method meant to be loaded for the prompts of a request alone is,
opened by `peft`, loaded for every prompt.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from ..errors import CapabilityError, ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ..editors.base import Change

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(model: PreTrainedModel, change: Change, folder: Path) -> Path:
    """Write the two files of a LoRA: h = W x + B A x, with A [R, D_in] and B [D_out, R] of each
    layer, where B has its scale already. Both are there, or nothing.

    Args:
        change: its tensors are NAME/down, which is A, and NAME/up, which is B; those of a gate, or
            of whatever else is no matrix of a layer, are left out.

    Raises:
        CapabilityError: it holds something else than thin matrices.
        ConfigError: the folder is there already. InputError: it cannot be written.
    """
    if folder.exists():
        raise ConfigError(f"folder={str(folder)!r} is there already; name a new one")
    downs = {
        key.removesuffix("/down"): tensor
        for key, tensor in change.tensors.items()
        if key.endswith("/down") and key.removesuffix("down") + "up" in change.tensors
    }
    if not downs or any(key.endswith("/whole") for key in change.tensors):
        raise CapabilityError(
            "this request is not held as a LoRA, so there is no adapter to write; requests under"
            " o3 and the methods that train one can be exported"
        )
    tensors: dict[str, Tensor] = {}
    for name, down in downs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = change.tensors[
            f"{name}/up"
        ].contiguous()
    new = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file(tensors, new / TENSORS, {"format": "pt"})
        text = json.dumps(_config(model, downs), indent=2, sort_keys=True)
        (new / CONFIG).write_text(text + "\n", encoding="utf-8")
        new.rename(folder)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(f"folder={str(folder)!r} cannot be written: {error.strerror}") from None
    return folder


def _config(model: PreTrainedModel, downs: dict[str, Tensor]) -> dict[str, Any]:
    """What `peft` has to know. The scale alpha / R is 1, as B has its own already."""
    ranks = {name: len(down) for name, down in downs.items()}
    rank = max(ranks.values())
    others = {name: each for name, each in ranks.items() if each != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.config.name_or_path,
        "target_modules": sorted(downs),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(isinstance(model.get_submodule(name), Conv1D) for name in downs),
        "inference_mode": True,
    }
