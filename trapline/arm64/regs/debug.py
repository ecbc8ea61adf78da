"""Self-hosted debug: breakpoints, watchpoints, the monitor's control registers, the debug communications channel.

What the registers mean is in `arm64/debug.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trapline.arm64.regs.el2 import MDCR_EL2
from trapline.arm64.sysreg import RW, R, Sysreg, bits, register
from trapline.registers import Field

if TYPE_CHECKING:
    from trapline.arm64.features import Features

DEBUG = (RW @ MDCR_EL2.TDE, RW @ MDCR_EL2.TDA)
OS_LOCK = (RW @ MDCR_EL2.TDE, RW @ MDCR_EL2.TDOSA)
ROM = (RW @ MDCR_EL2.TDE, RW @ MDCR_EL2.TDRA)
CHANNEL = (RW @ MDCR_EL2.TDCC, *DEBUG)


class MDSCR_EL1(Sysreg, enc=(2, 0, 0, 2, 2), vncr=0x158, reset=0, after={"debug"}, traps=DEBUG):
    """Monitor Debug System Control Register."""

    SS = Field(0)
    ERR = Field(6)
    TDCC = Field(12)
    KDE = Field(13)
    HDE = Field(14)
    MDE = Field(15)
    RXO = Field(27)
    TXU = Field(26)
    TXfull = Field(29)
    RXfull = Field(30)


ALL_BYTES = 0xF << 5
"""DBGBCR_EL1.BAS where there is no AArch32: RES1."""
BREAK_BITS = bits(0, range(1, 3), range(5, 9), range(13, 24))
WATCH_BITS = bits(range(21), range(24, 29))


class DebugControl(
    Sysreg, enc=(2, 0, 0, 0, 5), name="DBGBCR0_EL1", reset=0, after={"debug"}, traps=DEBUG, write_mask=BREAK_BITS, res1=ALL_BYTES
):
    """Debug Breakpoint Control Register."""

    E = Field(0)
    PMC = Field(2, 1)
    BAS = Field(8, 5)
    HMC = Field(13)
    SSC = Field(15, 14)
    LBN = Field(19, 16)
    BT = Field(23, 20)


class WatchControl(Sysreg, enc=(2, 0, 0, 0, 7), name="DBGWCR0_EL1", reset=0, after={"debug"}, traps=DEBUG, write_mask=WATCH_BITS):
    """Debug Watchpoint Control Register."""

    E = Field(0)
    PAC = Field(2, 1)
    LSC = Field(4, 3)
    BAS = Field(12, 5)
    HMC = Field(13)
    SSC = Field(15, 14)
    LBN = Field(19, 16)
    WT = Field(20)
    MASK = Field(28, 24)


def _more_than(n: int, count: str) -> Callable[[Features], bool]:
    return lambda features: getattr(features, count) > n


def _family(stem: str, op2: int, doc: str, count: str, first: type[Sysreg] | None = None, **row: Any) -> tuple[type[Sysreg], ...]:
    row |= {"reset": 0, "after": {"debug"}, "traps": DEBUG}
    rest = tuple(
        register(f"{stem}{n}_EL1", doc, (2, 0, 0, n, op2), present=_more_than(n, count), **row)
        for n in range(0 if first is None else 1, 16)
    )
    return rest if first is None else (first, *rest)


DBGBVR = _family("DBGBVR", 4, "Debug Breakpoint Value Register.", "breakpoints")
DBGBCR = _family("DBGBCR", 5, "Debug Breakpoint Control Register.", "breakpoints", DebugControl, write_mask=BREAK_BITS, res1=ALL_BYTES)
DBGWVR = _family("DBGWVR", 6, "Debug Watchpoint Value Register.", "watchpoints", write_mask=bits(range(2, 64)))
DBGWCR = _family("DBGWCR", 7, "Debug Watchpoint Control Register.", "watchpoints", WatchControl, write_mask=WATCH_BITS)


class OSDTRRX_EL1(Sysreg, enc=(2, 0, 0, 0, 2), reset=0, write_mask=0xFFFF_FFFF, traps=CHANNEL):
    """OS Lock Data Transfer Register, Receive."""


class MDCCINT_EL1(Sysreg, enc=(2, 0, 0, 2, 0), reset=0, write_mask=0x6000_0000, traps=CHANNEL):
    """Monitor DCC Interrupt Enable Register."""


class OSDTRTX_EL1(Sysreg, enc=(2, 0, 0, 3, 2), reset=0, write_mask=0xFFFF_FFFF, traps=CHANNEL):
    """OS Lock Data Transfer Register, Transmit."""


class OSECCR_EL1(Sysreg, enc=(2, 0, 0, 6, 2), reset=0, write_mask=0, traps=DEBUG):
    """OS Lock Exception Catch Control Register."""


class MDCCSR_EL0(Sysreg, enc=(2, 3, 0, 1, 0), access="RO", reset=0, traps=(R @ MDSCR_EL1.TDCC, *CHANNEL)):
    """Monitor DCC Status Register: no debugger is attached, both directions are empty."""


class DBGDTR_EL0(Sysreg, enc=(2, 3, 0, 4, 0), reset=0, write_mask=0, traps=(RW @ MDSCR_EL1.TDCC, *CHANNEL)):
    """Debug Data Transfer Register, half-duplex."""


class DBGDTRRX_EL0(Sysreg, enc=(2, 3, 0, 5, 0), mnemonic="DBGDTRRX_EL0", reset=0, write_mask=0, traps=(RW @ MDSCR_EL1.TDCC, *CHANNEL)):
    """Debug Data Transfer Register: Receive when read, Transmit (DBGDTRTX_EL0) when written."""


class DBGVCR32_EL2(Sysreg, enc=(2, 4, 0, 7, 0), feature="AA32EL1", reset=0):
    """Debug Vector Catch Register of AArch32."""


class MDRAR_EL1(Sysreg, enc=(2, 0, 1, 0, 0), access="RO", reset=0, traps=ROM):
    """Monitor Debug ROM Address Register: no ROM table."""


class OSLAR_EL1(Sysreg, enc=(2, 0, 1, 0, 4), access="WO", reset=0, write="oslar_write", after={"debug"}, traps=OS_LOCK):
    """OS Lock Access Register."""

    OSLK = Field(0)


class OSLSR_EL1(Sysreg, enc=(2, 0, 1, 1, 4), access="RO", reset=0b1010, traps=OS_LOCK):
    """OS Lock Status Register: implemented, and locked after reset."""

    OSLM0 = Field(0)
    OSLK = Field(1)
    nTT = Field(2)
    OSLM1 = Field(3)


class OSDLR_EL1(Sysreg, enc=(2, 0, 1, 3, 4), reset=0, write_mask=0, traps=OS_LOCK):
    """OS Double Lock Register: the double lock is not implemented."""


class DBGPRCR_EL1(Sysreg, enc=(2, 0, 1, 4, 4), reset=0, write_mask=1, traps=OS_LOCK):
    """Debug Power Control Register."""


class DBGCLAIMSET_EL1(Sysreg, enc=(2, 0, 7, 8, 6), reset=0xFF, write="dbgclaimset_write", traps=DEBUG):
    """Debug CLAIM Tag Set register: reads say which tags exist."""


class DBGCLAIMCLR_EL1(Sysreg, enc=(2, 0, 7, 9, 6), reset=0, write="dbgclaimclr_write", traps=DEBUG):
    """Debug CLAIM Tag Clear register: reads give the tags."""


class DBGAUTHSTATUS_EL1(Sysreg, enc=(2, 0, 7, 14, 6), access="RO", reset=0, traps=DEBUG):
    """Debug Authentication Status register: no external debug."""
