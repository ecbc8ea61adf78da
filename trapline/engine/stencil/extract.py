"""From an object file to templates."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from trapline.engine.stencil.emit import NATIVE
from trapline.engine.stencil.template import (
    CALLED,
    FUNCTION,
    GOTO,
    LANDING,
    NEEDS_SLOW,
    NEXT,
    OFFSET,
    PLAIN,
    POLL,
    REACHES_NEXT,
    RECORD,
    SIGNED,
    SLOT,
    SLOW,
    SPECIAL,
    TARGET,
    Relocation,
    Template,
)

_NAMED = {"record": RECORD, "offset": OFFSET, "plain": PLAIN, "function": FUNCTION}
_FUNCTIONS = {"next": NEXT, "slow": SLOW, "poll": POLL, "goto": GOTO, "landing": LANDING}
_WIDTHS = {1: 8, 10: 4, 11: 4, 12: 2, 14: 1}
"""Bytes by type of relocation on x86-64: R_X86_64_64, 32, 32S, 16, 8."""
_RELATIVE = (2, 4)
"""R_X86_64_PC32, R_X86_64_PLT32."""
_JUMP = b"\xe9"
"""A jump over a 32-bit distance: what a template ends with if it reaches the next instruction, and does without there."""
_SYMBOL = re.compile(r"(slot|target)_(\d+)_(\d)_([01])")


def _relocation(at: int, kind: int, name: str, addend: int, natives: list[str]) -> Relocation | None:
    """A relocation of an object file as ours; None if there is no such thing. Native functions that are called are added to the list."""
    if kind in _RELATIVE:
        return Relocation(at, _FUNCTIONS[name], 4, 0, 0, addend) if name in _FUNCTIONS else None
    width = _WIDTHS.get(kind)
    if width is None:
        return None
    if name in _NAMED:
        return Relocation(at, _NAMED[name], width, 0, 0, addend)
    if name.startswith(NATIVE):
        symbol = name.removeprefix(NATIVE)
        if symbol not in natives:
            natives.append(symbol)
        return Relocation(at, CALLED, width, 0, 0, natives.index(symbol))
    match = _SYMBOL.fullmatch(name)
    if match is None:
        return None
    size = int(match[3]) | (SIGNED if match[4] == "1" or match[1] == "target" else 0)
    return Relocation(at, SLOT if match[1] == "slot" else TARGET, width, int(match[2]), size, addend)


def extract(data: bytes, natives: list[str]) -> Iterator[tuple[str, bytes]]:
    """Names and templates of an object file's functions, but for those that refer to what templates cannot.

    `natives` gets the native functions that they call.
    """
    elf = ELFFile(io.BytesIO(data))
    text = elf.get_section_by_name(".text")
    symbols = elf.get_section_by_name(".symtab")
    entries = elf.get_section_by_name(".rela.text")
    assert text is not None and isinstance(symbols, SymbolTableSection)
    relocations = sorted(entries.iter_relocations(), key=lambda r: r["r_offset"]) if isinstance(entries, RelocationSection) else []
    code = text.data()
    for symbol in symbols.iter_symbols():
        if symbol["st_info"]["type"] != "STT_FUNC":
            continue
        start, size = symbol["st_value"], symbol["st_size"]
        inside = [r for r in relocations if start <= r["r_offset"] < start + size]
        found = [
            _relocation(r["r_offset"] - start, r["r_info_type"], symbols.get_symbol(r["r_info_sym"]).name, r["r_addend"], natives)
            for r in inside
        ]
        places = [r for r in found if r is not None]
        if len(places) == len(found):
            yield symbol.name, _template(symbol.name, code[start : start + size], places)


def _template(name: str, code: bytes, places: list[Relocation]) -> bytes:
    flags = 0
    if any(r.kind == NEXT for r in places):
        flags |= REACHES_NEXT
    if any(r.kind == SLOW for r in places):
        flags |= NEEDS_SLOW
    last = places[-1] if places else None
    if last is not None and last.kind == NEXT and last.at == len(code) - 4 and code[-5:-4] == _JUMP:
        code = code[:-5]
        places = places[:-1]
    shape = SPECIAL[name] if name in SPECIAL else int(name[1:])
    padded = code + bytes(-len(code) % 8)
    return bytes(Template(len(code), len(places), flags, shape)) + b"".join(map(bytes, places)) + padded
