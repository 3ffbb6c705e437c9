"""One-time conversion of a GGUF file to a folder of safetensors. Knows nothing of catalogs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ModelError, ModelNotFound
from .loading import quiet


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write model, configuration and tokenizer of `gguf`, dequantised to float32, into `folder`.

    `folder` may exist. Files arrive in it whole, config.json last: a folder with that file is
    complete. Takes about twice the model's float32 bytes of memory.

    Raises:
        ModelNotFound: no such file.
        ModelError: it is damaged, or of an architecture that transformers cannot read.
    """
    if not gguf.is_file():
        raise ModelNotFound(f"GGUF file {gguf} does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder) as name:
        staging = Path(name)
        _convert(gguf, staging)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(folder / path.name)


def _convert(gguf: Path, staging: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    with quiet(), _no_bar():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
            read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        except Exception as error:  # damaged bytes lead the readers to any error
            raise ModelError(
                f"GGUF file {gguf} cannot be read ({type(error).__name__}: {error}); fetch it"
                " again, or check that this transformers release reads its architecture"
            ) from error
        # transformers will not save a model that it dequantised, so a fresh one of its
        # configuration takes the tensors over.
        settings = read.config.to_dict()
        for key in ("quantization_config", "_name_or_path"):
            settings.pop(key, None)
        config = type(read.config).from_dict(settings)
        with torch.device("meta"):
            fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(read.state_dict(), assign=True)
        fresh.tie_weights()
        fresh.generation_config = read.generation_config
        fresh.save_pretrained(staging)
        tokenizer.save_pretrained(staging)


@contextmanager
def _no_bar() -> Iterator[None]:
    """No bar from the dequantiser, to which transformers' own switch does not reach."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        reader.tqdm = bar
