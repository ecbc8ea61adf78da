"""Capabilities: what KVM_CHECK_EXTENSION and KVM_ENABLE_CAP are asked about."""

from __future__ import annotations

from enum import IntEnum

from trapline.abi.extensions import CAP_SYSREG_TO_USER


class Cap(IntEnum):
    """KVM_CAP_<name>. The value is the kernel's number; the comment says what a non-zero answer means."""

    IRQCHIP = 0  # an in-kernel interrupt controller can be made
    USER_MEMORY = 3  # memory slots backed by user memory
    SET_TSS_ADDR = 4
    VAPIC = 6
    EXT_CPUID = 7  # CPUID tables
    CLOCKSOURCE = 8  # kvmclock
    NR_VCPUS = 9  # recommended number of vCPUs
    NR_MEMSLOTS = 10  # how many memory slots
    PIT = 11
    MP_STATE = 14  # the run state of a vCPU can be read and set
    COALESCED_MMIO = 15  # page offset of the ring of coalesced writes
    SYNC_MMU = 16  # user mappings may change while the guest uses them
    DESTROY_MEMORY_REGION_WORKS = 21  # slots can be deleted
    USER_NMI = 22
    SET_GUEST_DEBUG = 23
    REINJECT_CONTROL = 24
    IRQ_ROUTING = 25  # how many routes
    IRQ_INJECT_STATUS = 26
    JOIN_MEMORY_REGIONS_WORKS = 30
    MCE = 31  # how many banks
    IRQFD = 32
    PIT2 = 33
    SET_BOOT_CPU_ID = 34
    PIT_STATE2 = 35
    IOEVENTFD = 36
    SET_IDENTITY_MAP_ADDR = 37
    XEN_HVM = 38
    ADJUST_CLOCK = 39  # which ClockFlag bits are known
    INTERNAL_ERROR_DATA = 40  # KVM_EXIT_INTERNAL_ERROR carries data
    VCPU_EVENTS = 41
    HYPERV = 44
    INTR_SHADOW = 49
    DEBUGREGS = 50
    X86_ROBUST_SINGLESTEP = 51
    XSAVE = 55
    XCRS = 56
    ASYNC_PF = 59
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    ONE_REG = 70  # registers by id
    TSC_DEADLINE_TIMER = 72
    SYNC_REGS = 74  # which registers kvm_run can hold
    KVMCLOCK_CTRL = 76
    SIGNAL_MSI = 77
    READONLY_MEM = 81  # memory slots the guest cannot write
    IRQFD_RESAMPLE = 82
    ARM_PSCI = 87
    ARM_SET_DEVICE_ADDR = 88
    DEVICE_CTRL = 89  # KVM_CREATE_DEVICE and attributes
    ARM_EL1_32BIT = 93
    EXT_EMUL_CPUID = 95
    ENABLE_CAP_VM = 98
    ARM_PSCI_0_2 = 102
    CHECK_EXTENSION_VM = 105  # the VM's fd answers KVM_CHECK_EXTENSION
    DISABLE_QUIRKS = 116
    X86_SMM = 117
    MULTI_ADDRESS_SPACE = 118
    GUEST_DEBUG_HW_BPS = 119
    GUEST_DEBUG_HW_WPS = 120
    SPLIT_IRQCHIP = 121  # local APICs in the kernel, the rest in userspace
    IOEVENTFD_ANY_LENGTH = 122
    ARM_PMU_V3 = 126
    VCPU_ATTRIBUTES = 127
    MAX_VCPU_ID = 128
    X2APIC_API = 129
    MSI_DEVID = 131
    IMMEDIATE_EXIT = 136  # kvm_run.immediate_exit is honoured
    X86_DISABLE_EXITS = 143
    ARM_USER_IRQ = 144
    GET_MSR_FEATURES = 153
    NESTED_STATE = 157
    ARM_INJECT_SERROR_ESR = 158
    MSR_PLATFORM_INFO = 159
    COALESCED_PIO = 162  # the same for port addresses
    EXCEPTION_PAYLOAD = 164
    ARM_VM_IPA_SIZE = 165  # largest number of IPA bits of a VM
    HYPERV_CPUID = 167
    MANUAL_DIRTY_LOG_PROTECT2 = 168
    ARM_SVE = 170
    ARM_PTRAUTH_ADDRESS = 171
    ARM_PTRAUTH_GENERIC = 172
    PMU_EVENT_FILTER = 173
    ARM_IRQ_LINE_LAYOUT_2 = 174  # KVM_IRQ_LINE takes vCPU numbers above 255
    ARM_NISV_TO_USER = 177  # accesses without syndrome exit to userspace
    ARM_INJECT_EXT_DABT = 178  # userspace can inject an external data abort
    HALT_POLL = 182
    STEAL_TIME = 187
    X86_USER_SPACE_MSR = 188  # MSR accesses can leave to userspace
    X86_MSR_FILTER = 189
    DIRTY_LOG_RING = 192  # bytes of the largest dirty ring, on hosts with x86 memory order
    X86_BUS_LOCK_EXIT = 193
    SET_GUEST_DEBUG2 = 195
    PTP_KVM = 198
    SREGS2 = 200
    EXIT_HYPERCALL = 201  # which hypercalls can leave to userspace
    BINARY_STATS_FD = 203
    EXIT_ON_EMULATION_FAILURE = 204
    ARM_MTE = 205
    XSAVE2 = 208  # bytes of the XSAVE area
    DISABLE_QUIRKS2 = 213  # which quirks can be switched off
    VM_TSC_CONTROL = 214
    SYSTEM_EVENT_DATA = 215  # KVM_EXIT_SYSTEM_EVENT carries data
    ARM_SYSTEM_SUSPEND = 216
    X86_TRIPLE_FAULT_EVENT = 218
    X86_NOTIFY_VMEXIT = 219
    DIRTY_LOG_RING_ACQ_REL = 223
    DIRTY_LOG_RING_WITH_BITMAP = 225
    COUNTER_OFFSET = 227
    ARM_EAGER_SPLIT_CHUNK_SIZE = 228
    ARM_SUPPORTED_BLOCK_SIZES = 229
    ARM_SUPPORTED_REG_MASK_RANGES = 230
    USER_MEMORY2 = 231
    MEMORY_FAULT_INFO = 232  # KVM_EXIT_MEMORY_FAULT tells why KVM_RUN failed
    MEMORY_ATTRIBUTES = 233  # mask of the attributes that pages can have
    GUEST_MEMFD = 234
    VM_TYPES = 235  # mask of the types of VM
    PRE_FAULT_MEMORY = 236
    ARM_WRITABLE_IMP_ID_REGS = 239
    ARM_EL2 = 240
    ARM_EL2_E2H0 = 241
    ARM_CACHEABLE_PFNMAP_SUPPORTED = 243
    ARM_SEA_TO_USER = 245
    PMU_V3_STRICT = 251
    TRAPLINE_SYSREG_TO_USER = CAP_SYSREG_TO_USER  # not Linux's: accesses to implementation-defined registers exit to userspace


C_NAMES = {
    Cap.PMU_V3_STRICT: "KVM_CAP_ARM_PMU_V3_STRICT",
    Cap.ARM_MTE: "KVM_CAP_ARM_MTE",
}
"""Where the header's name is not KVM_CAP_ and ours."""


def c_name(cap: Cap) -> str:
    """What the kernel's header calls a capability."""
    return C_NAMES.get(cap, f"KVM_CAP_{cap.name}")
