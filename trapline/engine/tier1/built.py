"""What the compiler hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Built:
    """A compiled region and what it was made from.

    `entry` is the index of its first instruction in page 0; `pages` are its pages, counted from that one, which comes first;
    `words` are (page, index, word); `natives` the symbols of the functions that it calls; `code` the object file.
    """

    tag: str
    entry: int
    pages: tuple[int, ...]
    words: tuple[tuple[int, int, int], ...]
    natives: tuple[str, ...]
    code: bytes
