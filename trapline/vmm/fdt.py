"""The flattened device tree that describes the board to its guest."""

from __future__ import annotations

from dataclasses import dataclass

import fdt

from trapline.devices.pci import PciBus
from trapline.devices.pl011 import PL011
from trapline.devices.pl031 import PL031
from trapline.devices.pl061 import PL061, POWER_KEY_LINE
from trapline.devices.virtio.mmio import VirtioMmio
from trapline.vmm import board
from trapline.vmm.board import Region

Value = int | str | bytes | tuple[int, ...] | tuple[str, ...] | None
Properties = dict[str, Value]

GIC_SPI, GIC_PPI = 0, 1
EDGE_RISING, LEVEL_HIGH = 1, 4
KEY_POWER = 116
GPIO_ACTIVE_HIGH = 0

GIC_PHANDLE, CLOCK_PHANDLE, GPIO_PHANDLE, ITS_PHANDLE = 1, 2, 3, 4

PCI_IO, PCI_MEM32, PCI_MEM64 = 0x0100_0000, 0x0200_0000, 0x0300_0000
"""Address space codes in the ranges of a PCI host bridge."""
PCI_DEVICE_SHIFT = 11
PCI_PINS = 4
PCI_PIN_MASK = 7
ECAM_BYTES_PER_BUS = 1 << 20
REQUESTER_IDS = 1 << 16

PSCI_CPU_SUSPEND, PSCI_CPU_OFF, PSCI_CPU_ON, PSCI_MIGRATE = 0xC400_0001, 0x8400_0002, 0xC400_0003, 0xC400_0005

KASLR_SEED_BYTES = 8


@dataclass(slots=True)
class Description:
    """What the tree says about this machine besides the fixed board.

    ram:            bytes of memory at RAM_BASE.
    cpus:           number of CPUs.
    virtio_slots:   indices of the occupied virtio-mmio slots.
    bootargs:       the kernel command line.
    initrd:         where the initial ramdisk is, if there is one.
    seed:           entropy for the kernel's address layout and its generator; none if empty.
    el2:            whether the CPUs have EL2.
    pmu:            whether they have performance monitors.
    its:            whether the interrupt controller has an ITS.
    gic:            version of the interrupt controller.
    """

    ram: int
    cpus: int = 1
    virtio_slots: tuple[int, ...] = ()
    bootargs: str = ""
    initrd: Region | None = None
    seed: bytes = b""
    el2: bool = False
    pmu: bool = False
    its: bool = False
    gic: int = 3


def build(machine: Description) -> bytes:
    """The device tree blob."""
    tree = fdt.FDT()
    name = "linux,dummy-virt"
    tree.root = node("/", {"#address-cells": 2, "#size-cells": 2, "interrupt-parent": GIC_PHANDLE, "model": name, "compatible": name})
    for child in (
        chosen(machine),
        psci(machine.el2),
        node(f"memory@{board.RAM_BASE:x}", {"device_type": "memory", "reg": reg(Region(board.RAM_BASE, machine.ram))}),
        cpus(machine.cpus),
        timer(machine.el2),
        *([pmu()] if machine.pmu else []),
        interrupt_controller(machine),
        clock(),
        primecell("pl011", PL011.compatible, board.UART, board.UART_SPI, {"clock-names": ("uartclk", "apb_pclk")}),
        primecell("pl031", PL031.compatible, board.RTC, board.RTC_SPI),
        gpio(),
        power_key(),
        *(virtio_slot(index) for index in machine.virtio_slots),
        pci_host_bridge(machine.its),
    ):
        tree.root.append(child)
    blob: bytes = tree.to_dtb(version=17)
    return blob


def node(name: str, properties: Properties) -> fdt.Node:
    """A node. An int or a tuple of them becomes cells, a str or a tuple of them strings, None an empty property."""
    made = fdt.Node(name)
    for key, value in properties.items():
        made.append(encode(key, value))
    return made


def encode(name: str, value: Value) -> fdt.Property:
    """One property."""
    if value is None:
        return fdt.Property(name)
    if isinstance(value, bytes):
        return fdt.PropBytes(name, data=value)
    items = value if isinstance(value, tuple) else (value,)
    if isinstance(items[0], str):  # as bytes: the library's own class refuses empty strings
        return fdt.PropBytes(name, data=b"".join(str(item).encode() + b"\0" for item in items))
    return fdt.PropWords(name, *items)


def cells(value: int) -> tuple[int, int]:
    """A 64-bit number as two cells."""
    return value >> 32, value & 0xFFFF_FFFF


def reg(*regions: Region) -> tuple[int, ...]:
    """A `reg` property with two address and two size cells."""
    return tuple(cell for region in regions for cell in (*cells(region.base), *cells(region.size)))


def chosen(machine: Description) -> fdt.Node:
    """/chosen: what a boot loader tells the kernel."""
    properties: Properties = {"bootargs": machine.bootargs, "stdout-path": f"/pl011@{board.UART.base:x}"}
    if machine.initrd is not None:
        properties["linux,initrd-start"] = cells(machine.initrd.base)
        properties["linux,initrd-end"] = cells(machine.initrd.base + machine.initrd.size)
    if machine.seed:
        properties["kaslr-seed"] = machine.seed[:KASLR_SEED_BYTES]
        properties["rng-seed"] = machine.seed[KASLR_SEED_BYTES:]
    return node("chosen", properties)


def psci(el2: bool) -> fdt.Node:
    """/psci: power control by hypervisor call, or by SMC to firmware above EL2.

    The function numbers are for drivers of PSCI 0.1, which had no fixed ones.
    """
    numbers: Properties = {"cpu_suspend": PSCI_CPU_SUSPEND, "cpu_off": PSCI_CPU_OFF, "cpu_on": PSCI_CPU_ON, "migrate": PSCI_MIGRATE}
    return node("psci", {"compatible": ("arm,psci-1.0", "arm,psci-0.2", "arm,psci"), "method": "smc" if el2 else "hvc", **numbers})


def cpus(count: int) -> fdt.Node:
    """/cpus: all alike, all started through PSCI."""
    made = node("cpus", {"#address-cells": 1, "#size-cells": 0})
    for affinity in map(board.mpidr_affinity, range(count)):
        common: Properties = {"device_type": "cpu", "compatible": "arm,armv8", "enable-method": "psci"}
        made.append(node(f"cpu@{affinity:x}", common | {"reg": affinity}))
    return made


def timer(el2: bool) -> fdt.Node:
    """The generic timer and its private interrupts."""
    ppis = (*board.TIMER_PPIS, board.HYP_VIRTUAL_TIMER_PPI) if el2 else board.TIMER_PPIS
    interrupts = tuple(cell for ppi in ppis for cell in (GIC_PPI, ppi, LEVEL_HIGH))
    return node("timer", {"compatible": ("arm,armv8-timer", "arm,armv7-timer"), "always-on": None, "interrupts": interrupts})


def pmu() -> fdt.Node:
    """The performance monitors and their private interrupt."""
    return node("pmu", {"compatible": "arm,armv8-pmuv3", "interrupts": (GIC_PPI, board.PMU_PPI, LEVEL_HIGH)})


def interrupt_controller(machine: Description) -> fdt.Node:
    """The GICv3, with its ITS, or the GICv2. Its maintenance interrupt is for a hypervisor."""
    maintenance: Properties = {"interrupts": (GIC_PPI, board.MAINTENANCE_PPI, LEVEL_HIGH)} if machine.el2 else {}
    version: Properties = {
        "compatible": "arm,gic-v3",
        "reg": reg(board.GIC_DISTRIBUTOR, board.GIC_REDISTRIBUTORS),
        "#redistributor-regions": 1,
    }
    if machine.gic == 2:
        version = {"compatible": "arm,cortex-a15-gic", "reg": reg(*board.GICV2)}
    made = node(
        f"intc@{board.GIC_DISTRIBUTOR.base:x}",
        {
            **version,
            "interrupt-controller": None,
            "#interrupt-cells": 3,
            "#address-cells": 2,
            "#size-cells": 2,
            "ranges": None,
            "phandle": GIC_PHANDLE,
            **maintenance,
        },
    )
    if machine.its:
        properties: Properties = {"compatible": "arm,gic-v3-its", "msi-controller": None, "#msi-cells": 1, "reg": reg(board.GIC_ITS)}
        made.append(node(f"its@{board.GIC_ITS.base:x}", {**properties, "phandle": ITS_PHANDLE}))
    return made


def clock() -> fdt.Node:
    """The clock that every PrimeCell names."""
    frequency: Properties = {"#clock-cells": 0, "clock-frequency": board.APB_CLOCK_HZ, "clock-output-names": "clk24mhz"}
    return node("apb-pclk", {"compatible": "fixed-clock", "phandle": CLOCK_PHANDLE, **frequency})


def primecell(name: str, compatible: tuple[str, ...], where: Region, spi: int, more: Properties | None = None) -> fdt.Node:
    """An Arm PrimeCell on the APB clock; `more` adds properties or replaces them."""
    properties: Properties = {
        "compatible": compatible,
        "reg": reg(where),
        "interrupts": (GIC_SPI, spi, LEVEL_HIGH),
        "clock-names": "apb_pclk",
        **(more or {}),
    }
    names = properties["clock-names"]
    properties["clocks"] = (CLOCK_PHANDLE,) * (len(names) if isinstance(names, tuple) else 1)
    return node(f"{name}@{where.base:x}", properties)


def gpio() -> fdt.Node:
    """The GPIO controller."""
    more: Properties = {"gpio-controller": None, "#gpio-cells": 2, "phandle": GPIO_PHANDLE}
    return primecell("pl061", PL061.compatible, board.GPIO, board.GPIO_SPI, more)


def power_key() -> fdt.Node:
    """The power key, on a line of the GPIO controller."""
    made = node("gpio-keys", {"compatible": "gpio-keys"})
    line = (GPIO_PHANDLE, POWER_KEY_LINE, GPIO_ACTIVE_HIGH)
    made.append(node("poweroff", {"label": "GPIO Key Poweroff", "linux,code": KEY_POWER, "gpios": line}))
    return made


def virtio_slot(index: int) -> fdt.Node:
    """One virtio-mmio device."""
    where = board.virtio_slot(index)
    interrupts = (GIC_SPI, board.VIRTIO_SPI + index, EDGE_RISING)
    properties: Properties = {"compatible": VirtioMmio.compatible, "reg": reg(where), "interrupts": interrupts, "dma-coherent": None}
    return node(f"virtio_mmio@{where.base:x}", properties)


def pci_host_bridge(its: bool) -> fdt.Node:
    """The PCI Express host bridge, with its four interrupt pins swizzled over the slots; a function's messages name it by its number."""
    messages: Properties = {"msi-map": (0, ITS_PHANDLE, 0, REQUESTER_IDS)} if its else {}
    interrupt_map: list[int] = []
    for slot in range(PCI_PINS):
        for pin in range(PCI_PINS):
            interrupt_map += (slot << PCI_DEVICE_SHIFT, 0, 0, pin + 1)
            interrupt_map += (GIC_PHANDLE, 0, 0, GIC_SPI, board.PCIE_SPI + (slot + pin) % PCI_PINS, LEVEL_HIGH)
    ranges = (
        *(PCI_IO, 0, 0, *cells(board.PCIE_PIO.base), *cells(board.PCIE_PIO.size)),
        *(PCI_MEM32, *cells(board.PCIE_MMIO.base), *cells(board.PCIE_MMIO.base), *cells(board.PCIE_MMIO.size)),
        *(PCI_MEM64, *cells(board.PCIE_MMIO_HIGH.base), *cells(board.PCIE_MMIO_HIGH.base), *cells(board.PCIE_MMIO_HIGH.size)),
    )
    return node(
        f"pcie@{board.PCIE_MMIO.base:x}",
        {
            "compatible": PciBus.compatible,
            "device_type": "pci",
            "reg": reg(board.PCIE_ECAM),
            "ranges": ranges,
            "bus-range": (0, board.PCIE_ECAM.size // ECAM_BYTES_PER_BUS - 1),
            "linux,pci-domain": 0,
            "dma-coherent": None,
            "#address-cells": 3,
            "#size-cells": 2,
            "#interrupt-cells": 1,
            "interrupt-map-mask": ((PCI_PINS - 1) << PCI_DEVICE_SHIFT, 0, 0, PCI_PIN_MASK),
            "interrupt-map": tuple(interrupt_map),
            **messages,
        },
    )
