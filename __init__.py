"""Palimpsest: a memory for LLM agents that can be written, corrected and erased."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from .agent.agent import Agent
    from .agent.langchain import PalimpsestChatModel, PalimpsestRetriever
    from .editors.base import Edit, Receipt
    from .llm.base import LLM, GenerationConfig
    from .llm.local import LocalLLM
    from .llm.remote import RemoteLLM
    from .llm.scripted import ScriptedLLM
    from .memory.base import Memory
    from .memory.record import Record, Scope

_LAZY = {
    "Agent": ".agent.agent",
    "PalimpsestChatModel": ".agent.langchain",
    "PalimpsestRetriever": ".agent.langchain",
    "Edit": ".editors.base",
    "GenerationConfig": ".llm.base",
    "LLM": ".llm.base",
    "LocalLLM": ".llm.local",
    "Memory": ".memory.base",
    "Receipt": ".editors.base",
    "Record": ".memory.record",
    "RemoteLLM": ".llm.remote",
    "Scope": ".memory.record",
    "ScriptedLLM": ".llm.scripted",
}

__all__ = [
    "LLM",
    "Agent",
    "Edit",
    "GenerationConfig",
    "LocalLLM",
    "Memory",
    "PalimpsestChatModel",
    "PalimpsestRetriever",
    "Receipt",
    "Record",
    "RemoteLLM",
    "Scope",
    "ScriptedLLM",
    "errors",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import palimpsest` itself stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module 'palimpsest' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
