"""All system registers of the machine.

`from trapline.arm64.regs import HCR_EL2` gives the class of a register; `TABLE` finds registers by name or encoding and has
assigned each its place in `CpuState.sysreg`.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.regs import debug, el1, el2, fine_grained, gic_cpu, identification, pmu, special, timer
from trapline.arm64.sysreg import SysregTable, registers_in


def _registers() -> SysregTable:
    found = registers_in(el2, el1, fine_grained, identification, special, timer, gic_cpu, debug, pmu)
    for reg in found:
        reg.traps += fine_grained.traps_of(reg.name)
    return SysregTable(found)


TABLE = _registers()


def __getattr__(name: str) -> Any:
    found = TABLE.by_name.get(name)
    if found is None:
        raise AttributeError(f"no system register is called {name}")
    return found
