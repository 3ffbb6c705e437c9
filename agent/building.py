"""From what a user names to the parts of an agent: home, model, ledger, stores, tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import CapabilityError
from ..llm.base import LLM
from ..llm.open import open_llm
from ..llm.places import check_place
from ..memory.base import Memory, StoreContext
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.registry import DEFAULT_MEMORIES, open_memory
from ..memory.vectors import Embedder, open_embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an agent is made of. `resources` closes all of it, in the right order."""

    home: Home
    llm: LLM
    ledger: Ledger
    memories: tuple[Memory, ...]
    embedder: Callable[[], Embedder]
    resources: ExitStack


def build_parts(
    model: str | LLM,
    *,
    home: str | Path | None,
    memories: Sequence[str | Memory] | None,
    device: str,
    embedder: str | Embedder,
    ledger_url: str | None,
    chroma_url: str | None,
) -> Parts:
    """Open everything; if one part fails, what was open before it is closed again.

    Raises:
        HomeLocked, LedgerError, ModelNotFound, UnknownName, PlaceError, CapabilityError.
    """
    with ExitStack() as stack:
        folder = Home(home)
        stack.enter_context(folder.lock())
        ledger = Ledger.open(ledger_url or folder.path("ledger.sqlite3"))
        stack.callback(ledger.close)
        llm = open_llm(model, device=device) if isinstance(model, str) else model
        context = StoreContext(
            folder=folder.path("stores"),
            llm=llm,
            embedder=_lazily(embedder, device),
            chroma_url=chroma_url,
        )
        opened = []
        for memory in DEFAULT_MEMORIES if memories is None else memories:
            store = open_memory(memory, context) if isinstance(memory, str) else memory
            stack.callback(store.close)
            check_memory(store, llm)
            opened.append(store)
        return Parts(
            home=folder,
            llm=llm,
            ledger=ledger,
            memories=tuple(opened),
            embedder=context.embedder,
            resources=stack.pop_all(),
        )


def check_memory(memory: Memory, llm: LLM) -> None:
    """That `llm` has the place and the abilities that `memory` needs.

    Raises:
        PlaceError, CapabilityError: it has not; named, with the remedy.
    """
    check_place(memory.name, memory.place, llm.name, llm.places)
    missing = memory.capabilities.needs - llm.capabilities
    if missing:
        raise CapabilityError(
            f"memory {memory.name!r} needs a model with {sorted(missing)}, and {llm.name!r} has"
            f" {sorted(llm.capabilities)}; choose other options for it, or a model in this process"
        )


def _lazily(embedder: str | Embedder, device: str) -> Callable[[], Embedder]:
    """The embedder, opened once and when first asked for."""

    @cache
    def opened() -> Embedder:
        return open_embedder(embedder, device=device) if isinstance(embedder, str) else embedder

    return opened
