"""A GIC and its vCPUs without an engine: tests play the guest with the functions that the engine would run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EBUSY
from types import SimpleNamespace

from trapline.arm64 import gic_virtual
from trapline.arm64.state import CpuState
from trapline.errors import KvmError
from trapline.kvm.arm64.vgic import VgicV3

DIST, REDIST = 0x800_0000, 0x80A_0000
ADDR, DIST_REGS, NR_IRQS, CTRL, REDIST_REGS, CPU_SYSREGS, LEVEL_INFO = 0, 1, 3, 4, 5, 6, 7
SPURIOUS = 1023

CTLR, IGROUPR, ISENABLER, ICENABLER, ISPENDR, ICPENDR, ISACTIVER, ICACTIVER = 0, 0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380
IPRIORITYR, ICFGR, IROUTER = 0x400, 0xC00, 0x6000
SGI_FRAME = 0x1_0000


class FakeVcpu:
    """A vCPU that runs nothing. `enter` and `leave` are the ends of guest mode."""

    def __init__(self, index: int, mpidr: int | None = None) -> None:
        self.index = index
        self.id = index
        self.mpidr = 1 << 31 | (index if mpidr is None else mpidr)
        self.cpu = SimpleNamespace(state=CpuState())
        self.kicks = 0
        self.on_kick: Callable[[], None] = lambda: None

    def kick(self) -> None:
        self.kicks += 1
        self.on_kick()


class FakeVm:
    """Owner of the vCPUs."""

    def __init__(self, cpus: int, mpidrs: tuple[int, ...] = ()) -> None:
        self.ipa_bits = 40
        self.vcpus = [FakeVcpu(n, mpidrs[n] if mpidrs else None) for n in range(cpus)]
        self.running = False

    @contextmanager
    def stop_vcpus(self) -> Iterator[None]:
        if self.running:
            raise KvmError(EBUSY)
        yield


class GicMachine:
    """A VM with a GIC that is ready to run, all groups and interfaces enabled unless `quiet`."""

    def __init__(self, cpus: int = 1, irqs: int = 128, quiet: bool = False, mpidrs: tuple[int, ...] = ()) -> None:
        self.vm = FakeVm(cpus, mpidrs)
        self.vcpus = self.vm.vcpus
        self.gic = VgicV3(self.vm)
        self.stay = False
        """The guest goes on until a maintenance interrupt stops it, rather than leaving after every access."""
        self.gic.set_attr(NR_IRQS, 0, irqs)
        self.gic.set_attr(ADDR, 2, DIST)
        self.gic.set_attr(ADDR, 3, REDIST)
        self.gic.set_attr(CTRL, 0, 0)
        for vcpu in self.vcpus:
            self.gic.first_run(vcpu)
        if not quiet:
            self.write(DIST + CTLR, 3)
            for n in range(cpus):
                self.open_interface(n)

    def open_interface(self, n: int, mask: int = 0xFF) -> None:
        """What a guest does before it takes interrupts."""
        self.icc(n, "PMR", mask)
        self.icc(n, "IGRPEN0", 1)
        self.icc(n, "IGRPEN1", 1)

    # ---- memory-mapped registers --------------------------------------------------------------------------------------------

    def read(self, address: int, length: int = 4, by: int = 0) -> int:
        assert self.gic.contains(address)
        return self.gic.mmio(self.vcpus[by], address, False, length)

    def write(self, address: int, value: int, length: int = 4, by: int = 0) -> None:
        assert self.gic.contains(address)
        self.gic.mmio(self.vcpus[by], address, True, length, value)

    def frame(self, intid: int, owner: int = 0) -> int:
        """Where the registers of an interrupt are."""
        return DIST if intid >= 32 else REDIST + 0x2_0000 * owner + SGI_FRAME

    def bit(self, register: int, intid: int, owner: int = 0) -> int:
        return self.read(self.frame(intid, owner) + register + intid // 32 * 4) >> intid % 32 & 1

    def set_bit(self, register: int, intid: int, owner: int = 0, by: int = 0) -> None:
        """Write a one to a register where zeros do nothing."""
        self.write(self.frame(intid, owner) + register + intid // 32 * 4, 1 << intid % 32, by=by)

    def priority(self, intid: int, value: int, owner: int = 0) -> None:
        self.write(self.frame(intid, owner) + IPRIORITYR + intid, value, length=1)

    def group(self, intid: int, value: int, owner: int = 0) -> None:
        at = self.frame(intid, owner) + IGROUPR + intid // 32 * 4
        self.write(at, self.read(at) & ~(1 << intid % 32) | value << intid % 32)

    def edge(self, intid: int, edge: bool = True) -> None:
        at, shift = DIST + ICFGR + intid // 16 * 4, intid % 16 * 2
        self.write(at, self.read(at) & ~(3 << shift) | 2 * edge << shift)

    def route(self, intid: int, affinity: int) -> None:
        self.write(DIST + IROUTER + 8 * intid, affinity, length=8)

    def setup(self, intid: int, priority: int = 0xA0, edge: bool = False, cpu: int = 0) -> None:
        """Enable an interrupt; SPIs are routed to `cpu`, private ones belong to it."""
        self.priority(intid, priority, cpu)
        if intid >= 32:
            self.edge(intid, edge)
            self.route(intid, self.vcpus[cpu].mpidr & 0xFF_FFFF)
        self.set_bit(ISENABLER, intid, cpu)

    # ---- the wires ----------------------------------------------------------------------------------------------------------

    def drive(self, intid: int, level: bool, cpu: int | None = None) -> None:
        self.gic.inject(None if cpu is None else self.vcpus[cpu], intid, level)

    def pulse(self, intid: int, cpu: int | None = None) -> None:
        self.drive(intid, True, cpu)
        self.drive(intid, False, cpu)

    # ---- the guest ----------------------------------------------------------------------------------------------------------

    def icc(self, n: int, name: str, value: int | None = None) -> int:
        """A guest's access to ICC_<name>_EL1, between an entry and an exit."""
        vcpu = self.vcpus[n]
        self.gic.flush(vcpu)
        assert not gic_virtual.maintenance_pending(vcpu.cpu.state)
        access = gic_virtual.CPU_INTERFACE[f"ICC_{name}_EL1"]
        result = 0
        if value is None:
            result = access.read(vcpu.cpu.state)
        else:
            access.write(vcpu.cpu.state, value)
        if not self.stay or gic_virtual.maintenance_pending(vcpu.cpu.state):
            self.gic.sync(vcpu)
        return result

    def lines(self, n: int) -> int:
        """What is signalled to the processor: 1 IRQ, 2 FIQ."""
        vcpu = self.vcpus[n]
        self.gic.flush(vcpu)
        return int(gic_virtual.virtual_lines(vcpu.cpu.state))

    def ack(self, n: int = 0, group: int = 1) -> int:
        return self.icc(n, f"IAR{group}")

    def eoi(self, intid: int, n: int = 0, group: int = 1) -> None:
        self.icc(n, f"EOIR{group}", intid)

    def sgi(self, intid: int, targets: int, by: int = 0, group: int = 1) -> None:
        self.gic.write_sgi1r(self.vcpus[by], intid << 24 | targets, group)
