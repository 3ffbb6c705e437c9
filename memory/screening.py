"""Whether a text speaks to the model instead of to its reader: transparent rules, no model.

What a user says is not screened: it is theirs to say. What a document or a tool says is, before it
is kept; and what looks like an instruction to an assistant is kept apart, where nothing recalls it.
False statements that give no orders pass: no rule can tell them from true ones. Knows nothing of
ledgers or stores.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from .record import Record, Source

UNTRUSTED: frozenset[Source] = frozenset({"document", "tool"})
"""Sources that anybody may write to, and whose texts are screened."""

ENOUGH = 0.5
"""Score from which on a text is kept apart: one strong sign, or two weak ones."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What screening found.

    Args:
        score: 1 - the product of (1 - weight) over the signs that were found, in [0, 1].
        why: their names, the strongest first; empty if there is none.
        quarantined: whether the score is `ENOUGH`.
    """

    score: float = 0.0
    why: str = ""
    quarantined: bool = False


def screen(text: str, source: Source) -> Verdict:
    """Look for signs that a text from outside gives orders to whoever reads it for the user. In
    time proportional to its length; a user's or assistant's text has none."""
    if source not in UNTRUSTED:
        return Verdict()
    plain = _plain(text)
    found = {name: sign for name, sign in _SIGNS.items() if sign.seen.search(plain)}
    found |= {name: sign for name, sign in _BARE_SIGNS.items() if sign.seen.search(text)}
    score = 1 - prod(1 - sign.weight for sign in found.values())
    names = sorted(found, key=lambda name: -found[name].weight)
    return Verdict(round(score, 4), ", ".join(names), score >= ENOUGH)


def admitted(record: Record) -> Record:
    """The record as it is kept: of no trust, with the reason in `meta["quarantined"]`, if its text
    gives orders. No trust means that no store is ever given it; see `projection`."""
    verdict = screen(record.text, record.source)
    if not verdict.quarantined:
        return record
    return replace(record, trust=0.0, meta={**record.meta, "quarantined": verdict.why})


@dataclass(frozen=True, slots=True)
class _Sign:
    weight: float
    seen: re.Pattern[str]


def _sign(weight: float, *patterns: str) -> _Sign:
    return _Sign(weight, re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE))


_GAP = r"[^.!?\n]{0,80}?"
"""Within one sentence, and bounded, so that no text takes long."""

_MACHINE = r"(?:ai|a\.i\.|llm|chatbot|(?:ai |language )+(?:model|assistant)|assistant|gpt|agent)"
_ORDERS = (
    r"(?:instruction|prompt|rule|direction|order|guideline|command|task|context|message|"
    r"information|conversation|directive|polic(?:y|ie))s?"
)
_EARLIER = (
    r"(?:previous|prior|above|earlier|preceding|past|existing|former|initial|original|system)"
)
_REPLY = r"(?:answers?|responses?|repl(?:y|ies)|outputs?|summar(?:y|ies)|completions?)"
_SHAPE = (
    r"(?:add|include|insert|append|integrate|incorporate|embed|weave|begin|start|end|finish|"
    r"conclude|replace|rearrange|reverse|encode|encrypt|write|rewrite|give|provide|format|convert|"
    r"translate|use|introduce|remove|make|modify|mention|misspell|present|change|put)"
)

_SIGNS: Mapping[str, _Sign] = {
    "overrides instructions": _sign(
        0.9,
        rf"(?:ignore|disregard|\bforget|override|bypass|neglect|discard)\b{_GAP}"
        rf"\b(?:{_EARLIER}\s+{_ORDERS}|(?:all|your|these|those|the|any)\s+{_ORDERS})\b",
        r"\b(?:ignore|disregard|forget)\s+(?:about\s+)?(?:everything|all|anything)\b"
        r"(?:\s+\w+){0,3}?\s+(?:above|before|previous(?:ly)?|prior|earlier|you|so far)\b",
        r"\b(?:vergiss|ignorier(?:e|en)?)\b[^.!?\n]{0,40}\b(?:alles?|anweisung\w*|vorherig\w*)\b",
        r"\b(?:ignor(?:a|e|ez|er)|olvid(?:a|e)|oublie[zr]?)\b[^.!?\n]{0,40}"
        r"\b(?:instruc\w+|consignes|anterior\w*|pr[eé]c[eé]dent\w*)\b",
    ),
    "speaks to an assistant": _sign(
        0.6,
        rf"\b(?:you|dear|attention|hey|hello|to you|note to|message to|instructions? (?:for|to))"
        rf"[,:]?\s+(?:the\s+|an?\s+|all\s+|any\s+)?(?:{_MACHINE})s?\b",
        rf"\bif you(?:'re| are)\s+an?\s+(?:{_MACHINE})\b",
        rf"\b(?:{_MACHINE})s?\s+(?:reading|processing|summari[sz]ing|parsing)\s+this\b",
        rf"^\W*(?:{_MACHINE})[,:]\s+(?:please\s+)?(?:you|do|send|ignore|remember|store|tell)\b",
    ),
    "gives a new task": _sign(
        0.6,
        r"\byour\s+(?:new|real|actual|true|only)\s+(?:task|instructions?|directives?|persona)\b",
        r"\bnew\s+(?:instruction|task|rule|order|directive|command)s?\s*(?::|follow)",
        r"\bfrom now on,?\s+(?:you|always|never|respond|answer|reply)\b",
        r"\byou\s+are\s+now\s+(?:an?\s+(?!little|bit|lot)|the\s+|called|acting|no longer|free)",
        r"\byou\s+(?:will|must|shall)\s+now\s+(?:act|answer|respond|reply|be|play|obey|output)\b",
        r"(?:^|[.!?:,]\s+|\b(?:please|must|should|will|to)\s+)"
        r"(?:pretend\s+(?:to\s+be|you|that you)|act\s+as\s+(?:if\s+you|an?|the)\b)",
        r"\b(?:before|after)\s+(?:you\s+(?:can\s+|do\s+)?)?"
        r"(?:solv|answer|respond|reply|complet|continu|proceed|do)\w*\b[^.!?\n]{0,40}"
        r"\b(?:task|question|request|that)\b[^.!?\n]{0,60}\b(?:do|first|following|must|please)\b",
    ),
    "shapes the reply": _sign(
        0.55,
        rf"\b{_SHAPE}\b{_GAP}\byour\s+(?:next\s+|final\s+)?{_REPLY}\b",
        rf"\b(?:in|to|into|throughout|within)\s+your\s+(?:next\s+|final\s+)?{_REPLY}\b",
        r"\b(?:respond|answer|reply)\s+(?:only\s+|solely\s+|exclusively\s+|always\s+)"
        r"(?:in|with|as|using)\b",
        r"\b(?:say|print|repeat|output)\s+(?:exactly|only|after me|the following)\b",
    ),
    "asks for secrecy": _sign(
        0.5,
        r"\b(?:do\s+not|don't|never)\s+(?:mention|tell|reveal|inform|disclose|notify|alert)\b"
        r"[^.!?\n]{0,30}\b(?:user|instruction|anyone about this)",
        r"\bwithout\s+(?:telling|informing|notifying|asking|alerting)\s+the\s+user\b",
    ),
    "asks for the prompt": _sign(
        0.6,
        r"\b(?:reveal|print|show|repeat|output|leak|display|give|tell)\s+(?:me\s+|us\s+)?"
        rf"(?:all\s+)?(?:your|the)\s+(?:(?:{_EARLIER}|hidden|secret)\s+)*prompt\b",
        rf"\byour\s+(?:system|initial|hidden|secret)\s+(?:prompt|{_ORDERS})\b",
    ),
    "commands what touches the user": _sign(
        0.35,
        r"\b(?:send|e?mail|forward|transfer|delete|change|modify|post|upload|share|leak|pay|update)"
        rf"\b{_GAP}\b(?:of\s+)?the\s+user\b",
    ),
    "presses": _sign(0.3, r"\bimportant\s*(?:!|:|message)", r"\b(?:urgent|attention)\s*[!:]"),
    "commands what an agent does": _sign(
        0.3,
        r"(?:^|[.!?:]\s+|\bplease\s+)(?:send|e?mail|forward|transfer|delete|invite|visit|post|"
        r"upload|create|modify|execute|run)\b[^.!?\n]{0,120}"
        r"(?:\b[\w.+-]+@[\w-]+\.\w+|\bwww\.|https?://|\b[a-z]{2}\d{10,}|\bfile with id\b)",
    ),
    "hands over code to use": _sign(
        0.3,
        r"\b(?:add|includ|insert|integrat|incorporat|append|embed|utili[sz]|implement|execut)\w*\b"
        rf"{_GAP}\b(?:following|below|subsequent|this)\b[^.!?\n]{{0,20}}\b(?:code|snippet|excerpt)\b"
        rf"{_GAP}\b(?:your|you)\b",
    ),
    "imitates a chat's markup": _sign(
        0.9,
        r"<\|\s*(?:im_start|im_end|system|user|assistant|eot_id|start_header_id|endoftext)\s*\|>",
        r"\[/?inst\]|<</?sys>>|<(?:start|end)_of_turn>|</?memory\b",
    ),
    "imitates a prompt": _sign(
        0.5,
        r"^\s*(?:#+\s*)?system\s*(?:prompt|message|note|instruction|override)?\s*:",
        r"</?(?:system|instructions?|important|information|assistant|user_?(?:task|request))\s*>",
        r"^\s*-\s+(?:the user said|you told the user|a document says|a tool returned)\s*:",
        r"^\s*you answered\s*:",
    ),
    "imitates a tool call": _sign(
        0.8,
        r"</?(?:tool_call|tool_result|function_call|function_results?|invoke)\b",
        r"""["']name["']\s*:\s*["'][\w.-]+["']\s*,\s*["'](?:arguments|parameters)["']\s*:\s*\{""",
    ),
}
"""What is looked for in the text with its compatibility forms unified and what is invisible gone.
Weak signs (below `ENOUGH`) stand in honest texts as well, and count only together."""

_BARE_SIGNS: Mapping[str, _Sign] = {
    "hides text": _sign(
        0.6,
        "[\u200b\u2060\u180e]{3}|(?<=[a-z])[\u200b-\u200d\u2060](?=[a-z])",
        "[\u202d\u202e]",
        r"""style\s*=\s*["'][^"'>]{0,80}(?:display\s*:\s*none|font-size\s*:\s*0|opacity\s*:\s*0)""",
    ),
    "writes in tag characters": _sign(
        0.9, "(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0020-\U000e007e]"
    ),
}
"""What is looked for in the text as it is. Flags of regions are spelt in tag characters."""

_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\u202a-\u202e\u180e\ufeff\u00ad]")


def _plain(text: str) -> str:
    """As a model reads it: full-width letters as letters, curly quotes straight, nothing hidden."""
    unified = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _INVISIBLE.sub("", unified).replace("\u2019", "'")
