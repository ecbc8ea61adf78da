"""Where an access to a system register or a system instruction goes: allowed, UNDEFINED, or trapped to EL1 or EL2.

Everything follows from the rows of `arm64.regs`. `access_result` is the definition; `access_outcome` is the same decision compiled,
over constant tables made from the rows, for the engine's slow path.

The order is the manual's: implementation-defined space under HCR_EL2.TIDCP, then privilege, then EL1's controls of EL0, then EL2's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trapline.arm64.exceptions import FP_ISS, HOST, IL, route_sync, sysreg_syndrome, take_exception
from trapline.arm64.regs import TABLE
from trapline.arm64.regs.el2 import HCR_EL2, MDCR_EL2
from trapline.arm64.regs.special import FP_ACCESS
from trapline.arm64.regs.system import SYSTEM_OPS, SystemOp
from trapline.arm64.state import CpuState
from trapline.arm64.sysreg import Sysreg, Trap, decode
from trapline.bits.native import Ptr, native, u1, u32, u64
from trapline.errors import TableError
from trapline.registers import Register

ReadControl = Callable[[type[Register]], int]
"""Gives the value of a control register."""


@dataclass(frozen=True)
class Undefined:
    """The access is UNDEFINED: exception class 0 to the level that takes synchronous exceptions."""


@dataclass(frozen=True)
class Trapped:
    """The access is an exception of class `ec` to EL `target`."""

    target: int
    ec: int


def host_register(register: type[Register]) -> type[Register]:
    """The register of EL2 that takes the place of EL1's control for a host's EL0 (HCR_EL2.E2H and TGE)."""
    name = TABLE[register.__name__].at_el2
    return register if name is None else TABLE[name]


AccessResult = None | Undefined | Trapped
"""None: the access goes ahead."""

HIGHEST_EL: Final = 2


def _lowest_el(row: type[Sysreg] | SystemOp, write: bool) -> int:
    """Lowest level that may use the row in this direction; above HIGHEST_EL if none may."""
    if isinstance(row, SystemOp):
        return row.el
    if row.access == ("RO" if write else "WO"):
        return HIGHEST_EL + 1
    return row.write_el if write else row.read_el


def is_host(hcr: int) -> bool:
    """Is EL0 an application of the host at EL2 (HCR_EL2.E2H and TGE)?"""
    return hcr & HOST == HOST


def access_result(row: type[Sysreg] | SystemOp, el: int, write: bool, read: ReadControl) -> AccessResult:
    """What an access from EL `el` does, with control registers as `read` gives them. System instructions count as writes."""
    if el < _lowest_el(row, write):
        return Undefined()
    hcr = read(HCR_EL2)
    host = el == 0 and is_host(hcr)
    for trap in sorted(row.traps, key=lambda trap: trap.target):
        if not (trap.writes if write else trap.reads) or el not in trap.from_els or (host and trap.target == 2):
            continue
        if trap.when.holds((lambda register: read(host_register(register))) if host else read):
            if el == 0 and hcr & HCR_EL2.TGE.mask:
                return Trapped(2, 0 if trap.ec == FP_ACCESS and trap.target == 1 and not host else trap.ec)
            return Trapped(trap.target, trap.ec)
    return None


def unallocated_result(encoding: int, el: int, read: ReadControl) -> Undefined | Trapped:
    """What an access to an encoding without a row does: UNDEFINED, or in the implementation-defined space (CRn 11 and 15) a trap
    to EL2 under HCR_EL2.TIDCP. From EL0 that space is UNDEFINED always, one of the two choices the architecture gives.

    The machine has no performance monitors, but MDCR_EL2.TPM traps their registers: a hypervisor can play them.
    """
    op0, op1, crn, crm, _ = decode(encoding)
    if op0 == 3 and ((crn == 9 and crm >= 12) or (crn == 14 and crm >= 8)) and op1 in ((3,) if crn == 14 or el == 0 else (0, 3)):
        if el < 2 and read(MDCR_EL2) & MDCR_EL2.TPM.mask:
            return Trapped(2, 0x18)
    if op0 in (1, 3) and crn in (11, 15) and el == 1 and read(HCR_EL2) & HCR_EL2.TIDCP.mask:
        return Trapped(2, 0x18)
    return Undefined()


# ---- the same, compiled -------------------------------------------------------------------------------------------------------

OK: Final = 0
UNDEFINED: Final = 1
"""Outcomes; a trap is TRAPPED | target << 8 | ec << 16."""
TRAPPED: Final = 2
TARGET_SHIFT: Final = 8
EC_SHIFT: Final = 16

_NO_TEST = (0, 0, 0)


def _rule(trap: Trap) -> tuple[int, ...]:
    """A trap as numbers: ELs as a bit mask, outcome, two tests of (slot, mask, value), and what a host's EL0 tests instead.

    The empty test always holds.
    """
    tests = [(TABLE[test.register.__name__].slot, test.mask, test.value) for test in trap.when.tests]
    if len(tests) > 2:
        raise TableError(f"{trap} has more than two tests")
    tests += [_NO_TEST] * (2 - len(tests))
    hosts = [TABLE[host_register(test.register).__name__].slot for test in trap.when.tests] + [0, 0]
    els = sum(1 << el for el in trap.from_els)
    return (els, TRAPPED | trap.target << TARGET_SHIFT | trap.ec << EC_SHIFT, *tests[0], *tests[1], *hosts[:2])


def _flatten() -> tuple[list[tuple[int, int, int, int]], list[tuple[int, ...]]]:
    """Entries (encoding << 1 | write, lowest EL, first rule, end of rules) in order of key, and the rules they share."""
    runs: dict[tuple[tuple[int, ...], ...], int] = {}
    rules: list[tuple[int, ...]] = []
    entries: list[tuple[int, int, int, int]] = []
    for row in (*TABLE, *SYSTEM_OPS):
        for write in (False, True):
            wanted = [t for t in row.traps if (t.writes if write else t.reads)]
            run = tuple(_rule(t) for t in sorted(wanted, key=lambda t: t.target))
            if run not in runs:
                runs[run] = len(rules)
                rules.extend(run)
            entries.append((row.encoding << 1 | write, _lowest_el(row, write), runs[run], runs[run] + len(run)))
    return sorted(entries), rules


_ENTRIES, _RULES = _flatten()
KEYS: tuple[u32, ...] = tuple(entry[0] for entry in _ENTRIES)
LOWEST: tuple[u32, ...] = tuple(entry[1] for entry in _ENTRIES)
FIRST: tuple[u32, ...] = tuple(entry[2] for entry in _ENTRIES)
END: tuple[u32, ...] = tuple(entry[3] for entry in _ENTRIES)
RULE_ELS: tuple[u32, ...] = tuple(rule[0] for rule in _RULES)
RULE_OUTCOME: tuple[u32, ...] = tuple(rule[1] for rule in _RULES)
RULE_SLOT1: tuple[u32, ...] = tuple(rule[2] for rule in _RULES)
RULE_MASK1: tuple[u64, ...] = tuple(rule[3] for rule in _RULES)
RULE_VALUE1: tuple[u64, ...] = tuple(rule[4] for rule in _RULES)
RULE_SLOT2: tuple[u32, ...] = tuple(rule[5] for rule in _RULES)
RULE_MASK2: tuple[u64, ...] = tuple(rule[6] for rule in _RULES)
RULE_VALUE2: tuple[u64, ...] = tuple(rule[7] for rule in _RULES)
RULE_HOST1: tuple[u32, ...] = tuple(rule[8] for rule in _RULES)
RULE_HOST2: tuple[u32, ...] = tuple(rule[9] for rule in _RULES)

TO_HYPERVISOR = TRAPPED | 2 << TARGET_SHIFT | 0x18 << EC_SHIFT
TARGET_MASK = 3 << TARGET_SHIFT
TO_EL2 = 2 << TARGET_SHIFT
FP_TO_EL1 = TRAPPED | 1 << TARGET_SHIFT | FP_ACCESS << EC_SHIFT
"""What HCR_EL2.TGE sends to EL2 as an exception without a class."""


@native
def find_entry(key: u32) -> u32:
    """Index of the entry with this key; the number of entries if there is none."""
    low: u32 = 0
    high: u32 = len(KEYS)
    while low < high:
        middle: u32 = (low + high) // 2
        if KEYS[middle] < key:
            low = middle + 1
        else:
            high = middle
    if low < len(KEYS) and KEYS[low] == key:
        return low
    return len(KEYS)


@native
def unallocated_outcome(cpu: Ptr[CpuState], encoding: u32) -> u32:
    """`unallocated_result` for the current state: use it for encodings without a row and for registers the machine lacks."""
    op0: u32 = encoding >> 14 & 3
    op1: u32 = encoding >> 11 & 7
    crn: u32 = encoding >> 7 & 15
    crm: u32 = encoding >> 3 & 15
    monitor: u1 = op0 == 3 and ((crn == 9 and crm >= 12) or (crn == 14 and crm >= 8 and op1 == 3))
    if monitor and (op1 == 3 or (op1 == 0 and cpu.el == 1)):
        if cpu.el < 2 and cpu.sysreg[MDCR_EL2.slot] & MDCR_EL2.TPM.mask != 0:
            return TO_HYPERVISOR
    if (op0 == 1 or op0 == 3) and (crn == 11 or crn == 15):
        if cpu.el == 1 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TIDCP.mask != 0:
            return TO_HYPERVISOR
    return UNDEFINED


@native
def access_outcome(cpu: Ptr[CpuState], encoding: u32, write: u1) -> u32:
    """`access_result` for the current state: OK, UNDEFINED or TRAPPED with target and class."""
    entry: u32 = find_entry(encoding << 1 | u32(write))
    if entry == len(KEYS):
        return unallocated_outcome(cpu, encoding)
    el: u32 = u32(cpu.el)
    if el < LOWEST[entry]:
        return UNDEFINED
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    host: u1 = el == 0 and hcr & HOST == HOST
    for rule in range(FIRST[entry], END[entry]):
        outcome: u32 = RULE_OUTCOME[rule]
        slot1: u32 = RULE_HOST1[rule] if host else RULE_SLOT1[rule]
        slot2: u32 = RULE_HOST2[rule] if host else RULE_SLOT2[rule]
        applies: u1 = RULE_ELS[rule] >> el & 1 != 0 and not (host and outcome & TARGET_MASK == TO_EL2)
        if applies and cpu.sysreg[slot1] & RULE_MASK1[rule] == RULE_VALUE1[rule]:
            if cpu.sysreg[slot2] & RULE_MASK2[rule] == RULE_VALUE2[rule]:
                if el == 0 and hcr & HCR_EL2.TGE.mask != 0:
                    return TRAPPED | TO_EL2 if outcome == FP_TO_EL1 and not host else outcome & ~TARGET_MASK | TO_EL2
                return outcome
    return OK


@native
def take_access_exception(cpu: Ptr[CpuState], outcome: u32, encoding: u32, rt: u32, read: u1) -> None:
    """Take the exception that an outcome other than OK stands for; `pc` is the instruction's address."""
    target: u32 = outcome >> TARGET_SHIFT & 3
    ec: u32 = outcome >> EC_SHIFT & 63
    if outcome == UNDEFINED:
        take_exception(cpu, route_sync(cpu), IL, 0, 0, cpu.pc)
    elif ec == 0:
        take_exception(cpu, target, IL, 0, 0, cpu.pc)
    elif ec == FP_ACCESS:
        take_exception(cpu, target, u64(FP_ACCESS) << 26 | IL | FP_ISS, 0, 0, cpu.pc)
    else:
        take_exception(cpu, target, sysreg_syndrome(encoding, rt, read), 0, 0, cpu.pc)
