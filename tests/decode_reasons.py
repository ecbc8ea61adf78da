"""Why decoders disagree about a word, and who is wrong.

Each row says which disagreements it explains as narrowly as it can: by kind, by instruction (our name for it; the other's
mnemonic where we refuse), by features that are absent here, and by a test of the word.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from trapline.arm64.features import FEATURES
from trapline.arm64.regs import TABLE

ZR = 31


@dataclass(frozen=True)
class Reason:
    """One explanation: `names` is a regular expression for the name of our instruction; where we refuse for their mnemonic; and for
    mnemonics that differ for "ours theirs"."""

    text: str
    kinds: str
    names: str
    applies: Callable[[int], bool] = lambda word: True
    absent: str = ""
    """A feature that must not be implemented here: the row is wrong as soon as it is."""


def _bits(word: int, low: int, width: int) -> int:
    return word >> low & (1 << width) - 1


def _same_pair(word: int) -> bool:
    """A pair of loads into one register."""
    return bool(word >> 22 & 1) and _bits(word, 0, 5) == _bits(word, 10, 5)


def _loses_base(word: int) -> bool:
    """Writeback to a base register that is also transferred (a pair's second register included)."""
    base = _bits(word, 5, 5)
    pair = _bits(word, 27, 3) == 0b101
    return base != ZR and (base == _bits(word, 0, 5) or pair and base == _bits(word, 10, 5))


def _unused_fields(word: int) -> bool:
    """Rs or Rt2 of an exclusive or ordered access is not ones."""
    return _bits(word, 16, 5) != ZR or _bits(word, 10, 5) != ZR


def _with_sp(word: int) -> bool:
    """An extended register of full width added to or subtracted from SP, or giving it."""
    flags = word >> 29 & 1
    return _bits(word, 13, 3) == 2 + (word >> 31) and ZR in (_bits(word, 5, 5), ZR + 1 if flags else _bits(word, 0, 5))


def _nameless_prefetch(word: int) -> bool:
    return _bits(word, 3, 2) == 3 or _bits(word, 1, 2) == 3


def _no_offset(word: int) -> bool:
    return _bits(word, 12, 9) == 0 and _bits(word, 22, 1) == 0


def _transfer_register(word: int) -> bool:
    return _bits(word, 5, 15) | 0x8000 == TABLE["DBGDTRRX_EL0"].encoding


def _no_register(word: int) -> bool:
    """MRS or MSR of a register that is not in our table."""
    return (_bits(word, 5, 15) | 0x8000) not in _encodings()


def _registers_overlap(word: int) -> bool:
    """A memory copy or set whose registers are alike, or include the zero register."""
    d, n, s = (_bits(word, at, 5) for at in (0, 5, 16))
    return d in (n, s) or n == s or ZR in (d, n, s)


EITHER = "objdump|capstone"
BOTH_ACCEPT, BOTH_REFUSE = f"({EITHER}) accepts", f"({EITHER}) refuses"
UNPREDICTABLE = "CONSTRAINED UNPREDICTABLE, nobody is wrong: "

ALIASES = "|".join((
    "extr ror", "adds cmn", "subs (cmp|negs)", "sub neg", "sbc ngc", "sbcs ngcs", "ands tst", "orn mvn", "not mvn",
    "(orr|mov[nz]|ins|umov|dup|add) mov", "bfm bf(c|i|xil)", "[su]bfm (asr|ls[lr]|[su]bf(iz|x)|[su]xt[bhw])",
    "[su]?m(add|sub)l? ([su]?mull?|[su]?mnegl?)", "csinc (cset|cinc)", "csinv (csetm|cinv)", "csneg cneg", "b.cs b.hs", "b.cc b.lo",
    "ld(?P<op>add|clr|eor|set|[su]max|[su]min)(?P<size>l?[bh]?) st(?P=op)(?P=size)", "[su]shll(?P<half>2?) [su]xtl(?P=half)",
    "hint .*", "sys (ic|dc|at|tlbi)", "dsb (ssbb|pssbb|dfb)",
))  # fmt: skip
"""Mnemonics and what they are also called."""

REASONS = (
    Reason("SVE: absent here, and no issue of ours", BOTH_ACCEPT, ".*", lambda w: _bits(w, 25, 4) == 2, absent="SVE"),
    Reason("SME: absent here, and no issue of ours", BOTH_ACCEPT, ".*", lambda w: _bits(w, 25, 4) == 0 and w >> 31 == 1, absent="SME"),
    Reason("memory tagging is absent here", BOTH_ACCEPT, r"addg|subg|irg|gmi|subps?|st(z?2?g|z?gm|gp)|ldgm?", absent="MTE"),
    Reason("memory set with tagging is absent here", BOTH_ACCEPT, r"setg[pme]t?n?", absent="MTE"),
    Reason("hinted conditional branches are absent here", BOTH_ACCEPT, r"bc\..*", absent="HBC"),
    Reason("transactional memory is absent here", BOTH_ACCEPT, r"tcancel|tstart|tcommit|ttest", absent="TME"),
    Reason("64-byte loads and stores are absent here", BOTH_ACCEPT, r"ld64b|st64b(v0?)?", absent="LS64"),
    Reason("limited ordering regions are absent here", BOTH_ACCEPT, r"ldlar[bh]?|stllr[bh]?", absent="LOR"),
    Reason("UNDEFINED outside Debug state; disassemblers show the encoding", BOTH_ACCEPT, r"dcps[123]?|drps"),
    Reason("UNDEFINED while halting debug is off; disassemblers show the encoding", BOTH_ACCEPT, "hlt"),
    Reason("permanently UNDEFINED; disassemblers show the encoding", BOTH_ACCEPT, "udf"),
    Reason("MRS and MSR with op0 0 are unallocated; disassemblers show S0_...", BOTH_ACCEPT, "mrs|msr", lambda w: _bits(w, 19, 2) == 0),
    Reason("objdump is wrong: bit 22 of FMLAL and FMLSL is 0", "objdump accepts", r"fml[as]l2?", lambda w: bool(w >> 22 & 1)),
    Reason(UNPREDICTABLE + "two loads into one register", BOTH_REFUSE, r"ldpsw_.*|load_store_pair_.*", _same_pair),
    Reason(UNPREDICTABLE + "two loads into one register", BOTH_REFUSE, "load_exclusive_pair", _same_pair),
    Reason(UNPREDICTABLE + "writeback to a transferred register", BOTH_REFUSE, r".*_(pre|post)_index|load_authenticated", _loses_base),
    Reason("Capstone is wrong: LDTR has no writeback", "capstone refuses", "load_store_unprivileged", _loses_base),
    Reason("unused fields should be ones; ignored here", BOTH_REFUSE, r"(load|store)_(exclusive.*|acquire|release)", _unused_fields),
    Reason(UNPREDICTABLE + "overlapping registers of a copy or set", BOTH_REFUSE, r"(copy|set)_.*", _registers_overlap),
    Reason("both are right: an offset of 0 may be shown", f"({EITHER}) operands", "load_authenticated", _no_offset),
    Reason("both are right: MVN of a vector is an alias of NOT", "objdump mnemonic", "mvn not"),
    Reason("CRm of CFINV and its like should be zero; ignored here", f"({EITHER}) mnemonic", "(cfinv|axflag|xaflag) msr"),
    Reason("Capstone shows no name for a prefetch that has none", "capstone operands", r"prefetch.*", _nameless_prefetch),
    Reason("objdump is right too: LSL is an alias of UXTW or UXTX with SP", f"({EITHER}) operands", "add_sub_extended_register", _with_sp),
    Reason("LSLV and its like: we show their aliases", "objdump mnemonic", r"(?P<shift>lsl|lsr|asr|ror) (?P=shift)v"),
    Reason("Capstone shows an alias", "capstone mnemonic", ALIASES),
    Reason("one encoding is DBGDTRRX_EL0 to MRS and DBGDTRTX_EL0 to MSR", f"({EITHER}) operands", "msr_register", _transfer_register),
    Reason("a register that is not here, shown by its number", f"({EITHER}) operands", r"mrs|msr_register", _no_register),
)
"""In order: the first that applies is given."""


@cache
def _encodings() -> frozenset[int]:
    return frozenset(reg.encoding & 0xFFFF for reg in TABLE)


@cache
def _implemented() -> frozenset[str]:
    return frozenset(f.name for f in FEATURES if f.implemented)


def outdated() -> list[str]:
    """Rows that call a feature absent which is not."""
    return [r.text for r in REASONS if r.absent in _implemented()]


def explain(kind: str, name: str, word: int) -> str | None:
    """The reason for a disagreement, None if there is none; `name` as in `Reason.names`."""
    for reason in REASONS:
        if re.fullmatch(reason.kinds, kind) and re.fullmatch(reason.names, name) and reason.applies(word):
            return reason.text
    return None
