"""The board: where everything is. QEMU's `virt` memory map and interrupt numbers, so that images made for it run unchanged."""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1 << 20
GiB = 1 << 30

SPI_BASE = 32
"""INTID of the first shared peripheral interrupt."""


@dataclass(frozen=True, slots=True)
class Region:
    """A range of guest physical addresses."""

    base: int
    size: int


FLASH = Region(0x0000_0000, 0x0400_0000)
"""The bank that firmware starts from."""
FLASH_VARIABLES = Region(0x0400_0000, 0x0400_0000)
"""The bank where firmware keeps its settings."""
GIC_DISTRIBUTOR = Region(0x0800_0000, 0x0001_0000)
GICV2 = (Region(0x0800_0000, 0x1000), Region(0x0801_0000, 0x2000))
"""Distributor and CPU interface of a GICv2, which is there instead of a GICv3."""
GIC_ITS = Region(0x0808_0000, 0x0002_0000)
GIC_REDISTRIBUTORS = Region(0x080A_0000, 0x00F6_0000)
UART = Region(0x0900_0000, 0x1000)
RTC = Region(0x0901_0000, 0x1000)
GPIO = Region(0x0903_0000, 0x1000)
PVTIME = Region(0x090A_0000, 0x0001_0000)
"""Memory in which each CPU finds its stolen time."""
VIRTIO = Region(0x0A00_0000, 0x200)
"""The first of the virtio-mmio slots."""
PCIE_MMIO = Region(0x1000_0000, 0x2EFF_0000)
PCIE_PIO = Region(0x3EFF_0000, 0x0001_0000)
RAM_BASE = 0x4000_0000
PCIE_ECAM = Region(0x40_1000_0000, 0x1000_0000)
PCIE_MMIO_HIGH = Region(0x80_0000_0000, 0x80_0000_0000)

REDISTRIBUTOR_SIZE = 0x2_0000
VIRTIO_SLOTS = 32

# Shared peripheral interrupts, counted from SPI_BASE.
UART_SPI = 1
RTC_SPI = 2
PCIE_SPI = 3
"""Four of them: INTA to INTD."""
GPIO_SPI = 7
VIRTIO_SPI = 16

# Private peripheral interrupts, counted from 16 as the device tree does: secure physical, physical, virtual, hypervisor timer.
TIMER_PPIS = (13, 14, 11, 10)
HYP_VIRTUAL_TIMER_PPI = 12
PMU_PPI = 7
MAINTENANCE_PPI = 9
"""The GIC's own, for the hypervisor that fills its list registers."""

MAX_CPUS = GIC_REDISTRIBUTORS.size // REDISTRIBUTOR_SIZE
GICV2_MAX_CPUS = 8
MAX_RAM = 255 * GiB
"""QEMU's limit for RAM in one piece."""

APB_CLOCK_HZ = 24_000_000


def virtio_slot(index: int) -> Region:
    """Where virtio-mmio slot `index` is."""
    return Region(VIRTIO.base + index * VIRTIO.size, VIRTIO.size)


def mpidr_affinity(cpu: int) -> int:
    """The affinity fields of CPU number `cpu`: KVM puts 16 CPUs to a cluster."""
    return cpu & 0xF | (cpu >> 4 & 0xFF) << 8 | cpu >> 12 << 16
