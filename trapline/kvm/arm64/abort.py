"""Stage-2 aborts: memory that is not mapped yet, and accesses to devices."""

from __future__ import annotations

from errno import EFAULT, ENOSYS
from typing import TYPE_CHECKING, Final

from trapline.abi.exits import (
    EXIT_REASON_OFFSET,
    MMIO_DATA_OFFSET,
    MMIO_LAYOUT,
    UNION_OFFSET,
    Ldst64bExit,
    MmioExit,
    NisvExit,
    encode_exit,
)
from trapline.arm64.regs import FAR_EL2, HPFAR_EL2
from trapline.errors import KvmError
from trapline.kvm.arm64 import inject
from trapline.kvm.arm64.flags import NISV_TO_USER
from trapline.kvm.arm64.syndrome import (
    CM,
    EC,
    EC_SHIFT,
    FSC_EXCLUSIVE,
    FSC_MASK,
    FSC_PERMISSION,
    FSC_TRANSLATION,
    FSC_TYPE_MASK,
    ISV,
    LST_MASK,
    S1PTW,
    SAS_SHIFT,
    SERVED_FAULTS,
    SF,
    SRT_SHIFT,
    SSE,
    WNR,
)

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

HOST_IPA_LIMIT: Final = 48
PAGE_NUMBER: Final = 0xFFF_FFFF_FFF0
"""HPFAR_EL2: bits 51 to 12 of an address from bit 4 on."""
PAGE_OFFSET: Final = 0xFFF
NISV_ISS: Final = 0x1FF_FFFF & ~FSC_MASK
MMIO_REASON: Final = MmioExit.reason
pack_mmio: Final = MMIO_LAYOUT.pack_into
FAR, HPFAR = FAR_EL2.slot, HPFAR_EL2.slot
NOT_PENDING: Final = -1
REASON: Final = EXIT_REASON_OFFSET // 4
DATA: Final = MMIO_DATA_OFFSET // 8
"""Where in `run32` and `run64`."""
INSTRUCTION: Final = int(EC.IABT_LOWER)
DEVICE_MASK: Final = 0x3F << EC_SHIFT | ISV | LST_MASK | CM | S1PTW | FSC_TYPE_MASK
DEVICE_VALUE: Final = EC.DABT_LOWER << EC_SHIFT | ISV | FSC_TRANSLATION
"""A data abort with a valid syndrome, by an ordinary load or store, because nothing is mapped."""

SIZE_MASKS: Final = (0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
"""The data of an access of 1, 2, 4 and 8 bytes."""

LST_FAULTS: Final = range(0x04, 0x10)
"""Fault status codes with which the load/store type field means something."""


def handle_abort(vcpu: Arm64Vcpu, esr: int) -> bool:
    """An instruction or data abort from the guest. True to go on in the guest, False when kvm_run holds an exit."""
    sysreg = vcpu.sysreg
    far = sysreg[FAR]
    ipa = (sysreg[HPFAR] & PAGE_NUMBER) << 8 | far & PAGE_OFFSET
    slots = vcpu.core.vm.memslots.active
    slot = slots.find(ipa)
    if slot is None and esr & DEVICE_MASK == DEVICE_VALUE and not ipa >> vcpu.vm.ipa_bits:
        return _device_access(vcpu, esr, ipa)  # what most aborts of a booted guest are
    kind = esr & FSC_TYPE_MASK
    instruction = esr >> EC_SHIFT == INSTRUCTION
    # A walk's own access is a read, unless it had to update a descriptor in memory that may only be read.
    write = kind == FSC_PERMISSION if esr & S1PTW else not instruction and bool(esr & WNR and not esr & CM)
    if kind not in SERVED_FAULTS:
        return _other_fault(vcpu, esr, far, instruction)
    if slot is None or (write and slot.readonly):
        return _outside_memory(vcpu, esr, far, ipa, instruction, slot is None)
    vcpu.vm.mmu.handle_fault(slots, slot, ipa, write, kind == FSC_PERMISSION, vcpu.core.mark_dirty)
    vcpu.cpu.instruction_restarts()
    return True


def _other_fault(vcpu: Arm64Vcpu, esr: int, far: int, instruction: bool) -> bool:
    """Faults that no mapping can cure."""
    if esr & FSC_MASK != FSC_EXCLUSIVE:
        raise KvmError(EFAULT)
    inject.external_abort(vcpu, instruction, far)
    return True


def _outside_memory(vcpu: Arm64Vcpu, esr: int, far: int, ipa: int, instruction: bool, nothing: bool) -> bool:
    """No slot, or a write to one that the guest may only read."""
    if ipa >> vcpu.vm.ipa_bits and esr & FSC_TYPE_MASK == FSC_TRANSLATION:
        if ipa >> HOST_IPA_LIMIT:
            inject.address_size_fault(vcpu, instruction, far)
        else:
            inject.external_abort(vcpu, instruction, far)
        return True
    if instruction:
        inject.external_abort(vcpu, True, far)
        return True
    if esr & S1PTW:
        inject.external_abort(vcpu, False, far, walk_level=esr & 3)
        return True
    if esr & CM:
        if nothing:
            inject.skip_instruction(vcpu)
            return True
        return _no_syndrome(vcpu, esr, ipa)
    if not esr & ISV:
        return _no_syndrome(vcpu, esr, ipa)
    return _device_access(vcpu, esr, ipa)


def _no_syndrome(vcpu: Arm64Vcpu, esr: int, ipa: int) -> bool:
    """The abort does not say which register and size: userspace may decode the instruction itself if it asked for that."""
    if not vcpu.vm.flags.any() & NISV_TO_USER:
        raise KvmError(ENOSYS)
    encode_exit(vcpu.core.run, NisvExit(esr & NISV_ISS, ipa))
    return False


def _device_access(vcpu: Arm64Vcpu, esr: int, ipa: int) -> bool:
    """A load or store of one register outside memory: an in-kernel device's, or userspace's."""
    if esr & LST_MASK and esr & FSC_MASK in LST_FAULTS:
        encode_exit(vcpu.core.run, Ldst64bExit(esr & NISV_ISS, ipa))
        return False
    size = 1 << (esr >> SAS_SHIFT & 3)
    register = esr >> SRT_SHIFT & 31
    vgic, core = vcpu.vm.vgic, vcpu.core
    if esr & WNR:
        value = vcpu.x[register] & SIZE_MASKS[esr >> SAS_SHIFT & 3]
        if vgic is not None and vgic.contains(ipa):
            vgic.mmio(vcpu, ipa, True, size, value)
            return _written(vcpu)
        events, coalesced = core.vm.ioeventfds, core.vm.coalesced
        if events.by_address and events.write(ipa, size, value):
            return _written(vcpu)
        if coalesced.zones and coalesced.write(ipa, size, value):
            slot = core.vm.memslots.active.find(ipa)
            if (slot is not None and not slot.readonly) or ipa in events.by_address:
                coalesced.changed()  # since it was decided what answers: the machine must not know this place
            return _written(vcpu)
        pack_mmio(core.run, UNION_OFFSET, ipa, value.to_bytes(8, "little"), size, 1)
    else:
        if vgic is not None and vgic.contains(ipa):
            core.stats.mmio_exit_kernel += 1
            _load(vcpu, esr, vgic.mmio(vcpu, ipa, False, size))
            return True
        pack_mmio(core.run, UNION_OFFSET, ipa, b"", size, 0)
    core.stats.mmio_exit_user += 1
    core.run32[REASON] = MMIO_REASON
    vcpu.pending_mmio = esr
    return False


def _written(vcpu: Arm64Vcpu) -> bool:
    """A store that the kernel side has dealt with."""
    vcpu.core.stats.mmio_exit_kernel += 1
    inject.skip_instruction(vcpu)
    return True


def complete_mmio(vcpu: Arm64Vcpu) -> None:
    """Finish the access that the last exit reported: userspace has put a read's data into kvm_run."""
    esr, vcpu.pending_mmio = vcpu.pending_mmio, NOT_PENDING
    if esr & WNR:
        inject.skip_instruction(vcpu)
    else:
        _load(vcpu, esr, vcpu.core.run64[DATA])


def _load(vcpu: Arm64Vcpu, esr: int, data: int) -> None:
    """Put loaded data into the register, extended as the instruction says, and go to the next instruction."""
    register = esr >> SRT_SHIFT & 31
    if register != 31:
        mask = SIZE_MASKS[esr >> SAS_SHIFT & 3]
        value = data & mask
        if esr & SSE and value > mask >> 1:
            value |= ~mask
        vcpu.x[register] = value & (0xFFFF_FFFF_FFFF_FFFF if esr & SF else 0xFFFF_FFFF)
    inject.skip_instruction(vcpu)
