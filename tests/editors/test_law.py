"""The law of editing: what is held, and what the model says, follow from the edits that hold.

Any edits and undoings, in any order, with saving and opening in between, end bit for bit where
applying only the rest would have ended.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from palimpsest.editors.base import Edit
from palimpsest.editors.editor import Editor
from palimpsest.llm.local import LocalLLM
from palimpsest.llm.twin import patched, twin
from palimpsest.memory.base import StoreContext
from palimpsest.memory.hashing import HashingEmbedder
from palimpsest.memory.record import Record, Scope
from palimpsest.memory.registry import open_memory
from torch import Tensor

SCOPE = Scope(user="maria")
PROMPTS = [f"The moon of planet {name} is" for name in ("Ys", "Mu", "Lyonesse", "Hy")]
RECORDS: list[Record] = [
    Edit(prompt=prompt, target=target).record(SCOPE)
    for prompt, target in zip(PROMPTS, ("A", "Bo", "Cy", "D"), strict=True)
]
SPECS = ("wise:steps=2", "wise:steps=2,shards=2,rank=0,mask=0.5")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.integers(0, 3)),
        st.tuples(st.just("undo"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["learn", "open", "save"]), st.just(0)),
    ),
    min_size=2,
    max_size=8,
)


class Bench:
    """Editors on one model, with what is computed once per model kept for all of them."""

    def __init__(self, spec: str, llm: LocalLLM, folder: Path) -> None:
        self.spec, self.llm, self.folder = spec, llm, folder
        self.count = 0

    def open(self, at: int | None = None) -> Editor:
        self.count += at is None
        folder = self.folder / str(self.count if at is None else at)
        editor = open_memory(
            self.spec, StoreContext(folder=folder, llm=self.llm, embedder=HashingEmbedder)
        )
        assert isinstance(editor, Editor)
        return editor

    @torch.no_grad()
    def logits(self, editor: Editor) -> list[Tensor]:
        """What the model makes of every prompt, as the editor patches it."""
        model, patch = twin(self.llm.model), editor.patch(SCOPE)
        found = []
        for prompt in PROMPTS:
            ids = torch.tensor([self.llm.tokenizer(prompt)["input_ids"]])
            with patched(model, patch.open([prompt]).deltas if patch else {}):
                found.append(model(ids, use_cache=False).logits)
        return found


@pytest.mark.parametrize("spec", SPECS)
def test_any_edits_and_undoings_end_where_the_rest_alone_would(
    spec: str, tiny_llm: LocalLLM
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(spec, tiny_llm, Path(folder))

        @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
        @given(done=steps)
        def law(done: list[tuple[str, int]]) -> None:
            editor = bench.open()
            at = bench.count
            left: set[int] = set()
            for what, which in done:
                if what == "edit":
                    editor.write([RECORDS[which]])
                    left.add(which)
                elif what == "undo":
                    editor.forget([RECORDS[which].id])
                    left.discard(which)
                elif what == "learn":
                    editor.learn()
                elif what == "open":
                    editor.close()
                    editor = bench.open(at)
                else:
                    editor.save(Path(folder) / "saved")
                    editor = bench.open()
                    editor.load(Path(folder) / "saved")
                    at = bench.count
            editor.learn()
            rest = bench.open()
            rest.write([RECORDS[which] for which in sorted(left)])
            rest.learn()
            assert editor.digest() == rest.digest()
            assert all(map(torch.equal, bench.logits(editor), bench.logits(rest)))
            assert not editor.pending()

        law()


def test_the_law_would_notice_a_trace(tiny_llm: LocalLLM, tmp_path: Path) -> None:
    bench = Bench(SPECS[0], tiny_llm, tmp_path)
    one, other = bench.open(), bench.open()
    one.write(RECORDS[:2])
    other.write(RECORDS[:1])
    one.learn()
    other.learn()
    assert one.digest() != other.digest()
    assert not all(map(torch.equal, bench.logits(one), bench.logits(other)))
