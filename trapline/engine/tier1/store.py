"""Compiled regions on disk: what earlier runs made is there before it is asked for."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from struct import Struct

from trapline.engine.cache import REGIONS, ObjectCache
from trapline.engine.log import Entry, Log
from trapline.engine.tier1.built import Built

LIMIT = 8192
"""Regions kept for one configuration; more are compiled when they are needed, and not stored."""
HEAD = Struct("<III")
"""Index of the entry, the word there, bytes of the tag. The tag follows, and then the code on the entry's page, in runs."""
RUN = Struct("<HH")
"""Index of the first word and number of words; the words follow."""
WORD = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored region by what it begins with."""

    entry: int
    word: int
    tag: str
    _runs: bytes
    _file: Entry

    @classmethod
    def of(cls, file: Entry) -> Stored:
        """From its place in the log."""
        entry, word, length = HEAD.unpack_from(file.head)
        runs = HEAD.size + length
        return cls(entry, word, file.head[HEAD.size : runs].decode(), file.head[runs:], file)

    def fits(self, page: bytes) -> bool:
        """Whether a page of code holds what the first page of this region held."""
        runs, at = self._runs, 0
        while at < len(runs):
            start, count = RUN.unpack_from(runs, at)
            at += RUN.size
            if page[WORD * start : WORD * (start + count)] != runs[at : at + WORD * count]:
                return False
            at += WORD * count
        return True

    def read(self) -> Built | None:
        """All of it; None if it is damaged."""
        body = self._file.body
        if body is None:
            return None
        facts, _, code = body.partition(b"\n")
        entries, pages, words, natives, loops = json.loads(facts)
        return Built(self.tag, tuple(entries), tuple(pages), tuple(map(tuple, words)), tuple(natives), loops, code)


def _head(built: Built) -> bytes:
    """What `Stored.of` reads."""
    words = {index: word for page, index, word in built.words if page == 0}
    tag = built.tag.encode()
    entry = built.entries[0]
    parts = [HEAD.pack(entry, words[entry], len(tag)), tag]
    starts = [index for index in sorted(words) if index - 1 not in words]
    for start in starts:
        end = next(index for index in itertools.count(start) if index not in words)
        parts += [RUN.pack(start, end - start), b"".join(words[index].to_bytes(WORD, "little") for index in range(start, end))]
    return b"".join(parts)


class RegionStore:
    """The regions of one configuration, in a file of its cache."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._log = Log(cache.path / REGIONS)
        self._known: dict[str, Stored] = {}

    def add(self, built: Built) -> None:
        """Store a region."""
        known = self.all()
        if built.tag in known or len(known) >= LIMIT:
            return
        facts = [built.entries, built.pages, built.words, built.natives, built.loops]
        self._cache.add(self._log, _head(built), json.dumps(facts, separators=(",", ":")).encode() + b"\n" + built.code)

    def all(self) -> dict[str, Stored]:
        """Every stored region by its tag."""
        for entry in self._log.new():
            stored = Stored.of(entry)
            self._known[stored.tag] = stored
        return self._known
