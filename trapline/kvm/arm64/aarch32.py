"""What trapped instructions of AArch32 state need: their condition, and going on behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trapline.arm64.regs import ELR_EL2, SPSR_EL2

if TYPE_CHECKING:
    from trapline.kvm.arm64.vcpu import Arm64Vcpu

CV: Final = 1 << 24
"""The syndrome's condition field is valid."""
COND_SHIFT: Final = 20
ALWAYS: Final = 14
N, Z, C, V = 1 << 31, 1 << 30, 1 << 29, 1 << 28
SS: Final = 1 << 21
IT_LOW_SHIFT: Final = 25
IT_HIGH_SHIFT: Final = 10
IT_MASK: Final = 3 << IT_LOW_SHIFT | 0x3F << IT_HIGH_SHIFT


def _it_state(pstate: int) -> int:
    """ITSTATE, whose two low bits are elsewhere than its six high ones."""
    return (pstate >> IT_HIGH_SHIFT & 0x3F) << 2 | pstate >> IT_LOW_SHIFT & 3


def condition_holds(pstate: int, esr: int) -> bool:
    """Whether a trapped instruction's condition is true. Without a valid field it is that of the IT block it is in, if any."""
    it = _it_state(pstate)
    condition = esr >> COND_SHIFT & 15 if esr & CV else it >> 4 if it else ALWAYS
    n, z, c, v = (bool(pstate & flag) for flag in (N, Z, C, V))
    holds = (z, c, n, v, c and not z, n == v, n == v and not z, True)[condition >> 1]
    return holds if condition & 1 == 0 or condition == 15 else not holds


def skip_instruction(vcpu: Arm64Vcpu, length: int) -> None:
    """The instruction was emulated: go behind it, on to the IT block's next condition, and complete a software step."""
    sysreg = vcpu.sysreg
    pstate = sysreg[SPSR_EL2.slot]
    if it := _it_state(pstate):
        it = it & 0xE0 | it << 1 & 0x1F if it & 7 else 0
    sysreg[SPSR_EL2.slot] = pstate & ~(SS | IT_MASK) | (it >> 2) << IT_HIGH_SHIFT | (it & 3) << IT_LOW_SHIFT
    sysreg[ELR_EL2.slot] = sysreg[ELR_EL2.slot] + length & 0xFFFF_FFFF
