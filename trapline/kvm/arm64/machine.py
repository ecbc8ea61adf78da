"""KVM/arm64 on a machine: what the core asks of an architecture, before there is a VM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EBUSY, EINVAL
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from trapline.abi.arm64 import GUEST_DEBUG_MASK, VM_TYPE_IPA_SIZE_MASK
from trapline.abi.caps import Cap
from trapline.arm64.features import Features
from trapline.arm64.regs.timer import COUNTER_HZ
from trapline.arm64.sysreg import Sysreg
from trapline.errors import KvmError
from trapline.kvm.arm64 import calls as calls_module
from trapline.kvm.arm64 import debug as debug_module
from trapline.kvm.arm64 import vm as vm_module
from trapline.kvm.arm64.pagetable import BLOCK_SIZE, PAGE_SIZE
from trapline.kvm.arm64.vm import MAX_VCPUS, Arm64Vm
from trapline.sync import Lock, World
from trapline.turns import Turns

if TYPE_CHECKING:
    from trapline.kvm.vm import Vm

DEFAULT_IPA_BITS = 40
MIN_IPA_BITS, MAX_IPA_BITS = 32, 48
VMID_BITS = 16
NS_PER_TICK = 1_000_000_000 // COUNTER_HZ

CAPABILITIES: Mapping[int, int] = MappingProxyType(
    {
        Cap.IRQCHIP: 1,
        Cap.SIGNAL_MSI: 1,
        Cap.ARM_SET_DEVICE_ADDR: 1,
        Cap.SYNC_MMU: 1,
        Cap.ARM_PSCI: 1,
        Cap.ARM_PSCI_0_2: 1,
        Cap.ARM_VM_IPA_SIZE: MAX_IPA_BITS,
        Cap.ARM_SUPPORTED_BLOCK_SIZES: PAGE_SIZE | BLOCK_SIZE,
        Cap.ARM_NISV_TO_USER: 1,
        Cap.ARM_INJECT_EXT_DABT: 1,
        Cap.ARM_IRQ_LINE_LAYOUT_2: 1,
        Cap.ARM_SYSTEM_SUSPEND: 1,
        Cap.ARM_USER_IRQ: 1,
        Cap.ARM_SUPPORTED_REG_MASK_RANGES: 1,
        Cap.ARM_WRITABLE_IMP_ID_REGS: 1,
        Cap.ARM_PMU_V3: 1,
        Cap.PTP_KVM: 1,
        Cap.STEAL_TIME: 1,
        Cap.COUNTER_OFFSET: 1,
        Cap.TRAPLINE_SYSREG_TO_USER: 1,
        Cap.VCPU_EVENTS: 1,
        Cap.SET_GUEST_DEBUG: 1,
        Cap.SET_GUEST_DEBUG2: GUEST_DEBUG_MASK,
        Cap.MAX_VCPUS: MAX_VCPUS,
        Cap.MAX_VCPU_ID: MAX_VCPUS,
    }
)
"""What every software machine gives. A capability that is not here does not work, and so is not shown."""


class Engine(Protocol):
    """The machine under the hypervisor: makes processors and maintains their TLBs."""

    def create_cpu(self) -> Any:
        """A processor, stopped."""

    def tlbi_vmalls12e1(self, vmid: int) -> None:
        """Forget every translation of a VM, everywhere."""

    def drop_code(self, host_addr: int, size: int) -> None:
        """Forget what was derived from the contents of host memory: it is about to be something else."""

    def tlbi_ipas2e1is(self, vmid: int, ipa: int, size: int) -> None:
        """Forget translations of a range of intermediate physical addresses."""

    def close(self) -> None:
        """Stop its threads; no processor runs."""

    def create_posts(self, ring: int, capacity: int) -> Any:
        """What adds guest writes to a ring without ending their run (`kvm.coalesced.Posts`); None if it does not do that."""


class Vmids:
    """VM identifiers: no two VMs that exist share one, so their translations cannot mix in a TLB."""

    def __init__(self) -> None:
        self._lock = Lock("vmids", protects="identifiers in use")
        self._free: list[int] = []
        self._next = 1

    def take(self) -> int:
        """An unused identifier."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._next >> VMID_BITS:
                raise KvmError(EBUSY)
            self._next += 1
            return self._next - 1

    def give_back(self, vmid: int) -> None:
        """The VM is gone, and its translations with it."""
        with self._lock:
            self._free.append(vmid)


class Processors:
    """Processors of the machine. Those of VMs that are gone serve the next ones."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = Lock("processors", protects="processors without a vCPU")
        self._idle: list[Any] = []

    def take(self) -> Any:
        """A processor for a new vCPU."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._engine.create_cpu()

    def give_back(self, cpu: Any) -> None:
        """The vCPU is gone; nobody is in `enter` any more."""
        cpu.reset()
        with self._lock:
            self._idle.append(cpu)


def _runs(values: Mapping[int, int]) -> list[tuple[int, bytes]]:
    """64-bit values by slot, joined where slots follow each other."""
    runs: list[tuple[int, bytearray]] = []
    for slot, value in sorted(values.items()):
        if not runs or runs[-1][0] + len(runs[-1][1]) // 8 != slot:
            runs.append((slot, bytearray()))
        runs[-1][1].extend(value.to_bytes(8, "little"))
    return [(slot, bytes(data)) for slot, data in runs]


class Arm64:
    """KVM/arm64 over one engine."""

    modules: Sequence[ModuleType] = (calls_module, debug_module, vm_module)
    tick_ns = NS_PER_TICK
    """Nanoseconds of one tick of the system counter."""

    def __init__(self, engine: Engine, features: Features, world: World | None = None) -> None:
        self.engine = engine
        self.features = features
        self.vmids = Vmids()
        self.processors = Processors(engine)
        self.world = World() if world is None else world
        self.counts_instructions = isinstance(self.world, Turns)
        """Whether the machine knows how many instructions a processor has retired."""
        self.reset_runs = _runs({reg.slot: int(value) for reg, value in features.reset_values().items()})
        """What every register's storage holds after reset, as the bytes of neighbours from a slot on."""
        self._id_values: dict[frozenset[str], Mapping[type[Sysreg], int]] = {}

    def id_values_without(self, *hidden: str) -> dict[type[Sysreg], int]:
        """ID registers of this machine less some features. Every VM asks, and few answers differ."""
        key = frozenset(hidden)
        if key not in self._id_values:
            self._id_values[key] = MappingProxyType(self.features.without(*hidden).id_values())
        return dict(self._id_values[key])

    @classmethod
    def on_software_machine(cls, turns: Turns | None = None, features: Features | None = None) -> Arm64:
        """A new software machine with every default feature, or these; deterministic if its vCPUs are to take `turns`."""
        from trapline.engine import Engine as SoftwareEngine

        features = features if features is not None else Features()
        return cls(SoftwareEngine(features, turns=turns), features, turns)

    def close(self) -> None:
        """Nobody will run anything here again."""
        self.engine.close()

    def counter(self) -> int:
        """The system counter, CNTPCT_EL0."""
        return self.world.clock.now() // NS_PER_TICK

    def check_extension(self, vm: Vm | None, cap: int) -> int:
        """Capabilities of this architecture."""
        if cap in (Cap.ARM_PTRAUTH_ADDRESS, Cap.ARM_PTRAUTH_GENERIC):
            return int("PAuth" in self.features)
        if cap == Cap.GUEST_DEBUG_HW_BPS:
            return self.features.breakpoints
        if cap == Cap.GUEST_DEBUG_HW_WPS:
            return self.features.watchpoints
        if cap in (Cap.MAX_VCPUS, Cap.MAX_VCPU_ID) and vm is not None:
            return vm.arch.max_vcpus
        if cap == Cap.ARM_EAGER_SPLIT_CHUNK_SIZE:
            return cast("Arm64Vm", vm.arch).split_chunk_size if vm is not None else 0
        if cap == Cap.MSI_DEVID:
            if vm is None:
                raise KvmError(EINVAL)
            return int(bool(cast("Arm64Vm", vm.arch).its))
        return CAPABILITIES.get(cap, 0)

    def create_vm(self, vm: Vm, kind: int) -> Arm64Vm:
        """The type's low byte is the number of IPA bits; nothing else may be set."""
        bits = kind & VM_TYPE_IPA_SIZE_MASK or DEFAULT_IPA_BITS
        if kind & ~VM_TYPE_IPA_SIZE_MASK or not MIN_IPA_BITS <= bits <= MAX_IPA_BITS:
            raise KvmError(EINVAL)
        return Arm64Vm(vm, self, bits)
