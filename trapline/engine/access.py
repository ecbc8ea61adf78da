"""MRS, MSR and SYS, one specialised instruction for each system register and operation.

The generic encodings of `arm64.isa.system` know nothing of registers. Here every row of the register table becomes an
instruction of its own that wins over the generic one, so that its handler holds just the checks, the access and the
consequences that the row declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from trapline.arm64.exceptions import EC
from trapline.arm64.features import Features
from trapline.arm64.gic_virtual import CPU_INTERFACE
from trapline.arm64.insn import Insn, InstructionSet, Pattern
from trapline.arm64.record import Recorder
from trapline.arm64.regs import DAIF, SCTLR_EL1, TABLE
from trapline.arm64.regs.system import SYSTEM_OPS, At, By, Cache, Restrict, Shareable, SystemOp, Tlbi, Zero
from trapline.arm64.sysreg import Sysreg, Trap
from trapline.arm64.sysreg_functions import spsel_write
from trapline.bits import Bits, cat, const

ZVA_BYTES = 64
"""Block size of DC ZVA, as DCZID_EL0 tells it."""


def _pattern(direction: str, enc: tuple[int, ...]) -> str:
    op0, op1, crn, crm, op2 = enc
    return f"1101010100 {direction} {op0:02b} {op1:03b} {crn:04b} {crm:04b} {op2:03b} Rt:5"


def _bit(cpu: Recorder, name: str, bit: int, wanted: bool) -> Bits:
    value = cpu.sysreg(name)[bit]
    return value if wanted else ~value


def _holds(cpu: Recorder, trap: Trap) -> Bits:
    """Whether a trap's condition holds at the current exception level, as one bit."""
    levels = [cpu.pstate("el") == el for el in trap.from_els]
    condition = reduce(lambda a, b: a | b, levels)
    for test in trap.when.tests:
        if test.mask.bit_count() == 1:
            holds = _bit(cpu, test.register.name, test.mask.bit_length() - 1, bool(test.value))
        else:
            holds = (cpu.sysreg(test.register.name) & test.mask) == test.value
        condition = condition & holds
    return condition


def _check(cpu: Recorder, traps: Iterable[Trap], el: int, encoding: int, write: bool) -> None:
    """Leave the instruction if this access is UNDEFINED or trapped here and now; what EL1 decides comes first."""
    active = [t for t in traps if (t.writes if write else t.reads)]
    outside = [_holds(cpu, t) for t in active if t.target != 2 or t.ec != EC.SYSREG]
    if el:
        outside.append(cpu.pstate("el").ult(el))
    to_el2 = [_holds(cpu, t) for t in active if t.target == 2 and t.ec == EC.SYSREG]
    for name, conditions in (("sysreg_trap", outside), ("trap_el2", to_el2)):
        if conditions:
            cpu.system(name, encoding, int(write), when=reduce(lambda a, b: a | b, conditions))


def _nzcv(cpu: Recorder) -> Bits:
    return cat(*(cpu.flag(f) for f in "NZCV"), const(0, 28)).zext(64)


_INLINE_READS: dict[str, Callable[[Recorder], Bits]] = {
    "nzcv_read": _nzcv,
    "daif_read": lambda cpu: cpu.pstate("daif").zext(64) << 6,
    "currentel_read": lambda cpu: cpu.pstate("el").zext(64) << 2,
    "spsel_read": lambda cpu: cpu.pstate("spsel").zext(64),
}
"""Reads of PSTATE that are cheaper in place than as a call."""


def _read_body(reg: type[Sysreg], functions: dict[str, Any]) -> Callable[[Any, Any], None]:
    def body(cpu: Any, i: Any) -> None:
        if reg.access == "WO" or (reg.read is not None and reg.read not in functions):
            cpu.undefined()
            return
        _check(cpu, reg.traps, reg.read_el, reg.encoding, write=False)
        interface = CPU_INTERFACE.get(reg.name)
        if interface is not None:
            if interface.read is None:
                cpu.undefined()
                return
            cpu.set_X(i.Rt, cpu.query(interface.read))
            if interface.signals:
                cpu.after.append("irq")
        elif reg.read in _INLINE_READS:
            cpu.set_X(i.Rt, _INLINE_READS[reg.read](cpu))
        elif reg.read is not None:
            cpu.set_X(i.Rt, cpu.query(functions[reg.read]))
        else:
            cpu.set_X(i.Rt, cpu.sysreg(reg.name))

    body.__name__ = f"mrs_{reg.name}"
    return body


def _write_body(reg: type[Sysreg], functions: dict[str, Any]) -> Callable[[Any, Any], None]:
    def body(cpu: Any, i: Any) -> None:
        if reg.access == "RO" or (reg.write is not None and reg.write not in functions):
            cpu.undefined()
            return
        _check(cpu, reg.traps, reg.write_el, reg.encoding, write=True)
        value = cpu.X(i.Rt)
        interface = CPU_INTERFACE.get(reg.name)
        if interface is not None:
            if interface.write is None:
                cpu.undefined()
                return
            cpu.query(interface.write, value)
            if interface.signals:
                cpu.after.append("irq")
        elif reg.write is not None:
            cpu.query(functions[reg.write], value)
        else:
            ones = (1 << 64) - 1
            if reg.write_mask != ones:
                value = (cpu.sysreg(reg.name) & (ones ^ reg.write_mask)) | (value & reg.write_mask)
            if reg.res1:
                value = value | reg.res1
            cpu.set_sysreg(reg.name, value)
        cpu.after.extend(sorted(reg.after))

    body.__name__ = f"msr_{reg.name}"
    return body


def _ignore(cpu: Any, action: Any, operand: Bits) -> None:
    """Data cache maintenance and prediction restriction: memory is coherent and nothing is predicted."""


def _cache(cpu: Any, action: Cache, operand: Bits) -> None:
    if action.instruction:
        if action.by is By.VA:
            cpu.system("ic_ivau", operand)
        else:
            cpu.system("ic_iallu")


def _zero(cpu: Any, action: Zero, operand: Bits) -> None:
    cpu.store(operand & ((1 << 64) - ZVA_BYTES), const(0, 8 * ZVA_BYTES))


def _tlbi(cpu: Any, action: Tlbi, operand: Bits) -> None:
    cpu.system("tlbi", 0 if action.ranged else int(action.by), int(action.shareable is not Shareable.LOCAL), operand)


def _at(cpu: Any, action: At, operand: Bits) -> None:
    cpu.system("at", action.stages, action.el, int(action.write), int(action.pan), operand)


_ACTIONS: dict[type, Callable[[Any, Any, Bits], None]] = {
    Cache: _cache,
    Zero: _zero,
    Tlbi: _tlbi,
    At: _at,
    Restrict: _ignore,
}


def _operation_body(op: SystemOp) -> Callable[[Any, Any], None]:
    def body(cpu: Any, i: Any) -> None:
        _check(cpu, op.traps, op.el, op.encoding, write=True)
        _ACTIONS[type(op.action)](cpu, op.action, cpu.X(i.Rt))

    body.__name__ = "sys_" + op.mnemonic.lower().replace(" ", "_")
    return body


def _set_masks(cpu: Any, i: Any) -> None:
    cpu.set_pstate("daif", cpu.pstate("daif") | const(i.immcrm, 8))


def _clear_masks(cpu: Any, i: Any) -> None:
    cpu.set_pstate("daif", cpu.pstate("daif") & ~const(i.immcrm, 8))
    cpu.after.append("irq")


def _set_pan(cpu: Any, i: Any) -> None:
    cpu.set_pstate("pan", const(i.immcrm & 1, 8))
    cpu.after.append("pstate")


def _set_uao(cpu: Any, i: Any) -> None:
    cpu.set_pstate("uao", const(i.immcrm & 1, 8))


def _select_sp(cpu: Any, i: Any) -> None:
    cpu.query(spsel_write, const(i.immcrm & 1, 64))


_IMMEDIATES: dict[tuple[int, int], tuple[Callable[[Any, Any], None], int]] = {
    (3, 6): (_set_masks, 0),
    (3, 7): (_clear_masks, 0),
    (0, 4): (_set_pan, 1),
    (0, 3): (_set_uao, 1),
    (0, 5): (_select_sp, 1),
}
"""MSR (immediate) by (op1, op2): what it does, and 1 if EL0 may never use it (0: only with SCTLR_EL1.UMA)."""

_IMMEDIATE_FEATURES = {(0, 3): "UAO", (0, 4): "PAN"}
"""PSTATE fields that not every machine has."""


def _immediate_body(op1: int, op2: int) -> Callable[[Any, Any], None]:
    action, privileged = _IMMEDIATES[op1, op2]

    def body(cpu: Any, i: Any) -> None:
        at_el0 = cpu.pstate("el") == 0
        denied = at_el0 if privileged else at_el0 & ~cpu.sysreg("SCTLR_EL1")[SCTLR_EL1.UMA.lo]
        cpu.system("sysreg_trap", DAIF.encoding, 1, when=denied)
        action(cpu, i)

    body.__name__ = f"msr_immediate_{op1}_{op2}"
    return body


def specialise(isa: InstructionSet, functions: dict[str, Any], features: Features) -> InstructionSet:
    """`isa` plus an instruction for every register and direction, and for every system operation, that a machine has.

    `functions` are the native functions that register rows name in `read` and `write`.
    """
    extended = InstructionSet()
    extended.insns = list(isa.insns)

    def add(body: Callable[[Any, Any], None], pattern: str, over: str) -> None:
        extended.insns.append(Insn(body.__name__, Pattern.parse(pattern), body, "", None, None, (over,), "system"))

    for reg in TABLE:
        if not reg.exists(features):
            continue
        add(_read_body(reg, functions), _pattern("1", reg.enc), "mrs")
        add(_write_body(reg, functions), _pattern("0", reg.enc), "msr_register")
    for op1, op2 in _IMMEDIATES:
        feature = _IMMEDIATE_FEATURES.get((op1, op2))
        if feature is not None and feature not in features:
            continue
        pattern = f"1101010100000 {op1:03b} 0100 immcrm:4 {op2:03b} 11111"
        add(_immediate_body(op1, op2), pattern, "msr_daif_immediate" if op1 else "msr_immediate")
    for op in SYSTEM_OPS:
        if op.feature is not None and op.feature not in features:
            continue
        add(_operation_body(op), _pattern("0", op.enc), "sys")
    return extended
