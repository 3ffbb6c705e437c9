"""What the parts of the edit bench share: the model, a bench to ask at, systems by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...editors.editor import Editor
from ...editors.workbench import Workbench
from ...errors import CapabilityError
from ...llm.local import LocalLLM
from .edit_measures import Judge
from .edit_systems import MERGED, NOTHING, REMEMBERED, Editing, Nothing, Remembering, System
from .points import Points

if TYPE_CHECKING:
    from .setting import Setting

MERGED_NAME = "wise (merged, activation gate)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of it; see `edit`."""

    sets: Sequence[str]
    systems: Sequence[str]
    sizes: Sequence[int | None]
    sample: int
    most: int | None
    full: bool


@dataclass(frozen=True)
class Laboratory:
    """What the parts of the bench share."""

    setting: Setting

    @cached_property
    def llm(self) -> LocalLLM:
        """The model under test.

        Raises:
            CapabilityError: its weights are not in this process.
        """
        llm = self.setting.llm
        if not isinstance(llm, LocalLLM):
            raise CapabilityError(f"model {llm.name!r} has no weights here; take a local one")
        return llm

    @cached_property
    def bench(self) -> Workbench:
        """A bench of its own, to ask at."""
        return Workbench(self.llm.model, self.llm.tokenizer, self.setting.folder("bench"))

    @cached_property
    def judge(self) -> Judge:
        """Scores answers."""
        return Judge(self.bench)

    @cached_property
    def points(self) -> Points:
        """What was measured so far."""
        out = self.setting.out
        return Points(out / "edit-points.jsonl" if out else None)

    def folder(self, name: str) -> Path:
        """For what an editor learns; the same in the next run, if results are kept."""
        words = re.sub(r"\W+", "-", name).strip("-")
        out = self.setting.out
        return out / "edit-learnt" / words if out else self.setting.folder(words)

    def system(self, name: str, material: str = "") -> System:
        """A row by its name: see `edit`."""
        folder = self.folder(f"{name} {material}")
        if name == NOTHING:
            return Nothing()
        if name == REMEMBERED:
            return Remembering(self.llm, lambda: self.setting.embedder, folder)
        spec = MERGED if name == MERGED_NAME else name
        return Editing(name, spec, self.llm, lambda: self.setting.embedder, folder)

    def editor(self, spec: str) -> Editor:
        """An editor in a folder of its own, which is gone after the run."""
        folder = self.setting.folder("editor")
        made = Editing(spec, spec, self.llm, lambda: self.setting.embedder, folder).open()
        self.setting.resources.callback(made.close)
        return made
