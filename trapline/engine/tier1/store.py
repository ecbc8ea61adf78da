"""Compiled regions on disk: what earlier runs made is there before it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

from trapline.engine.jit import ObjectCache
from trapline.engine.tier1.built import Built

SUFFIX = ".region"
LIMIT = 8192
"""Regions kept for one configuration; more are compiled when they are needed, and not stored."""


class RegionStore:
    """Regions in the object cache: for each a file with a line of JSON and the object."""

    def __init__(self, cache: ObjectCache) -> None:
        self._cache = cache
        self._count: int | None = None

    def add(self, built: Built) -> None:
        """Store a region."""
        if self._count is None:
            self._count = len(self._cache.names(SUFFIX))
        if self._count >= LIMIT:
            return
        self._count += 1
        facts = [built.entry, built.pages, built.words, built.natives]
        self._cache.put(built.tag + SUFFIX, json.dumps(facts).encode() + b"\n" + built.code)

    def all(self) -> Iterator[Built]:
        """Every stored region."""
        for name in self._cache.names(SUFFIX):
            data = self._cache.get(name)
            if data is None:
                continue
            head, _, code = data.partition(b"\n")
            entry, pages, words, natives = json.loads(head)
            yield Built(name.removesuffix(SUFFIX), entry, tuple(pages), tuple(map(tuple, words)), tuple(natives), code)
