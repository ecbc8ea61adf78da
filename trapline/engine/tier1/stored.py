"""Regions of earlier runs: found again by the code that they were made from."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from weakref import WeakValueDictionary

from trapline.engine.state import PAGE_GENERATION, PAGE_HEADER
from trapline.engine.tier1.built import Built
from trapline.engine.tier1.install import Texts
from trapline.engine.tier1.store import Stored


class StoredRegions:
    """Stored regions, and which of them belong to the pages that this engine runs."""

    def __init__(self, regions: Iterable[Stored]) -> None:
        self._places: dict[int, dict[int, list[Stored]]] = {}
        """Regions by the word at their entry and by its index in the page."""
        for stored in regions:
            self._places.setdefault(stored.word, {}).setdefault(stored.entry, []).append(stored)
        self._words = frozenset(self._places)
        self._waiting: dict[int, tuple[int, list[Built]]] = {}
        self._read: WeakValueDictionary[str, Built] = WeakValueDictionary()
        """One object for any number of pages that hold the same code."""

    def has_news(self, records: int) -> bool:
        """Whether `waiting` may have something for a page: it was not asked before, its code changed, or there is something left."""
        known = self._waiting.get(records)
        return known is None or bool(known[1]) or known[0] != _generation(records)

    def waiting(self, records: int, texts: Texts) -> list[Built]:
        """The regions of a page that are still to be put into service; who does that takes them out of the list."""
        generation = _generation(records)
        known = self._waiting.get(records)
        if known is not None and known[0] == generation:
            return known[1]
        text = texts.read(records)
        found = [] if text is None else self._matching(text)
        self._waiting[records] = generation, found
        return found

    def _matching(self, page: bytes) -> list[Built]:
        words = memoryview(page).cast("I")
        found = []
        for word in self._words.intersection(words):
            for index, regions in self._places[word].items():
                if words[index] == word:
                    found += [built for each in regions if each.fits(page) and (built := self._built(each)) is not None]
        return found

    def _built(self, stored: Stored) -> Built | None:
        built = self._read.get(stored.tag) or stored.read()
        if built is not None:
            self._read[stored.tag] = built
        return built


def _generation(records: int) -> int:
    """What changes whenever decoded instructions of a page are forgotten."""
    return int(ctypes.c_uint64.from_address(records - PAGE_HEADER + PAGE_GENERATION).value)
