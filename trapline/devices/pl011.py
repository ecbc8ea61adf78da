"""PL011, the PrimeCell UART: the machine's console."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntFlag
from typing import Any, Protocol

from trapline.devices.device import REGISTER_BYTES, IrqLine, PrimeCell, Reg, Writer

FIFO_DEPTH = 32
"""Both FIFOs hold 32 characters since revision r1p5."""

POLLS_BEFORE_FEEDING = 24
"""Reads of FR without a transmission between them, while input waits, that mark a guest that polls for it."""

READS_BEFORE_SHOWING = 32
"""Reads of FR with no input about after which the guest may read the registers from memory: it takes long to let it."""

WRITES_BEFORE_WAITING = 32
"""Transmissions one by one after which they may wait for each other: it takes long to let them."""

SINGLE_BYTES = tuple(bytes([n]) for n in range(256))


class Flag(IntFlag):
    """FR, the flag register."""

    RXFE = 1 << 4
    RXFF = 1 << 6
    TXFE = 1 << 7


class Int(IntFlag):
    """Interrupts, as numbered in IMSC, RIS, MIS and ICR."""

    RX = 1 << 4
    TX = 1 << 5
    RT = 1 << 6


# Plain ints for the hot path: arithmetic on enum members costs a microsecond each.
_RXFE, _RXFF, _TXFE = int(Flag.RXFE), int(Flag.RXFF), int(Flag.TXFE)
_TX, _RECEIVE = int(Int.TX), int(Int.RX | Int.RT)

LCRH_FEN = 1 << 4
CR_LBE = 1 << 7
CR_RESET = 0x300


class Mirror(Protocol):
    """Memory in which the guest reads the registers, while reading them has no effect; its writes still come to the device."""

    @property
    def words(self) -> memoryview:
        """The window, by 32-bit words."""

    def show(self) -> bool:
        """Let the guest read there; False if that is not possible."""

    def hide(self) -> None:
        """Have reads come to the device again; when this returns, all do."""


class Queue(Protocol):
    """Where the guest's writes to DR wait for each other, to come as one `transmit_all`: before any other access comes, and soon."""

    def open(self) -> None:
        """Writes may wait from now on."""

    def close(self) -> None:
        """Writes come at once from now on; those that wait come before this returns."""


class PL011(PrimeCell, part=0x011, revision=3, compatible=("arm,pl011", "arm,primecell")):
    """PrimeCell UART, without DMA, modem lines or line errors. Transmission takes no time, at any baud rate.

    `output` receives transmitted bytes. Input is queued by `receive` without limit. It enters the receive FIFO when the guest comes
    to fetch it: reads the interrupt status after both receive interrupts have announced it, or polls FR again and again. Drivers
    empty the FIFO when they start, and input typed or piped in early must not be lost to that. Both interrupts come with the first
    character, whatever trigger level IFLS holds.

    As long as there is no input no read has an effect: then the guest reads `mirror`, if there is one. A guest that transmits a lot
    and does not wait for the transmit interrupt has its characters wait for each other in `queue`, if there is one.
    """

    DR = Reg(0x000, mask=0xFF)
    RSR = Reg(0x004, ro=True)
    FR = Reg(0x018, ro=True)
    ILPR = Reg(0x020, mask=0xFF)
    IBRD = Reg(0x024, mask=0xFFFF)
    FBRD = Reg(0x028, mask=0x3F)
    LCRH = Reg(0x02C, mask=0xFF)
    CR = Reg(0x030, mask=0xFF87, reset=CR_RESET)
    IFLS = Reg(0x034, mask=0x3F, reset=0x12)
    IMSC = Reg(0x038, mask=0x7FF)
    RIS = Reg(0x03C, ro=True)
    MIS = Reg(0x040, ro=True)
    ICR = Reg(0x044, mask=0x7FF, wo=True)
    DMACR = Reg(0x048, mask=0x7)
    FLAGS_AT, STATUS_AT = FR.offset // REGISTER_BYTES, MIS.offset // REGISTER_BYTES
    DRAWN = tuple(
        (reg.offset // REGISTER_BYTES, name)
        for name, reg in (
            ("DR", DR), ("RSR", RSR), ("ILPR", ILPR), ("IBRD", IBRD), ("FBRD", FBRD), ("LCRH", LCRH), ("CR", CR), ("IFLS", IFLS),
            ("IMSC", IMSC), ("RIS", RIS), ("DMACR", DMACR),
        )
    )  # fmt: skip
    """What reads return as it is stored."""

    kept = ("fifo", "backlog", "polls", "shown", "idle_reads")

    def __init__(self, irq: IrqLine | None = None, output: Callable[[bytes], None] | None = None) -> None:
        self.output = output or (lambda data: None)
        self.fifo: deque[int] = deque()
        self.backlog: deque[int] = deque()
        self.polls = 0
        self.mirror: Mirror | None = None
        self.queue: Queue | None = None
        self.singles = 0
        """Transmissions one by one of a guest that does not wait for the interrupt."""
        self.shown = False
        self.idle_reads = 0
        """Reads of FR since there was input."""
        super().__init__(irq)

    def reset(self) -> None:
        """Registers and FIFO; input that never entered the FIFO stays queued."""
        self.hide()
        self.transmit_at_once()
        self.fifo.clear()
        self.polls = 0
        super().reset()

    def load(self, state: dict[str, Any]) -> None:
        """The guest sees the registers in memory if it did then."""
        self.hide()
        super().load(state)
        if self.shown and self.mirror is not None:
            self.frame()
            self.draw()
            self.shown = self.mirror.show()

    def irq_level(self) -> bool:
        """UARTINTR: any unmasked interrupt."""
        return self.RIS & self.IMSC != 0

    def update_irq(self) -> None:
        """Drive the line, and let the guest see what changed."""
        super().update_irq()
        if self.shown:
            self.draw()

    def show(self) -> None:
        """Reading has no effect for now, and the guest does it often."""
        self.idle_reads = 0
        if self.mirror is not None and not self.RIS & _RECEIVE:
            self.frame()
            self.draw()
            self.shown = self.mirror.show()

    def hide(self) -> None:
        """Reading may have an effect from now on."""
        self.idle_reads = 0
        if self.shown and self.mirror is not None:
            self.shown = False
            self.mirror.hide()

    def frame(self) -> None:
        """Put into the mirror what stays the same as long as it is shown."""
        if self.mirror is not None:
            words = self.mirror.words
            for offset, value in self.identification.items():
                words[offset // REGISTER_BYTES] = value
            words[self.FLAGS_AT] = _TXFE | _RXFE

    def draw(self) -> None:
        """Put what reads return into the mirror."""
        if self.mirror is not None:
            words, values = self.mirror.words, self.__dict__
            for at, name in self.DRAWN:
                words[at] = values[name]
            words[self.STATUS_AT] = self.RIS & self.IMSC

    def receive(self, data: bytes) -> None:
        """Characters from the other end of the line."""
        if self.shown:
            self.hide()
        self.backlog.extend(data)
        self.announce()
        self.update_irq()

    def announce(self) -> None:
        """Raise the receive interrupts for input that waits, if the guest has enabled one of them."""
        if (self.backlog or self.fifo) and self.IMSC & _RECEIVE:
            self.RIS |= _RECEIVE

    def fill_fifo(self) -> None:
        """Move waiting input into the receive FIFO."""
        while self.backlog and len(self.fifo) < self.depth:
            self.fifo.append(self.backlog.popleft())
        if self.fifo:
            self.RIS |= _RECEIVE

    @property
    def depth(self) -> int:
        """Characters the receive FIFO holds; one when LCRH.FEN is clear."""
        return FIFO_DEPTH if self.LCRH & LCRH_FEN else 1

    def writer(self, offset: int, size: int) -> Writer:
        """The callable that takes writes of `size` bytes at `offset`."""
        return self.transmit if offset == 0 and size <= REGISTER_BYTES else super().writer(offset, size)

    def transmit(self, value: int) -> None:
        """A write to DR: what guests do most."""
        self.transmit_all(SINGLE_BYTES[value & 0xFF])
        if self.queue is not None and not self.IMSC & _TX and not self.CR & CR_LBE:
            self.singles += 1
            if self.singles >= WRITES_BEFORE_WAITING:
                self.singles = 0
                self.queue.open()

    def transmit_all(self, data: bytes) -> None:
        """Writes to DR, one after the other. The line can only move if the last character was acknowledged."""
        self.polls = 0
        if self.CR & CR_LBE:
            self.receive(data)
        else:
            self.output(data)
        if not self.RIS & _TX:
            self.RIS |= _TX
            self.update_irq()

    def transmit_at_once(self) -> None:
        """The guest may wait for what a transmission does."""
        self.singles = 0
        if self.queue is not None:
            self.queue.close()

    @DR.read
    def take_character(self) -> int:
        byte = self.fifo.popleft() if self.fifo else 0
        if not self.fifo:
            self.RIS &= ~_RECEIVE
            if self.IMSC & _RECEIVE:
                self.fill_fifo()
        return byte

    @FR.value
    def flags(self) -> int:
        fifo = self.fifo
        if fifo:
            return _TXFE | _RXFF if len(fifo) >= self.depth else _TXFE
        if self.backlog:
            self.polls += 1
            if self.polls > POLLS_BEFORE_FEEDING:
                self.fill_fifo()
                return _TXFE
        else:
            self.idle_reads += 1
            if self.idle_reads >= READS_BEFORE_SHOWING:
                self.show()
        return _TXFE | _RXFE

    @LCRH.write
    def set_line_control(self, value: int) -> None:
        if (self.LCRH ^ value) & LCRH_FEN:
            self.fifo.clear()
        self.LCRH = value

    @CR.write
    def set_control(self, value: int) -> None:
        if value & CR_LBE:
            self.transmit_at_once()
        self.CR = value

    @IMSC.write
    def set_interrupt_mask(self, value: int) -> None:
        if value & _TX:
            self.transmit_at_once()
        self.IMSC = value
        self.announce()

    @RIS.read
    def raw_status(self) -> int:
        if self.RIS & self.IMSC & _RECEIVE:
            self.fill_fifo()
        return self.RIS

    @MIS.read
    def masked_status(self) -> int:
        return self.raw_status() & self.IMSC

    @ICR.write
    def clear_interrupts(self, value: int) -> None:
        if value & _TX:
            self.transmit_at_once()
        self.RIS &= ~value
