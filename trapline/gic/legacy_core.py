"""A GICv2: the same interrupts and queues as a GICv3's, seen through a GICv2's distributor and CPU interfaces."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from trapline.errors import KvmError

from . import cpuif
from .core import DEFAULT_IRQS, Vgic
from .host import HostVcpu
from .legacy import CPU_INTERFACE, LegacyInterface, LegacySgi
from .legacy_dist import DISTRIBUTOR, FRAME_SIZE
from .regmap import Access, RegisterMap
from .state import SGIS, CpuInterface, Irq

CPU_INTERFACE_SIZE = 0x2000
PAGE_SHIFT = FRAME_SIZE.bit_length() - 1


class LegacyGic(Vgic):
    """A GICv2. A CPU interface's registers are served with the list registers up to date, and folded after each access."""

    has_system_registers = False
    cpu_base: int | None = None
    """Where the CPU interface is; each vCPU finds its own there."""

    def add_vcpu(self, vcpu: HostVcpu) -> None:
        """Give a new vCPU its CPU interface."""
        super().add_vcpu(vcpu)
        with self.lock:
            cpu = self.cpus[-1]
            cpu.legacy = LegacyInterface()
            cpu.private[:SGIS] = [LegacySgi(intid, vcpu.index) for intid in range(SGIS)]
            for irq in cpu.private:
                irq.target = cpu
                irq.group = 0
            cpuif.reset(cpu, self.requeue)

    def lazy_init(self, intid: int = 0) -> None:
        """Initialise if nobody has: user space of the first years did not. Not for an interrupt that there will not be."""
        if intid >= (self.nr_irqs or DEFAULT_IRQS):
            raise KvmError(errno.EINVAL, f"there is no interrupt {intid}")
        self.init()

    def make_spi(self, intid: int) -> Irq:
        """In group 0."""
        irq = super().make_spi(intid)
        irq.group = 0
        return irq

    def first_run(self, _vcpu: HostVcpu) -> None:
        """ENXIO without addresses, EINVAL if they overlap. Initialises."""
        with self.lock:
            if self.dist_base is None or self.cpu_base is None:
                raise KvmError(errno.ENXIO, "the GIC's distributor or CPU interface has no address")
            if self.dist_base < self.cpu_base + CPU_INTERFACE_SIZE and self.cpu_base < self.dist_base + FRAME_SIZE:
                raise KvmError(errno.EINVAL, "the GIC's distributor and CPU interface overlap")
        self.lazy_init()

    def deliverable(self, irq: Irq) -> bool:
        """Also the CPU interface has to want its group: there is no other place to tell groups apart."""
        return super().deliverable(irq) and self._wanted(irq)

    def forwarded(self, irq: Irq) -> bool:
        """Likewise."""
        return super().forwarded(irq) and self._wanted(irq)

    @staticmethod
    def _wanted(irq: Irq) -> bool:
        cpu = irq.target
        return cpu is not None and cpu.legacy is not None and cpu.legacy.enabled(irq.group)

    # ---- memory-mapped registers --------------------------------------------------------------------------------------------

    def contains(self, ipa: int) -> bool:
        """Whether a guest physical address belongs to the GIC."""
        return self._frame(ipa) is not None

    def _frame(self, ipa: int) -> tuple[RegisterMap, int] | None:
        dist, cpu = self.dist_base, self.cpu_base
        if dist is not None and 0 <= ipa - dist < FRAME_SIZE:
            return DISTRIBUTOR, ipa - dist
        if cpu is not None and 0 <= ipa - cpu < CPU_INTERFACE_SIZE:
            return CPU_INTERFACE, ipa - cpu
        return None

    def mmio(self, vcpu: HostVcpu, ipa: int, is_write: bool, length: int, value: int = 0) -> int:
        """An access by `vcpu`, on its own thread, to an address this GIC contains. Returns what a read reads."""
        found = self._frame(ipa)
        if found is None:
            raise ValueError(f"{ipa:#x} is no address of this GIC")
        registers, offset = found
        cpu = self.cpus[vcpu.index]
        access = self.banked(cpu)
        completed: list[int] = []
        with self.lock:
            if registers is CPU_INTERFACE and cpu.dirty:
                completed += self._fold(cpu)
                cpuif.load(cpu, self.deliverable)
            if is_write:
                registers.write(access, offset, length, value)
            else:
                value = registers.read(access, offset, length)
            if registers is CPU_INTERFACE and cpuif.changed(cpu):
                completed += self._fold(cpu)
            told = self.take_told()
        self.finish(cpu, told, completed)
        return value

    def _fold(self, cpu: CpuInterface) -> Iterable[int]:
        return cpuif.fold(cpu, self.requeue) if cpu.loaded else ()

    def banked(self, cpu: CpuInterface) -> Access:
        """The context of an access by this vCPU: its own private interrupts, and all SPIs."""
        return Access(self, cpu, [*cpu.private, *self.spis], 0)

    def user_word(self, cpu: CpuInterface, registers: RegisterMap, offset: int, value: int | None) -> int:
        """User space reads (`value` None) or writes a word; no vCPU runs."""
        access = self.banked(cpu)
        with self.lock:
            if value is None:
                return registers.read(access, offset, 4, user=True)
            registers.write(access, offset, 4, value, user=True)
            cpu.dirty = True
            told = self.take_told()
        self.finish(None, told)
        return 0

    def _map(self) -> None:
        """The frames of a GICv2 are found by address."""
