"""JSON: what mem0 and Letta export, told by its content; anything else is a text like any other.

mem0: what `get_all` returns, a list of objects with "memory", or that list under "results". Letta:
an agent file (.af), of either version, or passages. A block's or memory's text becomes a memo; the
other fields that say whose it is go along. Letta's messages, tools and settings stay behind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import InputError
from .base import Document, Memo, Parsed, moment
from .plain import decode

KEPT = ("id", "user_id", "agent_id", "run_id", "actor_id", "categories", "metadata", "updated_at")
"""What is said of a memory beside its text and time."""


def parse(data: bytes, name: str) -> Iterator[Parsed]:
    """Memos, if it is an export that is known; else the whole as one document.

    Raises:
        InputError: it is not JSON, or an export with nothing in it.
    """
    try:
        content = json.loads(decode(data, name))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name!r} is not JSON: {error}") from None
    for known in (_mem0, _letta):
        found = known(content)
        if found is not None:
            memos = [memo for memo in found if memo.text.strip()]
            if not memos:
                raise InputError(f"{name!r} is an export without any memory in it")
            yield from memos
            return
    yield Document(text=json.dumps(content, ensure_ascii=False, indent=1), title=name)


def _mem0(content: Any) -> list[Memo] | None:
    rows = content
    if isinstance(content, Mapping):
        rows = next((content[key] for key in ("results", "memories") if key in content), None)
    if not isinstance(rows, list) or not rows:
        return None
    if not all(isinstance(row, Mapping) and isinstance(row.get("memory"), str) for row in rows):
        return None
    return [_memo(row, row["memory"], str(row.get("id", "")), "mem0") for row in rows]


def _letta(content: Any) -> list[Memo] | None:
    """Core memory by its blocks' labels, whose ids differ from one export to the next; archival
    passages by their ids."""
    if not isinstance(content, Mapping):
        return None
    agents = content.get("agents")
    if isinstance(agents, list) and isinstance(content.get("blocks"), list):
        return list(_agents(agents, content["blocks"]))
    if isinstance(content.get("core_memory"), list) and "agent_type" in content:
        session = _session(content)
        return [*_blocks(content["core_memory"], session), *_passages(content, session)]
    passages = list(_passages(content, "letta"))
    return passages if passages and not content.keys() - {"passages", "archival_memory"} else None


def _agents(agents: Iterable[Any], blocks: Iterable[Any]) -> Iterator[Memo]:
    by_id = {block.get("id"): block for block in _mappings(blocks)}
    for agent in _mappings(agents):
        session = _session(agent)
        held = [by_id[id] for id in agent.get("block_ids") or () if id in by_id]
        yield from _blocks([*held, *(agent.get("memory_blocks") or ())], session)
        yield from _passages(agent, session)


def _blocks(blocks: Iterable[Any], session: str) -> Iterator[Memo]:
    for block in _mappings(blocks):
        label, value = str(block.get("label", "")), block.get("value")
        if isinstance(value, str):
            memo = _memo(block, value, f"block {label}", session)
            yield Memo(
                text=memo.text,
                place=memo.place,
                session=session,
                created=memo.created,
                meta={**memo.meta, "label": label},
            )


def _passages(holder: Mapping[str, Any], session: str) -> Iterator[Memo]:
    for key in ("passages", "archival_memory"):
        for row in _mappings(holder.get(key) or ()):
            if isinstance(row.get("text"), str):
                yield _memo(row, row["text"], str(row.get("id", "")), session)


def _memo(row: Mapping[str, Any], text: str, place: str, session: str) -> Memo:
    return Memo(
        text=text.strip().replace("\0", "\ufffd"),
        place=place,
        session=session,
        created=moment(row.get("created_at")),
        meta={key: row[key] for key in KEPT if row.get(key)},
    )


def _session(agent: Mapping[str, Any]) -> str:
    name = "".join(char for char in str(agent.get("name", "")) if char.isprintable())
    return f"letta {name}".strip()[:128]


def _mappings(rows: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    return (row for row in rows if isinstance(row, Mapping))
