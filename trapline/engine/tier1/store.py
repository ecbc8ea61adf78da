"""Compiled regions on disk: what earlier runs made is there before it is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from struct import Struct

from trapline.engine.cache import REGIONS, ObjectCache
from trapline.engine.log import Entry, Log
from trapline.engine.tier1.built import Built

LIMIT = 8192
"""Regions kept for one configuration; more are compiled when they are needed, and not stored."""
HEAD = Struct("<III")
"""Index of the entry, the word there, and the word after it (0 if it is not the region's). The tag follows."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored region by what it begins with."""

    entry: int
    word: int
    following: int
    tag: str
    _file: Entry

    def read(self) -> Built | None:
        """All of it; None if it is damaged."""
        body = self._file.body
        if body is None:
            return None
        facts, _, code = body.partition(b"\n")
        pages, words, natives = json.loads(facts)
        return Built(self.tag, self.entry, tuple(pages), tuple(map(tuple, words)), tuple(natives), code)


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
        words = {index: word for page, index, word in built.words if page == 0}
        head = HEAD.pack(built.entry, words[built.entry], words.get(built.entry + 1, 0)) + built.tag.encode()
        facts = [built.pages, built.words, built.natives]
        self._cache.add(self._log, head, json.dumps(facts, separators=(",", ":")).encode() + b"\n" + built.code)

    def all(self) -> dict[str, Stored]:
        """Every stored region by its tag."""
        for entry in self._log.new():
            stored = Stored(*HEAD.unpack_from(entry.head), entry.head[HEAD.size :].decode(), entry)
            self._known[stored.tag] = stored
        return self._known
