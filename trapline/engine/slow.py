"""Slow memory paths: TLB misses, page crossings, alignment, faults, as native functions that handlers call by name."""

from __future__ import annotations

from trapline.arm64.exceptions import EC, current_sctlr
from trapline.arm64.regs import ID_AA64MMFR2_EL1, SCTLR_EL1
from trapline.arm64.walk import ACCESS_READ, ACCESS_UNPRIVILEGED, ACCESS_WRITE, translate_cached
from trapline.bits.native import (
    Ptr,
    addressof,
    load8,
    native,
    store8,
    store16,
    store32,
    store64,
    u1,
    u8,
    u16,
    u32,
    u64,
)
from trapline.engine.memory import ALIGNED, ATOMIC, PARTS_SHIFT, UNPRIVILEGED, UPDATE, WRITE
from trapline.engine.posting import post_store
from trapline.engine.state import EngineState
from trapline.engine.taking import current_pc, current_word, data_abort, transfer_syndrome
from trapline.engine.tlb import fill_data
from trapline.engine.watch import keep_out, watchpoint

BOUNCE = EngineState.bounce.offset
FSC_ALIGNMENT = 0x21
EC_DABT = int(EC.DATA_ABORT_LOWER)
INVALID_HOST = 0


@native
def alignment_fault(cpu: Ptr[EngineState], va: u64, write: u1) -> None:
    """Take an alignment fault for the instruction at pc."""
    data_abort(cpu, FSC_ALIGNMENT, va, 0, write)


@native
def must_align(cpu: Ptr[EngineState], va: u64, size: u64, meta: u32) -> u1:
    """Does this misaligned access fault?

    With SCTLR_ELx.A all do; atomic, exclusive and ordered ones do, but with FEAT_LSE2 only if they leave an aligned 16-byte block.
    """
    element = size >> (meta >> PARTS_SHIFT)
    if va & (element - 1) == 0 or size == 64:
        return False
    if current_sctlr(cpu) & SCTLR_EL1.A.mask != 0:  # SCTLR_EL2 has it in the same place
        return True
    if meta & (ALIGNED | ATOMIC) == 0:
        return False
    return (va & 15) + size > 16 or cpu.sysreg[ID_AA64MMFR2_EL1.slot] & ID_AA64MMFR2_EL1.AT.mask == 0


@native
def is_unprivileged(cpu: Ptr[EngineState], meta: u32) -> u1:
    """Is it an access with the rights of EL0: LDTR, STTR and their like, where they differ from others (`select_regime`)?"""
    return meta & UNPRIVILEGED != 0 and cpu.tlb_user == cpu.bank


@native
def enter_page(cpu: Ptr[EngineState], va: u64, write: u1, meta: u32) -> tuple[u32, u64, u64]:
    """Translate one byte's address and enter its page into the TLB. Returns fault, host address, faulting IPA."""
    access: u32 = ACCESS_WRITE if write else u32(ACCESS_READ)
    tlb = cpu.tlb
    if is_unprivileged(cpu, meta):
        access = access | ACCESS_UNPRIVILEGED
    if meta & UNPRIVILEGED != 0:
        tlb = cpu.tlb_user
    fault, host, ipa, info = translate_cached(cpu, va, access, addressof(cpu.walks))
    if fault == 0 and current_sctlr(cpu) & SCTLR_EL1.A.mask == 0 and not keep_out(cpu, va):
        fill_data(cpu, tlb, va, host, info)
    return fault, host, ipa


@native
def quiet_page(cpu: Ptr[EngineState], va: u64, write: u1, meta: u32) -> u64:
    """Host address of one byte, or 0 if the access would fault."""
    fault, host, ipa = enter_page(cpu, va, write, meta)
    return host if fault == 0 else u64(0)


@native
def host_page(cpu: Ptr[EngineState], va: u64, write: u1, meta: u32) -> u64:
    """Host address of one byte, entering its page into the TLB; 0 after taking the abort."""
    fault, host, ipa = enter_page(cpu, va, write, meta)
    if fault != 0:
        data_abort(cpu, fault, va, ipa, write)
        return 0
    return host


@native
def slow_host(cpu: Ptr[EngineState], rec: u64, va: u64, meta: u32) -> u64:
    """Host address for a load or an atomic access; 0 after an exception. A load that crosses pages is gathered aside."""
    cpu.pc = current_pc(cpu, rec)
    size = u64(meta & 0xFF)
    write = meta & WRITE != 0
    update = meta & UPDATE != 0
    if must_align(cpu, va, size, meta):
        alignment_fault(cpu, va, write and not update)
        return 0
    if update and host_page(cpu, va, False, meta) == 0:
        return 0  # what reads and writes reports a fault that a read takes as that of a read
    host = host_page(cpu, va, write, meta)
    first = 4096 - (va & 4095)
    if host == 0:
        return 0
    rest = host
    if first < size:
        rest = host_page(cpu, va + first, write, meta)
        if rest == 0:
            return 0
    if cpu.watching != 0 and watchpoint(cpu, va, size, write, update, is_unprivileged(cpu, meta)):
        return 0
    if first >= size:
        return host
    bounce = addressof(cpu) + BOUNCE
    k: u64 = 0
    while k != size:
        store8(bounce + k, load8(host + k if k < first else rest + (k - first)))
        k = k + 1
    return bounce


@native
def fill(cpu: Ptr[EngineState], va: u64, meta: u32) -> u64:
    """Host address for an access that stays in its page, entering it into the TLB; 0 if it crosses pages or would fault.

    Accesses to pages with watched bytes count as faulting.
    """
    size = u64(meta & 0xFF)
    write = meta & WRITE != 0
    if must_align(cpu, va, size, meta) or (va & 4095) + size > 4096 or keep_out(cpu, va):
        return 0
    return quiet_page(cpu, va, write, meta)


@native
def put(at: u64, value: u64, size: u64) -> None:
    """Store 1, 2, 4 or 8 bytes."""
    if size == 8:
        store64(at, value)
    elif size == 4:
        store32(at, u32(value))
    elif size == 2:
        store16(at, u16(value))
    else:
        store8(at, u8(value))


@native
def slow_store(cpu: Ptr[EngineState], rec: u64, va: u64, low: u64, high: u64, meta: u32) -> u32:
    """Store up to 16 bytes, or 64 zero bytes; 0 after an exception, in which case nothing was stored."""
    cpu.pc = current_pc(cpu, rec)
    size = u64(meta & 0xFF)
    if must_align(cpu, va, size, meta):
        alignment_fault(cpu, va, True)
        return 0
    fault, host, ipa = enter_page(cpu, va, True, meta)
    if fault != 0:
        if cpu.posting != 0 and cpu.watching == 0 and transfer_syndrome(current_word(cpu)) != 0:
            if post_store(cpu, fault, va, ipa, size, low):
                return 1
        data_abort(cpu, fault, va, ipa, True)
        return 0
    first = 4096 - (va & 4095)
    rest = host
    if first < size:
        rest = host_page(cpu, va + first, True, meta)
        if rest == 0:
            return 0
    if cpu.watching != 0 and watchpoint(cpu, va, size, True, False, is_unprivileged(cpu, meta)):
        return 0
    k: u64 = 0
    if first >= size:
        if size == 64:
            while k != 64:
                store64(host + k, 0)
                k = k + 8
        elif size == 16:
            store64(host, low)
            store64(host + 8, high)
        else:
            put(host, low, size)
        return 1
    while k != size:
        byte = u8(low >> (k << 3)) if k < 8 else u8(high >> ((k - 8) << 3))
        store8(host + k if k < first else rest + (k - first), byte)
        k = k + 1
    return 1
