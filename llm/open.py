"""From what a user calls a model to the model: a catalog name, a folder, or a URL."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any
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


class UnopenedLLM:
    """A model by name that is opened when it is first asked something: for verbs that may not need
    one, such as looking a record up. Stands for the `LLM` it opens."""

    def __init__(self, model: str | Path, *, device: str = "auto") -> None:
        self.name = str(model)
        self._device = device

    @cached_property
    def _opened(self) -> LLM:
        return open_llm(self.name, device=self._device)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`; a method, so that to hold it does not yet open the model."""
        return self._opened.count_tokens(text)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._opened, attribute)
