"""MRS, MSR and SYS, one specialised instruction for each system register and operation.

The generic encodings of `arm64.isa.system` know nothing of registers. Here every row of the register table becomes an
instruction of its own that wins over the generic one, so that its handler holds just the checks, the access and the
consequences that the row declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import reduce
from typing import Any

from trapline.arm64.exceptions import EC
from trapline.arm64.features import Features
from trapline.arm64.gic_access import ACCESS
from trapline.arm64.insn import Insn, InstructionSet, Pattern
from trapline.arm64.record import Recorder
from trapline.arm64.regs import DAIF, HCR_EL2, SCTLR_EL1, TABLE
from trapline.arm64.regs.optional import absent_bits
from trapline.arm64.regs.system import SYSTEM_OPS, At, By, Cache, CacheOp, Restrict, Shareable, SystemOp, Tlbi, Zero
from trapline.arm64.state import REGIME_EL2_HOST
from trapline.arm64.sysreg import Sysreg, Trap, decode, el12_name
from trapline.arm64.sysreg_functions import REDIRECTED, spsel_write
from trapline.bits import Bits, cat, const, select
from trapline.engine.system import tlbi_kind

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
        assert issubclass(test.register, Sysreg)
        name = test.register.name
        if test.mask.bit_count() == 1:
            holds = _bit(cpu, name, test.mask.bit_length() - 1, bool(test.value))
        else:
            holds = (cpu.sysreg(name) & test.mask) == test.value
        condition = condition & holds
    return condition


def _check(cpu: Recorder, traps: Iterable[Trap], features: Features, el: int, encoding: int, write: bool) -> None:
    """Leave the instruction if this access is UNDEFINED or trapped here and now; what EL1 decides comes first.

    Where EL2 takes EL1's place above EL0 other registers decide: there the runtime looks at the access again, and may let it pass.
    """
    active = [t for t in traps if (t.writes if write else t.reads) and (t.feature is None or t.feature in features)]
    outside = [_holds(cpu, t) for t in active if t.target != 2 or t.ec != EC.SYSREG]
    if any(0 in t.from_els for t in active):
        outside.append((cpu.pstate("el") == 0) & _bit(cpu, "HCR_EL2", HCR_EL2.TGE.lo, True))
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


_CLEARS_FLAGS = {"rndr_read"}
"""Reads that tell of success in the condition flags."""


def _is_redirected(cpu: Recorder) -> Bits:
    """Is this the host at EL2, or its EL0? Then names of EL1's registers mean EL2's."""
    return cpu.pstate("regime") == REGIME_EL2_HOST


def _at_el2(reg: type[Sysreg], features: Features) -> type[Sysreg] | None:
    """The register that takes this one's place under redirection."""
    target = None if reg.at_el2 is None else TABLE[reg.at_el2]
    return target if target is not None and target.exists(features) else None


class Accesses:
    """Bodies of MRS and MSR for one machine. `functions` are the native functions that register rows name."""

    def __init__(self, functions: dict[str, Any], features: Features) -> None:
        self.functions, self.features = functions, features

    def read(self, reg: type[Sysreg], name: str, prelude: Callable[[Recorder], None], redirect: bool) -> Callable[[Any, Any], None]:
        """MRS. `prelude` checks the access; `redirect` if HCR_EL2.E2H may make it mean another register."""
        target = _at_el2(reg, self.features) if redirect else None
        interface = ACCESS.get(reg.name)

        def body(cpu: Any, i: Any) -> None:
            if reg.access == "WO" or (reg.read is not None and reg.read not in self.functions):
                cpu.undefined()
                return
            prelude(cpu)
            if interface is not None:
                if interface.read is None:
                    cpu.undefined()
                    return
                value = cpu.query(interface.read)
                if interface.signals:
                    cpu.after.append("irq")
            elif reg.read in _INLINE_READS:
                value = _INLINE_READS[reg.read](cpu)
            elif reg.read is not None:
                function = REDIRECTED[reg.read] if target is not None else self.functions[reg.read]
                value = cpu.query(function)
                if reg.read in _CLEARS_FLAGS:
                    cpu.flags(*(const(0, 1) for _ in "NZCV"))
            elif target is not None:
                value = select(_is_redirected(cpu), cpu.sysreg(target.name), cpu.sysreg(reg.name))
            else:
                value = cpu.sysreg(reg.name)
            cpu.set_X(i.Rt, value)

        body.__name__ = f"mrs_{name}"
        return body

    def write(self, reg: type[Sysreg], name: str, prelude: Callable[[Recorder], None], redirect: bool) -> Callable[[Any, Any], None]:
        """MSR, as `read`."""
        target = _at_el2(reg, self.features) if redirect else None
        interface = ACCESS.get(reg.name)

        def body(cpu: Any, i: Any) -> None:
            if reg.access == "RO" or (reg.write is not None and reg.write not in self.functions):
                cpu.undefined()
                return
            prelude(cpu)
            value = cpu.X(i.Rt)
            if interface is not None:
                if interface.write is None:
                    cpu.undefined()
                    return
                cpu.query(interface.write, value)
                if interface.signals:
                    cpu.after.append("irq")
            elif reg.write == "sgi_write":
                cpu.system("send_sgi", reg.encoding, value)
            elif reg.write is not None:
                cpu.query(REDIRECTED[reg.write] if target is not None else self.functions[reg.write], value)
            elif target is not None:
                redirected = _is_redirected(cpu)
                cpu.set_sysreg(reg.name, select(redirected, cpu.sysreg(reg.name), self._merge(cpu, reg, value)))
                cpu.set_sysreg(target.name, select(redirected, self._merge(cpu, target, value), cpu.sysreg(target.name)))
            else:
                cpu.set_sysreg(reg.name, self._merge(cpu, reg, value))
            cpu.after.extend(sorted(reg.after if target is None else reg.after | target.after))

        body.__name__ = f"msr_{name}"
        return body

    def _merge(self, cpu: Recorder, reg: type[Sysreg], value: Bits) -> Bits:
        """What storage holds after a write: bits outside the mask keep their value, RES1 bits are 1."""
        ones = (1 << 64) - 1
        mask = reg.write_mask & ~absent_bits(reg, self.features)
        if mask != ones:
            value = (cpu.sysreg(reg.name) & (ones ^ mask)) | (value & mask)
        return value | reg.res1 if reg.res1 else value


def _guard(reg: type[Sysreg], features: Features, write: bool) -> Callable[[Recorder], None]:
    """The checks of an access by a register's own name."""
    return lambda cpu: _check(cpu, reg.traps, features, reg.write_el if write else reg.read_el, reg.encoding, write)


def _guard_el12(encoding: int, write: bool) -> Callable[[Recorder], None]:
    """The checks of an _EL12 or _EL02 name: UNDEFINED but at EL2 with HCR_EL2.E2H."""

    def check(cpu: Recorder) -> None:
        elsewhere = (cpu.pstate("el") != 2) | ~_is_redirected(cpu)
        cpu.system("sysreg_trap", encoding, int(write), when=elsewhere)

    return check


def _ignore(cpu: Any, action: Any, operand: Bits) -> None:
    """Data cache maintenance and prediction restriction: memory is coherent and nothing is predicted."""


def _cache(cpu: Any, action: Cache, operand: Bits) -> None:
    if action.instruction:
        if action.by is By.VA:
            cpu.system("ic_ivau", operand)
        else:
            cpu.system("ic_iallu")
    elif action.op is CacheOp.INVALIDATE and action.by is By.VA:
        cpu.system("dc_ivac", operand)


def _zero(cpu: Any, action: Zero, operand: Bits) -> None:
    cpu.store(operand & ((1 << 64) - ZVA_BYTES), const(0, 8 * ZVA_BYTES))


def _tlbi(cpu: Any, action: Tlbi, operand: Bits) -> None:
    cpu.system("tlbi", tlbi_kind(action), int(action.shareable is not Shareable.LOCAL), operand)


def _at(cpu: Any, action: At, operand: Bits) -> None:
    cpu.system("at", action.stages, action.el, int(action.write), int(action.pan), operand)


_ACTIONS: dict[type, Callable[[Any, Any, Bits], None]] = {
    Cache: _cache,
    Zero: _zero,
    Tlbi: _tlbi,
    At: _at,
    Restrict: _ignore,
}


def _operation_body(op: SystemOp, features: Features) -> Callable[[Any, Any], None]:
    def body(cpu: Any, i: Any) -> None:
        _check(cpu, op.traps, features, op.el, op.encoding, write=True)
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
    cpu.after.append("pstate")


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
        if privileged:
            cpu.system("msr_imm", 0, 0, when=at_el0)
        else:
            denied = ~cpu.sysreg("SCTLR_EL1")[SCTLR_EL1.UMA.lo] | cpu.sysreg("HCR_EL2")[HCR_EL2.TGE.lo]
            cpu.system("sysreg_trap", DAIF.encoding, 1, when=at_el0 & denied)
        action(cpu, i)

    body.__name__ = f"msr_immediate_{op1}_{op2}"
    return body


def specialise(isa: InstructionSet, functions: dict[str, Any], features: Features) -> InstructionSet:
    """`isa` plus an instruction for every register and direction, and for every system operation, that a machine has.

    `functions` are the native functions that register rows name in `read` and `write`.
    """
    extended = InstructionSet()
    extended.insns = list(isa.insns)
    if "FPAC" in features:
        extended.insns = [replace(insn, machine=features.names) if insn.group == "pauth" else insn for insn in isa.insns]

    def add(body: Callable[[Any, Any], None], pattern: str, over: str) -> None:
        extended.insns.append(Insn(body.__name__, Pattern.parse(pattern), body, "", None, None, (over,), "system"))

    accesses = Accesses(functions, features)
    for reg in TABLE:
        if reg.exists(features):
            add(accesses.read(reg, reg.name, _guard(reg, features, False), True), _pattern("1", reg.enc), "mrs")
            add(accesses.write(reg, reg.name, _guard(reg, features, True), True), _pattern("0", reg.enc), "msr_register")
    for encoding, reg in TABLE.el12.items():
        if reg.exists(features) and "VHE" in features:
            name, enc = el12_name(reg.name), decode(encoding)
            add(accesses.read(reg, name, _guard_el12(encoding, False), False), _pattern("1", enc), "mrs")
            add(accesses.write(reg, name, _guard_el12(encoding, True), False), _pattern("0", enc), "msr_register")
    for op1, op2 in _IMMEDIATES:
        feature = _IMMEDIATE_FEATURES.get((op1, op2))
        if feature is not None and feature not in features:
            continue
        pattern = f"1101010100000 {op1:03b} 0100 immcrm:4 {op2:03b} 11111"
        add(_immediate_body(op1, op2), pattern, "msr_daif_immediate" if op1 else "msr_immediate")
    for op in SYSTEM_OPS:
        if op.feature is not None and op.feature not in features:
            continue
        add(_operation_body(op, features), _pattern("0", op.enc), "sys")
    return extended
