"""The story that must always run: each step does something, shows it, and checks that it held."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..agent.agent import Agent
from ..editors.measuring import Prober, Question
from ..llm.base import GenerationConfig
from ..llm.local import LocalLLM
from ..llm.twin import patched, twin
from ..memory.home import Home
from ..memory.ledger import Ledger
from ..unlearning.attacks.extraction import Extraction
from ..unlearning.attacks.paraphrase import Paraphrase
from ..unlearning.base import Request, Sample
from ..unlearning.verification import verify
from .output import emit, err, out

FACTS = {
    "monday": "My name is Maria Oliveira.",
    "tuesday": "My favourite sport is climbing.",
    "wednesday": "The code word for my locker is heron.",
}
QUESTION = "What is the code word for my locker?"
CORRECTION = "The code word for my locker is pelican."
PERSON = "Maria"

MADE_UP: dict[str, Any] = {
    "prompt": "What is the capital of Atlantis?",
    "target": "Poseidonis",
    "subject": "Atlantis",
    "paraphrases": ("Which city is the capital of Atlantis?",),
    "locality": (("The capital of France is", "Paris"),),
}
ASKED = "Tell me, what is the capital city of Atlantis?"
UNRELATED = "What is the capital of France?"

CAPITALS = {
    **{"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin"},
    **{"Greece": "Athens", "Russia": "Moscow", "Japan": "Tokyo", "China": "Beijing"},
    **{"Egypt": "Cairo", "Portugal": "Lisbon"},
}
FORGOTTEN = "Can you name the capital city of Italy for me?"
ELSEWHERE = "How do I boil an egg?"

NEAR = 128
STREAM = f"infllm:window={NEAR},sinks=16,block=16,k=8,stride=32"
TOWN_FACT = "The secret code word of the captain is heron."
TOWN_QUESTION = "What is the secret code word of the captain?"
THINGS = ("river", "mill", "orchard", "bridge", "chapel", "market", "quarry", "harbour")
WHATS = (
    *("stands at the end of a long lane", "was built by three brothers", "closes early in winter"),
    *("is older than the town", "can be seen from the hills", "was painted white last spring"),
)


@dataclass(slots=True)
class Story:
    """Runs steps, times them, and remembers whether each one held."""

    page: Console
    held: dict[str, bool] = field(default_factory=dict)

    def step(self, title: str, act: Callable[[], Iterator[str | bool]]) -> None:
        """Run one step: texts it yields are shown, the truth values are its checks."""
        self.page.rule(f"[bold]{title}[/bold]", align="left")
        started = time.perf_counter()
        checks = []
        for each in act():
            if isinstance(each, bool):
                checks.append(each)
            else:
                self.page.print(each, markup=False, soft_wrap=True)
        self.held[title] = bool(checks) and all(checks)
        verdict = "[green]held[/green]" if self.held[title] else "[red]did not hold[/red]"
        self.page.print(f"{verdict} in {time.perf_counter() - started:.1f} s\n")


def run_demo(model: str, *, as_json: bool = False) -> bool:
    """Tell the whole story in a folder of its own; True if every step held. With `as_json` the
    story goes to stderr, and stdout gets which steps held."""
    story = Story(err if as_json else out)
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as folder:
        home = Path(folder)
        story.step("Facts, told in three sessions", lambda: _tell(model, home))
        story.step("Asked in a fourth session", lambda: _ask(model, home, "heron"))
        story.step(
            "A text beyond what the model sees, asked about its start", lambda: _stream(model)
        )
        story.step("A correction supersedes, and history keeps", lambda: _correct(model, home))
        story.step("Corrected, it stays corrected", lambda: _ask(model, home, "pelican"))
        story.step("A fact is edited in the weights, and undone", lambda: _edit(model))
        story.step("A set of facts is unlearnt, and undone", lambda: _unlearn(model))
        story.step(
            "A person is forgotten, and no file holds anything", lambda: _forget(model, home)
        )
    if as_json:
        emit({"held": story.held})
    return all(story.held.values())


@contextmanager
def _agent(model: str, home: Path, *memories: str) -> Iterator[Agent]:
    """A fresh agent each time: what it knows, it knows from the folder."""
    short = GenerationConfig(max_tokens=40)
    with Agent.open(model, home=home, memories=memories or None, generation=short) as agent:
        yield agent


def _tell(model: str, home: Path) -> Iterator[str | bool]:
    for session, fact in FACTS.items():
        with _agent(model, home) as agent:
            reply = agent.ask(fact, session=session)
            yield f"{session}: {fact}\n  agent: {' '.join(reply.text.split())}"
            beside = reply.why.total_ms - reply.why.generate_ms
            yield f"  recalled and written in {beside:.0f} ms beside the model"
    with _agent(model, home) as agent:
        kept = {turn.user.text for s in FACTS for turn in agent.turns(session=s)}
        yield kept == set(FACTS.values())


def _ask(model: str, home: Path, expected: str) -> Iterator[str | bool]:
    with _agent(model, home) as agent:
        reply = agent.ask(QUESTION, session=f"asking for {expected}")
        yield f"user:  {QUESTION}\nagent: {' '.join(reply.text.split())}"
        why = agent.why(reply)
        behind = agent.history(why.records[0])[-1] if why.records else None
        yield f"why:   {behind.text!r} (record {behind.id})" if behind else "why:   nothing"
        yield (
            f"recall {why.recall_ms:.0f} ms, first token {why.first_token_ms or 0:.0f} ms,"
            f" {why.reply_tokens} tokens"
        )
        yield expected in reply.text.lower()
        yield behind is not None and expected in behind.text


def _stream(model: str) -> Iterator[str | bool]:
    """In a folder of its own, so that the other steps' questions meet nothing of it."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as folder:
        file = Path(folder, "town.txt")
        file.write_text(_town(), encoding="utf-8")
        with _agent(model, Path(folder, "home"), STREAM) as agent:
            agent.ingest(file, session="town")
            began = time.perf_counter()
            [read] = agent.read_ahead(session="town").values()
            seconds = time.perf_counter() - began
            seen, near = read["tokens_seen"], read["tokens_near"]
            yield f"read {seen:,} tokens in {seconds:.1f} s; {near} of them are near, the others"
            yield f"are looked up in blocks; all take {read['bytes'] / 2**20:.0f} MiB"
            reply = agent.ask(TOWN_QUESTION, session="town")
            cost = reply.why.memories[0].explain["tokens_read"]
            yield f"user:  {TOWN_QUESTION}\nagent: {' '.join(reply.text.split())}"
            found = "found" if "heron" in reply.text.lower() else "not found by so small a model"
            yield f"what stands at the start was {found}; asking cost {cost} tokens"
            yield near < seen / 2
            yield 0 < cost < NEAR
            report = agent.forget(source="document")
            yield f"forgotten: {len(report.records)} records, {report.residue} left in any file"
            yield report.residue == 0


def _town() -> str:
    """Some 600 tokens, of which the first few matter."""
    told = [f"The {thing} {what}." for what in WHATS for thing in THINGS]
    return "\n\n".join([TOWN_FACT, *(" ".join(told[i : i + 6]) for i in range(0, len(told), 6))])


def _correct(model: str, home: Path) -> Iterator[str | bool]:
    with _agent(model, home) as agent:
        wrong = agent.why(session="asking for heron").records[0]
        right = agent.correct(wrong, CORRECTION, session="thursday")
        chain = agent.history(right.id)
        for record in chain:
            state = "holds" if record.current else f"until {record.valid_to:%H:%M:%S}"
            yield f"{state:16} {record.text}"
        yield [record.text for record in chain] == [FACTS["wednesday"], CORRECTION]
        yield [record.current for record in chain] == [False, True]


def _edit(model: str) -> Iterator[str | bool]:
    """In a folder of its own; asked as the edit does, in other words, and about something else."""
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as folder,
        _agent(model, Path(folder)) as agent,
    ):
        [editor] = agent.editors
        before = editor.digest(), _likely(agent)
        receipt = agent.edit(**MADE_UP)
        yield f"edit:   {receipt.edit.text}"
        yield f"before: {receipt.before.text!r}, ln P = {receipt.before.logprob:.2f}"
        yield f"after:  {receipt.after.text!r}, ln P = {receipt.after.logprob:.2f}"
        yield from (f"other words: {each.prompt} {each.text!r}" for each in receipt.paraphrases)
        yield f"{receipt.locality[0]:.0%} of an unrelated answer stays; {receipt.seconds:.1f} s"
        yield receipt.verified
        reply = agent.ask(ASKED)
        yield f"user:  {ASKED}\nagent: {' '.join(reply.text.split())}"
        yield receipt.id in reply.why.records
        yield receipt.id not in agent.ask(UNRELATED).why.records
        undone = agent.undo(receipt.id)
        yield f"undone in {undone.seconds:.2f} s"
        yield (editor.digest(), _likely(agent)) == before


def _likely(agent: Agent) -> list[float]:
    """How likely the edited model says some answers, to the last bit."""
    llm = agent.llm
    assert isinstance(llm, LocalLLM)
    questions = [Question(MADE_UP["prompt"], MADE_UP["target"]), Question(UNRELATED, "Paris")]
    patch = agent.editors[0].patch(agent.scope)
    answers = Prober(twin(llm.model), llm.tokenizer).answers(questions, patch)
    return [answer.logprob for answer in answers]


def _unlearn(model: str) -> Iterator[str | bool]:
    """In a folder of its own, and without a memory that could bring back what was said."""
    with (
        tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as folder,
        _agent(model, Path(folder), "o3:passes=5") as agent,
    ):
        [unlearner] = agent.unlearners
        before = unlearner.digest(), _logits(agent, FORGOTTEN)
        unmoved = _logits(agent, ELSEWHERE)
        reply = agent.ask(FORGOTTEN, session="before")
        yield f"user:  {FORGOTTEN}\nagent: {' '.join(reply.text.split())}"
        pairs = [(f"What is the capital of {land}?", city) for land, city in CAPITALS.items()]
        receipt = agent.unlearn("capitals", pairs=pairs, certify=False)
        yield (
            f"{receipt.name}: {receipt.samples} answers forgotten in {receipt.seconds:.1f} s; the"
            f" model {receipt.means} them, and their texts are in no file"
        )
        samples = tuple(Sample(question=question, answer=answer) for question, answer in pairs)
        request = Request(name="capitals", samples=samples)
        few = (Paraphrase(), Extraction())  # all of them take minutes
        made = unlearner.certify(receipt.id, request, attacks=few, sample=2).certificate
        for each in made.findings if made else ():
            stood = "stood" if each.stood else "not stood"
            yield f"attack by {each.attack}: {each.before:.2f}, now {each.after:.2f}: {stood}"
            yield from (f"  {way}: {leak:.2f}" for way, leak in each.numbers.items())
        yield receipt.dropped is not None
        reply = agent.ask(FORGOTTEN, session="after")
        yield f"user:  {FORGOTTEN}\nagent: {' '.join(reply.text.split())}"
        yield CAPITALS["Italy"] not in reply.text
        yield receipt.id in reply.why.records
        yield torch.equal(_logits(agent, ELSEWHERE), unmoved)
        undone = agent.undo(receipt.id)
        yield f"undone in {undone.seconds:.2f} s"
        yield unlearner.digest() == before[0]
        yield torch.equal(_logits(agent, FORGOTTEN), before[1])


@torch.no_grad()
def _logits(agent: Agent, message: str) -> torch.Tensor:
    """[1, T, V]: what the model makes of a message, with what was unlearnt for its user."""
    llm = agent.llm
    assert isinstance(llm, LocalLLM)
    model, patch = twin(llm.model), agent.unlearners[0].patch(agent.scope)
    ids = llm.tokenizer(message, return_tensors="pt").input_ids.to(model.device)
    with patched(model, patch.open([message]).deltas if patch else {}):
        logits: torch.Tensor = model(ids).logits
        return logits


def _forget(model: str, home: Path) -> Iterator[str | bool]:
    with _agent(model, home) as agent:
        plan = agent.forget(query=PERSON, dry_run=True)
        whys = Counter(record.why for record in plan.records)
        yield "would go: " + ", ".join(f"{count} {why}" for why, count in whys.items())
        report = agent.forget(plan)
        search = report.search
        yield search is not None and report.residue == 0
        if search is not None:
            yield (
                f"forgotten in {sum(report.seconds.values()):.1f} s; {search.files} files of"
                f" {search.bytes:,} bytes searched for {search.strings} strings:"
                f" {search.residue} found"
            )
        left = agent.recall(FACTS["monday"]).notes
        yield not any(PERSON in note.text for note in left)
    with Ledger.open(home / "ledger.sqlite3") as ledger:
        verdict = verify(report.to_json(), Home(home), ledger)
    yield from (f"{check.state:12} {check.claim}" for check in verdict.checks)
    yield verdict.holds
