"""What is switched on for a VM: one word of bits, as in struct kvm_arch. Bits are only ever set; `Arm64Vm.flags` is atomic."""

from __future__ import annotations

from typing import Final

NISV_TO_USER: Final = 1 << 0
"""Accesses to devices without a syndrome exit to userspace."""

SYSREG_TO_USER: Final = 1 << 1
"""Accesses to implementation-defined system registers exit to userspace."""

SYSTEM_SUSPEND: Final = 1 << 2
"""PSCI SYSTEM_SUSPEND exists."""

HAS_RUN_ONCE: Final = 1 << 3
"""A vCPU has run: what the guest may have seen is fixed."""

WRITABLE_IMP_ID_REGS: Final = 1 << 4
"""MIDR_EL1, REVIDR_EL1 and AIDR_EL1 can be set, for the whole VM."""

COUNTER_OFFSET: Final = 1 << 5
"""KVM_ARM_SET_COUNTER_OFFSET has set the offset of both counters: setting a counter by ONE_REG does nothing any more."""
