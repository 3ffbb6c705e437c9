"""From a folder of safetensors to a model and a tokenizer on a device.

Knows nothing of prompts or decoding. Remote code stays off, and only safetensors are read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, ModelError, ModelNotFound, OutOfMemory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DeviceMap = str | Mapping[str, int | str]

_NO_ROOM = "DefaultCPUAllocator"
"""Marks torch's RuntimeError for host memory, which has no class of its own."""


def load_model(
    folder: Path, device: str, dtype: str | torch.dtype, device_map: DeviceMap | None
) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises:
        ModelNotFound: `folder` is no model folder.
        ModelError: a file in it is damaged or of another format, or weights are missing.
        ConfigError: no such device or dtype here.
        OutOfMemory: the device has no room for the weights.
    """
    check_folder(folder)
    import torch
    from transformers import AutoModelForCausalLM

    if device_map is not None and device != "auto":
        raise ConfigError(
            f"device={device!r} and device_map={device_map!r} contradict each other; give one"
        )
    target = find_device(device)
    kind = find_dtype(dtype, target)
    if device_map is None and target.type != "cpu":
        device_map = {"": str(target)}
    with memory_errors(f"the weights in {folder}", target), _damage(folder), quiet():
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=kind,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    # transformers fills what is missing with random numbers and only logs it.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors, {missing[0]!r} among them;"
            " fetch the model again"
        )
    assert isinstance(model, torch.nn.Module)
    return model.eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`.

    Raises:
        ModelError: its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    with _damage(folder), quiet():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def check_folder(folder: Path) -> None:
    """Raise ModelNotFound unless `folder` is there, ModelError unless it holds safetensors."""
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelNotFound(
            f"model folder {folder} {found}; give a folder saved by transformers, or pull a model"
            " with `palimpsest models pull`"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder} has no *.safetensors, the only format read here; convert it"
            " with transformers' save_pretrained"
        )


def find_device(device: str) -> torch.device:
    """The device called so; "auto" is CUDA where there is one.

    Raises:
        ConfigError: it is not on this machine.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={device!r} is no device; use auto, cpu, cuda, cuda:1") from error
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(
            f"device={device!r} asks for CUDA, and torch {torch.__version__} sees {count} CUDA"
            " devices; use device='cpu', or install a torch built for your GPU"
        )
    return found


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype called so; "auto" is bfloat16 on CUDA and float32 elsewhere, the fast ones there.

    Raises:
        ConfigError: not a floating-point dtype.
    """
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype={dtype!r} must be auto, float32, bfloat16 or float16")
    return found


@contextmanager
def memory_errors(what: str, device: torch.device) -> Iterator[None]:
    """Turn a failed allocation into OutOfMemory that says for what, and how much was free."""
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and _NO_ROOM not in str(error):
            raise
        room = ""
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            room = f", which has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        raise OutOfMemory(
            f"no memory for {what} on {device}{room}: {str(error).partition(chr(10))[0]}; use a"
            " shorter prompt, a smaller model, dtype='bfloat16', or device_map='auto'"
        ) from error


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """Turn what an unreadable folder leads to into ModelError."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the tokenizers library raises nothing more precise
        if _NO_ROOM in str(error):
            raise
        raise ModelError(
            f"the model in {folder} cannot be read ({type(error).__name__}: {error}); fetch it"
            " again, or check that this transformers release knows its architecture"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers inside."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection inside.

    Importing torch and transformers makes millions of objects that live on; walking them over and
    over takes a fifth of the time of a first load.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
