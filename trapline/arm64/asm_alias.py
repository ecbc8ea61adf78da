"""Aliases: other spellings of an instruction, rewritten as text before the templates see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from trapline.arm64.asm_elements import CONDITION_ALIASES, CONDITIONS, NUMBER

R = r"([xw](?:\d+|zr)|lr|fp)"
SP = r"([xw](?:\d+|zr)|lr|fp|w?sp)"
IMM = rf"#?({NUMBER})"
REST = r"(.+)"
COND = "(" + "|".join((*CONDITIONS, *CONDITION_ALIASES)) + ")"


class Alias(NamedTuple):
    """A pattern over the whole statement and what it stands for; None when the operands don't fit."""

    pattern: re.Pattern[str]
    expand: Callable[..., str | None]


def _alias(syntax: str, expand: str | Callable[..., str | None]) -> Alias:
    """`syntax` in which R, SP, IMM, REST and COND stand for operands; a string result is a format over them and {zr}."""
    parts = re.split(r"\b(R|SP|IMM|REST|COND)\b", syntax)
    operand = {"R": R, "SP": SP, "IMM": IMM, "REST": REST, "COND": COND}
    pattern = "".join(operand.get(p) or re.escape(p).replace(r"\ ", " ").replace(",\\ ", ", ") for p in parts)
    pattern = pattern.replace(", ", r"\s*,\s*")
    if isinstance(expand, str):
        text = expand
        expand = lambda *operands: text.format(*operands, zr=_zero(operands[0]))  # noqa: E731
    return Alias(re.compile(pattern), expand)


def _zero(register: str) -> str:
    return "wzr" if register.startswith("w") else "xzr"


def _width(register: str) -> int:
    return 32 if register.startswith("w") else 64


def _mov_register(rd: str, rn: str) -> str:
    return f"add {rd}, {rn}, #0" if "sp" in (rd + rn) else f"orr {rd}, {_zero(rd)}, {rn}"


def _mov_immediate(rd: str, text: str) -> str | None:
    """MOVZ, MOVN or ORR, whichever holds the value."""
    width = _width(rd)
    value = int(text, 0) % 2**width
    for name, candidate in (("movz", value), ("movn", value ^ (2**width - 1))):
        for shift in range(0, width, 16):
            if candidate & ~(0xFFFF << shift) == 0:
                return f"{name} {rd}, #{candidate >> shift}" + (f", lsl #{shift}" if shift else "")
    return f"orr {rd}, {_zero(rd)}, #{value:#x}"


def _shift_left(rd: str, rn: str, text: str) -> str:
    width, shift = _width(rd), int(text, 0)
    return f"ubfm {rd}, {rn}, #{-shift % width}, #{width - 1 - shift}"


def _insert(name: str, at_bottom: bool) -> Callable[[str, str, str, str], str]:
    """BFI and UBFIZ put the low bits at lsb; BFXIL, UBFX and SBFX bring bits from lsb to the bottom."""

    def expand(rd: str, rn: str, lsb: str, width: str) -> str:
        low, size = int(lsb, 0), int(width, 0)
        if at_bottom:
            return f"{name} {rd}, {rn}, #{low}, #{low + size - 1}"
        return f"{name} {rd}, {rn}, #{-low % _width(rd)}, #{size - 1}"

    return expand


def _inverted(text: str) -> Callable[..., str]:
    """Expand with the last operand, a condition, inverted."""

    def expand(*operands: str) -> str:
        condition = CONDITION_ALIASES.get(operands[-1], operands[-1])
        inverse = CONDITIONS[CONDITIONS.index(condition) ^ 1]
        return text.format(*operands[:-1], inverse, zr=_zero(operands[0]))

    return expand


# op1, CRn, CRm, op2 of SYS; those with a register operand are written with it.
SYSTEM_OPERATIONS = {
    "ic ialluis": (0, 7, 1, 0), "ic iallu": (0, 7, 5, 0), "ic ivau": (3, 7, 5, 1),
    "dc ivac": (0, 7, 6, 1), "dc isw": (0, 7, 6, 2), "dc csw": (0, 7, 10, 2), "dc cisw": (0, 7, 14, 2),
    "dc zva": (3, 7, 4, 1), "dc cvac": (3, 7, 10, 1), "dc cvau": (3, 7, 11, 1), "dc civac": (3, 7, 14, 1),
    "dc cvap": (3, 7, 12, 1), "at s1e1r": (0, 7, 8, 0), "at s1e1w": (0, 7, 8, 1), "at s1e0r": (0, 7, 8, 2),
    "at s1e0w": (0, 7, 8, 3), "at s12e1r": (4, 7, 8, 4), "at s12e1w": (4, 7, 8, 5), "at s12e0r": (4, 7, 8, 6),
    "at s12e0w": (4, 7, 8, 7), "at s1e2r": (4, 7, 8, 0), "at s1e2w": (4, 7, 8, 1),
    "tlbi vmalle1is": (0, 8, 3, 0), "tlbi vae1is": (0, 8, 3, 1), "tlbi aside1is": (0, 8, 3, 2), "tlbi vaae1is": (0, 8, 3, 3),
    "tlbi vale1is": (0, 8, 3, 5), "tlbi vaale1is": (0, 8, 3, 7), "tlbi vmalle1": (0, 8, 7, 0), "tlbi vae1": (0, 8, 7, 1),
    "tlbi aside1": (0, 8, 7, 2), "tlbi vaae1": (0, 8, 7, 3), "tlbi vale1": (0, 8, 7, 5), "tlbi vaale1": (0, 8, 7, 7),
    "tlbi ipas2e1is": (4, 8, 0, 1), "tlbi ipas2le1is": (4, 8, 0, 5), "tlbi alle2is": (4, 8, 3, 0), "tlbi vae2is": (4, 8, 3, 1),
    "tlbi alle1is": (4, 8, 3, 4), "tlbi vale2is": (4, 8, 3, 5), "tlbi vmalls12e1is": (4, 8, 3, 6), "tlbi ipas2e1": (4, 8, 4, 1),
    "tlbi ipas2le1": (4, 8, 4, 5), "tlbi alle2": (4, 8, 7, 0), "tlbi vae2": (4, 8, 7, 1), "tlbi alle1": (4, 8, 7, 4),
    "tlbi vale2": (4, 8, 7, 5), "tlbi vmalls12e1": (4, 8, 7, 6),
}  # fmt: skip


def _system_operation(operation: str, name: str, register: str | None = None) -> str | None:
    encoding = SYSTEM_OPERATIONS.get(f"{operation} {name}")
    if encoding is None:
        return None
    op1, crn, crm, op2 = encoding
    return f"sys #{op1}, c{crn}, c{crm}, #{op2}" + (f", {register}" if register else "")


HINTS = {"esb": 16, "psb csync": 17, "tsb csync": 18, "csdb": 20, "bti": 32, "bti c": 34, "bti j": 36, "bti jc": 38}

ALIASES = (
    _alias("mov SP, SP", _mov_register),
    _alias("mov R, IMM", _mov_immediate),
    _alias("mvn R, REST", "orn {0}, {zr}, {1}"),
    _alias("neg R, REST", "sub {0}, {zr}, {1}"),
    _alias("negs R, REST", "subs {0}, {zr}, {1}"),
    _alias("ngc R, R", "sbc {0}, {zr}, {1}"),
    _alias("ngcs R, R", "sbcs {0}, {zr}, {1}"),
    _alias("cmp SP, REST", "subs {zr}, {0}, {1}"),
    _alias("cmn SP, REST", "adds {zr}, {0}, {1}"),
    _alias("tst R, REST", "ands {zr}, {0}, {1}"),
    # The shifted-register forms have no SP, so SP as an operand selects the extended-register form.
    *(_alias(f"{name} SP, SP, R", f"{name} {{0}}, {{1}}, {{2}}, uxtx") for name in ("add", "sub", "adds", "subs")),
    *(_alias(f"{name} SP, SP, R, lsl IMM", f"{name} {{0}}, {{1}}, {{2}}, uxtx #{{3}}") for name in ("add", "sub")),
    _alias("lsl R, R, IMM", _shift_left),
    _alias("lsr R, R, IMM", lambda rd, rn, n: f"ubfm {rd}, {rn}, #{n}, #{_width(rd) - 1}"),
    _alias("asr R, R, IMM", lambda rd, rn, n: f"sbfm {rd}, {rn}, #{n}, #{_width(rd) - 1}"),
    _alias("ror R, R, IMM", "extr {0}, {1}, {1}, #{2}"),
    _alias("ubfx R, R, IMM, IMM", _insert("ubfm", True)),
    _alias("sbfx R, R, IMM, IMM", _insert("sbfm", True)),
    _alias("bfxil R, R, IMM, IMM", _insert("bfm", True)),
    _alias("bfi R, R, IMM, IMM", _insert("bfm", False)),
    _alias("ubfiz R, R, IMM, IMM", _insert("ubfm", False)),
    _alias("sbfiz R, R, IMM, IMM", _insert("sbfm", False)),
    _alias("uxtb R, R", "ubfm {0}, {1}, #0, #7"),
    _alias("uxth R, R", "ubfm {0}, {1}, #0, #15"),
    *(_alias(f"sxt{name} R, R", lambda rd, rn, top=top: f"sbfm {rd}, {'x' if rd[0] == 'x' else 'w'}{rn[1:]}, #0, #{top}")
      for name, top in (("b", 7), ("h", 15), ("w", 31))),
    _alias("cset R, COND", _inverted("csinc {0}, {zr}, {zr}, {1}")),
    _alias("csetm R, COND", _inverted("csinv {0}, {zr}, {zr}, {1}")),
    _alias("cinc R, R, COND", _inverted("csinc {0}, {1}, {1}, {2}")),
    _alias("cinv R, R, COND", _inverted("csinv {0}, {1}, {1}, {2}")),
    _alias("cneg R, R, COND", _inverted("csneg {0}, {1}, {1}, {2}")),
    _alias("mul R, R, R", "madd {0}, {1}, {2}, {zr}"),
    _alias("mneg R, R, R", "msub {0}, {1}, {2}, {zr}"),
    _alias("smull R, R, R", "smaddl {0}, {1}, {2}, xzr"),
    _alias("umull R, R, R", "umaddl {0}, {1}, {2}, xzr"),
    *(_alias(f"st{op}{order}{size} R, REST", lambda rs, address, op=op, order=order, size=size:
             f"ld{op}{order}{size} {rs}, {_zero(rs)}, {address}")
      for op in ("add", "clr", "eor", "set", "smax", "smin", "umax", "umin") for order in ("", "l") for size in ("", "b", "h")),
    *(_alias(f"b{condition} REST", f"b.{condition} {{0}}") for condition in (*CONDITIONS, *CONDITION_ALIASES)),
    Alias(re.compile(r"(ic|dc|at|tlbi) (\w+)(?:\s*,\s*(x\d+|xzr))?"), _system_operation),
    Alias(re.compile(r"dsb"), lambda: "dsb sy"),
    Alias(re.compile(r"dmb"), lambda: "dmb sy"),
    Alias(re.compile(r"isb sy"), lambda: "isb"),
    Alias(re.compile(r"(esb|csdb|psb csync|tsb csync|bti|bti c|bti j|bti jc)"), lambda name: f"hint #{HINTS[name]}"),
)  # fmt: skip


def expand_alias(text: str, depth: int = 2) -> Iterator[str]:
    """Every statement that `text` may be another spelling of, aliases of aliases included."""
    for alias in ALIASES:
        match = alias.pattern.fullmatch(text)
        if match and (expanded := alias.expand(*match.groups())) is not None:
            yield expanded
            if depth > 1:
                yield from expand_alias(expanded, depth - 1)
