"""Whether any file still holds what was forgotten: every byte under the data folder is read.

A text is looked for by short stretches of it, in every encoding that a store may have used; a store
names the bytes of its own that stand for a record. What cannot be told apart from chance is said to
be so, and not that it is gone. Knows nothing of ledgers, of stores or of what a file is for, and
sees neither what is compressed nor what a file system keeps of deleted files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

from ..memory.erasures import Content
from .matching import SHORTEST, Matcher, telling

WINDOW = 24
"""Characters of a stretch: long enough to be no accident, short enough that part of a text, left in
the slack of a page, is found too."""

STEP = 64
"""Characters from one stretch of a text to the next, or more in a text of more than MOST stretches:
what a database leaves of a row, or spills onto another page, is longer."""

MOST = 16384

MARK = 192
"""Bytes of a store's mark that are looked for together. Long, as a mark may be put together of
parts that stand for single words, and other records have those, too."""

BLOCK = 1 << 20
"""Bytes that are read at once."""

ENCODINGS: Mapping[str, Callable[[str], bytes]] = {
    "UTF-8": str.encode,
    "UTF-16-LE": lambda text: text.encode("utf-16-le"),
    "UTF-16-BE": lambda text: text.encode("utf-16-be"),
    "JSON": lambda text: json.dumps(text)[1:-1].encode(),
    "JSON in UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1].encode(),
}

_INDEX_SUFFIX = "-shm"
"""SQLite's index of its log: page numbers, and locks that reading it would undo."""

_kept: dict[tuple[int, int], int] = {}
"""(device, inode) -> descriptor of a SQLite file. To close one, any one, drops all POSIX locks that
this process has on the file, and another process could then take the database to be nobody's
(sqlite.org/howtocorrupt.html, 2.2). Locks belong to the process, and so does this table."""

_MOST_KEPT = 128

_reading = Lock()
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Needle:
    """A byte string to look for.

    Args:
        of: the record it stands for, or the store that named it.
        form: how the text was encoded; "meta" for what stood beside it, in any encoding; "mark"
            for a store's own bytes.
        plain: the same in UTF-8, as a record that stays would say it.
    """

    of: str
    form: str
    plain: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """Bytes that were found.

    Args:
        file: relative to the data folder where it lies in it.
        offset: of the first of `count`, in bytes; in a file's name, of the list of all names.
    """

    file: str
    of: str
    form: str
    offset: int
    count: int


@dataclass(slots=True)
class Found:
    """What a search came upon: (file, string) -> [first offset, count]; and what it read."""

    hits: dict[tuple[str, bytes], list[int]] = field(default_factory=dict)
    files: int = 0
    size: int = 0
    unread: list[str] = field(default_factory=list)

    def note(self, file: str, offset: int, string: bytes) -> None:
        """Count an occurrence."""
        seen = self.hits.setdefault((file, string), [offset, 0])
        seen[0] = min(seen[0], offset)
        seen[1] += 1


class Needles:
    """Everything to look for."""

    def __init__(self) -> None:
        self._needles: dict[bytes, Needle] = {}
        self.unsearchable: list[str] = []
        self.hashes: list[str] = []

    def __len__(self) -> int:
        return len(self._needles)

    def add(self, content: Content) -> None:
        """Look for a record's text and what stood beside it, for its SHA-256, by which it could be
        guessed, and for the salt in its row. A text of which no stretch is telling goes to
        `unsearchable`; of that the row would be found, by the salt."""
        record = content.id
        if not self._add_text(record, content.text):
            self.unsearchable.append(record)
        for text in content.beside:
            self._add_text(record, text, "meta")
        self.hashes.append(content.hash)
        self._add(content.salt.encode(), Needle(record, "salt", content.salt.encode()))
        for string in (content.hash.encode(), bytes.fromhex(content.hash)):
            self._add(string, Needle(record, "SHA-256", content.hash.encode()))

    def add_mark(self, store: str, mark: bytes) -> None:
        """Look for bytes that a store says stand for a record."""
        last = max(0, len(mark) - MARK)
        for start in (*range(0, last, MARK), last):
            part = mark[start : start + MARK]
            self._add(part, Needle(store, "mark", part))

    def search(self, folder: Path, others: Iterable[Path] = ()) -> Found:
        """Read all files under `folder`, their names, and `others`."""
        found, matcher = Found(), Matcher(self._needles)
        names = []
        for path in [*_files(folder), *others]:
            name = _name(path, folder)
            names.append(name)
            try:
                found.size += _scan(path, matcher, partial(found.note, name))
            except FileNotFoundError:
                continue  # a log that was emptied and removed since the folder was listed
            except OSError as error:
                found.unread.append(f"{name}: {error.strerror}")
                continue
            found.files += 1
        for offset, string in matcher.find("\n".join(names).encode(errors="surrogateescape")):
            found.note("names of files", offset, string)
        return found

    def also_held(
        self,
        found: Found,
        said: Callable[[], Iterable[str]],
        marks: Callable[[str], Iterable[bytes]],
    ) -> frozenset[bytes]:
        """Those of the strings found that are there on account of something that stays.

        Args:
            said: all that the records that stay say.
            marks: of a store, the bytes that stand for the records it still holds.
        """
        hits = {string: self._needles[string] for _, string in found.hits}
        plains = {needle.plain for needle in hits.values() if needle.form != "mark"}
        standing = set(_held(plains, _forms(said()))) if plains else set()
        for store in {needle.of for needle in hits.values() if needle.form == "mark"}:
            own = {needle.plain for needle in hits.values() if needle.of == store}
            standing.update(_held(own, marks(store)))
        return frozenset(string for string, needle in hits.items() if needle.plain in standing)

    def hits(self, found: Found) -> Iterator[tuple[bytes, Hit]]:
        """What was found, string by string and file by file."""
        for (file, string), (offset, count) in sorted(found.hits.items()):
            needle = self._needles[string]
            yield string, Hit(file=file, of=needle.of, form=needle.form, offset=offset, count=count)

    def _add_text(self, record: str, text: str, form: str | None = None) -> bool:
        """Returns whether any stretch of it is telling."""
        searched = False
        for stretch in _stretches(text):
            for part in dict.fromkeys([stretch, " ".join(stretch.split()), stretch.casefold()]):
                plain = part.encode()
                for name, encode in ENCODINGS.items():
                    searched |= self._add(encode(part), Needle(record, form or name, plain))
        return searched

    def _add(self, string: bytes, needle: Needle) -> bool:
        if telling(string) is None or len(needle.plain) < SHORTEST:
            return False
        self._needles.setdefault(string, needle)
        return True


def _stretches(text: str) -> Iterator[str]:
    """Stretches of a text: its beginning, its end, and some between, evenly."""
    text = text.strip()
    last = max(0, len(text) - WINDOW)
    parts = min(MOST, max(-(-last // STEP), min(2, -(-last // WINDOW))))
    for part in range(parts + 1):
        start = last * part // parts if parts else 0
        yield text[start : start + WINDOW]


def _files(folder: Path) -> Iterator[Path]:
    """Every file; links are not followed, as they lead out of the folder."""
    for root, _, names in os.walk(folder):
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and not path.is_symlink() and not name.endswith(_INDEX_SUFFIX):
                yield path


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _scan(path: Path, matcher: Matcher, note: Callable[[int, bytes], None]) -> int:
    """Tell `note` of every occurrence in a file; returns the bytes read."""
    with _reading, _opened(path) as descriptor:
        carried, offset = b"", 0
        while block := os.read(descriptor, BLOCK):
            data = carried + block
            for at, string in matcher.find(data):
                if at + len(string) > len(carried):  # else it was found with the block before
                    note(offset - len(carried) + at, string)
            offset += len(block)
            carried = data[-(matcher.longest - 1) :] if matcher.longest > 1 else b""
    return offset


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor at the file's beginning, which stays open if the file is SQLite's."""
    _close_removed()
    status = path.stat()
    descriptor = _kept.get((status.st_dev, status.st_ino))
    if descriptor is None:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        if os.read(descriptor, len(_SQLITE)) == _SQLITE:
            status = os.fstat(descriptor)
            _kept[status.st_dev, status.st_ino] = descriptor
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        yield descriptor
    finally:
        if descriptor not in _kept.values():
            os.close(descriptor)


def _close_removed() -> None:
    """Files that are in no folder any more have no locks worth keeping, and take up room."""
    for key, descriptor in list(_kept.items()):
        if os.fstat(descriptor).st_nlink == 0 or len(_kept) > _MOST_KEPT:
            os.close(_kept.pop(key))


def _held(strings: Collection[bytes], parts: Iterable[bytes]) -> set[bytes]:
    """Those of the strings that are in any of the parts."""
    matcher, found = Matcher(strings), set[bytes]()
    for block in _blocks(parts):
        found.update(string for _, string in matcher.find(block))
        if len(found) == len(strings):
            break
    return found


def _forms(texts: Iterable[str]) -> Iterator[bytes]:
    for text in texts:
        yield "\n".join([text, " ".join(text.split()), text.casefold()]).encode()


def _blocks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts, joined into few: a search costs the same for a line as for a page."""
    gathered: list[bytes] = []
    size = 0
    for part in parts:
        gathered.append(part)
        size += len(part)
        if size >= BLOCK:
            yield b"\n".join(gathered)
            gathered, size = [], 0
    yield b"\n".join(gathered)
