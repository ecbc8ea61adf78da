"""The state of one processing element, declared once.

`CpuState` is what the architecture calls PE state: general registers, SIMD&FP registers, PSTATE and the storage of system
registers. The same declaration is the ctypes structure that Python reads, the memory layout that compiled code addresses, and
the list that snapshots and diffs walk. Everything an engine needs besides (TLBs, code pointers) lives in its own structure.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint64

SYSREG_SLOTS = 512
"""How many system registers can have storage."""

BANK_SLOTS = 64
"""Room behind the system registers for the physical interrupt interface (arm64/gic_interface.py)."""

XZR = 31
"""Register number 31 where it means the zero register."""


class VRegister(ctypes.Structure):
    """One 128-bit SIMD&FP register as two little-endian halves."""

    _fields_ = [("lo", c_uint64), ("hi", c_uint64)]


class CpuState(ctypes.Structure):
    """Architectural state of one PE.

    `x[31]` always reads zero and is never written: writes to XZR go to `xzr_sink`, so that no instruction needs a test for
    register 31. `sp` is the stack pointer selected by PSTATE.SP; the selected entry of `sp_el` is stale meanwhile.

    `pac_controls` and `pac_masks` are a note that pauth.py makes for itself.

    Three fields are about the machine around the PE: `el2` says who is at EL2 (EL2_OUTSIDE and so on), `regime` which translation
    regime the current exception level uses (REGIME_EL1 and so on; kept by the engine), and `regions` where physical memory is
    (arm64/memory.py).
    """

    _fields_ = [
        ("v", VRegister * 32),
        ("x", c_uint64 * 32),
        ("xzr_sink", c_uint64),
        ("sp", c_uint64),
        ("sp_el", c_uint64 * 4),
        ("pc", c_uint64),
        ("n", c_uint8),
        ("z", c_uint8),
        ("c", c_uint8),
        ("v_flag", c_uint8),
        ("el", c_uint8),
        ("spsel", c_uint8),
        ("daif", c_uint8),
        ("pan", c_uint8),
        ("uao", c_uint8),
        ("dit", c_uint8),
        ("ssbs", c_uint8),
        ("btype", c_uint8),
        ("il", c_uint8),
        ("ss", c_uint8),
        ("tco", c_uint8),
        ("event", c_uint8),
        ("el2", c_uint8),
        ("regime", c_uint8),
        ("regions", c_uint64),
        ("pac_controls", c_uint64 * 3),
        ("pac_masks", c_uint64 * 8),
        ("sysreg", c_uint64 * (SYSREG_SLOTS + BANK_SLOTS)),
    ]


EL2_OUTSIDE, EL2_ABSENT, EL2_GUEST = 0, 1, 2
"""Values of `CpuState.el2`: a hypervisor in this program is EL2, and exceptions to it end a run; there is no EL2; EL2 is the guest's."""

REGIME_EL1, REGIME_EL2_HOST, REGIME_EL2 = 0, 1, 2
"""Values of `CpuState.regime`: EL1&0; EL2&0 (HCR_EL2.E2H is 1); EL2 alone."""

D, A, I, F = 8, 4, 2, 1
"""Bits of `CpuState.daif`."""
