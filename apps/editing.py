"""`palimpsest edit`, `edits` and `undo`: facts changed in the weights, and changed back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import Cancelled, ConfigError, InputError
from .bar import waited
from .edited import LISTED, show_edited, show_edits, show_receipt, show_undone
from .opening import open_agent, open_keeper
from .output import Home, Json, Model, User, emit, err, many, out, plain, reporting

if TYPE_CHECKING:
    from ..agent.edits import Edited
    from ..agent.jobs import Job
    from ..editors.base import Edit, Receipt

Editor = Annotated[
    str | None,
    typer.Option(
        "--editor", help='How, with options: "wise:rank=8"; ask with the same as --memory.'
    ),
]


def edit(
    prompt: Annotated[
        str | None, typer.Argument(help="A question, or the beginning of a sentence.")
    ] = None,
    target: Annotated[
        str | None, typer.Argument(help="Its answer, or how the sentence goes on.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Whom or what it is about; stands in PROMPT.")
    ] = None,
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="Another way to ask; repeat for more.")
    ] = None,
    locality: Annotated[
        list[str] | None,
        typer.Option(help='What must not move: "PROMPT=>ANSWER"; repeat for more.'),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Many edits: JSONL or CSV, also with the fields of ZsRE, CounterFact."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out lines of --file that are no edits.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of edits that say otherwise.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Learn what is kept and not learnt yet.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be.")] = False,
    editor: Editor = None,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Change a fact in the weights, so that PROMPT is answered with TARGET; or many, from a file.

    Fails if something could not be learnt, or does not hold. Ctrl-C keeps what was learnt.
    """
    from ..agent.edits import Edited as Done
    from ..agent.jobs import Job

    with reporting(json):
        edits = _asked(prompt, target, file, subject, paraphrase, locality, resume=resume)
        if file is not None:
            edits = _of_file(file, skip_bad=skip_bad)
        opened = open_keeper if dry_run else open_agent
        with opened(home, model, _spec(editor), user) as agent:
            if resume:
                learnt = waited(
                    Job(lambda tell, end: agent.resume_edits(progress=tell, cancel=end))
                )
                emit({"learnt": learnt}) if json else out.print(
                    f"learnt {many(len(learnt), 'edit')}"
                )
                return
            if dry_run:
                done = agent.edit_many(edits, replace=replace, dry_run=True)
            elif file is None:
                [one] = edits
                how = {name: getattr(one, name) for name in ("subject", "paraphrases", "locality")}
                begun = agent.start_edit(one.prompt, one.target, replace=replace, **how)
                done = Done(receipts=(_kept(begun),))
            else:
                done = waited(agent.start_edits(edits, replace=replace))
        emit(_document(done)) if json else show_edited(done)
    if done.cancelled:
        raise typer.Exit(130)
    if not done.verified:
        raise typer.Exit(1)


def edits(
    ids: Annotated[list[str] | None, typer.Argument(help="With --verify, only these.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Ask the model again about each.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write a checkpoint with the edits in it to this folder.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write them to a .jsonl or .csv file, for `edit --file`.")
    ] = None,
    editor: Editor = None,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """The edits that hold, oldest first; or whether they do, or the model with them in it."""
    with reporting(json):
        if ids and not verify:
            raise ConfigError(f"{ids} are named without --verify, and the list has all of them")
        if verify:
            verify_edits(home, model, user, ids or None, editor, as_json=json)
            return
        if export is not None:
            with open_agent(home, model, _spec(editor), user) as agent:
                folder = agent.export_model(export)
            emit({"folder": folder}) if json else out.print(f"written to {folder}", markup=False)
            return
        with open_keeper(home, model, _spec(editor), user, read_only=True) as agent:
            found = agent.edits()
        if write is not None:
            from ..editors.formats import write_edits

            write_edits(write, [each.edit for each in found])
        emit(found) if json else show_edits(found)


def undo(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of edits, or of requests to unlearn.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All edits that hold.")] = False,
    editor: Editor = None,
    unlearner: Annotated[
        str | None, typer.Option("--unlearner", help='What holds the requests, "o3" by default.')
    ] = None,
    home: Home = None,
    user: User = "default",
    model: Model = "smollm2",
    json: Json = False,
) -> None:
    """Undo edits, or requests to unlearn: the model is then as if they had never been made.

    What was said meanwhile stays; to erase an edit with all that came of it, `forget` it.
    """
    from ..agent.jobs import Job
    from ..memory.registry import DEFAULT_UNLEARNERS

    with reporting(json):
        if bool(ids) == everything:
            raise ConfigError("name the edits to undo, or give --all; one of the two")
        held = [*_spec(editor), *([unlearner] if unlearner else DEFAULT_UNLEARNERS)]
        with open_keeper(home, model, held, user) as agent:
            named = ids or [each.id for each in agent.edits()]
            if not named:
                emit({"ids": []}) if json else out.print("there is no edit to undo")
                return
            requests = {each.id: each.name for each in agent.unlearned()}
            done = waited(Job(lambda tell, end: agent.undo(*named, progress=tell, cancel=end)))
        emit(done) if json else show_undone(done, requests)


def verify_edits(
    home: Path | None,
    model: str,
    user: str,
    ids: Sequence[str] | None,
    editor: str | None = None,
    *,
    as_json: bool,
) -> None:
    """Ask the model about edits again, and fail if it does not answer by one."""
    with open_agent(home, model, _spec(editor), user) as agent:
        receipts = agent.verify_edits(ids)
    if as_json:
        emit([_receipt(each) for each in receipts])
    else:
        for each in receipts:
            show_receipt(each)
        if not receipts:
            out.print("no edit is learnt")
    if not all(each.verified for each in receipts):
        raise typer.Exit(1)


def _kept(job: Job[Receipt]) -> Receipt:
    """The receipt of one edit; ends the command if it was cancelled."""
    try:
        return waited(job)
    except Cancelled as error:
        err.print(str(error))
        raise typer.Exit(130) from None


def _spec(editor: str | None) -> list[str]:
    from ..memory.registry import DEFAULT_EDITORS

    return [editor] if editor else [*DEFAULT_EDITORS]


def _asked(
    prompt: str | None,
    target: str | None,
    file: Path | None,
    subject: str | None,
    paraphrases: Sequence[str] | None,
    locality: Sequence[str] | None,
    *,
    resume: bool,
) -> list[Edit]:
    """The edit that the command line names; none with --file or --resume.

    Raises:
        ConfigError: it names nothing, or more than one of them. InputError: it is no edit.
    """
    from ..editors.base import Edit

    if [prompt is not None, file is not None, resume].count(True) != 1:
        raise ConfigError("give PROMPT and TARGET, or --file, or --resume; exactly one of them")
    if prompt is None:
        beside = {"--subject": subject, "--paraphrase": paraphrases, "--locality": locality}
        if named := [name for name, value in beside.items() if value]:
            raise ConfigError(f"{', '.join(named)} belong to PROMPT and TARGET; leave them out")
        return []
    if target is None:
        raise ConfigError(f"PROMPT {prompt!r} has no TARGET beside it; say what its answer is")
    return [
        Edit(
            prompt=prompt,
            target=target,
            subject=subject,
            paraphrases=tuple(paraphrases or ()),
            locality=tuple(map(pair, locality or ())),
        )
    ]


def pair(text: str) -> tuple[str, str]:
    """What stands before and behind "=>"; behind it may be nothing.

    Raises:
        InputError: nothing stands before it.
    """
    prompt, _, answer = (part.strip() for part in text.partition("=>"))
    if not prompt:
        raise InputError(f'{text!r} names no prompt; write it as "PROMPT=>ANSWER"')
    return prompt, answer


def _of_file(file: Path, *, skip_bad: bool) -> list[Edit]:
    """The edits in a file.

    Raises:
        InputError: a line is no edit and is not to be skipped, or there is no other.
    """
    from ..editors.formats import read_edits

    found = read_edits(file)
    lines = "; ".join(map(str, found.bad[:LISTED]))
    more = f"; and {len(found.bad) - LISTED:,} more" if len(found.bad) > LISTED else ""
    if found.bad and not skip_bad:
        raise InputError(
            f"{file}: {lines}{more}; nothing was edited: mend them, or leave them out by --skip-bad"
        )
    if found.bad:
        err.print(f"left out of {file}: {lines}{more}", markup=False, soft_wrap=True)
    if not found.edits:
        raise InputError(f"{file} holds no edit")
    return list(found.edits)


def _document(done: Edited) -> dict[str, Any]:
    return {**plain(done), "receipts": [_receipt(each) for each in done.receipts]}


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {**plain(receipt), "verified": receipt.verified}
