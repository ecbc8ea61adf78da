"""Exits in words: what KVM could not do, and where the guest was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trapline.abi.exits import Exit, FailEntry, InternalError
from trapline.abi.x86 import SEGMENTS
from trapline.abi.x86_exits import INTERNAL_ERROR_MEANINGS, DebugExit, ShutdownExit, instruction_bytes
from trapline.errors import KvmError
from trapline.x86_64.registers import Cr0, Cr4, Efer, Rflags

if TYPE_CHECKING:
    from trapline.backends.x86.vcpu import X86Vcpu

CODE_SHOWN = 16
VMX_INVALID_GUEST_STATE = 0x8000_0021
"""VMX's exit reason 33 with the bit that marks a failed entry: the only failure that has a cause userspace can mend."""


def explain(vcpu: X86Vcpu, exit: Exit) -> str:
    """What an exit means; for those that end a guest, its state too."""
    match exit:
        case InternalError(suberror=suberror):
            meaning = INTERNAL_ERROR_MEANINGS.get(suberror, "for a reason without a name")
            code = instruction_bytes(exit)
            what = f": {code.hex(' ')}" if code else ""
            return f"KVM cannot run this guest any further: {meaning} (suberror {suberror}{what})\n{state(vcpu)}"
        case FailEntry(hardware_entry_failure_reason=reason, cpu=cpu):
            hint = "; a segment or control register holds what the processor forbids" if reason == VMX_INVALID_GUEST_STATE else ""
            return f"the processor refuses to enter the guest: hardware reason {reason:#x} on CPU {cpu}{hint}\n{state(vcpu)}"
        case ShutdownExit():
            return f"triple fault: an exception could not be delivered, nor the double fault that followed\n{state(vcpu)}"
        case DebugExit(exception=exception, pc=pc):
            return f"debug exception {exception} at {pc:#x}"
    return repr(exit)


def state(vcpu: X86Vcpu) -> str:
    """Registers, mode and the bytes at RIP: several lines."""
    regs, sregs = vcpu.regs.dump(), vcpu.sregs
    names = list(regs)
    lines = [" ".join(f"{name:>6} {regs[name]:016x}" for name in names[row : row + 4]) for row in range(0, len(names), 4)]
    lines += [f"{mode(vcpu)}; {Rflags(regs['rflags'])!r}"]
    lines += [f"{Cr0(sregs.cr0)!r} {Cr4(sregs.cr4)!r} {Efer(sregs.efer)!r} cr2={sregs.cr2:#x} cr3={sregs.cr3:#x}"]
    for name in SEGMENTS:
        segment = getattr(sregs, name)
        lines.append(
            f"{name:>3} {segment.selector:04x} base {segment.base:#x} limit {segment.limit:#x} type {segment.type:#x} dpl {segment.dpl}"
        )
    lines.append(f"code at rip: {code_at(vcpu, sregs.cs.base + regs['rip']).hex(' ') or 'not readable'}")
    return "\n".join(lines)


def mode(vcpu: X86Vcpu) -> str:
    """The processor's mode in words."""
    sregs = vcpu.sregs
    if Efer(sregs.efer).LMA:
        return "64-bit mode" if sregs.cs.l else "compatibility mode"
    if not Cr0(sregs.cr0).PE:
        return "real mode"
    paging = "with" if Cr0(sregs.cr0).PG else "without"
    return f"{32 if sregs.cs.db else 16}-bit protected mode {paging} paging"


def code_at(vcpu: X86Vcpu, linear: int) -> bytes:
    """The bytes there, as far as they are in the VM's memory."""
    try:
        physical = vcpu.translate(linear)
    except KvmError:
        return b""
    for memory in vcpu.vm.memory:
        if physical is not None and physical in memory:
            start = physical - memory.guest_phys_addr
            return bytes(memory[start : start + CODE_SHOWN])
    return b""
