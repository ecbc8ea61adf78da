"""What the compiler hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Built:
    """A compiled region and what it was made from.

    `entries` are the indices in page 0 of the instructions where it can be entered; `pages` are its
    pages, counted from that one, which comes first; `words` are (page, index, word); `natives` the symbols of the functions that it
    calls; `loops`: whether control goes round in it; `code` the object file.
    """

    tag: str
    entries: tuple[int, ...]
    pages: tuple[int, ...]
    words: tuple[tuple[int, int, int], ...]
    natives: tuple[str, ...]
    loops: bool
    code: bytes
