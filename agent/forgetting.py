"""From what a caller names to a request to forget, bound to the caller's scope.

Knows nothing of what must go along, or of how it goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError
from ..memory.ledger import Ledger
from ..memory.record import Record, RecordId, Scope
from ..unlearning.asking import ForgetRequest
from ..unlearning.report import Plan, Report
from .request import turn_scope

Forgettable = str | Record | Iterable[str | Record]
"""The id of a record, or words that all records which have them all are to be forgotten for; a
record; or several ids or records."""


def asked_scope(base: Scope, options: Mapping[str, Any]) -> Scope:
    """Whose records a call is about: all sessions of the user, unless it names one."""
    scope = turn_scope(base, options)
    return scope if options.get("session") else scope.across_sessions()


def asked(
    ledger: Ledger, scope: Scope, what: Forgettable | Report | None, **given: Any
) -> ForgetRequest | Plan:
    """What a call asks to have forgotten.

    Args:
        given: `query`, `everything`, `all_users`, `source`, `origin`, `since`, as for
            `Agent.forget`.

    Raises:
        ConfigError: it names nothing, or more than one thing, or a report of something done.
    """
    if isinstance(what, Report):
        if not isinstance(what, Plan) or any(given.values()):
            raise ConfigError(
                "forget takes the report of a dry run, alone; this one tells of something done, or"
                " there is a query or everything= beside it"
            )
        return what
    if isinstance(what, str) and not ledger.find([RecordId(what)], scope):
        if given["query"] is not None or given["source"] is not None:
            raise ConfigError(
                f"no record has the id {what!r}, and beside a text there is another query or a"
                " source; give one of them"
            )
        return ForgetRequest(scope=scope, **{**given, "query": what})
    named = [what] if isinstance(what, str | Record) else what or ()
    ids = [RecordId(each.id if isinstance(each, Record) else each) for each in named]
    return ForgetRequest(scope=scope, ids=tuple(dict.fromkeys(ids)), **given)
