"""PL011, the PrimeCell UART: the machine's console."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntFlag

from trapline.devices.device import IrqLine, PrimeCell, Reg

FIFO_DEPTH = 32
"""Both FIFOs hold 32 characters since revision r1p5."""

POLLS_BEFORE_FEEDING = 24
"""Reads of FR without a transmission between them that mark a guest that polls for input."""

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


class PL011(PrimeCell, part=0x011, revision=3, compatible=("arm,pl011", "arm,primecell")):
    """PrimeCell UART, without DMA, modem lines or line errors. Transmission takes no time, at any baud rate.

    `output` receives transmitted bytes. Input is queued by `receive` without limit. It enters the receive FIFO when the guest comes
    to fetch it: reads the interrupt status after both receive interrupts have announced it, or polls FR again and again. Drivers
    empty the FIFO when they start, and input typed or piped in early must not be lost to that. Both interrupts come with the first
    character, whatever trigger level IFLS holds.
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

    def __init__(self, irq: IrqLine | None = None, output: Callable[[bytes], None] | None = None) -> None:
        self.output = output or (lambda data: None)
        self.fifo: deque[int] = deque()
        self.backlog: deque[int] = deque()
        self.polls = 0
        super().__init__(irq)

    def reset(self) -> None:
        """Registers and FIFO; input that never entered the FIFO stays queued."""
        self.fifo.clear()
        self.polls = 0
        super().reset()

    def state(self) -> tuple[object, ...]:
        """Registers, FIFO and what waits outside it."""
        return (*super().state(), bytes(self.fifo), bytes(self.backlog), self.polls)

    def irq_level(self) -> bool:
        """UARTINTR: any unmasked interrupt."""
        return self.RIS & self.IMSC != 0

    def receive(self, data: bytes) -> None:
        """Characters from the other end of the line."""
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

    @DR.write
    def transmit(self, byte: int) -> None:
        self.polls = 0
        self.RIS |= _TX
        if self.CR & CR_LBE:
            self.receive(SINGLE_BYTES[byte])
        else:
            self.output(SINGLE_BYTES[byte])

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
        self.polls += 1
        if self.backlog and self.polls > POLLS_BEFORE_FEEDING:
            self.fill_fifo()
            return _TXFE
        return _TXFE | _RXFE

    @LCRH.write
    def set_line_control(self, value: int) -> None:
        if (self.LCRH ^ value) & LCRH_FEN:
            self.fifo.clear()
        self.LCRH = value

    @IMSC.write
    def set_interrupt_mask(self, value: int) -> None:
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
        self.RIS &= ~value
