"""`palimpsest unlearn` and `unlearned`: what the model is made to forget, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Cancelled, ConfigError, InputError
from .bar import waited
from .edited import LISTED
from .opening import open_agent, open_keeper
from .output import Home, Json, Model, User, agreed, emit, err, hinted, many, out, plain, reporting
from .unlearnt import show_plan, show_receipt, show_requests

if TYPE_CHECKING:
    from ..agent.agent import Agent
    from ..unlearning.base import Receipt, Request, Sample

ON = "`palimpsest unlearn --resume` goes on with it, and `palimpsest undo {id}` drops it"

UnlearnerOption = Annotated[
    str | None,
    typer.Option(
        "--unlearner", help='How, with options: "o3:rank=16"; ask with the same as --memory.'
    ),
]


def unlearn(
    name: Annotated[
        str | None, typer.Argument(help="Of the person, text or skill; it stays in the ledger.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A text that it is not to say; repeat for more.")
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help='"QUESTION=>ANSWER" to forget; repeat for more.')
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Many of them: JSONL, JSON or CSV with question, answer and paraphrases, or text;"
            " or a .txt of paragraphs."
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Why, for whoever reads the ledger later; it stays there.")
    ] = "",
    retain: Annotated[
        Path | None, typer.Option(help="A file of the same kind: what must not suffer.")
    ] = None,
    alternative: Annotated[
        list[str] | None,
        typer.Option(help="What to say instead, by default refusals; repeat for more."),
    ] = None,
    unlearner: UnlearnerOption = None,
    keep_texts: Annotated[
        bool, typer.Option("--keep-texts", help="Do not drop the texts when it is learnt.")
    ] = False,
    no_certify: Annotated[
        bool, typer.Option("--no-certify", help="Do not attack the result.")
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Attack by training and rounding, too: minutes.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was cut short.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Make the model forget texts or answers: by default it suppresses them for prompts that are
    about them, attacks the result, and drops the texts.

    Fails if an attack brings something back. Ctrl-C keeps what was learnt until then.
    """
    with reporting(json):
        if resume:
            given = (name, text, pair, file, retain, alternative, reason)
            if any(given):
                raise ConfigError("--resume goes on with requests that are kept; give it alone")
            _resume(home, model, user, unlearner, certify=not no_certify, as_json=json)
            return
        request = _asked(name, text, pair, file, reason, retain, alternative)
        opened = open_keeper if dry_run else open_agent
        with opened(home, model, memories(unlearner, alone=dry_run), user) as agent:
            plan = agent.plan_unlearn(request)
            if dry_run:
                emit(plan) if json else show_plan(plan)
                return
            if not json:
                show_plan(plan)
            if not yes and not agreed(f"Have {agent.llm.name} forget {request.name!r}?"):
                raise typer.Abort
            how = {"keep_texts": keep_texts, "certify": not no_certify, "thorough": thorough}
            receipt = unlearnt(agent, request, **how)
        emit(document(receipt)) if json else show_receipt(receipt)
    if receipt.advice:
        raise typer.Exit(1)


def unlearned(
    ids: Annotated[
        list[str] | None, typer.Argument(help="With --verify, only these; with --export, one.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Attack each again, with --file where texts are gone.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option(help="The samples of the one that is verified, as they were.")
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Attack by training and rounding, too: minutes.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write what was learnt of one to this folder, as an adapter for peft."),
    ] = None,
    unlearner: UnlearnerOption = None,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """The requests that hold, oldest first; whether they do; or one as an adapter, without its
    gate."""
    with reporting(json):
        if verify and export is not None:
            raise ConfigError("--verify and --export are two commands; give one of them")
        if ids and not verify and export is None:
            raise ConfigError(f"{ids} are named without --verify or --export; the list has all")
        if file is not None and (not verify or len(ids or ()) != 1):
            raise ConfigError("--file holds the samples of one request; name it, with --verify")
        if verify:
            verify_requests(
                home, model, user, ids, unlearner, file=file, thorough=thorough, as_json=json
            )
            return
        if export is not None:
            _export(home, model, user, ids or [], export, unlearner, as_json=json)
            return
        with open_keeper(
            home, model, memories(unlearner, alone=True), user, read_only=True
        ) as agent:
            found = agent.unlearned()
        emit(found) if json else show_requests(found)


def verify_requests(
    home: Path | None,
    model: str,
    user: str,
    ids: Sequence[str] | None,
    unlearner: str | None = None,
    *,
    file: Path | None = None,
    thorough: bool = False,
    as_json: bool,
) -> None:
    """Attack requests again, and fail if one does not stand."""
    from ..agent.jobs import Job

    samples = read(file) if file is not None else []
    receipts: list[Receipt] = []
    with open_agent(home, model, memories(unlearner), user) as agent:
        for id in ids or [each.id for each in agent.unlearned() if each.state == "learnt"]:
            receipts.append(
                waited(
                    Job(
                        lambda tell, end, id=id: agent.verify_unlearned(  # type: ignore[misc]
                            id, samples, thorough=thorough, progress=tell, cancel=end
                        )
                    ),
                    "attacking",
                )
            )
    if as_json:
        emit([document(each) for each in receipts])
    else:
        for each in receipts:
            show_receipt(each)
        if not receipts:
            out.print("no request is learnt")
    if any(each.advice for each in receipts):
        raise typer.Exit(1)


def unlearnt(agent: Agent, request: Request, **how: Any) -> Receipt:
    """The receipt of a request that is learnt with a bar; ends the command if it was cancelled."""
    job = agent.start_unlearn(
        request.name,
        samples=request.samples,
        reason=request.reason,
        alternatives=request.alternatives,
        retain=request.retain,
        **how,
    )
    try:
        return waited(job, "forgetting")
    except Cancelled as error:
        err.print(str(error), markup=False)
        for each in agent.unlearned():
            if each.name == request.name and each.texts:
                err.print(hinted(ON.format(id=each.id)), markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


def read(file: Path) -> list[Sample]:
    """The samples in a file.

    Raises:
        InputError: a line holds none, or there is no other.
    """
    from ..unlearning.formats import read_samples

    found = read_samples(file)
    if found.bad:
        lines = "; ".join(map(str, found.bad[:LISTED]))
        more = f"; and {len(found.bad) - LISTED:,} more" if len(found.bad) > LISTED else ""
        raise InputError(f"{file}: {lines}{more}; mend them, as nothing was done")
    if not found.samples:
        raise InputError(f"{file} holds nothing to forget")
    return list(found.samples)


def document(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON values."""
    made = receipt.certificate
    told = {"verified": receipt.verified, "certificate": made.plain() if made else None}
    return {**plain(receipt), **told}


def memories(unlearner: str | None, *, alone: bool = False) -> list[str] | None:
    """What an agent that unlearns is opened with: all that is usual, so that what comes back
    through a memory is seen; where nothing is asked of the model, the unlearner alone."""
    from ..memory.registry import DEFAULT_EDITORS, DEFAULT_MEMORIES, DEFAULT_UNLEARNERS

    if alone:
        return [unlearner] if unlearner else [*DEFAULT_UNLEARNERS]
    return [*DEFAULT_MEMORIES, *DEFAULT_EDITORS, unlearner] if unlearner else None


def _asked(
    name: str | None,
    texts: Sequence[str] | None,
    pairs: Sequence[str] | None,
    file: Path | None,
    reason: str,
    retain: Path | None,
    alternatives: Sequence[str] | None,
) -> Request:
    """The request that the command line names.

    Raises:
        ConfigError: it has no name. InputError: there is nothing to forget.
    """
    from ..unlearning.base import Request, Sample

    if name is None:
        raise ConfigError("give NAME, by which the request is listed; or --resume")
    samples = [Sample(answer=text) for text in texts or ()]
    for each in pairs or ():
        question, _, answer = (part.strip() for part in each.partition("=>"))
        if not (question and answer):
            raise InputError(f'--pair {each!r} must be written as "QUESTION=>ANSWER"')
        samples.append(Sample(question=question, answer=answer))
    if file is not None:
        samples += read(file)
    return Request(
        name=name,
        samples=tuple(samples),
        reason=reason,
        alternatives=tuple(alternatives or ()),
        retain=tuple(read(retain)) if retain is not None else (),
    )


def _resume(
    home: Path | None, model: str, user: str, unlearner: str | None, *, certify: bool, as_json: bool
) -> None:
    from ..agent.jobs import Job

    with open_agent(home, model, memories(unlearner), user) as agent:
        learnt = waited(
            Job(
                lambda tell, end: agent.resume_unlearning(
                    certify=certify, progress=tell, cancel=end
                )
            ),
            "forgetting",
        )
        receipts = [each.receipt for each in agent.unlearned() if each.id in learnt]
    if as_json:
        emit({"learnt": learnt})
        return
    for each in receipts:
        if each is not None:
            show_receipt(each)
    out.print(f"learnt {many(len(learnt), 'request')}")


def _export(
    home: Path | None,
    model: str,
    user: str,
    ids: Sequence[str],
    folder: Path,
    unlearner: str | None,
    *,
    as_json: bool,
) -> None:
    if len(ids) != 1:
        raise ConfigError("--export writes one request; name it: `palimpsest unlearned` lists ids")
    with open_agent(home, model, memories(unlearner, alone=True), user) as agent:
        written = agent.export_unlearned(ids[0], folder)
        [means] = [each.means for each in agent.unlearned() if each.id == ids[0]]
    gated = means == "suppresses"
    if as_json:
        emit({"folder": written, "gate": False, "means": means})
        return
    out.print(f"written to {written}", markup=False, soft_wrap=True)
    if gated:
        out.print(
            "without its gate: opened by peft it is loaded for every prompt, and not only for those"
            " that are about the request",
            style="yellow",
            soft_wrap=True,
        )
