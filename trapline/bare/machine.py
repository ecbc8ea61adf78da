"""Bare machines as objects like those of `backends`: system, machine, processor."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import ENOENT
from typing import Any, Final

from trapline.abi.caps import Cap
from trapline.abi.exits import Exit
from trapline.abi.vm import MEM_READONLY
from trapline.arm64.exceptions import fold_sp, pstate_from_spsr, spsr_from_pstate, unfold_sp
from trapline.arm64.features import Features
from trapline.arm64.gic_interface import PHYSICAL
from trapline.arm64.memory import Region as MemoryRegion
from trapline.arm64.models import parse
from trapline.arm64.regs import ELR_EL1, FPCR, FPSR, SPSR_EL1, TABLE
from trapline.arm64.state import REGIME_EL2_HOST, CpuState
from trapline.backends.memory import GuestMemory
from trapline.backends.vcpu import REGISTER_IDS
from trapline.bare.memory import PhysicalMemory
from trapline.bare.processor import Processor
from trapline.engine.engine import Engine
from trapline.errors import KvmError
from trapline.gic.core import Vgic
from trapline.gic.its import place
from trapline.gic.its_state import Its
from trapline.gic.state import Region
from trapline.sync import World
from trapline.turns import Turns

ADDRESS_BITS: Final = 48
"""Physical addresses of the processors."""


FOR_EL2: Final = "+FGT,+ECV_POFF"
"""Features that only EL2 has a use for, and of which FEAT_FGT costs the others time."""


def features_of(cpu: str, el2: bool) -> Features:
    """What the processors can do, by a description as in `arm64/models.py`; those with EL2 also have what is for EL2."""
    if el2 and cpu[:1] in ("", "+", "-"):
        cpu = f"{FOR_EL2},{cpu}"
    return parse(cpu)


class BareVcpu:
    """A processor as the machine's user sees it; as `backends.vcpu.Vcpu`."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.id = processor.id
        self.regs = BareRegisters(self)

    def run(self) -> Exit:
        """Run until something needs the machine's user, and return what."""
        return self.processor.run()

    def kick(self) -> None:
        """Make `run` return `IntrExit` soon. Safe from any thread."""
        self.processor.interrupt()

    def start(self, entry: int, context: int) -> None:
        """Turn the processor on."""
        self.processor.power_on(entry, context)

    def inject_external_abort(self) -> None:
        """Nobody answers the access that `run` returned."""
        self.processor.abort()

    @property
    def level(self) -> int:
        """The exception level of the operating system or hypervisor that runs: 1 or 2."""
        state = self.processor.state
        return 2 if state.el == 2 or state.regime == REGIME_EL2_HOST else 1

    def get_one_reg(self, reg_id: int) -> int:
        """A register by its KVM id; KvmError(ENOENT) for what is none of the processor's. At EL2 names of EL1 mean EL2's."""
        return self._register(reg_id, None)

    def set_one_reg(self, reg_id: int, value: int) -> None:
        """Set a register by its KVM id."""
        self._register(reg_id, value)

    def _register(self, reg_id: int, value: int | None) -> int:
        state = self.processor.state
        name = CORE_NAMES.get(reg_id)
        if name == "pstate":
            if value is not None:
                pstate_from_spsr(state, value)
            return int(spsr_from_pstate(state))
        if name == "pc":
            return _field(state, "pc", value)
        if name == "sp":
            fold_sp(state)
            found = _item(state.sp_el, 0, value)
            unfold_sp(state)
            return found
        if name == "sp_el1":
            fold_sp(state)
            found = _item(state.sp_el, self.level, value)
            unfold_sp(state)
            return found
        if name is not None and name[0] == "x":
            return _item(state.x, int(name[1:]), value)
        reg = CORE_SYSREGS.get(name or "") or TABLE.get(reg_id & 0xFFFF)
        if reg is None:
            raise KvmError(ENOENT, f"no register {reg_id:#x}")
        if self.level == 2 and reg.at_el2 is not None:
            reg = TABLE[reg.at_el2]
        return _item(state.sysreg, reg.slot, value)

    def close(self) -> None:
        """The machine is gone."""
        self.processor.close()


def _field(structure: Any, name: str, value: int | None) -> int:
    if value is not None:
        setattr(structure, name, value)
    return int(getattr(structure, name))


def _item(array: Any, index: int, value: int | None) -> int:
    if value is not None:
        array[index] = value
    return int(array[index])


CORE_NAMES: Final = {reg_id: name for name, reg_id in REGISTER_IDS.items() if name[0] != "v"}
CORE_SYSREGS: Final = {"elr_el1": ELR_EL1, "spsr_el1": SPSR_EL1, "fpsr": FPSR, "fpcr": FPCR}


class BareRegisters:
    """Core registers by name."""

    def __init__(self, vcpu: BareVcpu) -> None:
        object.__setattr__(self, "_vcpu", vcpu)

    def __getattr__(self, name: str) -> int:
        try:
            return self._vcpu.get_one_reg(REGISTER_IDS[name])  # type: ignore[attr-defined,no-any-return]
        except KeyError:
            raise AttributeError(f"no register {name!r}") from None

    def __setattr__(self, name: str, value: int) -> None:
        self._vcpu.set_one_reg(REGISTER_IDS[name], value)  # type: ignore[attr-defined]

    def dump(self) -> dict[str, int]:
        """The general registers by name."""
        return {name: self._vcpu.get_one_reg(reg_id) for reg_id, name in CORE_NAMES.items()}  # type: ignore[attr-defined]


class BareVm:
    """A machine: memory, processors, interrupt controller."""

    def __init__(self, features: Features | None, el2: bool, turns: Turns | None = None) -> None:
        self.el2 = el2
        self.world = World() if turns is None else turns
        self.engine = Engine(features or features_of("", el2), turns=turns)
        self.gic: Vgic | None = None
        self.vcpus: list[Processor] = []
        self.ipa_bits = ADDRESS_BITS
        self._objects: list[BareVcpu] = []
        self.memory: list[GuestMemory] = []
        self._slots: dict[int, tuple[int, int, int, int]] = {}
        self._regions: Any = None

    def state(self) -> Iterator[bytes]:
        """Everything the machine is, without host addresses: processors and interrupts. Memory is in `memory`."""
        for processor in self.vcpus:
            state = CpuState.from_buffer_copy(processor.state)
            state.regions = 0
            yield bytes(state) + repr((processor.is_on, processor.lines)).encode()
        if self.gic is not None:
            yield repr((self.gic.group_enable, [irq.state() for irq in self.gic.every_irq()])).encode()

    # ---- building -----------------------------------------------------------------------------------------------------------

    def check_extension(self, cap: int) -> int:
        """A bare machine has no capabilities but that accesses to nowhere can be aborted."""
        return int(cap == Cap.ARM_INJECT_EXT_DABT)

    def enable_cap(self, cap: int) -> None:
        """There is none to enable."""

    def add_memory(self, guest_phys_addr: int, size: int, flags: int = 0) -> GuestMemory:
        """Memory at a physical address: RAM, or with MEM_READONLY a ROM. Before the first processor."""
        memory = GuestMemory(self, len(self._slots), guest_phys_addr, size, flags)
        self.memory.append(memory)
        return memory

    def set_user_memory_region(self, slot: int, flags: int, guest_phys_addr: int, size: int, userspace_addr: int) -> None:
        """Called by `GuestMemory`."""
        self._slots[slot] = (guest_phys_addr, size, userspace_addr, int(not flags & MEM_READONLY))
        present = sorted((row for row in self._slots.values() if row[1]), key=lambda row: -row[1])
        self._regions = (MemoryRegion * (len(present) + 1))(*(MemoryRegion(*row) for row in present))
        for processor in self.vcpus:
            processor.state.regions = ctypes.addressof(self._regions)

    def create_vcpu(self, id: int, features: Iterable[int] = ()) -> BareVcpu:
        """A processor that is off; `start` turns it on."""
        processor = Processor(self, id)
        processor.state.regions = ctypes.addressof(self._regions)
        processor.reset()
        self.vcpus.append(processor)
        self._objects.append(BareVcpu(processor))
        return self._objects[-1]

    def create_gic(self, distributor: int, redistributors: int, interrupts: int, its: int | None = None) -> None:
        """The interrupt controller, with an ITS if there is a place for it, when all processors are there."""
        gic = Vgic(self, PHYSICAL)
        with gic.lock:
            gic.nr_irqs = interrupts
            gic.set_dist_base(distributor)
            gic.add_region(Region(redistributors, len(self.vcpus), 0))
            if its is not None:
                gic.lpis.memory = PhysicalMemory(self.memory)
                place(Its(gic, gic.lpis.memory), its)
        gic.init()
        self.gic = gic

    @contextmanager
    def stop_vcpus(self) -> Iterator[None]:
        """Nobody restores the state of this interrupt controller from outside."""
        yield

    # ---- wires --------------------------------------------------------------------------------------------------------------

    def set_irq(self, spi_intid: int, level: int) -> None:
        """Set the level of a shared peripheral interrupt."""
        if self.gic is not None:
            self.gic.inject(None, spi_intid, bool(level))

    def close(self) -> None:
        """Give everything back."""
        for vcpu in self._objects:
            vcpu.close()
        self.engine.close()
        for memory in self.memory:
            memory.discard()


class BareSystem:
    """Where bare machines come from; as `backends.objects.System`."""

    def __init__(self, el2: bool = False, features: Features | None = None, turns: Turns | None = None) -> None:
        self.el2, self.features, self.turns = el2, features, turns

    def create_vm(self) -> BareVm:
        """A machine with the processors that were asked for."""
        return BareVm(self.features, self.el2, self.turns)

    def close(self) -> None:
        """Nothing is held between machines."""

    def __enter__(self) -> BareSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
