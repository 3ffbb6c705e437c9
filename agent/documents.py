"""Long documents: read once into summaries that the ledger keeps, or asked directly.

Knows readers by the registry only. A document's records lie in a session of its own, named by its
content, so a reading that was cut short goes on where it ended and a second one has no work to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from threading import Event
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..llm.base import LLM
from ..memory.ledger import Ledger
from ..memory.record import Record, RecordId, Scope, clean_text, content_hash
from ..memory.registry import READERS, SELECTORS
from ..registry import Registry, parse_spec

if TYPE_CHECKING:
    from ..memory.reading import Answer, Progress, Section
    from ..memory.vectors import Embedder


@dataclass(frozen=True, slots=True)
class Library:
    """Reads documents into a ledger.

    Args:
        keep: appends records durably and brings the stores up to date.
    """

    llm: LLM
    ledger: Ledger
    keep: Callable[[list[Record]], None]
    embedder: Callable[[], Embedder]

    def read(
        self,
        text: str,
        scope: Scope,
        *,
        title: str,
        reader: str,
        topic: str | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Iterator[Section]:
        """Yield the sections of a document as they are read, the summary of everything last; each
        is in the ledger, beside the stretch of text it summarises, when it is yielded.

        Raises:
            InputError: the text cannot be kept.
            UnknownName: there is no such reader.
        """
        clean_text(text)
        shelf = shelf_of(text, scope, "read")
        shelved = _Shelf(self.ledger.records(shelf))
        how = self._opened(READERS, reader)
        sections = how.read(text, topic=topic, done=shelved.texts, progress=progress, cancel=cancel)
        for section in sections:
            fresh = list(shelved.records_for(section, text, shelf, title))
            if fresh:
                self.keep(fresh)
            yield section

    def ask(
        self,
        question: str,
        text: str,
        *,
        selector: str,
        progress: Progress | None = None,
        cancel: Event | None = None,
    ) -> Answer | None:
        """Answer from the stretches of a document that bear on the question; None if cancelled.
        Keeps nothing."""
        how = self._opened(SELECTORS, selector)
        answer: Answer | None = how.answer(question, text, progress=progress, cancel=cancel)
        return answer

    def _opened(self, registry: Registry, spec: str) -> Any:
        """A reader by name, with its limits changed by the options behind a colon."""
        name, options = parse_spec(spec)
        made = registry.load(name)
        reader = made(self.llm, embedder=self.embedder)
        if not options:
            return reader
        known = [field.name for field in fields(reader.config)]
        for option in options:
            if option not in known:
                raise ConfigError(f"{registry.noun} {name!r} has no option {option!r}; has {known}")
        return made(self.llm, replace(reader.config, **options), embedder=self.embedder)


def shelf_of(text: str, scope: Scope, verb: str) -> Scope:
    """The session that holds what was made of a document by a verb; named by its content."""
    return replace(scope, session=f"{verb}:{content_hash(text)[:16]}")


class _Shelf:
    """What the ledger holds of one document."""

    def __init__(self, records: list[Record]) -> None:
        self.texts: dict[str, str] = {}
        self._summaries: dict[str, RecordId] = {}
        self._stretches: dict[tuple[int, int], RecordId] = {}
        for record in records:
            if record.kind == "summary":
                self._add_summary(record)
            elif record.kind == "document":
                self._stretches[record.meta["start"], record.meta["end"]] = record.id

    def records_for(
        self, section: Section, text: str, scope: Scope, title: str
    ) -> Iterator[Record]:
        """The records that `section` adds: its summary, and the stretch of text it is of."""
        if section.key in self._summaries:
            return
        made: dict[str, Any] = {"scope": scope, "role": "system", "source": "document"}
        if section.children:
            parents = tuple(self._summaries[child] for child in section.children)
        else:
            span = (section.start, section.end)
            if span not in self._stretches:
                meta = {"title": title, "start": section.start, "end": section.end}
                stretch = Record(text=text[slice(*span)], kind="document", meta=meta, **made)
                self._stretches[span] = stretch.id
                yield stretch
            parents = (self._stretches[span],)
        summary = Record(
            text=section.text,
            kind="summary",
            parents=parents,
            meta={"title": title, **section.meta},
            **made,
        )
        self._add_summary(summary)
        yield summary

    def _add_summary(self, record: Record) -> None:
        key = str(record.meta["key"])
        self.texts[key] = record.text
        self._summaries[key] = record.id
