"""What an instruction does besides computing: the ordered list of effects that its recording leaves.

Whoever runs the instruction answers the effects: the walker with Python, the engine with compiled code. All effects that can
fault come before any register is written, so that a fault leaves the registers as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trapline.bits import Bits, Imm


@dataclass(frozen=True, slots=True)
class Access:
    """How memory is accessed: ordering, alignment and privilege of one access.

    `parts` elements are read or written as one: each is what alignment checks and single-copy atomicity are about.
    """

    acquire: bool = False
    release: bool = False
    aligned: bool = False
    unprivileged: bool = False
    parts: int = 1


@dataclass(eq=False, slots=True)
class Effect:
    """One effect; `result` is the leaf that stands for its outcome, if it has one."""

    result: Bits | None = field(default=None, kw_only=True)


@dataclass(eq=False, slots=True)
class Load(Effect):
    """Read `width` bits at a virtual address."""

    addr: Bits
    width: int
    access: Access


@dataclass(eq=False, slots=True)
class Store(Effect):
    """Write `value` at a virtual address."""

    addr: Bits
    value: Bits
    access: Access


@dataclass(eq=False, slots=True)
class Update(Effect):
    """Atomically replace memory by `new`, an expression over the leaf `old` (also the result)."""

    addr: Bits
    width: int
    new: Bits
    access: Access


@dataclass(eq=False, slots=True)
class CompareSwap(Effect):
    """Atomically store `new` if memory equals `expected`; the result is the value found."""

    addr: Bits
    expected: Bits
    new: Bits
    access: Access


@dataclass(eq=False, slots=True)
class LoadExclusive(Effect):
    """Read and mark the location in the local exclusive monitor."""

    addr: Bits
    width: int
    access: Access


@dataclass(eq=False, slots=True)
class StoreExclusive(Effect):
    """Write if the monitor still holds the location; the 32-bit result is 0 when it did."""

    addr: Bits
    value: Bits
    access: Access


@dataclass(eq=False, slots=True)
class Branch(Effect):
    """Continue at `target` if `when` is 1 (or always).

    A direct branch also has `delta`, the distance from this instruction in bytes. `landing`: the target must be an instruction that
    such a branch may go to if its page is guarded (FEAT_BTI); returns and direct branches may go anywhere.
    """

    target: Bits
    when: Bits | None
    delta: int | Imm | None = None
    landing: bool = False


@dataclass(eq=False, slots=True)
class Barrier(Effect):
    """DMB, DSB, ISB, SB, ...: `kind`, and the domain and types as the CRm field has them."""

    kind: str
    option: int


@dataclass(eq=False, slots=True)
class System(Effect):
    """An operation on the PE or the machine, by name (`isa/system.py` lists them).

    With `when`, a check: the operation runs only if `when` is 1, and then the instruction does not complete.
    """

    name: str
    args: tuple[Bits, ...]
    when: Bits | None = None


@dataclass(eq=False, slots=True)
class Query(Effect):
    """A call of a native function whose first parameter is the CPU state; it cannot fault."""

    function: Any
    args: tuple[Bits, ...]


@dataclass(eq=False, slots=True)
class Raise(Effect):
    """Take an exception: `kind` is undefined, svc, hvc, smc, brk, ...; `imm` its 16-bit immediate."""

    kind: str
    imm: Bits


@dataclass(eq=False, slots=True)
class Write:
    """A register or PSTATE write, committed after all effects.

    `offset` is the byte offset in `CpuState`, a number or a decode-time expression; the value is stored zero-extended to
    `storage` bits. Where `when` is 0 the value is what is there already, and the write may be left out.
    """

    offset: int | Bits
    storage: int
    value: Bits
    when: Bits | None = None
