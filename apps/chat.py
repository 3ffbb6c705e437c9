"""The plain line chat: streamed replies, what memory gave to each, and a few commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..agent.agent import Agent
from ..agent.corrections import proposal
from ..agent.jobs import Job
from ..agent.reply import Reply, ReplyChunk, collect
from ..agent.trace import MemoryTrace
from ..editors.base import Edit
from ..errors import InputError, PalimpsestError
from ..memory.pieces import unquoted
from ..unlearning.base import Request, Sample
from .bar import waited
from .edited import show_edits, show_receipt, show_undone
from .editing import pair
from .forgetting import outcome, show_plan
from .output import agreed, emit, err, hinted, many, out
from .unlearning import read
from .unlearnt import show_plan as show_unlearn_plan
from .unlearnt import show_receipt as show_unlearnt
from .unlearnt import show_requests
from .why import show_history, show_trace

HELP = """\
/why              which memory gave what to the last reply
/again            answer my last message again
/correct TEXT     TEXT holds from now on, instead of what the last reply went by
/remember TEXT    store TEXT as it is
/recall QUESTION  what the memories hold, without asking the model, and under which ids
/history ID       all versions of a record
/edit Q => A      change the weights, so that Q is answered A; "No, it is A" proposes that, too
/edits            the edits that hold
/undo [ID]        undo an edit or a request to unlearn, or the newest edit
/unlearn NAME     have the model forget texts or answers, which it asks for
/unlearned        the requests that hold
/forget TEXT|ID   erase all that has these words, or one record, for good; asks first
/sessions         all conversations
/session NAME     go on in another conversation
/fork NAME        begin NAME with what was said here
/help             this list
/quit             leave (so does Ctrl-D); Ctrl-C cuts a reply short"""


NEEDY = (
    *("correct", "edit", "unlearn", "remember", "recall", "history"),
    *("forget", "session", "fork"),
)
"""Commands that need something after them."""

TURNS = 4
"""Turns back that a correction may be about, over corrections in between."""


class Chat:
    """One sitting at the terminal."""

    def __init__(self, agent: Agent, session: str) -> None:
        self.agent = agent
        self.session = session
        self.last: Reply | None = None

    def say(self, message: str) -> Reply | None:
        """Answer a message, streaming; None if it was cut short. One that says what would have been
        right may become an edit instead."""
        if self.agent.editors and self._corrects(message):
            return self.last
        return self._show(self.agent.stream(message, session=self.session))

    def command(self, line: str) -> None:
        """Run a line that begins with a slash."""
        name, _, rest = line[1:].partition(" ")
        verbs: dict[str, Callable[[str], Any]] = {
            "why": lambda _: show_trace(self.agent, self.agent.why(session=self.session)),
            "again": lambda _: self._again(),
            "correct": self._correct,
            "edit": lambda text: self._edit(*pair(text)),
            "edits": lambda _: show_edits(self.agent.edits()),
            "undo": self._undo,
            "unlearn": self._unlearn,
            "unlearned": lambda _: show_requests(self.agent.unlearned()),
            "remember": self._remember,
            "recall": self._recall,
            "history": lambda record: show_history(self.agent, record),
            "forget": self._forget,
            "sessions": lambda _: self._sessions(),
            "session": self._enter,
            "fork": self._fork,
            "help": lambda _: out.print(HELP, markup=False),
        }
        verb = verbs.get(name)
        if verb is None:
            out.print(f"no command /{name}; /help lists them", markup=False)
        elif name in NEEDY and not rest.strip():
            out.print(f"/{name} needs something after it; see /help", markup=False)
        elif name in ("why", "again", "fork") and not self.agent.turns(1, session=self.session):
            out.print(f"nothing was said in {self.session} yet", markup=False)
        else:
            verb(rest.strip())

    def _show(self, pieces: Iterator[ReplyChunk]) -> Reply | None:
        said = []
        try:
            for piece in pieces:
                said.append(piece)
                out.print(str(piece), end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
            out.print("\n[dim]cut short; what was said is kept[/dim]")
            return None
        self.last = collect(said)
        out.print(f"\n[dim]{summary(self.last)}[/dim]")
        return self.last

    def _again(self) -> None:
        self.last = self.agent.regenerate(session=self.session)
        out.print(self.last.text, markup=False)
        out.print(f"[dim]{summary(self.last)}[/dim]")

    def _correct(self, text: str) -> None:
        if self.last is None:
            out.print("nothing to correct yet")
            return
        record = self.agent.correct(self.last, text, session=self.session)
        out.print(f"[dim]{record.id} supersedes {record.supersedes}[/dim]")

    def _remember(self, text: str) -> None:
        record = self.agent.remember(text, session=self.session)
        out.print(f"[dim]remembered as {record.id}[/dim]")

    def _recall(self, query: str) -> None:
        found = self.agent.recall(query, session=self.session)
        for note in found.notes:
            out.print(f"{note.score:.3f}  {note.records[0]}  {unquoted(note.text)}", markup=False)
        if not found.notes:
            out.print("nothing found")

    def _forget(self, what: str) -> None:
        plan = self.agent.forget(what, dry_run=True)
        show_plan(self.agent, plan)
        if not agreed(f"Erase {many(len(plan.records), 'record')} for good?"):
            out.print("[dim]nothing was forgotten[/dim]")
            return
        self.last = None  # it may be gone, or have gone by what is
        done = self.agent.forget(plan)
        out.print(outcome(done))
        out.print(hinted(f"`palimpsest verify {done.id}`"), style="dim", soft_wrap=True)

    def _corrects(self, message: str) -> bool:
        """Whether a message was taken as an edit: then its question is answered again."""
        edit = proposal(self.agent.turns(TURNS, session=self.session), message)
        if edit is None or not agreed(
            f"edit the weights so that {edit.prompt!r} is answered {edit.target!r}?"
        ):
            return False
        if self._edit(edit.prompt, edit.target):
            self._again()
        return True

    def _edit(self, prompt: str, target: str) -> bool:
        edit = Edit(prompt=prompt, target=target)
        against = [each.id for each in self.agent.edits() if edit.contradicts(each.edit)]
        if against and not agreed(f"edit {against[0]} says otherwise; replace it?"):
            return False
        show_receipt(waited(self.agent.start_edit(prompt, target, replace=bool(against))))
        return True

    def _undo(self, id: str) -> None:
        found = [id] if id else [each.id for each in self.agent.edits()][-1:]
        if not found:
            out.print("there is no edit to undo")
            return
        requests = {each.id: each.name for each in self.agent.unlearned()}
        job = Job(lambda tell, end: self.agent.undo(*found, progress=tell, cancel=end))
        show_undone(waited(job), requests)

    def _unlearn(self, name: str) -> None:
        out.print(
            "what is it to forget? One a line, QUESTION => ANSWER or a text, or the name of a file;"
            " an empty line ends",
            soft_wrap=True,
        )
        request = Request(name=name, samples=tuple(_samples()))
        show_unlearn_plan(self.agent.plan_unlearn(request))
        if not agreed(f"Have {self.agent.llm.name} forget {name!r}?"):
            out.print("[dim]nothing was done[/dim]")
            return
        self.last = None  # what it said may be what is forgotten
        job = self.agent.start_unlearn(name, samples=request.samples)
        show_unlearnt(waited(job, "forgetting"))

    def _sessions(self) -> None:
        for each in (info for info in self.agent.sessions() if info.document is None):
            mark = "*" if each.id == self.session else " "
            out.print(f"{mark} {each.id}  {many(each.turns, 'turn')}", markup=False)

    def _enter(self, name: str) -> None:
        self.session, self.last = name, None
        out.print(f"now in {name}", markup=False, style="dim")

    def _fork(self, name: str) -> None:
        self.agent.fork(self.session, name)
        self._enter(name)


def summary(reply: Reply) -> str:
    """One line on what memory gave to a reply."""
    why = reply.why
    given = [_given(memory) for memory in why.memories]
    first = f"first token {why.first_token_ms or 0:.0f} ms"
    return " · ".join([*given, many(why.reply_tokens, "token"), first])


def _given(memory: MemoryTrace) -> str:
    if memory.place == "weights":
        if not memory.explain:  # it holds none of the user's
            return f"{memory.memory}: nothing"
        orders = "request" if "requests" in memory.explain else "edit"
        return f"{memory.memory}: {many(len(memory.records), orders)}"
    if memory.place != "cache":
        return f"{memory.memory}: {many(sum(note.kept for note in memory.notes), 'note')}"
    read, stored, seen = (
        int(memory.explain.get(name, 0)) for name in ("tokens_read", "tokens_stored", "tokens_seen")
    )
    return f"{memory.memory}: {read:,} read, {stored:,} of {seen:,} stored"


def _samples() -> Iterator[Sample]:
    """What is typed, up to an empty line.

    Raises:
        InputError: the input ends before, or a file cannot be used.
    """
    while True:
        try:
            line = input("forget> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            raise InputError("the input ended before an empty line; nothing was done") from None
        if not line:
            return
        question, arrow, answer = (part.strip() for part in line.partition("=>"))
        if arrow:
            yield Sample(question=question, answer=answer)
        elif Path(line).is_file():
            yield from read(Path(line))
        else:
            yield Sample(answer=line)


def run_chat(agent: Agent, session: str, *, as_json: bool) -> None:
    """Talk until the input ends. With `as_json`, read lines and print one document at the end."""
    if as_json:
        lines = (line.strip() for line in sys.stdin)
        replies = [agent.ask(line, session=session) for line in lines if line]
        emit([{"text": r.text, "record": r.record, "why": r.why} for r in replies])
        return
    chat = Chat(agent, session)
    agent.start_background()
    names = ", ".join(memory.name for memory in agent.memories) or "no memory"
    out.print(f"[bold]{agent.llm.name}[/bold] with {names}, in session {session!r}; /help for more")
    for line in _lines():
        if line in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                chat.command(line)
            else:
                chat.say(line)
        except KeyboardInterrupt:  # a reply that streams is cut short where it is shown
            out.print("\n[dim]cut short[/dim]")
        except PalimpsestError as error:
            err.print(f"{type(error).__name__}: {hinted(str(error))}", markup=False)


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives `input` a history and line editing)
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            out.print("\n[dim]Ctrl-D or /quit to leave[/dim]")
            continue
        if line:
            yield line
