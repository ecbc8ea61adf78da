"""/dev/kvm itself: version, capabilities, making VMs and vCPUs; and calls that go to the wrong file."""

from __future__ import annotations

from errno import EBUSY, EEXIST, EINVAL, ENOTTY

from tests.conformance.frame import GENERIC, PAGE, Cases, Trial
from trapline.abi.arm64 import DeviceType, VgicAddr, VgicCtrl, VgicGroup
from trapline.abi.caps import Cap
from trapline.abi.device import KVM_HAS_DEVICE_ATTR
from trapline.abi.system import KVM_CHECK_EXTENSION, KVM_CREATE_VM, KVM_GET_API_VERSION, KVM_GET_VCPU_MMAP_SIZE
from trapline.abi.vcpu import KVM_GET_MP_STATE, KVM_GET_ONE_REG, KVM_RUN
from trapline.abi.vm import KVM_CREATE_VCPU, KVM_ENABLE_CAP, KVM_SET_USER_MEMORY_REGION

case = Cases(__name__)

X86_VM = "VMs of x86 say ENOTTY to a call that they do not know, those of arm64 EINVAL"

case(KVM_GET_API_VERSION, 0, "twelve", lambda t: same(t(KVM_GET_API_VERSION), 12), GENERIC)
case(KVM_GET_API_VERSION, EINVAL, "an argument", lambda t: t(KVM_GET_API_VERSION, 1), GENERIC)
case(KVM_GET_VCPU_MMAP_SIZE, 0, "whole pages, at least one", lambda t: same(t(KVM_GET_VCPU_MMAP_SIZE) % PAGE, 0), GENERIC)
case(KVM_GET_VCPU_MMAP_SIZE, 0, "kvm_run and the coalesced ring", lambda t: same(t(KVM_GET_VCPU_MMAP_SIZE), 2 * PAGE))
case(KVM_GET_VCPU_MMAP_SIZE, EINVAL, "an argument", lambda t: t(KVM_GET_VCPU_MMAP_SIZE, 1), GENERIC)

case(KVM_CREATE_VM, 0, "type 0", lambda t: t(KVM_CREATE_VM, 0), GENERIC)
case(KVM_CREATE_VM, EINVAL, "bits beyond any type", lambda t: t(KVM_CREATE_VM, 1 << 40), GENERIC)
for bits in (32, 36, 39, 40, 44, 48):
    case(KVM_CREATE_VM, 0, f"{bits} bits of IPA", lambda t, bits=bits: t(KVM_CREATE_VM, bits))
for bits in (1, 31, 49, 52, 64, 255):
    case(KVM_CREATE_VM, EINVAL, f"{bits} bits of IPA", lambda t, bits=bits: t(KVM_CREATE_VM, bits))
case(KVM_CREATE_VM, EINVAL, "a bit above the IPA size", lambda t: t(KVM_CREATE_VM, 0x100 | 40))
case(KVM_CREATE_VM, EINVAL, "a protected VM on a host without them", lambda t: t(KVM_CREATE_VM, 1 << 31))

case(KVM_CHECK_EXTENSION, 0, "unknown is 0", lambda t: same(t.cap(0x7FFF_0000, on=t.system), 0), GENERIC)
case(KVM_CHECK_EXTENSION, 0, "unknown is 0 for a VM", lambda t: same(t.cap(0x7FFF_0000), 0), GENERIC)
case(KVM_CHECK_EXTENSION, 0, "another architecture's is 0", lambda t: same(t.cap(217), 0), GENERIC)

PRESENT = (
    Cap.USER_MEMORY, Cap.DESTROY_MEMORY_REGION_WORKS, Cap.JOIN_MEMORY_REGIONS_WORKS, Cap.SYNC_MMU, Cap.INTERNAL_ERROR_DATA,
    Cap.READONLY_MEM, Cap.DEVICE_CTRL, Cap.ENABLE_CAP_VM, Cap.CHECK_EXTENSION_VM, Cap.IMMEDIATE_EXIT, Cap.MP_STATE, Cap.VCPU_EVENTS,
    Cap.SET_GUEST_DEBUG, Cap.SYSTEM_EVENT_DATA, Cap.HALT_POLL, Cap.IRQCHIP,
)  # fmt: skip
"""Capabilities that are just there, on every architecture."""

for cap in PRESENT:
    case(KVM_CHECK_EXTENSION, 0, f"{cap.name} is 1", lambda t, cap=cap: same(t.cap(cap, on=t.system), 1), GENERIC)
for cap in (Cap.ARM_PSCI, Cap.ARM_PSCI_0_2, Cap.ONE_REG, Cap.VCPU_ATTRIBUTES, Cap.ARM_NISV_TO_USER, Cap.ARM_INJECT_EXT_DABT,
            Cap.ARM_IRQ_LINE_LAYOUT_2, Cap.ARM_SYSTEM_SUSPEND):  # fmt: skip
    case(KVM_CHECK_EXTENSION, 0, f"{cap.name} is 1", lambda t, cap=cap: same(t.cap(cap), 1))
case(KVM_CHECK_EXTENSION, 0, "32767 memory slots", lambda t: same(t.cap(Cap.NR_MEMSLOTS), 32767))
case(KVM_CHECK_EXTENSION, 0, "no dirty ring of x86's order", lambda t: same(t.cap(Cap.DIRTY_LOG_RING), 0))
case(KVM_CHECK_EXTENSION, 0, "no more vCPUs advised than allowed", lambda t: true(0 < t.cap(Cap.NR_VCPUS) <= t.cap(Cap.MAX_VCPUS)), GENERIC)
case(KVM_CHECK_EXTENSION, 0, "ids for all vCPUs", lambda t: true(t.cap(Cap.MAX_VCPUS) <= t.cap(Cap.MAX_VCPU_ID)), GENERIC)
case(KVM_CHECK_EXTENSION, 0, "debug control bits", lambda t: same(t.cap(Cap.SET_GUEST_DEBUG2), 0x30003))
case(KVM_CHECK_EXTENSION, 0, "IPA bits", lambda t: true(40 <= t.cap(Cap.ARM_VM_IPA_SIZE) <= 52))

NUMBERS = {
    Cap.IRQ_ROUTING: 4096, Cap.IRQFD: 1, Cap.IOEVENTFD: 1, Cap.SIGNAL_MSI: 1, Cap.IRQFD_RESAMPLE: 1, Cap.ARM_SET_DEVICE_ADDR: 1,
    Cap.IOEVENTFD_ANY_LENGTH: 1, Cap.ARM_PTRAUTH_ADDRESS: 1, Cap.ARM_PTRAUTH_GENERIC: 1, Cap.STEAL_TIME: 1, Cap.PTP_KVM: 1,
    Cap.DIRTY_LOG_RING_WITH_BITMAP: 1, Cap.COUNTER_OFFSET: 1, Cap.ARM_SUPPORTED_REG_MASK_RANGES: 1, Cap.ARM_WRITABLE_IMP_ID_REGS: 1,
    Cap.USER_MEMORY2: 1, Cap.ARM_USER_IRQ: 1, Cap.PRE_FAULT_MEMORY: 1,
}  # fmt: skip
"""What the software machine answers besides; a host's KVM may lack some."""

ABSENT = (
    Cap.ARM_EL1_32BIT, Cap.ARM_SVE, Cap.ARM_MTE, Cap.ARM_EL2, Cap.ARM_EL2_E2H0, Cap.GUEST_MEMFD, Cap.MEMORY_ATTRIBUTES, Cap.VM_TYPES,
    Cap.MEMORY_FAULT_INFO, Cap.ARM_INJECT_SERROR_ESR, Cap.ARM_SEA_TO_USER, Cap.ARM_CACHEABLE_PFNMAP_SUPPORTED,
)  # fmt: skip
"""What it does not do, and so does not show."""

for cap, value in NUMBERS.items():
    case(KVM_CHECK_EXTENSION, 0, f"{cap.name} on this machine", lambda t, cap=cap, value=value: here(t, cap, value))
for cap in ABSENT:
    case(KVM_CHECK_EXTENSION, 0, f"{cap.name} is shown by those who have it", lambda t, cap=cap: here(t, cap, 0))

case(KVM_CREATE_VCPU, 0, "id 0", lambda t: t(KVM_CREATE_VCPU, 0), GENERIC)
case(KVM_CREATE_VCPU, 0, "ids need not be in order", lambda t: [t(KVM_CREATE_VCPU, number) for number in (1, 0)], GENERIC)
case(KVM_CREATE_VCPU, EINVAL, "the first id that is too large", lambda t: t(KVM_CREATE_VCPU, t.cap(Cap.MAX_VCPU_ID)), GENERIC)
case(KVM_CREATE_VCPU, EINVAL, "an id of 32 bits", lambda t: t(KVM_CREATE_VCPU, 0xFFFF_FFFF), GENERIC)
case(KVM_CREATE_VCPU, 0, "the last id", lambda t: t(KVM_CREATE_VCPU, t.cap(Cap.MAX_VCPU_ID) - 1), GENERIC)


@case.of(KVM_CREATE_VCPU, EEXIST, "the id is taken", GENERIC)
def _taken(t: Trial):
    t(KVM_CREATE_VCPU, 0)
    yield
    t(KVM_CREATE_VCPU, 0)


@case.of(KVM_CREATE_VCPU, EBUSY, "the interrupt controller is initialised; that comes before a taken id")
def _late(t: Trial):
    assert t.vcpu
    gic = t.add_device(DeviceType.ARM_VGIC_V3)
    t.set_attr(gic, VgicGroup.ADDR, VgicAddr.V3_DIST, 0x800_0000, 8)
    t.set_attr(gic, VgicGroup.ADDR, VgicAddr.V3_REDIST, 0x80A_0000, 8)
    t.set_attr(gic, VgicGroup.CTRL, VgicCtrl.INIT)
    yield
    t(KVM_CREATE_VCPU, 0)


case(KVM_RUN, EINVAL, "on the KVM device", lambda t: t(KVM_RUN, on=t.system), GENERIC)
case(KVM_RUN, EINVAL, "on a VM", lambda t: t(KVM_RUN, on=t.vm), GENERIC, differs=(ENOTTY, X86_VM))
case(KVM_CREATE_VCPU, EINVAL, "on the KVM device", lambda t: t(KVM_CREATE_VCPU, 0, on=t.system), GENERIC)
case(KVM_CREATE_VCPU, EINVAL, "on a vCPU", lambda t: t(KVM_CREATE_VCPU, 0, on=t.vcpu), GENERIC)
case(KVM_CREATE_VM, EINVAL, "on a vCPU", lambda t: t(KVM_CREATE_VM, 0, on=t.vcpu), GENERIC)
case(KVM_CREATE_VM, EINVAL, "on a VM", lambda t: t(KVM_CREATE_VM, 0, on=t.vm), GENERIC, differs=(ENOTTY, X86_VM))
case(KVM_SET_USER_MEMORY_REGION, EINVAL, "on a vCPU", lambda t: t(KVM_SET_USER_MEMORY_REGION, on=t.vcpu), GENERIC)
case(KVM_SET_USER_MEMORY_REGION, EINVAL, "on the KVM device", lambda t: t(KVM_SET_USER_MEMORY_REGION, on=t.system), GENERIC)
case(KVM_GET_MP_STATE, EINVAL, "on the KVM device", lambda t: t(KVM_GET_MP_STATE, on=t.system), GENERIC)
case(KVM_GET_ONE_REG, EINVAL, "on the KVM device", lambda t: t(KVM_GET_ONE_REG, on=t.system), GENERIC)
case(KVM_HAS_DEVICE_ATTR, EINVAL, "on the KVM device", lambda t: t(KVM_HAS_DEVICE_ATTR, on=t.system))
case(KVM_CHECK_EXTENSION, EINVAL, "on a vCPU", lambda t: t(KVM_CHECK_EXTENSION, 3, on=t.vcpu), GENERIC)

case(KVM_ENABLE_CAP, EINVAL, "an unknown capability", lambda t: t.enable(0x7FFF_0000), GENERIC)
case(KVM_ENABLE_CAP, EINVAL, "one that is always on", lambda t: t.enable(Cap.USER_MEMORY), GENERIC)
case(KVM_ENABLE_CAP, EINVAL, "a flag", lambda t: t.enable(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1, flags=1), GENERIC)
case(KVM_ENABLE_CAP, 0, "accesses without syndrome to userspace", lambda t: t.enable(Cap.ARM_NISV_TO_USER))
case(KVM_ENABLE_CAP, 0, "the same twice", lambda t: [t.enable(Cap.ARM_NISV_TO_USER) for _ in range(2)])
case(KVM_ENABLE_CAP, EINVAL, "NISV_TO_USER with a flag", lambda t: t.enable(Cap.ARM_NISV_TO_USER, flags=1))
case(KVM_ENABLE_CAP, 0, "system suspend", lambda t: t.enable(Cap.ARM_SYSTEM_SUSPEND))
case(KVM_ENABLE_CAP, 0, "a limit for polling", lambda t: t.enable(Cap.HALT_POLL, 100_000), GENERIC)
case(KVM_ENABLE_CAP, EINVAL, "a limit for polling beyond 32 bits", lambda t: t.enable(Cap.HALT_POLL, 1 << 32), GENERIC)
case(KVM_ENABLE_CAP, EINVAL, "MTE on a machine without it", lambda t: t.enable(Cap.ARM_MTE))


def same(value: int, expected: int) -> None:
    """An answer is the expected one."""
    assert value == expected, f"{value:#x}, not {expected:#x}"


def true(value: bool) -> None:
    """An answer is as it should be."""
    assert value


def here(t: Trial, cap: Cap, value: int) -> None:
    """What the software machine answers; a host's may be another."""
    answer = t.cap(cap)
    if t.backend.name == "software":
        same(answer, value)
