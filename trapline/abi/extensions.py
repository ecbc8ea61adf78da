"""What this KVM has and Linux has not: private numbers, and the protocol of exits for system registers.

Linux numbers its capabilities and exit reasons consecutively, and both are below 1,000 after twenty years. Ours have "TR" in the upper
half of the 32-bit word, so the two can never meet: a program that asks Linux for one of them is told 0, and Linux never sends the exit.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

PRIVATE: Final = 0x5452_0000
"""Base of all private numbers: the letters TR."""

CAP_SYSREG_TO_USER: Final = PRIVATE | 0x01
EXIT_SYSREG: Final = PRIVATE | 0x01


class SysregState(IntEnum):
    """In which execution state, and how wide, an access was: kvm_run.sysreg.aarch32."""

    AARCH64 = 0  # MRS, MSR, SYS, SYSL: 64 bits
    CP15_32 = 1  # MRC, MCR of coprocessor 15: 32 bits
    CP15_64 = 2  # MRRC, MCRR of coprocessor 15: 64 bits in two registers


class SysregAction(IntEnum):
    """What userspace makes of an access: kvm_run.sysreg.action."""

    UNDEFINED = 0  # the guest gets an undefined instruction exception; what KVM puts there
    DONE = 1  # the access took place: a read gets `value`, the guest goes on behind the instruction


PAGE: Final = """## Exits for system registers (not in Linux)

A guest's access to an implementation-defined system register is an exit that userspace answers. Linux injects an undefined instruction
exception instead; so does this KVM until the capability is switched on.

| | |
|---|---|
| capability | `KVM_CAP_TRAPLINE_SYSREG_TO_USER`, `0x54520001`: KVM_CHECK_EXTENSION answers 1 |
| switching on | KVM_ENABLE_CAP on the VM, at any time; `args` that are not zero are EINVAL |
| exit reason | `KVM_EXIT_TRAPLINE_SYSREG`, `0x54520001` |

Which accesses: from EL1, in AArch64 state, op0 = 1 or 3 with CRn = 11 or 15; in AArch32 state, coprocessor 15, MCR and MRC with CRn = c9
(CRm c0-c2, c5-c8), c10 (c0, c1, c4, c8), c11 (c0-c8, c15) or c15, MCRR and MRRC with CRm = c9, c10, c11 or c15 except the cycle
counter's. An instruction whose condition fails is skipped. From EL0 such an access is UNDEFINED, always, and no exit.

The union of kvm_run, at offset 32. What is not in the table is zero.

| offset | field | set by | valid values |
|---|---|---|---|
| 32 | `op0` (u8) | KVM | 1 or 3; 0 in AArch32 state |
| 33 | `op1` (u8) | KVM | 0-7; 0-15 for MCRR and MRRC |
| 34 | `crn` (u8) | KVM | 0-15; 0 for MCRR and MRRC |
| 35 | `crm` (u8) | KVM | 0-15 |
| 36 | `op2` (u8) | KVM | 0-7; 0 for MCRR and MRRC |
| 37 | `is_write` (u8) | KVM | 0 the guest reads (MRS, SYSL, MRC, MRRC), 1 it writes |
| 38 | `aarch32` (u8) | KVM | 0 AArch64 state; 1 MCR, MRC; 2 MCRR, MRRC |
| 39 | `action` (u8) | KVM, userspace | 0 (as KVM leaves it) inject UNDEFINED; 1 done |
| 40 | `value` (u64) | KVM for a write, userspace for a read | what is written (32 bits for MCR); 0 at the exit of a read |

The states of a vCPU. Whether an access is pending, its direction and its destination register are KVM's own: userspace cannot forge
them, and what it does to `exit_reason` or to the other fields means nothing.

| state | event | what happens | next |
|---|---|---|---|
| none | the guest makes such an access | KVM_RUN returns 0 with the exit; the PC is at the instruction, `action` is 0 | pending |
| pending | KVM_RUN, `action` = 0 | UNDEFINED is injected at the instruction; the guest runs | none |
| pending | KVM_RUN, `action` = 1, read | `value` goes into the destination, the PC behind the instruction; the guest runs | none |
| pending | KVM_RUN, `action` = 1, write | the PC goes behind the instruction; the guest runs | none |
| pending | KVM_RUN, `action` is something else | EINVAL; nothing happened | pending |
| pending | KVM_RUN with `immediate_exit`, a signal or a kick | as above, then EINTR: the access is complete, and only once | none |
| pending | KVM_SET_ONE_REG of the PC | the access is abandoned: the guest goes on at the new PC | none |
| pending | KVM_SET_ONE_REG of anything else | the register is set; a read's destination is overwritten at completion | pending |
| pending | KVM_ARM_VCPU_INIT, or a reset by PSCI CPU_ON | the access is abandoned | none |
| pending | KVM_SET_VCPU_EVENTS with `ext_dabt_pending` | the abort takes the access's place | none |
| pending | KVM_GET_*, other SET calls, KVM_ENABLE_CAP | as always | pending |

MRC gets the low 32 bits of `value`, MRRC the low half in its first register and the high half in its second; what goes to XZR is lost.

A pending access is not part of what the GET calls save: to save a vCPU, complete it first by KVM_RUN with `immediate_exit` set, as for
MMIO. While userspace single-steps the guest, a completed access is a step.

"""
"""The manual's page."""
