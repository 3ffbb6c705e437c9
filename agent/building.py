"""From what a user names to the parts of an agent: home, model, ledger, stores, tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import CapabilityError, LedgerError
from ..llm.base import LLM
from ..llm.open import UnopenedLLM, open_llm
from ..llm.places import check_place
from ..memory.backup_file import LEDGER
from ..memory.backups import left_alone
from ..memory.base import Memory, StoreContext
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..memory.registry import (
    DEFAULT_EDITORS,
    DEFAULT_MEMORIES,
    DEFAULT_UNLEARNERS,
    open_memory,
)
from ..memory.vectors import Embedder, open_embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an agent is made of. `resources` closes all of it, in the right order; `outside` names
    the places beyond the data folder that stores keep things in."""

    home: Home
    llm: LLM
    ledger: Ledger
    memories: tuple[Memory, ...]
    embedder: Callable[[], Embedder]
    resources: ExitStack
    outside: tuple[str, ...] = ()
    read_only: bool = False


def build_parts(
    model: str | LLM,
    *,
    home: str | Path | None,
    memories: Sequence[str | Memory] | None,
    device: str,
    embedder: str | Embedder,
    ledger_url: str | None,
    chroma_url: str | None,
    read_only: bool = False,
) -> Parts:
    """Open everything; if one part fails, what was open before it is closed again.

    Args:
        read_only: beside whoever holds the folder, and without making or changing anything.

    Raises:
        HomeLocked, LedgerError, ModelNotFound, UnknownName, PlaceError, CapabilityError.
    """
    with ExitStack() as stack:
        folder = Home(home, make=not read_only)
        if not read_only:
            stack.enter_context(folder.lock())
        ledger = _open_ledger(folder, ledger_url, read_only)
        stack.callback(ledger.close)
        llm = open_llm(model, device=device) if isinstance(model, str) else model
        context = StoreContext(
            folder=folder.path("stores"),
            llm=llm,
            embedder=lazily(embedder, device),
            database_url=ledger_url,
            chroma_url=chroma_url,
            read_only=read_only,
        )
        opened = []
        for memory in DEFAULT_MEMORIES if memories is None else memories:
            store = open_memory(memory, context) if isinstance(memory, str) else memory
            stack.callback(store.close)
            check_memory(store, llm)
            opened.append(store)
        if memories is None:
            opened += _usual_changers(ledger, context, stack)
        return Parts(
            home=folder,
            llm=llm,
            ledger=ledger,
            memories=tuple(opened),
            embedder=context.embedder,
            resources=stack.pop_all(),
            outside=(f"the Chroma server {urlsplit(chroma_url).hostname}",) if chroma_url else (),
            read_only=read_only,
        )


def _usual_changers(ledger: Ledger, context: StoreContext, stack: ExitStack) -> list[Memory]:
    """Those that the model can carry; as nobody asked for them, one that it cannot is left out. So
    is one that holds nothing where no model is opened, which could be asked for nothing."""
    found = []
    for name in (*DEFAULT_EDITORS, *DEFAULT_UNLEARNERS):
        unopened = isinstance(context.llm, UnopenedLLM)
        if "weights" not in context.llm.places or (unopened and not ledger.held_any(name)):
            continue
        store = open_memory(name, context)
        try:
            check_memory(store, context.llm)
        except CapabilityError:
            store.close()
            continue
        stack.callback(store.close)
        found.append(store)
    return found


def _open_ledger(home: Home, url: str | None, read_only: bool) -> Ledger:
    """The ledger; an empty one is begun only where nothing speaks of one that is gone."""
    if url is None and not home.path(LEDGER).exists():
        if left := left_alone(home):
            raise LedgerError(
                f"ledger {home.path(LEDGER)} is gone, and {left} beside it is there; `palimpsest"
                " doctor` names a backup to restore, or move that away to begin with an empty one"
            )
        if read_only:
            raise LedgerError(
                f"nothing is kept in {home.root} yet, so there is nothing to read;"
                " `palimpsest remember`, `ingest`, `edit` or `chat` begin it, or name another"
                " folder with --home"
            )
    return Ledger.open(url or home.path(LEDGER), read_only=read_only)


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
    if not isinstance(llm, UnopenedLLM):  # which nothing is asked of, or not yet
        memory.check_model(llm)


def lazily(embedder: str | Embedder, device: str) -> Callable[[], Embedder]:
    """The embedder, opened once and when first asked for."""

    @cache
    def opened() -> Embedder:
        return open_embedder(embedder, device=device) if isinstance(embedder, str) else embedder

    return opened
