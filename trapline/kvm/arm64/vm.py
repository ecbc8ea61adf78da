"""The arm64 part of a VM: stage 2, interrupt controller, timers, and what its vCPUs have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from errno import E2BIG, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENXIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from trapline.abi.arm64 import (
    KVM_ARM_PREFERRED_TARGET,
    TARGET_GENERIC_V8,
    DeviceType,
    Feature,
    IrqType,
    VcpuInit,
)
from trapline.abi.arm64_vm import KVM_ARM_SET_DEVICE_ADDR, KVM_CREATE_IRQCHIP, DeviceAddr
from trapline.abi.caps import Cap
from trapline.abi.ioctl import implements
from trapline.abi.irq import MSI_VALID_DEVID, Msi
from trapline.abi.memory import COALESCED_MAX
from trapline.errors import KvmError
from trapline.host.user import PAGE_SIZE
from trapline.kvm.arm64 import flags
from trapline.kvm.arm64.idregs import IdRegisters
from trapline.kvm.arm64.mmu import Mmu
from trapline.kvm.arm64.pagetable import BLOCK_SIZE
from trapline.kvm.arm64.pmu import VmPmu
from trapline.kvm.arm64.smccc import Smccc, VmAttributes
from trapline.kvm.arm64.timer import VmTimer
from trapline.kvm.arm64.vcpu import Arm64Vcpu
from trapline.kvm.device import DeviceOps
from trapline.kvm.memslots import Memslot
from trapline.kvm.stats import Stat
from trapline.sync import Bits, Lock

if TYPE_CHECKING:
    from trapline.kvm.arm64.machine import Arm64
    from trapline.kvm.vcpu import Vcpu
    from trapline.kvm.vm import Vm

MAX_VCPUS = 64
GICV2_MAX_VCPUS = 8

VCPU_STATS = tuple(
    Stat(name)
    for name in ("hvc_exit_stat", "wfe_exit_stat", "wfi_exit_stat", "mmio_exit_user", "mmio_exit_kernel", "signal_exits", "exits")
)
FIRST_SPI = 32
DEVICE_SHIFT, DEVICE_MASK, DEVICE_RANGE_MASK = 16, 0xFFFF, 0xFFFF
"""Parts of kvm_arm_device_addr.id."""

IRQCHIP_PINS = 988
"""Inputs that a GSI can lead to: every SPI there can be."""

SWITCHES: Mapping[int, int] = MappingProxyType(
    {
        Cap.ARM_NISV_TO_USER: flags.NISV_TO_USER,
        Cap.ARM_SYSTEM_SUSPEND: flags.SYSTEM_SUSPEND,
        Cap.ARM_WRITABLE_IMP_ID_REGS: flags.WRITABLE_IMP_ID_REGS,
        Cap.TRAPLINE_SYSREG_TO_USER: flags.SYSREG_TO_USER,
    }
)
"""Capabilities that KVM_ENABLE_CAP switches on, and their flags."""


class Arm64Vm:
    """One VM. `config_lock` protects what is fixed by the first vCPU that is initialised or runs."""

    vcpu_stats: Sequence[Stat] = VCPU_STATS
    irqchip_pins = IRQCHIP_PINS
    machine: Arm64
    timer: VmTimer

    def __init__(self, core: Vm, machine: Arm64, ipa_bits: int) -> None:
        self.core = core
        self.machine = machine
        self.ipa_bits = ipa_bits
        self.config_lock = Lock("config_lock", protects="vcpu_features, the step to HAS_RUN_ONCE")
        self.vmid = machine.vmids.take()
        self.mmu = Mmu(ipa_bits, self.vmid, machine.engine, core.system.address_space, lambda: core.memslots.active, core.stats)
        core.coalesced.posts = machine.engine.create_posts(core.coalesced.ring_address, COALESCED_MAX)
        self.vgic: Any = None
        self.timer = VmTimer(self)
        self.vcpu_features: int | None = None
        """Feature bits that the first KVM_ARM_VCPU_INIT chose for all."""
        self.flags = Bits("vm_flags")
        self.has_pan = "PAN" in machine.features
        self.has_ssbs = "SSBS" in machine.features
        self.has_mte = "MTE2" in machine.features
        self.its: list[Any] = []
        self.pmu = VmPmu(self)
        self.ids = IdRegisters(self)
        core.attributes = VmAttributes(self)
        self.smccc = Smccc(self)
        """What of the hypercalls is the kernel's."""
        self.split_chunk_size = 0
        self.max_vcpus = MAX_VCPUS
        """A GICv2 lowers it."""

    @property
    def has_run(self) -> bool:
        """Whether a vCPU has run."""
        return bool(self.flags.any() & flags.HAS_RUN_ONCE)

    @property
    def vcpus(self) -> list[Arm64Vcpu]:
        """All vCPUs in order of creation."""
        return [vcpu.arch for vcpu in self.core.vcpus]  # type: ignore[misc]

    def stop_vcpus(self) -> AbstractContextManager[None]:
        """Hold every vCPU outside KVM_RUN; EBUSY if one is inside."""
        return self.core.stop_vcpus()

    def check_new_vcpu(self) -> None:
        """An initialised interrupt controller serves the vCPUs it found."""
        if self.vgic is not None and self.vgic.initialized:
            raise KvmError(EBUSY)

    def create_vcpu(self, core: Vcpu) -> Arm64Vcpu:
        """A vCPU, known to the interrupt controller if there is one."""
        vcpu = Arm64Vcpu(core, self)
        if self.vgic is not None:
            self.vgic.add_vcpu(vcpu)
        return vcpu

    # --- identification ------------------------------------------------------------------------------------------------------

    def id_values(self) -> dict[int, int]:
        """ID registers as the guest sees them, by encoding; those that are not here read as zero."""
        return self.ids.values

    def has_feature(self, feature: Feature) -> bool:
        """Whether the VM's vCPUs were initialised with a feature."""
        return bool((self.vcpu_features or 0) >> feature & 1)

    # --- memory --------------------------------------------------------------------------------------------------------------

    def prepare_slot(self, slot: Memslot) -> None:
        """A slot must end within the VM's physical address space."""
        if slot.end > 1 << self.ipa_bits:
            raise KvmError(EFAULT)

    def flush_slot(self, slot: Memslot) -> None:
        """Remove every translation to the slot, and what the machine remembers of its contents."""
        self.mmu.unmap_slot(slot)
        self._drop_code(slot)

    def forget_code(self) -> None:
        """Userspace may have put other contents into guest memory while no vCPU ran."""
        for slot in self.core.memslots.active:
            self._drop_code(slot)

    def _drop_code(self, slot: Memslot) -> None:
        if not self.has_run:
            return  # nothing was decoded from it for this VM, and what other VMs had there went with them
        start = max(slot.hva, PAGE_SIZE)  # nothing is ever at address 0, which is the engine's word for no page
        self.machine.engine.drop_code(start, slot.hva + slot.size - start)

    def write_protect_pages(self, slot: Memslot, ranges: Iterable[tuple[int, int]]) -> None:
        """Make the next write to every page of these ranges fault."""
        self.mmu.write_protect(slot.gpa, ranges)

    # --- configuration -------------------------------------------------------------------------------------------------------

    def enable_cap(self, cap: int, args: Sequence[int]) -> int:
        """Capabilities that are off until enabled."""
        if cap == Cap.ARM_EAGER_SPLIT_CHUNK_SIZE:
            return self._set_split_chunk_size(args[0])
        flag = SWITCHES.get(cap)
        if flag is None or (cap == Cap.TRAPLINE_SYSREG_TO_USER and any(args)):
            raise KvmError(EINVAL)
        with self.core.lock:
            if cap == Cap.ARM_WRITABLE_IMP_ID_REGS and self.core.vcpus:
                raise KvmError(EINVAL)
            self.flags.set(flag)
        return 0

    def _set_split_chunk_size(self, size: int) -> int:
        """How many bytes of blocks to split at once when a slot begins to log. All of them are unmapped then, whatever is asked for."""
        with self.core.memslots.slots_lock:
            if len(self.core.memslots.active) or size not in (0, PAGE_SIZE, BLOCK_SIZE):
                raise KvmError(EINVAL)
            self.split_chunk_size = size
        return 0

    def create_device(self, kind: int, test: bool) -> DeviceOps | None:
        """Interrupt controllers are the only in-kernel devices."""
        make = DEVICES.get(kind)
        if make is None:
            raise KvmError(ENODEV)
        return None if test else make(self)

    def _create_vgic_v3(self) -> DeviceOps:
        from trapline.kvm.arm64.vgic import VgicV3

        return self._create_vgic(VgicV3, MAX_VCPUS)

    def _create_vgic_v2(self) -> DeviceOps:
        from trapline.kvm.arm64.vgic import VgicV2

        return self._create_vgic(VgicV2, GICV2_MAX_VCPUS)

    def _create_vgic(self, kind: Callable[[Any], DeviceOps], most: int) -> DeviceOps:
        """The interrupt controller, of which there is one, before any vCPU runs."""
        with self.stop_vcpus():
            if self.vgic is not None:
                raise KvmError(EEXIST)
            if self.has_run:
                raise KvmError(EBUSY)
            if len(self.core.vcpus) > most:
                raise KvmError(E2BIG)
            vgic = kind(self)
            self._install(vgic)
            self.max_vcpus = most
        return vgic

    @property
    def has_gic_registers(self) -> bool:
        """Whether CPU interfaces are system registers, as those of a GICv3 are."""
        return self.vgic is not None and self.vgic.has_system_registers

    def _install(self, vgic: Any) -> None:
        """Make an interrupt controller the VM's, and connect it to what the core knows of interrupts."""
        core = self.core
        vgic.on_init = lambda: core.routing.reset(len(vgic.spis))
        vgic.on_eoi = lambda intid: core.irqfds.acknowledged(intid - FIRST_SPI)
        self.vgic = vgic
        for its in self.its if vgic.has_system_registers else ():
            its.attach(vgic)

    @property
    def has_irqchip(self) -> bool:
        """There is an in-kernel interrupt controller."""
        return self.vgic is not None

    @property
    def irqchip_ready(self) -> bool:
        """It has been initialised."""
        return self.vgic is not None and self.vgic.initialized

    def set_irqchip_pin(self, pin: int, level: bool) -> None:
        """Inputs are the SPIs, from 0."""
        self._irqchip()
        self.vgic.inject(None, FIRST_SPI + pin, level)

    def _create_its(self) -> DeviceOps:
        """An ITS, of which there may be several. It serves the GICv3 that there is, or that comes later."""
        from trapline.kvm.arm64.vgic import VgicIts

        its = VgicIts.without_gic(self, self.core.memory)
        if self.has_gic_registers:
            its.attach(self.vgic)
        self.its.append(its)
        return its

    def send_msi(self, msi: Msi) -> int:
        """Messages go to the ITS that has their address, and have to say who sends them."""
        if not self.its or not self.has_gic_registers:
            raise KvmError(ENODEV)
        its = next((each for each in self.its if each.contains(msi.address)), None)
        if its is None or not msi.flags & MSI_VALID_DEVID:
            raise KvmError(EINVAL)
        return int(its.trigger(msi.devid, msi.data))

    def watch_irqchip_pins(self, pins: Set[int]) -> None:
        """Inputs of level-sensitive interrupts whose completion matters."""
        for irq in () if self.vgic is None else self.vgic.spis:
            irq.watched = irq.intid - FIRST_SPI in pins

    def irq_line(self, irq: int, level: bool) -> None:
        """KVM_IRQ_LINE: decode the word and drive the line."""
        number = irq & 0xFFFF
        kind = irq >> 24 & 0xF
        vcpu_id = (irq >> 28) << 8 | irq >> 16 & 0xFF
        if kind == IrqType.CPU:
            if self.vgic is not None:
                raise KvmError(ENXIO)
            if number > 1:
                raise KvmError(EINVAL)
            self._vcpu(vcpu_id).set_pin(number, level)
        elif kind == IrqType.PPI:
            self._irqchip()
            vcpu = self._vcpu(vcpu_id)
            if not 16 <= number <= 31:
                raise KvmError(EINVAL)
            self.vgic.lazy_init()
            self.vgic.inject(vcpu, number, level)
        elif kind == IrqType.SPI:
            self._irqchip()
            if number < 32:
                raise KvmError(EINVAL)
            self.vgic.lazy_init(number)
            self.vgic.inject(None, number, level)
        else:
            raise KvmError(EINVAL)

    def _irqchip(self) -> None:
        if self.vgic is None:
            raise KvmError(ENXIO)

    def _vcpu(self, vcpu_id: int) -> Arm64Vcpu:
        for vcpu in self.vcpus:
            if vcpu.id == vcpu_id:
                return vcpu
        raise KvmError(EINVAL)

    # --- life ----------------------------------------------------------------------------------------------------------------

    def stop_all(self, me: Arm64Vcpu) -> None:
        """Power every vCPU off, as PSCI SYSTEM_OFF and SYSTEM_RESET do; the others leave the guest and sleep."""
        for vcpu in self.vcpus:
            vcpu.power_off(tell=vcpu is not me)

    def destroy(self) -> None:
        """Release the tables and the VM's number."""
        self.mmu.unmap_all()
        self.forget_code()
        self.machine.vmids.give_back(self.vmid)


DEVICES: Mapping[int, Callable[[Arm64Vm], DeviceOps]] = MappingProxyType(
    {
        DeviceType.ARM_VGIC_V2: Arm64Vm._create_vgic_v2,
        DeviceType.ARM_VGIC_V3: Arm64Vm._create_vgic_v3,
        DeviceType.ARM_VGIC_ITS: Arm64Vm._create_its,
    }
)
"""What makes each kind of in-kernel device."""


@implements(KVM_CREATE_IRQCHIP)
def create_irqchip(vm: Vm, _argument: int) -> int:
    """A GICv2 without a file of its own."""
    with vm.lock:
        vm.arch.create_device(DeviceType.ARM_VGIC_V2, test=False)
    return 0


@implements(KVM_ARM_SET_DEVICE_ADDR)
def set_device_addr(vm: Vm, request: DeviceAddr) -> int:
    """The id's upper half says which device: there is but one. The lower half says which of its ranges."""
    if request.id >> DEVICE_SHIFT & DEVICE_MASK:
        raise KvmError(ENODEV)
    vgic = cast(Arm64Vm, vm.arch).vgic
    if vgic is None or vgic.has_system_registers:
        raise KvmError(ENODEV)
    vgic.set_address(request.id & DEVICE_RANGE_MASK, request.addr)
    return 0


@implements(KVM_ARM_PREFERRED_TARGET)
def preferred_target(vm: Vm, init: VcpuInit) -> int:
    """The generic target; no feature has to be asked for."""
    init.target = TARGET_GENERIC_V8
    init.features[:] = [0] * len(init.features)
    return 0
