"""PL061, the PrimeCell GPIO: eight lines, of which one is the power key."""

from __future__ import annotations

from trapline.devices.device import IrqLine, PrimeCell, Reg

LINES = 0xFF
DATA_WINDOW = 0x400
"""GPIODATA fills the first KiB: bits 9:2 of the address select the lines that an access concerns."""

POWER_KEY_LINE = 3


class PL061(PrimeCell, part=0x061, compatible=("arm,pl061", "arm,primecell")):
    """PrimeCell GPIO with edge and level interrupts. Output lines go nowhere."""

    DIR = Reg(0x400, mask=LINES)
    IS = Reg(0x404, mask=LINES)
    IBE = Reg(0x408, mask=LINES)
    IEV = Reg(0x40C, mask=LINES)
    IE = Reg(0x410, mask=LINES)
    RIS = Reg(0x414, ro=True)
    MIS = Reg(0x418, ro=True)
    IC = Reg(0x41C, mask=LINES, wo=True)
    AFSEL = Reg(0x420, mask=LINES)

    kept = ("inputs", "outputs")

    def __init__(self, irq: IrqLine | None = None) -> None:
        self.inputs = 0
        self.outputs = 0
        super().__init__(irq)

    def reset(self) -> None:
        """Registers and outputs; what drives the inputs is outside."""
        self.outputs = 0
        super().reset()

    def irq_level(self) -> bool:
        """GPIOINTR: any enabled line's interrupt; level interrupts follow their line."""
        self.RIS = self.RIS & ~self.IS | self.level_interrupts()
        return bool(self.RIS & self.IE)

    def level_interrupts(self) -> int:
        """Lines that are level-sensitive and at their active level."""
        return self.IS & ~(self.inputs ^ self.IEV) & LINES

    def set_input(self, line: int, level: bool) -> None:
        """Drive one input line from outside."""
        before = self.inputs
        self.inputs = before | 1 << line if level else before & ~(1 << line)
        changed = (before ^ self.inputs) & ~self.DIR
        wanted = self.IBE | ~(self.inputs ^ self.IEV)
        self.RIS |= changed & wanted & ~self.IS & LINES
        self.update_irq()

    def read_area(self, offset: int, size: int) -> int:
        """GPIODATA through its address mask, or identification."""
        if offset >= DATA_WINDOW:
            return super().read_area(offset, size)
        return (self.outputs & self.DIR | self.inputs & ~self.DIR) & offset >> 2 & LINES

    def write_area(self, offset: int, size: int, value: int) -> None:
        """GPIODATA: output lines that the address mask selects."""
        if offset < DATA_WINDOW:
            mask = offset >> 2 & self.DIR
            self.outputs = self.outputs & ~mask | value & mask

    @MIS.value
    def masked_status(self) -> int:
        return self.RIS & self.IE

    @IC.write
    def clear_edges(self, value: int) -> None:
        self.RIS &= ~value
