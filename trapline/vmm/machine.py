"""One virtual machine on the board: memory, interrupt controller, devices and vCPUs, ready to run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from trapline.abi.arm64 import DeviceType, Feature, VgicAddr, VgicCtrl, VgicGroup
from trapline.abi.caps import Cap
from trapline.abi.vm import MEM_READONLY
from trapline.backends.memory import GuestMemory, Stored
from trapline.backends.objects import System, Vm
from trapline.backends.vcpu import Vcpu
from trapline.devices.device import IrqLine, MmioDevice
from trapline.devices.flash import FlashRom
from trapline.devices.memory import GuestRam
from trapline.devices.pci import Command, PciBus, PciWindow
from trapline.devices.pci_testdev import pci_testdev
from trapline.devices.pl011 import PL011
from trapline.devices.pl031 import PL031, Cancel
from trapline.devices.pl061 import PL061, POWER_KEY_LINE
from trapline.devices.virtio.block import Image, VirtioBlock
from trapline.devices.virtio.console import VirtioConsole
from trapline.devices.virtio.mmio import VirtioDevice, VirtioMmio
from trapline.devices.virtio.rng import VirtioRng
from trapline.errors import BadInput, KvmError
from trapline.vmm import boot, fdt, images
from trapline.vmm.board import (
    FLASH,
    FLASH_VARIABLES,
    GIC_DISTRIBUTOR,
    GIC_ITS,
    GIC_REDISTRIBUTORS,
    GICV2,
    GICV2_MAX_CPUS,
    GPIO,
    GPIO_SPI,
    MAX_CPUS,
    MAX_RAM,
    PCIE_ECAM,
    PCIE_MMIO,
    PCIE_PIO,
    RAM_BASE,
    RTC,
    RTC_SPI,
    SPI_BASE,
    UART,
    UART_SPI,
    VIRTIO_SLOTS,
    VIRTIO_SPI,
    MiB,
    virtio_slot,
)
from trapline.vmm.bus import Bus
from trapline.vmm.mirror import PageMirror
from trapline.vmm.queue import WriteQueue
from trapline.vmm.services import start_services

if TYPE_CHECKING:
    from trapline.bare.machine import BareSystem, BareVcpu, BareVm  # brings the engine with it

SEED_BYTES = 40
POWER_KEY_SECONDS = 0.1
INTERRUPTS = 256
"""Interrupts of the GIC, private ones included."""
GICS = {
    2: (DeviceType.ARM_VGIC_V2, {VgicAddr.V2_DIST: GICV2[0].base, VgicAddr.V2_CPU: GICV2[1].base}),
    3: (DeviceType.ARM_VGIC_V3, {VgicAddr.V3_DIST: GIC_DISTRIBUTOR.base, VgicAddr.V3_REDIST: GIC_REDISTRIBUTORS.base}),
}
"""By version: the device, and where its parts are."""
PAGE = 4096
PCI_TEST_SLOT = 1 << 3
"""Device 1, function 0."""


@dataclass(frozen=True, slots=True)
class Deterministic:
    """A machine whose time is made of instructions.

    seed:    of its randomness; None to let a recording choose one.
    stop_at: after how many instructions to stop.
    trace:   where to write its exits.
    record:  where to write what comes from outside. Time then follows the host's clock.
    """

    seed: int | None = None
    stop_at: int | None = None
    trace: Path | None = None
    record: Path | None = None


@dataclass(slots=True)
class Config:
    """What the user asked for. Sizes in bytes; `disks` are (image file, read-only).

    machine: "virt", a virtual machine of a KVM, or "bare", the software processors without a hypervisor of ours.
    el2:     whether a bare machine's processors have EL2, and start there.
    gic:     version of the interrupt controller, 2 or 3.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    firmware: Path | None = None
    params: str = ""
    cpus: int = 1
    memory: int = 512 * MiB
    disks: list[tuple[Path, bool]] = field(default_factory=list)
    virtio_console: bool = False
    pci_testdev: bool = False
    reboot: bool = True
    timeout: float | None = None
    cpu: str = ""
    """A description for `arm64/models.py`."""
    sysreg: list[Path] = field(default_factory=list)
    """Policy files for implementation-defined system registers."""
    prepare: Callable[[Vm], None] | None = None
    """Called with each new VM, after its policy files."""
    machine: str = "virt"
    el2: bool = False
    gic: int = 3
    deterministic: Deterministic | None = None
    ioctls: Path | None = None
    """Where to write a log of the KVM calls."""

    def check(self) -> None:
        """Refuse what no machine can have, in one line."""
        if self.kernel is None and self.firmware is None:
            raise BadInput("nothing to boot: give --kernel FILE or --bios FILE")
        if self.kernel is not None and self.firmware is not None:
            raise BadInput("--kernel together with --bios needs a fw_cfg device, which is not there yet; give one of them")
        if self.el2 and self.machine != "bare":
            raise BadInput("--el2 needs --machine bare: under KVM, EL2 is the hypervisor's")
        if (self.sysreg or self.prepare is not None) and self.machine == "bare":
            raise BadInput("a bare machine has no KVM whose exits for system registers could be answered; leave --machine out")
        if self.sysreg and self.deterministic is not None and self.deterministic.record is not None:
            raise BadInput("--sysreg with --record: what policies answer is not recorded; use --deterministic")
        if self.gic == 2 and self.machine == "bare":
            raise BadInput("--gic 2: a bare machine has a GICv3; leave the option out")
        if self.gic == 2 and self.cpus > GICV2_MAX_CPUS:
            raise BadInput(f"--cpus {self.cpus}: a GICv2 serves at most {GICV2_MAX_CPUS}")
        if self.initrd is not None and self.kernel is None:
            raise BadInput("--initrd needs --kernel")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise BadInput(f"--cpus {self.cpus}: choose 1 to {MAX_CPUS}")
        if not MiB <= self.memory <= MAX_RAM or self.memory % PAGE:
            raise BadInput(f"--mem {self.memory}: choose 1M to {MAX_RAM >> 30}G, in whole pages")
        if len(self.disks) + 2 > VIRTIO_SLOTS:
            raise BadInput(f"{len(self.disks)} disks: there is room for {VIRTIO_SLOTS - 2}")


@dataclass(frozen=True, slots=True)
class Software:
    """What the guest starts from, read once and loaded again at each reboot."""

    kernel: images.KernelImage | None
    initrd: bytes
    firmware: bytes

    @classmethod
    def read(cls, config: Config) -> Software:
        """Read and recognise the files of a configuration."""
        kernel = None
        if config.kernel is not None:
            kernel = images.parse(images.read_file(config.kernel, "--kernel"), str(config.kernel))
        firmware = images.read_file(config.firmware, "--bios") if config.firmware else b""
        if len(firmware) > FLASH.size:
            raise BadInput(f"--bios {config.firmware}: {len(firmware)} bytes do not fit into {FLASH.size // MiB} MiB of flash")
        return cls(kernel, images.read_file(config.initrd, "--initrd") if config.initrd else b"", firmware)

    def plan(self, memory: int) -> boot.Plan:
        """Where everything goes in a machine with so much memory; BadInput if it does not fit."""
        return boot.plan_firmware(memory) if self.kernel is None else boot.plan_kernel(self.kernel, self.initrd, memory)


class Saved(Protocol):
    """A machine that was saved (vmm/snapshot.py, vmm/migration.py)."""

    def has_memory(self, base: int) -> bool:
        """Whether it had memory at a guest physical address."""

    def stored(self, base: int) -> Stored | None:
        """What that held; None if it is not in a file."""

    def load(self, machine: Machine) -> None:
        """Give a machine that is made like it the rest of its state."""


class Machine:
    """A machine from power-on to power-off. A reboot is a new machine: nothing of the old one's state can leak into it.

    lock: held around every device access, from vCPU threads and from outside alike.
    """

    def __init__(
        self,
        system: System | BareSystem,
        config: Config,
        software: Software | None,
        disks: Iterable[Image],
        output: Callable[[bytes], None],
        saved: Saved | None = None,
    ) -> None:
        """From power-on, with `software` loaded; or with None as it was `saved`."""
        self.config = config
        self.saved = saved
        self.turns = system.turns
        self.has_its = False
        self.lock = threading.Lock()
        self.bus = Bus()
        self.queue: WriteQueue | None = None
        """Where characters for the console wait, on machines in the host's time."""
        plan = software.plan(config.memory) if software is not None else None
        self.vm: Vm | BareVm = system.create_vm()
        try:
            self.has_pmu = config.machine != "bare" and bool(self.vm.check_extension(Cap.ARM_PMU_V3))
            if self.vm.check_extension(Cap.ARM_NISV_TO_USER):
                self.vm.enable_cap(Cap.ARM_NISV_TO_USER)
            for path in config.sysreg:
                cast(Vm, self.vm).sysregs.load(path)
            if config.prepare is not None:
                config.prepare(cast(Vm, self.vm))
            self.memory = self._add_memory(RAM_BASE, config.memory)
            self.ram = GuestRam(RAM_BASE, self.memory.view)
            # Linux never looks at the flash; whatever else starts here may be firmware that does.
            linux = isinstance(software.kernel, images.LinuxImage) if software is not None else not (saved and saved.has_memory(FLASH.base))
            self.flash = () if linux else self._add_flash(software.firmware if software is not None else None)
            self.vcpus = [self._add_vcpu(number) for number in range(config.cpus)]
            self._add_gic()
            if self.config.machine != "bare":
                start_services(cast(Vm, self.vm), cast("list[Vcpu]", self.vcpus), self._add_memory)
            self.uart = PL011(self._spi(UART_SPI), output)
            if self.vm.check_extension(Cap.READONLY_MEM):
                self.uart.mirror = PageMirror(self.vm, UART.base)
            if self.turns is None and config.ioctls is None and self.vm.check_extension(Cap.COALESCED_MMIO):
                ring = cast("list[Vcpu]", self.vcpus)[0].coalesced
                self.queue = WriteQueue(cast(Vm, self.vm), ring, UART.base, self.uart.transmit_all, self.bus.write, self.lock)
                self.uart.queue = self.queue
            self.gpio = PL061(self._spi(GPIO_SPI))
            self._add_devices()
            self.console = VirtioConsole(output) if config.virtio_console else None
            self.virtio = self._add_virtio(disks)
            if plan is not None:
                boot.load(plan, self._device_tree(plan), self.ram)
                self._start_first_cpu(plan)
            elif saved is not None:
                saved.load(self)
            self.saved = None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give everything back to the host. The vCPUs must not be running."""
        if self.queue is not None:
            self.queue.stop()
        self.vm.close()

    def receive(self, data: bytes) -> None:
        """Console input."""
        with self.lock:
            (self.console or self.uart).receive(data)

    @property
    def devices(self) -> dict[int, MmioDevice]:
        """What is on the bus, by address."""
        return {window.base: window.device for window in self.bus.windows}

    def release_power_key(self) -> None:
        """Let go of the power key, in a moment."""
        self.schedule(POWER_KEY_SECONDS, lambda: self.gpio.set_input(POWER_KEY_LINE, False))

    def press_power_key(self) -> None:
        """Press the power key and let go of it."""
        with self.lock:
            self.gpio.set_input(POWER_KEY_LINE, True)
        self.release_power_key()

    def schedule(self, delay: float, callback: Callable[[], None]) -> Cancel:
        """Call `callback` with the device lock held after `delay` seconds; returns what cancels it."""

        def ring() -> None:
            with self.lock:
                callback()

        if self.turns is not None:
            return self.turns.call_at(self.turns.now + int(delay * 1e9), ring)
        timer = threading.Timer(min(delay, threading.TIMEOUT_MAX), ring)
        timer.daemon = True
        timer.start()
        return timer.cancel

    def _add_memory(self, base: int, size: int, flags: int = 0) -> GuestMemory:
        """Memory, with the contents that it had if the machine was saved to a file."""
        stored = self.saved.stored(base) if self.saved is not None else None
        try:
            if stored is not None:
                return cast(Vm, self.vm).add_memory(base, size, flags=flags, stored=stored)
            return self.vm.add_memory(base, size, flags=flags)
        except (MemoryError, OSError) as error:
            raise BadInput(f"--mem: this host cannot give {size // MiB} MiB ({error})") from error

    def _add_flash(self, image: bytes | None) -> tuple[GuestMemory, ...]:
        """Two banks as memory that the guest cannot write: the firmware, and settings that were never written (erased: all ones).

        None for those of a saved machine.
        """
        banks = []
        for region, content in ((FLASH, image), (FLASH_VARIABLES, b"\xff" * FLASH_VARIABLES.size)):
            bank = self._add_memory(region.base, region.size, MEM_READONLY)
            if image is not None and content is not None:
                bank.view[: len(content)] = content
            banks.append(bank)
            self.bus.add(region.base, FlashRom())
        return tuple(banks)

    def _add_vcpu(self, number: int) -> Vcpu | BareVcpu:
        features = [Feature.POWER_OFF] if number else []
        if self.vm.check_extension(Cap.ARM_PTRAUTH_ADDRESS) and self.vm.check_extension(Cap.ARM_PTRAUTH_GENERIC):
            features += [Feature.PTRAUTH_ADDRESS, Feature.PTRAUTH_GENERIC]
        if self.has_pmu:
            features.append(Feature.PMU_V3)
        return self.vm.create_vcpu(number, features=features)

    def _add_gic(self) -> None:
        """The interrupt controller; with an ITS if this KVM has one."""
        if self.config.machine == "bare":
            cast("BareVm", self.vm).create_gic(GIC_DISTRIBUTOR.base, GIC_REDISTRIBUTORS.base, INTERRUPTS, GIC_ITS.base)
            self.has_its = True
            return
        kind, places = GICS[self.config.gic]
        gic = cast(Vm, self.vm).create_device(kind)
        gic.set_attr(VgicGroup.NR_IRQS, 0, INTERRUPTS, width=4)
        for attr, base in places.items():
            gic.set_attr(VgicGroup.ADDR, attr, base)
        gic.set_attr(VgicGroup.CTRL, VgicCtrl.INIT)
        if kind != DeviceType.ARM_VGIC_V3:
            return
        with suppress(KvmError):  # a KVM without ITS
            its = cast(Vm, self.vm).create_device(DeviceType.ARM_VGIC_ITS)
            its.set_attr(VgicGroup.ADDR, VgicAddr.ITS, GIC_ITS.base)
            its.set_attr(VgicGroup.CTRL, VgicCtrl.INIT)
            self.has_its = True

    def _spi(self, number: int) -> IrqLine:
        intid = SPI_BASE + number
        return IrqLine(lambda level: self.vm.set_irq(intid, level))

    def _add_devices(self) -> None:
        pci = PciBus({PCI_TEST_SLOT: pci_testdev()} if self.config.pci_testdev else {})
        placed: list[tuple[int, MmioDevice]] = [
            (UART.base, self.uart),
            (RTC.base, PL031(self._spi(RTC_SPI), time.time if self.turns is None else self.turns.wall_clock, self.schedule)),
            (GPIO.base, self.gpio),
            (PCIE_ECAM.base, pci),
            (PCIE_MMIO.base, PciWindow(pci, Command.MEMORY, PCIE_MMIO.base, PCIE_MMIO.size)),
            (PCIE_PIO.base, PciWindow(pci, Command.IO, 0, PCIE_PIO.size)),
        ]
        for base, device in placed:
            self.bus.add(base, device)

    def _add_virtio(self, disks: Iterable[Image]) -> list[VirtioMmio]:
        devices: list[VirtioDevice] = [VirtioBlock(image, serial=f"trapline-{n}") for n, image in enumerate(disks)]
        devices.append(VirtioRng(self._entropy("virtio-rng")))
        if self.console is not None:
            devices.append(self.console)
        slots = [VirtioMmio(device, self.ram, self._spi(VIRTIO_SPI + index)) for index, device in enumerate(devices)]
        for index, slot in enumerate(slots):
            self.bus.add(virtio_slot(index).base, slot)
        return slots

    def _entropy(self, purpose: str) -> Callable[[int], bytes]:
        """Random bytes: the host's, or those that the seed of a deterministic machine gives."""
        return os.urandom if self.turns is None else self.turns.entropy(purpose)

    def _device_tree(self, plan: boot.Plan) -> bytes:
        return fdt.build(
            fdt.Description(
                ram=self.config.memory,
                cpus=self.config.cpus,
                virtio_slots=tuple(range(len(self.virtio))),
                bootargs=self.config.params,
                initrd=plan.initrd,
                seed=self._entropy("device tree")(SEED_BYTES),
                el2=self.config.el2,
                pmu=self.has_pmu,
                its=self.has_its,
                gic=self.config.gic,
            )
        )

    def _start_first_cpu(self, plan: boot.Plan) -> None:
        """The Linux boot protocol: device tree in X0, X1 to X3 zero, exceptions masked (as KVM resets PSTATE)."""
        first = self.vcpus[0]
        if self.config.machine == "bare":
            cast("BareVcpu", first).start(plan.entry, plan.dtb)
            return
        first.regs.x0 = plan.dtb
        first.regs.pc = plan.entry
