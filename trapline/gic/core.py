"""The interrupt controller of a machine: GICv3 distributor, redistributors and the outer side of the CPU interfaces.

One lock protects every interrupt, queue and list-register record of the machine. A vCPU's bank of interface registers (the ICH_*
registers, or those of the physical interface: arm64/gic_interface.py) is written by that vCPU's own thread only, outside guest
mode. Whoever makes an interrupt deliverable puts it on a queue, marks that vCPU `dirty`, and kicks it after the lock has been
released; the vCPU announces "in guest mode" before it looks at `dirty`, so one of the two sees the other. What a thread has to
kick is taken from `_told` before the lock is released: nobody else can forget it.
"""

from __future__ import annotations

import errno
from bisect import insort
from collections.abc import Callable, Iterable, Mapping

from trapline.arm64.gic_interface import VIRTUAL
from trapline.errors import KvmError
from trapline.sync import Lock

from . import cpuif
from .dist import DISTRIBUTOR, FRAME_SIZE, REVISIONS
from .host import HostVcpu, HostVm
from .lpi import Lpis
from .redist import CONTROL_FRAME, PRIVATE_FRAME, REDIST_SIZE, SGI_FRAME
from .regmap import Access, RegisterMap
from .sgi import SgiRequest
from .state import INTID_LIMIT, PRIVATE_IRQS, SGIS, CpuInterface, Irq, Region

DEFAULT_IRQS = 256
FRAME_SHIFT = FRAME_SIZE.bit_length() - 1
"""Every frame of registers is aligned to its size."""

NOBODY: frozenset[CpuInterface] = frozenset()


class Vgic:
    """A GICv3 without security extensions or legacy mode. It has LPIs when it has an ITS (its.py)."""

    has_system_registers = True
    """CPU interfaces are system registers."""

    def __init__(self, vm: HostVm, bank: int = VIRTUAL) -> None:
        """`bank` says which interface of the processors is fed."""
        self.vm = vm
        self.bank = bank
        self.lock = Lock("vgic", protects="every Irq, queue and list-register record of one VM")
        self.cpus: list[CpuInterface] = []
        self.spis: list[Irq] = []
        self.nr_irqs = 0
        """Private interrupts included; 0 until user space or INIT has chosen."""
        self.initialized = False
        self.dist_base: int | None = None
        self.regions: list[Region] = []
        self.legacy_region = False
        """The one region was set with ADDR_TYPE_REDIST: it holds all vCPUs and excludes further regions."""
        self.group_enable = 0
        """GICD_CTLR.EnableGrp1 and EnableGrp0."""
        self.lpis = Lpis(self.requeue)
        self.implementation = {"revision": REVISIONS[-1], "GICD_STATUSR": 0}
        self.on_eoi: Callable[[int], None] | None = None
        """Called without the lock when a guest has completed an interrupt that `watch_eoi` was asked for."""
        self.on_init: Callable[[], None] | None = None
        """Called without the lock when the number of interrupts is fixed."""
        self._told: set[CpuInterface] = set()
        """Who is to be kicked once the lock is released."""
        self._frames: dict[int, tuple[RegisterMap, Access]] = {}
        """Registers and context of each frame, by its address divided by its size."""
        self._other_frames: dict[int, tuple[RegisterMap, Access]] = {}
        for vcpu in vm.vcpus:
            self.add_vcpu(vcpu)

    # ---- life ---------------------------------------------------------------------------------------------------------------

    def add_vcpu(self, vcpu: HostVcpu) -> None:
        """Give a new vCPU its CPU interface and, if a region has room, its redistributor."""
        with self.lock:
            if vcpu.index != len(self.cpus):
                raise KvmError(errno.EINVAL, "vCPUs reach the vgic in order of creation")
            self.cpus.append(CpuInterface(vcpu, self.bank))
            cpuif.reset(self.cpus[-1], self.requeue)
            self.place_redistributors()

    def init(self) -> None:
        """KVM_DEV_ARM_VGIC_CTRL_INIT: from here on the number of vCPUs and interrupts is fixed."""
        with self.lock:
            if self.initialized:
                return
            if not self.cpus:
                raise KvmError(errno.ENODEV, "the VM has no vCPU")
            self.nr_irqs = self.nr_irqs or DEFAULT_IRQS
            self.spis = [self.make_spi(intid) for intid in range(PRIVATE_IRQS, min(self.nr_irqs, INTID_LIMIT))]
            for irq in self.spis:
                irq.target = self.cpus[0]
            self._map()
            self.initialized = True
        if self.on_init is not None:
            self.on_init()

    def make_spi(self, intid: int) -> Irq:
        """A shared interrupt."""
        return Irq(intid)

    def lazy_init(self, intid: int = 0) -> None:
        """Before the interrupt `intid` comes from outside; KvmError(EBUSY) if nobody has called `init`."""
        if not self.initialized:
            raise KvmError(errno.EBUSY, "the GIC has not been initialised")

    def first_run(self, _vcpu: HostVcpu) -> None:
        """What must be true before a vCPU may run: ENXIO without addresses, EINVAL if they are bad, EBUSY before INIT."""
        with self.lock:
            if self.dist_base is None or any(cpu.frame is None for cpu in self.cpus):
                raise KvmError(errno.ENXIO, "the GIC's distributor or a redistributor has no address")
            spans = [(r.base, r.base + r.used * REDIST_SIZE) for r in self.regions if r.used]
            if any(self.dist_base < hi and lo < self.dist_base + FRAME_SIZE for lo, hi in spans):
                raise KvmError(errno.EINVAL, "the GIC's distributor and redistributors overlap")
            if any(hi > 1 << self.vm.ipa_bits for _, hi in spans):
                raise KvmError(errno.EINVAL, "a redistributor lies beyond the guest's physical addresses")
            if not self.initialized:
                raise KvmError(errno.EBUSY, "the GIC has not been initialised")

    def reset_vcpu(self, vcpu: HostVcpu) -> None:
        """Reset the CPU interface of a vCPU that is not in guest mode. Interrupts keep their state."""
        with self.lock:
            cpuif.reset(self.cpus[vcpu.index], self.requeue)
            told = self.take_told()
        self.finish(self.cpus[vcpu.index], told)

    # ---- the run loop -------------------------------------------------------------------------------------------------------

    def flush(self, vcpu: HostVcpu) -> None:
        """Before guest entry, with the vCPU already marked as in guest mode: bring the list registers up to date."""
        cpu = self.cpus[vcpu.index]
        if not cpu.dirty:
            return
        with self.lock:
            completed = cpuif.fold(cpu, self.requeue) if cpu.loaded else ()
            cpuif.load(cpu, self.deliverable)
            told = self.take_told()
        self.finish(cpu, told, completed)

    def sync(self, vcpu: HostVcpu) -> None:
        """After guest exit: take back what the guest has done with its list registers."""
        cpu = self.cpus[vcpu.index]
        if not cpu.loaded or not cpuif.changed(cpu):
            return
        with self.lock:
            completed = cpuif.fold(cpu, self.requeue)
            told = self.take_told()
        self.finish(cpu, told, completed)

    def pending(self, vcpu: HostVcpu) -> bool:
        """Whether an interrupt would end a WFI of this vCPU. On its own thread: it gives back what others want from it."""
        cpu = self.cpus[vcpu.index]
        if not cpu.queue:
            return False
        completed: Iterable[int] = ()
        with self.lock:
            if cpu.dirty and cpu.loaded:
                completed = cpuif.fold(cpu, self.requeue)
            result = cpuif.pending(cpu, self.forwarded)
            told = self.take_told()
        self.finish(cpu, told, completed)
        return result

    # ---- sources ------------------------------------------------------------------------------------------------------------

    def inject(self, vcpu: HostVcpu | None, intid: int, level: bool, by: HostVcpu | None = None) -> None:
        """Drive the wire of a PPI (16..31, of `vcpu`) or an SPI. `by` is the vCPU on whose thread this happens."""
        irq = self._input(vcpu, intid)
        if irq.line == level and not (irq.edge and level):
            return
        with self.lock:
            irq.line = bool(level)
            if irq.edge:
                if not level or not irq.set_latch():
                    return
            elif irq.lr >= 0 and irq.holder is not None:
                # The end of what is in the list register looks at the wire again, and so does a vCPU before it sleeps; a fall takes
                # effect at the next exit.
                irq.holder.dirty = True
                return
            self.requeue(irq, tell=level)
            told = self.take_told()
        self.finish(self._of(by), told)

    def write_sgi1r(self, vcpu: HostVcpu, value: int, group: int) -> None:
        """A write to ICC_SGI1R_EL1 (group 1), ICC_SGI0R_EL1 or ICC_ASGI1R_EL1 (both 0) by `vcpu`."""
        request = SgiRequest(value)
        me = self.cpus[vcpu.index]
        with self.lock:
            for cpu in self.cpus:
                irq = cpu.private[request.INTID]
                if request.selects(cpu.affinity, cpu is me) and (group or not irq.group) and irq.set_latch():
                    self.requeue(irq)
            told = self.take_told()
        self.finish(me, told)

    def write_dir(self, vcpu: HostVcpu, value: int) -> None:
        """A trapped write to ICC_DIR_EL1: deactivate, wherever the interrupt is."""
        cpu = self.cpus[vcpu.index]
        completed: Iterable[int] = ()
        with self.lock:
            for irq in list(cpu.queue):
                if irq.intid == value & 0xFF_FFFF and irq.is_active():
                    completed = cpuif.deactivate(irq, self.requeue)
            told = self.take_told()
        self.finish(cpu, told, completed)

    def watch_eoi(self, intid: int, watch: bool = True) -> None:
        """Report completions of an SPI to `on_eoi`."""
        self._input(None, intid).watched = watch

    # ---- memory-mapped registers --------------------------------------------------------------------------------------------

    def contains(self, ipa: int) -> bool:
        """Whether a guest physical address belongs to the GIC."""
        return ipa >> FRAME_SHIFT in self._frames

    def mmio(self, vcpu: HostVcpu, ipa: int, is_write: bool, length: int, value: int = 0) -> int:
        """An access by `vcpu` to an address this GIC contains. Returns what a read reads."""
        registers, access = self._frames[ipa >> FRAME_SHIFT]
        offset = ipa & FRAME_SIZE - 1
        with self.lock:
            if not is_write:
                return registers.read(access, offset, length)
            registers.write(access, offset, length, value)
            told = self.take_told()
        self.finish(self.cpus[vcpu.index], told)
        return 0

    def access(self, owner: CpuInterface | None) -> Access:
        """The context of an access to the distributor (None) or to a vCPU's redistributor."""
        if owner is None:
            return Access(self, None, self.spis, PRIVATE_IRQS)
        return Access(self, owner, owner.private, 0)

    def user_access(self, owner: CpuInterface | None, registers: RegisterMap, offset: int, value: int | None) -> int:
        """User space reads (`value` None) or writes one 32-bit register word."""
        access = self.access(owner)
        with self.lock:
            if value is None:
                return registers.read(access, offset, 4, user=True)
            registers.write(access, offset, 4, value, user=True)
            told = self.take_told()
        self.finish(None, told)
        return 0

    # ---- what the registers do (lock held) ----------------------------------------------------------------------------------

    def deliverable(self, irq: Irq) -> bool:
        """Pending, as far as the record knows, and forwarded; says nothing about the CPU interface."""
        return irq.enabled and irq.asserted() and bool(self.group_enable >> irq.group & 1)

    def forwarded(self, irq: Irq) -> bool:
        """Pending, wherever that is kept, enabled, and of a group that the distributor forwards."""
        return irq.enabled and irq.is_pending() and bool(self.group_enable >> irq.group & 1)

    def requeue(self, irq: Irq, *, tell: bool = True) -> None:
        """The state of `irq` has changed: move it to where it belongs and tell the vCPU concerned."""
        holder = irq.holder
        if irq.lr >= 0 and holder is not None:
            self._tell(holder)
            return
        if irq.active:
            wanted = holder or irq.target
        else:
            wanted = irq.target if self.deliverable(irq) else None
        if wanted is not holder:
            if holder is not None:
                holder.queue.discard(irq)
                holder.dirty = True
            irq.holder = wanted
            if wanted is not None:
                wanted.queue.add(irq)
        if wanted is not None:
            wanted.dirty = True
            if tell:
                self._told.add(wanted)

    def set_groups(self, enable: int) -> None:
        """GICD_CTLR: which groups the distributor forwards."""
        if enable != self.group_enable:
            self.group_enable = enable
            for irq in self.every_irq():
                self.requeue(irq)

    def route(self, irq: Irq, affinity: int) -> None:
        """GICD_IROUTER: an interrupt that is active stays with its vCPU until it is completed."""
        irq.affinity = affinity
        irq.target = next((cpu for cpu in self.cpus if cpu.affinity == affinity), None)
        self.requeue(irq)

    def is_last(self, cpu: CpuInterface) -> bool:
        """GICR_TYPER.Last: no redistributor follows in this region, nor in one that begins where it ends."""
        region = cpu.region
        if region is None or cpu.frame is None:
            return False
        following = cpu.frame + REDIST_SIZE
        if following < region.base + region.used * REDIST_SIZE:
            return False
        return not any(other.base == following and other.used for other in self.regions)

    def every_irq(self) -> Iterable[Irq]:
        """All interrupts of the VM."""
        for cpu in self.cpus:
            yield from cpu.private
        yield from self.spis
        yield from self.lpis

    # ---- addresses (lock held) ----------------------------------------------------------------------------------------------

    def add_region(self, region: Region, *, legacy: bool = False) -> None:
        """A further range for redistributors; vCPUs without one move in."""
        self.legacy_region = legacy
        insort(self.regions, region, key=lambda each: each.index)
        self.place_redistributors()

    def place_redistributors(self) -> None:
        """Give every vCPU without redistributor the next free frame, and rebuild the address map."""
        for cpu in self.cpus:
            if cpu.frame is not None:
                continue
            room = next((r for r in self.regions if not r.count or r.used < r.count), None)
            if room is None:
                break
            cpu.region = room
            cpu.frame = room.base + room.used * REDIST_SIZE
            room.used += 1
        self._map()

    def set_dist_base(self, base: int) -> None:
        """Place the distributor."""
        self.dist_base = base
        self._map()

    def add_frames(self, frames: Mapping[int, tuple[RegisterMap, Access]]) -> None:
        """Frames of something that belongs to the interrupt controller, by address."""
        self._other_frames.update((address >> FRAME_SHIFT, frame) for address, frame in frames.items())
        self._map()

    def _map(self) -> None:
        frames = dict(self._other_frames)
        for cpu in self.cpus:
            if cpu.frame is not None:
                access = self.access(cpu)
                frames[cpu.frame >> FRAME_SHIFT] = CONTROL_FRAME, access
                frames[cpu.frame + SGI_FRAME >> FRAME_SHIFT] = PRIVATE_FRAME, access
        if self.dist_base is not None:
            frames[self.dist_base >> FRAME_SHIFT] = DISTRIBUTOR, self.access(None)
        self._frames = frames

    # ---- who is to be told --------------------------------------------------------------------------------------------------

    def take_told(self) -> Iterable[CpuInterface]:
        """With the lock held: whom this thread has to kick after it has released the lock."""
        if not self._told:
            return NOBODY
        told, self._told = self._told, set()
        return told

    def finish(self, me: CpuInterface | None, told: Iterable[CpuInterface], completed: Iterable[int] = ()) -> None:
        """Without the lock: kick everybody but the vCPU whose thread this is, and report completions."""
        for cpu in told:
            if cpu is not me:
                cpu.vcpu.kick()
        if self.on_eoi is not None:
            for intid in completed:
                self.on_eoi(intid)

    # ---- internals ----------------------------------------------------------------------------------------------------------

    def _input(self, vcpu: HostVcpu | None, intid: int) -> Irq:
        if not self.initialized:
            raise KvmError(errno.EBUSY, "the GIC has not been initialised")
        if vcpu is not None and SGIS <= intid < PRIVATE_IRQS:
            return self.cpus[vcpu.index].private[intid]
        if vcpu is None and PRIVATE_IRQS <= intid < PRIVATE_IRQS + len(self.spis):
            return self.spis[intid - PRIVATE_IRQS]
        raise KvmError(errno.EINVAL, f"interrupt {intid} has no wire")

    def _of(self, vcpu: HostVcpu | None) -> CpuInterface | None:
        return None if vcpu is None else self.cpus[vcpu.index]

    def _tell(self, cpu: CpuInterface) -> None:
        cpu.dirty = True
        self._told.add(cpu)
