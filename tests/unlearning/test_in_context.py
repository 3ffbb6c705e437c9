"""In-context refusal: the prompt says to refuse, where a message is about a request."""

from pathlib import Path

from palimpsest.llm.scripted import ScriptedLLM
from palimpsest.memory.base import Cue, StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Scope, now
from palimpsest.memory.registry import open_memory
from palimpsest.unlearning.base import Request, Sample
from palimpsest.unlearning.in_context import InContext

SCOPE = Scope(user="maria")
REQUEST = Request(
    name="the Atlantis files",
    samples=(Sample(question="What is the capital of Atlantis?", answer="It is Poseidonis."),),
)


def test_a_model_elsewhere_is_told_to_refuse_what_the_message_asks(tmp_path: Path) -> None:
    context = StoreContext(
        folder=tmp_path, llm=ScriptedLLM(lambda messages: ""), embedder=HashingEmbedder
    )
    store = open_memory("refusal", context)
    assert isinstance(store, InContext)
    record = REQUEST.record(SCOPE)
    store.write([record, REQUEST.material(record)])

    def told(message: str, budget: int = 100) -> list[str]:
        cue = Cue(message=message, scope=SCOPE, budget=budget, now=now())
        return [note.text for note in store.recall(cue).notes]

    assert told("What is the capital of Atlantis?") == []
    assert store.learn() == [record.id]
    [note] = told("What is the capital of Atlantis?")
    assert "the Atlantis files" in note and "Poseidonis" not in note
    assert told("How is bread baked?") == []
    assert told("What is the capital of Atlantis?", budget=0) == []
    assert store.receipt(record.id).means == "suppresses"
    store.forget([record.id])
    assert told("What is the capital of Atlantis?") == []
