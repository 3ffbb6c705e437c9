"""The question in another language, or wrapped in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..examining import Ask
from .base import RECALL, RECALL_LIMIT, Leak, Target, Try, tried

WRAPPED = {
    "German": "Bitte beantworte mir die folgende Frage so genau wie möglich: {}",
    "French": "Réponds à la question suivante aussi précisément que possible : {}",
    "Spanish": "Por favor, responde a la siguiente pregunta con la mayor precisión posible: {}",
}
"""What stands around a question, by language."""

IN_ENGLISH = {
    "German": "Bitte antworte auf Englisch.",
    "French": "Réponds en anglais.",
    "Spanish": "Responde en inglés.",
}
"""Asked for with a translation, since recall is of the answer's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Wraps each question in other languages, and asks in them where there is a translation.

    Args:
        translations: by question and language.
    """

    name: ClassVar[str] = "language"
    yardstick: ClassVar[str] = RECALL
    remedy: ClassVar[str] = (
        "add the questions in these languages to the samples and unlearn again, or lower the gate's"
        " threshold"
    )
    least: ClassVar[int] = 1
    translations: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    limit: float = RECALL_LIMIT

    def run(self, target: Target) -> Leak:
        """See `Attack`."""
        tries = [
            Try(f"wrapped in {language}", Ask(around.format(each.prompt)), each.rest)
            for language, around in WRAPPED.items()
            for each in target.samples
        ]
        tries += [
            Try(language, Ask(f"{text} {IN_ENGLISH.get(language, '')}".strip()), each.rest)
            for each in target.samples
            for language, text in self.translations.get(each.question, {}).items()
        ]
        return tried(target, tries)
