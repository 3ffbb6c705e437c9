"""From what a user calls a model to the model: a catalog name, a folder, or a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urldefrag

from ..errors import ConfigError
from .base import LLM
from .catalog import resolve


def open_llm(model: str | Path, *, device: str = "auto", dtype: str = "auto") -> LLM:
    """Open a model for chatting.

    Args:
        model: a catalog name, a folder, a `.gguf` file, a hub id that was pulled, or the URL of an
            OpenAI-compatible server with the model's name behind a `#`:
            `http://localhost:8000/v1#llama`. Its key is read from OPENAI_API_KEY.
        device: "auto", "cpu", "cuda" or "cuda:1"; a served model has its own.

    Raises:
        ModelNotFound, ModelError, ConfigError.
    """
    name = str(model)
    if name.startswith(("http://", "https://")):
        from .remote import RemoteLLM

        url, served = urldefrag(name)
        if not served:
            raise ConfigError(f"model={name!r} must name the served model: {url}#NAME")
        return RemoteLLM.openai(url, served)
    from .local import LocalLLM

    return LocalLLM.load(resolve(name), device=device, dtype=dtype, name=name)
