"""A table of names, each with the place its code is imported from when first asked for.

Knows nothing of what it registers. A row is `"name": "package.module:attribute"`; packages outside
add rows by an entry point in the registry's group, so adding a method never edits the core.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from .errors import ConfigError, UnknownName


class Registry:
    """Names to lazily imported targets.

    Args:
        noun: what is registered, for error messages ("memory").
        rows: name -> "module:attribute"; a leading dot is relative to this package.
        group: the entry-point group that outside packages use.
    """

    def __init__(self, noun: str, rows: Mapping[str, str], *, group: str) -> None:
        self.noun = noun
        self.group = group
        self._rows = dict(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._table()))

    def __contains__(self, name: object) -> bool:
        return name in self._table()

    def load(self, name: str) -> Any:
        """Import and return the target called `name`; UnknownName lists the known ones."""
        table = self._table()
        if name not in table:
            known = ", ".join(sorted(table))
            raise UnknownName(f"{self.noun} {name!r} is not known; known: {known}")
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module, package=__package__), attribute)

    def build(self, spec: str, **options: Any) -> Any:
        """What a spec such as `"sirllm:budget=512"` says, of a dataclass: its fields are options.

        Raises:
            UnknownName: no such name.
            ConfigError: it has no such option, or an option breaks a rule.
        """
        name, given = parse_spec(spec)
        target = self.load(name)
        known = [field.name for field in fields(target)]
        for option in given | options:
            if option not in known:
                raise ConfigError(f"{self.noun} {name!r} has no option {option!r}; it has {known}")
        for field in fields(target):
            value = (given | options).get(field.name)
            if isinstance(value, str) and isinstance(field.default, int | float):
                kind = "a whole number" if isinstance(field.default, int) else "a number"
                raise ConfigError(f"{self.noun} {name!r}: {field.name}={value!r} must be {kind}")
        return target(**given | options)

    def _table(self) -> dict[str, str]:
        found = {point.name: point.value for point in entry_points(group=self.group)}
        clash = found.keys() & self._rows.keys()
        if clash:
            raise ConfigError(
                f"entry-point group {self.group!r} redefines built-in {self.noun} {sorted(clash)};"
                " rename the outside one"
            )
        return found | self._rows


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`"scm:k=6,gate=llm"` -> `("scm", {"k": 6, "gate": "llm"})`.

    Values are read as int, float, true/false, or text.
    """
    name, _, tail = spec.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"option {part!r} in {spec!r} has no value; write {part}=VALUE")
        options[key.strip()] = _literal(value.strip())
    return name.strip(), options


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
