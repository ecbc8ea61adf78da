"""PCI Express: a host bridge with one bus, its configuration space (ECAM) and the windows through which BARs are reached.

Whatever no function claims behaves as a master abort does: reads give all ones, writes are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from trapline.devices.device import MmioDevice
from trapline.devices.state import Stateful

ECAM_FUNCTION_SHIFT = 12
BAR_REGISTERS = range(0x10, 0x28, 4)
CONFIG_BYTES = 256
WORD = 4


class Command(IntFlag):
    """The bits of the command register that functions here obey."""

    IO = 1
    MEMORY = 2
    MASTER = 4


WRITABLE_COMMAND = Command.IO | Command.MEMORY | Command.MASTER | 0x540
"""With parity and SERR enable and interrupt disable, which are stored and mean nothing."""


@dataclass
class Bar(Stateful):
    """A base address register and what is behind it. `decode` is the command bit that switches it on; IO or MEMORY."""

    kept = ("address", "device")
    device: MmioDevice
    decode: Command
    address: int = 0

    @property
    def register(self) -> int:
        """The register's value: address and kind."""
        return self.address | (1 if self.decode is Command.IO else 0)

    def write(self, value: int) -> None:
        """Set the address. The bits below the size are zero: so a driver learns it."""
        self.address = value & ~(self.device.size - 1) & 0xFFFF_FFFF


class PciFunction(Stateful):
    """A function with a type 0 header. `class_code` is class, subclass and interface; up to six 32-bit BARs."""

    kept = ("config", "command", "bars")

    def __init__(self, vendor: int, device: int, class_code: int, bars: list[Bar]) -> None:
        self.bars = bars
        self._initial = bytearray(CONFIG_BYTES)
        for offset, value in ((0x00, device << 16 | vendor), (0x08, class_code << 8), (0x2C, device << 16 | vendor)):
            self._initial[offset : offset + WORD] = value.to_bytes(WORD, "little")
        self.reset()

    def reset(self) -> None:
        """Decoding off, BARs at 0."""
        self.config = bytearray(self._initial)
        self.command = 0
        for bar in self.bars:
            bar.address = 0
            bar.device.reset()

    def read_config(self, offset: int, size: int) -> int:
        """Read configuration space; zero past the first 256 bytes."""
        aligned = offset & ~(WORD - 1)
        word = int.from_bytes(self.config[aligned : aligned + WORD], "little")
        if aligned == 0x04:
            word = self.command
        elif aligned in BAR_REGISTERS and (number := BAR_REGISTERS.index(aligned)) < len(self.bars):
            word = self.bars[number].register
        return word >> 8 * (offset - aligned) & (1 << 8 * size) - 1

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write configuration space: command, BARs, interrupt line. The rest is read-only."""
        if offset == 0x04:
            self.command = value & WRITABLE_COMMAND
        elif offset == 0x3C:
            self.config[offset] = value & 0xFF
        elif size == WORD and offset in BAR_REGISTERS and (number := BAR_REGISTERS.index(offset)) < len(self.bars):
            self.bars[number].write(value)


class PciBus(MmioDevice, size=0x1000_0000, compatible=("pci-host-ecam-generic",)):
    """The configuration space of 256 buses, of which the first may have functions: `functions` by device and function number."""

    kept = ("functions",)

    def __init__(self, functions: dict[int, PciFunction] | None = None) -> None:
        self.functions = functions or {}
        super().__init__()

    def reset(self) -> None:
        """Every function."""
        for function in self.functions.values():
            function.reset()
        super().reset()

    def read_area(self, offset: int, size: int) -> int:
        """Configuration of a function, or all ones."""
        function = self.functions.get(offset >> ECAM_FUNCTION_SHIFT)
        if function is None:
            return (1 << 8 * size) - 1
        return function.read_config(offset & (1 << ECAM_FUNCTION_SHIFT) - 1, size)

    def write_area(self, offset: int, size: int, value: int) -> None:
        """Configuration of a function."""
        if function := self.functions.get(offset >> ECAM_FUNCTION_SHIFT):
            function.write_config(offset & (1 << ECAM_FUNCTION_SHIFT) - 1, size, value)

    def find(self, decode: Command, address: int) -> Bar | None:
        """The enabled BAR that holds a PCI address."""
        for function in self.functions.values():
            if function.command & decode:
                for bar in function.bars:
                    if bar.decode is decode and 0 <= address - bar.address < bar.device.size:
                        return bar
        return None


class PciWindow(MmioDevice):
    """A range of guest physical addresses that becomes PCI addresses of one kind, from `pci_base` on."""

    def __init__(self, bus: PciBus, decode: Command, pci_base: int, size: int) -> None:
        self.bus = bus
        self.decode = decode
        self.pci_base = pci_base
        self.size = size  # type: ignore[misc] # a window is as large as the board makes it
        super().__init__()

    def read_area(self, offset: int, size: int) -> int:
        """What a BAR there answers, or all ones."""
        address = self.pci_base + offset
        bar = self.bus.find(self.decode, address)
        return (1 << 8 * size) - 1 if bar is None else bar.device.reader(address - bar.address, size)()

    def write_area(self, offset: int, size: int, value: int) -> None:
        """To a BAR there, if there is one."""
        address = self.pci_base + offset
        if (bar := self.bus.find(self.decode, address)) is not None:
            bar.device.writer(address - bar.address, size)(value)
