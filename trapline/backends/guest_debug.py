"""What to stop a guest for: the argument of KVM_SET_GUEST_DEBUG from breakpoints and watchpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trapline.abi.arm64 import GuestDebug, GuestDebugFlag
from trapline.arm64.regs.debug import DebugControl, WatchControl
from trapline.errors import BadInput

EL1_AND_EL0 = 3
SLOTS = 16
MAX_WATCHED = 1 << 31


@dataclass(frozen=True, slots=True)
class Watchpoint:
    """Memory, by guest virtual address, whose loads or stores stop the guest.

    `length` is 1 to 8 bytes within an aligned doubleword, or a power of two up to 2 GiB at an aligned address.
    """

    address: int
    length: int = 8
    load: bool = True
    store: bool = True

    def registers(self) -> tuple[int, int]:
        """Values for DBGWVR and DBGWCR; BadInput if no watchpoint covers just this."""
        address, length = self.address, self.length
        fields = {"E": 1, "PAC": EL1_AND_EL0, "LSC": int(self.load) | int(self.store) << 1}
        offset = address & 7
        if not fields["LSC"]:
            raise BadInput("a watchpoint has to stop loads, stores or both")
        if 0 < length <= 8 - offset:
            return address - offset, int(WatchControl(BAS=(1 << length) - 1 << offset, **fields))
        if not 8 < length <= MAX_WATCHED or length & length - 1 or address & length - 1:
            raise BadInput(f"no watchpoint covers {length} bytes at {address:#x}")
        return address, int(WatchControl(BAS=0xFF, MASK=length.bit_length() - 1, **fields))


def guest_debug(single_step: bool, software: bool, breakpoints: Sequence[int], watchpoints: Sequence[Watchpoint]) -> GuestDebug:
    """The argument that asks for all this; BadInput for what no register can hold."""
    argument = GuestDebug()
    argument.control = GuestDebugFlag.ENABLE
    if single_step:
        argument.control |= GuestDebugFlag.SINGLESTEP
    if software:
        argument.control |= GuestDebugFlag.USE_SW_BP
    if breakpoints or watchpoints:
        argument.control |= GuestDebugFlag.USE_HW
    if max(len(breakpoints), len(watchpoints)) > SLOTS:
        raise BadInput(f"there are at most {SLOTS} breakpoints and watchpoints")
    for n, address in enumerate(breakpoints):
        argument.arch.dbg_bvr[n] = address
        argument.arch.dbg_bcr[n] = int(DebugControl(E=1, PMC=EL1_AND_EL0, BAS=0xF))
    for n, watchpoint in enumerate(watchpoints):
        argument.arch.dbg_wvr[n], argument.arch.dbg_wcr[n] = watchpoint.registers()
    return argument
