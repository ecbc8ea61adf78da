"""The PMU's registers: what trapped accesses do, and how userspace saves and restores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trapline.arm64.regs.pmu import PMCR_EL0
from trapline.arm64.sysreg import Encoding, encode
from trapline.kvm.arm64 import inject
from trapline.kvm.arm64.pmu import (
    CYCLES,
    EVENT_COUNTERS,
    EVENTS,
    FILTER_MASK,
    KEPT,
    LC,
    SW_INCR,
    TYPE_MASK,
    USER_CR,
    USER_EN,
    USER_ER,
    USER_SW,
    WORD,
    Pmu,
)

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

Get = Callable[[Pmu], int | None]
Put = Callable[[Pmu, int], bool]
Read = Callable[["Arm64Vcpu"], int | None]
Write = Callable[["Arm64Vcpu", int], bool]

MAX_COUNTERS: Final = 31
"""Event counters that have encodings."""


def _control(pmu: Pmu) -> int:
    return pmu.control | LC | PMCR_EL0.N(pmu.shared.counters)


def _set_control(pmu: Pmu, value: int) -> bool:
    pmu.control = value & KEPT
    if value & PMCR_EL0.P.mask:
        pmu.values[: pmu.shared.counters] = [0] * pmu.shared.counters
    if value & PMCR_EL0.C.mask:
        pmu.values[CYCLES] = 0
    return True


def _bits(name: str) -> tuple[Get, Put, Put]:
    """A word with a bit for each counter, which one register sets and another clears."""

    def get(pmu: Pmu) -> int:
        return int(getattr(pmu, name))

    def set_bits(pmu: Pmu, value: int) -> bool:
        setattr(pmu, name, getattr(pmu, name) | value & pmu.mask)
        return True

    def clear_bits(pmu: Pmu, value: int) -> bool:
        setattr(pmu, name, getattr(pmu, name) & ~value)
        return True

    return get, set_bits, clear_bits


def _increment(pmu: Pmu, value: int) -> bool:
    if pmu.control & PMCR_EL0.E.mask:
        for number in range(pmu.shared.counters):
            wanted = value & pmu.enabled & 1 << number and pmu.types[number] & EVENTS - 1 == SW_INCR
            if wanted and pmu.types[number] & FILTER_MASK != FILTER_MASK and pmu.shared.allows(SW_INCR):
                pmu.advance(number, 1)
    return True


def _select(pmu: Pmu, value: int) -> bool:
    pmu.selected = value & 31
    return True


def _set_user(pmu: Pmu, value: int) -> bool:
    pmu.user = value & 0xF
    return True


def _exists(pmu: Pmu, number: int) -> bool:
    return number < pmu.shared.counters or number == CYCLES


def _value(number: int) -> tuple[Get, Put]:
    """The counter with this number."""

    def get(pmu: Pmu) -> int | None:
        return pmu.values[number] if _exists(pmu, number) else None

    def put(pmu: Pmu, value: int) -> bool:
        if not _exists(pmu, number):
            return False
        pmu.values[number] = value & WORD
        return True

    return get, put


def _type(number: int) -> tuple[Get, Put]:
    """What the counter with this number counts."""

    def get(pmu: Pmu) -> int | None:
        return pmu.types[number] if _exists(pmu, number) else None

    def put(pmu: Pmu, value: int) -> bool:
        if not _exists(pmu, number):
            return False
        pmu.types[number] = value & (FILTER_MASK if number == CYCLES else TYPE_MASK)
        return True

    return get, put


def _selected(rows: list[tuple[Get, Put]]) -> tuple[Get, Put]:
    return lambda pmu: rows[pmu.selected][0](pmu), lambda pmu, value: rows[pmu.selected][1](pmu, value)


def _refuse(pmu: Pmu, value: int) -> bool:
    return False


VALUES: Final = [_value(number) for number in range(32)]
TYPES: Final = [_type(number) for number in range(32)]
_ENABLED, _OVERFLOWED, _INTERRUPTS = _bits("enabled"), _bits("overflowed"), _bits("interrupts")

ROWS: Final[Mapping[Encoding, tuple[Get | None, Put, int]]] = MappingProxyType(
    {
        (3, 3, 9, 12, 0): (_control, _set_control, USER_EN),
        (3, 3, 9, 12, 1): (_ENABLED[0], _ENABLED[1], USER_EN),
        (3, 3, 9, 12, 2): (_ENABLED[0], _ENABLED[2], USER_EN),
        (3, 3, 9, 12, 3): (_OVERFLOWED[0], _OVERFLOWED[2], USER_EN),
        (3, 3, 9, 12, 4): (None, _increment, USER_EN | USER_SW),
        (3, 3, 9, 12, 5): (lambda pmu: pmu.selected, _select, USER_EN | USER_ER),
        (3, 3, 9, 12, 6): (lambda pmu: pmu.shared.event_mask(0), _refuse, USER_EN),
        (3, 3, 9, 12, 7): (lambda pmu: pmu.shared.event_mask(32), _refuse, USER_EN),
        (3, 3, 9, 13, 0): (*VALUES[CYCLES], USER_EN | USER_CR),
        (3, 3, 9, 13, 1): (*_selected(TYPES), USER_EN),
        (3, 3, 9, 13, 2): (*_selected([*VALUES[:31], (lambda pmu: None, _refuse)]), USER_EN | USER_ER),
        (3, 3, 9, 14, 3): (_OVERFLOWED[0], _OVERFLOWED[1], USER_EN),
        (3, 0, 9, 14, 1): (_INTERRUPTS[0], _INTERRUPTS[1], 0),
        (3, 0, 9, 14, 2): (_INTERRUPTS[0], _INTERRUPTS[2], 0),
        (3, 0, 9, 14, 6): (lambda pmu: 0, _refuse, 0),
        (3, 3, 14, 15, 7): (*TYPES[CYCLES], USER_EN),
        **{(3, 3, 14, 8 | n >> 3, n & 7): (*VALUES[n], USER_EN | USER_ER) for n in range(MAX_COUNTERS)},
        **{(3, 3, 14, 12 | n >> 3, n & 7): (*TYPES[n], USER_EN) for n in range(MAX_COUNTERS)},
    }
)
"""How each register is read and written, and the bits of PMUSERENR_EL0 of which one opens it to EL0. EL0 writes need EN, but for
PMSWINC_EL0 and PMSELR_EL0."""

ANY_WRITE: Final = frozenset({(3, 3, 9, 12, 4), (3, 3, 9, 12, 5)})
USER_ENABLE: Final = (3, 3, 9, 14, 0)


def _reader(get: Get, opens: int) -> Read:
    def read(vcpu: Arm64Vcpu) -> int | None:
        pmu = vcpu.pmu
        if pmu is None or (inject.in_el0(vcpu) and not pmu.user & opens):
            return None
        pmu.update()
        return get(pmu)

    return read


def _writer(put: Put, opens: int) -> Write:
    def write(vcpu: Arm64Vcpu, value: int) -> bool:
        pmu = vcpu.pmu
        if pmu is None or (inject.in_el0(vcpu) and not pmu.user & opens):
            return False
        pmu.update()
        done = put(pmu, value)
        pmu.changed()
        return done

    return write


def _read_user_enable(vcpu: Arm64Vcpu) -> int | None:
    return None if vcpu.pmu is None else vcpu.pmu.user


def _write_user_enable(vcpu: Arm64Vcpu, value: int) -> bool:
    return vcpu.pmu is not None and not inject.in_el0(vcpu) and _set_user(vcpu.pmu, value)


READS: Mapping[int, Read] = MappingProxyType(
    {encode(enc): _reader(get, opens) for enc, (get, _, opens) in ROWS.items() if get is not None}
    | {encode(USER_ENABLE): _read_user_enable}
)
WRITES: Mapping[int, Write] = MappingProxyType(
    {
        encode(enc): _writer(put, opens if enc in ANY_WRITE else opens & USER_EN)
        for enc, (_, put, opens) in ROWS.items()
        if put is not _refuse
    }
    | {encode(USER_ENABLE): _write_user_enable}
)


# --- ONE_REG ---------------------------------------------------------------------------------------------------------------------


def _restore_control(pmu: Pmu, value: int) -> bool:
    """As a guest's write, without its effects; the number of counters may be lowered until the VM runs."""
    pmu.control = value & KEPT
    count = PMCR_EL0(value).N
    if count <= EVENT_COUNTERS and not pmu.vcpu.vm.has_run:
        pmu.shared.counters = count
    return True


def _restore_bits(name: str) -> Put:
    def put(pmu: Pmu, value: int) -> bool:
        setattr(pmu, name, value & pmu.mask)
        return True

    return put


def _ignore(pmu: Pmu, value: int) -> bool:
    return True


RESTORED: Final[Mapping[Encoding, Put]] = MappingProxyType(
    {
        (3, 3, 9, 12, 0): _restore_control,
        (3, 3, 9, 12, 1): _restore_bits("enabled"),
        (3, 3, 9, 12, 2): _restore_bits("enabled"),
        (3, 3, 9, 12, 3): _restore_bits("overflowed"),
        (3, 3, 9, 14, 3): _restore_bits("overflowed"),
        (3, 0, 9, 14, 1): _restore_bits("interrupts"),
        (3, 0, 9, 14, 2): _restore_bits("interrupts"),
        (3, 3, 9, 12, 6): _ignore,
        (3, 3, 9, 12, 7): _ignore,
    }
)
"""Registers that userspace writes otherwise than the guest does: as a whole, and the read-only ones to no effect."""

NOT_SAVED: Final = frozenset({(3, 3, 9, 12, 4), (3, 3, 9, 13, 1), (3, 3, 9, 13, 2), (3, 0, 9, 14, 6)})
"""Registers that are other ways to what is saved, or constant."""


def _saved(get: Get) -> Callable[[Arm64Vcpu], int]:
    def read(vcpu: Arm64Vcpu) -> int:
        assert vcpu.pmu is not None
        vcpu.pmu.update()
        return get(vcpu.pmu) or 0

    return read


def _restored(put: Put) -> Callable[[Arm64Vcpu, int], None]:
    def write(vcpu: Arm64Vcpu, value: int) -> None:
        assert vcpu.pmu is not None
        vcpu.pmu.update()
        put(vcpu.pmu, value)
        vcpu.pmu.changed()

    return write


SAVED: Final[Mapping[Encoding, tuple[Callable[[Arm64Vcpu], int], Callable[[Arm64Vcpu, int], None]]]] = MappingProxyType(
    {
        enc: (_saved(get), _restored(RESTORED.get(enc, put)))
        for enc, (get, put, _) in ROWS.items()
        if get is not None and enc not in NOT_SAVED
    }
    | {USER_ENABLE: (_saved(lambda pmu: pmu.user), _restored(_set_user))}
)
"""Registers with ids, of vCPUs with a PMU. Counters that a VM has not read zero and ignore what is written."""
