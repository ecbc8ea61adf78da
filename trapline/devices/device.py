"""What every memory-mapped device is made of: registers as descriptors, and an interrupt line that follows from them.

A device lists its registers once::

    class Uart(MmioDevice, size=0x1000, compatible=("arm,pl011", "arm,primecell")):
        DR = Reg(0x000, mask=0xFF)
        FR = Reg(0x018, ro=True)

        @DR.write
        def transmit(self, value): ...      # instead of storing the value

        @FR.value
        def flags(self): ...                # computed, reading has no effect

        def irq_level(self): ...            # the line as a function of the registers

and the base class answers accesses of every width, drives the line after each access that can move it, and resets the registers.
The guest's accesses are the hot path of a boot (tens of thousands): the bus asks once per (offset, size) for a callable and keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from trapline.devices.state import Stateful

Hook = TypeVar("Hook", bound=Callable[..., Any])
Reader = Callable[[], int]
Writer = Callable[[int], None]

REGISTER_BYTES = 4


class Reg:
    """One 32-bit register of a device.

    offset: byte offset in the device's window.
    mask:   the bits that exist; others read as zero and ignore writes.
    ro, wo: writes ignored, reads zero.
    reset:  the value after reset.

    On an instance the attribute is the plain stored `int`: a device's own code may assign it freely.
    """

    def __init__(self, offset: int, *, mask: int = 0xFFFF_FFFF, ro: bool = False, wo: bool = False, reset: int = 0) -> None:
        self.offset = offset
        self.mask = mask
        self.ro = ro
        self.wo = wo
        self.reset = reset
        self.name = ""
        self.reader: Callable[[Any], int] | None = None
        self.reader_has_effect = False
        self.writer: Callable[[Any, int], None] | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    # Not a data descriptor: the stored int of the instance wins, so that device code runs at the speed of plain attributes.
    @overload
    def __get__(self, device: None, owner: type) -> Reg: ...

    @overload
    def __get__(self, device: MmioDevice, owner: type) -> int: ...

    def __get__(self, device: MmioDevice | None, owner: type) -> Reg | int:
        return self if device is None else self.reset

    if TYPE_CHECKING:

        def __set__(self, device: MmioDevice, value: int) -> None: ...

    def value(self, hook: Hook) -> Hook:
        """Decorator: compute what a read returns; reading changes nothing."""
        self.reader = hook
        return hook

    def read(self, hook: Hook) -> Hook:
        """Decorator: compute what a read returns; reading has an effect, so the interrupt line is evaluated after it."""
        self.reader_has_effect = True
        return self.value(hook)

    def write(self, hook: Hook) -> Hook:
        """Decorator: called with the masked value in place of storing it."""
        self.writer = hook
        return hook


class IrqLine(Stateful):
    """A level-sensitive wire to the interrupt controller; `drive` is called only when the level changes."""

    kept = ("level",)

    def __init__(self, drive: Callable[[bool], None] | None = None) -> None:
        self._drive = drive
        self.level = False

    def set(self, level: bool) -> None:
        """Put the wire at `level`."""
        if level != self.level:
            self.level = level
            if self._drive is not None:
                self._drive(level)

    def tell_again(self) -> None:
        """Drive the wire to where it is: for an interrupt controller that was restored, and whose inputs cannot be."""
        if self._drive is not None:
            self._drive(self.level)


class MmioDevice(Stateful):
    """A device in a window of guest physical addresses.

    Class keywords: `size`, the window in bytes; `compatible`, the device tree's names for it.
    All methods are called with the machine's device lock held.
    """

    size: ClassVar[int] = 0
    compatible: ClassVar[tuple[str, ...]] = ()
    registers: ClassVar[dict[int, Reg]] = {}

    def __init_subclass__(cls, *, size: int | None = None, compatible: tuple[str, ...] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.size = cls.size if size is None else size
        cls.compatible = cls.compatible if compatible is None else compatible
        cls.registers = dict(cls.registers)
        for reg in vars(cls).values():
            if isinstance(reg, Reg):
                if reg.offset in cls.registers or reg.offset % REGISTER_BYTES or reg.offset >= cls.size:
                    raise TypeError(f"{cls.__name__}.{reg.name}: offset {reg.offset:#x} is taken, unaligned or outside the window")
                cls.registers[reg.offset] = reg

    def __init__(self, irq: IrqLine | None = None) -> None:
        self.irq = irq or IrqLine()
        self.reset()

    def reset(self) -> None:
        """Registers to their reset values, interrupt line to what follows from them."""
        for reg in self.registers.values():
            self.__dict__[reg.name] = reg.reset
        self.update_irq()

    def kept_names(self) -> Iterable[str]:
        """Registers, what else the class names, and the wire, which follows from them."""
        return (*(reg.name for reg in self.registers.values()), *self.kept, "irq")

    def irq_level(self) -> bool:
        """The interrupt line as a function of the registers."""
        return False

    def update_irq(self) -> None:
        """Drive the line; called after each access and by whatever else changes the state."""
        self.irq.set(self.irq_level())

    # What is not a register: a device with a memory-like area overrides these two.

    def read_area(self, offset: int, size: int) -> int:
        """A read outside the registers, at any alignment; zero where nothing is."""
        return 0

    def write_area(self, offset: int, size: int, value: int) -> None:
        """A write outside the registers; ignored where nothing is."""

    # How the bus finds out what to call.

    def reader(self, offset: int, size: int) -> Reader:
        """The callable that answers reads of `size` bytes at `offset`."""
        reg = self.registers.get(offset)
        if reg is not None:
            return self._register_reader(reg, size)
        reg = self.registers.get(offset & ~(REGISTER_BYTES - 1))
        if reg is not None and size < REGISTER_BYTES:
            whole, shift = self._register_reader(reg, REGISTER_BYTES), 8 * (offset % REGISTER_BYTES)
            bits = (1 << 8 * size) - 1
            return lambda: whole() >> shift & bits
        return lambda: self.read_area(offset, size)

    def writer(self, offset: int, size: int) -> Writer:
        """The callable that takes writes of `size` bytes at `offset`."""
        reg = self.registers.get(offset)
        if reg is not None:
            return self._register_writer(reg, size)
        if self.registers.get(offset & ~(REGISTER_BYTES - 1)) is not None and size < REGISTER_BYTES:
            return _ignore  # a part of a register other than its low bytes cannot be written alone
        return lambda value: self.write_area(offset, size, value)

    def _register_reader(self, reg: Reg, size: int) -> Reader:
        if size > REGISTER_BYTES:
            low, high = self._register_reader(reg, REGISTER_BYTES), self.reader(reg.offset + REGISTER_BYTES, REGISTER_BYTES)
            return lambda: low() | high() << 32
        bits = (1 << 8 * size) - 1 if size < REGISTER_BYTES else 0xFFFF_FFFF
        if reg.wo:
            return _zero
        if reg.reader is None:
            state, name = self.__dict__, reg.name
            return lambda: state[name] & bits
        compute: Reader = reg.reader.__get__(self)
        if not reg.reader_has_effect:
            return lambda: compute() & bits
        update_irq = self.update_irq

        def read() -> int:
            value = compute()
            update_irq()
            return value & bits

        return read

    def _register_writer(self, reg: Reg, size: int) -> Writer:
        if size > REGISTER_BYTES:
            low, high = self._register_writer(reg, REGISTER_BYTES), self.writer(reg.offset + REGISTER_BYTES, REGISTER_BYTES)

            def write_both(value: int) -> None:
                low(value & 0xFFFF_FFFF)
                high(value >> 32)

            return write_both
        if reg.ro:
            return _ignore
        mask = reg.mask & ((1 << 8 * size) - 1)
        update_irq = self.update_irq
        if reg.writer is None:
            state, name = self.__dict__, reg.name

            def store(value: int) -> None:
                state[name] = value & mask
                update_irq()

            return store
        call: Writer = reg.writer.__get__(self)

        def write(value: int) -> None:
            call(value & mask)
            update_irq()

        return write


def _zero() -> int:
    return 0


def _ignore(value: int) -> None:
    return None


def primecell_identification(part: int, revision: int = 0) -> tuple[tuple[int, int], ...]:
    """(offset, value) of the eight identification registers of an Arm PrimeCell with this part number."""
    peripheral = (part & 0xFF, 0x10 | part >> 8, revision << 4 | 0x4, 0x00)
    cell = (0x0D, 0xF0, 0x05, 0xB1)
    return tuple((0xFE0 + REGISTER_BYTES * n, value) for n, value in enumerate(peripheral + cell))


class PrimeCell(MmioDevice, size=0x1000):
    """An Arm PrimeCell: a 4 KiB window that ends in identification registers. Class keywords: `part`, `revision`."""

    identification: ClassVar[dict[int, int]] = {}

    def __init_subclass__(cls, *, part: int, revision: int = 0, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.identification = dict(primecell_identification(part, revision))

    def read_area(self, offset: int, size: int) -> int:
        """Identification registers; zero elsewhere."""
        value = self.identification.get(offset & ~(REGISTER_BYTES - 1), 0)
        return value >> 8 * (offset % REGISTER_BYTES) & ((1 << 8 * size) - 1)
