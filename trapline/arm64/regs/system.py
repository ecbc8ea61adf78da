"""System instructions: cache and TLB maintenance and address translation (the encodings with op0 = 1).

Each row says what the operation is (`action`), who may use it and what traps it. The engine carries the actions out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from trapline.arm64.regs.el1 import SCTLR_EL1
from trapline.arm64.regs.el2 import HCR_EL2
from trapline.arm64.regs.fine_grained import traps_of
from trapline.arm64.sysreg import LOWEST_EL, RW, Encoding, Trap, encode
from trapline.errors import TableError


class CacheOp(IntEnum):
    """What a cache instruction does."""

    CLEAN = 0
    INVALIDATE = 1
    CLEAN_INVALIDATE = 2


class By(IntEnum):
    """What Xt selects."""

    ALL = 0
    VA = 1
    SET_WAY = 2


class TlbiBy(IntEnum):
    """Which entries of a translation regime a TLBI removes."""

    ALL = 0
    """The whole regime: EL1&0 under the current VMID, or EL2's own, or (`ALLE1`) EL1&0 under every VMID."""
    VA = 1
    """One page of one ASID, and global pages."""
    ASID = 2
    """All non-global entries of one ASID."""
    VA_ANY_ASID = 3
    """One page whatever its ASID."""
    IPA = 4
    """Stage 2 entries of one intermediate address."""
    VM = 5
    """Stages 1 and 2 of the current VMID."""


class Regime(IntEnum):
    """The translation regime a TLBI is about."""

    EL1 = 1
    EL2 = 2
    ALL_VMIDS = 3
    """EL1&0 under every VMID."""


class Shareable(IntEnum):
    """How far a TLBI reaches."""

    LOCAL = 0
    INNER = 1
    OUTER = 2


@dataclass(frozen=True)
class Cache:
    """Data (or with `instruction`, instruction) cache maintenance."""

    op: CacheOp
    by: By
    instruction: bool = False
    shareable: Shareable = Shareable.LOCAL


@dataclass(frozen=True)
class Zero:
    """DC ZVA: clear an aligned block."""


@dataclass(frozen=True)
class Tlbi:
    """TLB invalidation. Xt is, by `by`: VA[55:12] in bits 43:0 with the ASID in 63:48; or IPA[51:12] in bits 39:0.

    With `ranged`: BaseADDR in bits 36:0, NUM in 43:39, SCALE in 45:44, TG in 47:46.
    """

    regime: Regime
    by: TlbiBy
    shareable: Shareable = Shareable.LOCAL
    last_level: bool = False
    ranged: bool = False


@dataclass(frozen=True)
class At:
    """Address translation into PAR_EL1: stage 1 or both stages, as if accessed from `el`; `pan` applies PSTATE.PAN."""

    stages: int
    el: int
    write: bool
    pan: bool = False


@dataclass(frozen=True)
class Restrict:
    """Prediction restriction by context: nothing to do where nothing is predicted."""


Action = Cache | Zero | Tlbi | At | Restrict


@dataclass(frozen=True)
class SystemOp:
    """A system instruction."""

    mnemonic: str
    enc: Encoding
    action: Action
    traps: tuple[Trap, ...] = ()
    feature: str | None = None

    @property
    def encoding(self) -> int:
        """The 16-bit id, as for registers."""
        return encode(self.enc)

    @property
    def number(self) -> int:
        """The 14-bit number op1:CRn:CRm:op2 that the instruction word holds."""
        return self.encoding & 0x3FFF

    @property
    def el(self) -> int:
        """Lowest exception level that may execute it."""
        return LOWEST_EL[self.enc[1]]


_UCI = RW @ ~SCTLR_EL1.UCI
_TPCP = RW @ HCR_EL2.TPCP
_TSW = RW @ HCR_EL2.TSW
_TPU = RW @ HCR_EL2.TPU
_TOCU = RW @ HCR_EL2.TOCU

CACHE_OPS = (
    SystemOp(
        "IC IALLUIS",
        (1, 0, 7, 1, 0),
        Cache(CacheOp.INVALIDATE, By.ALL, True, Shareable.INNER),
        (_TPU, RW @ HCR_EL2.TICAB),
    ),
    SystemOp("IC IALLU", (1, 0, 7, 5, 0), Cache(CacheOp.INVALIDATE, By.ALL, True), (_TPU, _TOCU)),
    SystemOp("IC IVAU", (1, 3, 7, 5, 1), Cache(CacheOp.INVALIDATE, By.VA, True, Shareable.INNER), (_UCI, _TPU, _TOCU)),
    SystemOp("DC IVAC", (1, 0, 7, 6, 1), Cache(CacheOp.INVALIDATE, By.VA), (_TPCP,)),
    SystemOp("DC ISW", (1, 0, 7, 6, 2), Cache(CacheOp.INVALIDATE, By.SET_WAY), (_TSW,)),
    SystemOp("DC CSW", (1, 0, 7, 10, 2), Cache(CacheOp.CLEAN, By.SET_WAY), (_TSW,)),
    SystemOp("DC CISW", (1, 0, 7, 14, 2), Cache(CacheOp.CLEAN_INVALIDATE, By.SET_WAY), (_TSW,)),
    SystemOp("DC CVAC", (1, 3, 7, 10, 1), Cache(CacheOp.CLEAN, By.VA), (_UCI, _TPCP)),
    SystemOp("DC CVAU", (1, 3, 7, 11, 1), Cache(CacheOp.CLEAN, By.VA), (_UCI, _TPU, _TOCU)),
    SystemOp("DC CVAP", (1, 3, 7, 12, 1), Cache(CacheOp.CLEAN, By.VA), (_UCI, _TPCP), "DPB"),
    SystemOp("DC CVADP", (1, 3, 7, 13, 1), Cache(CacheOp.CLEAN, By.VA), (_UCI, _TPCP), "DPB2"),
    SystemOp("DC CIVAC", (1, 3, 7, 14, 1), Cache(CacheOp.CLEAN_INVALIDATE, By.VA), (_UCI, _TPCP)),
    SystemOp("DC ZVA", (1, 3, 7, 4, 1), Zero(), (RW @ ~SCTLR_EL1.DZE, RW @ HCR_EL2.TDZ)),
    SystemOp("CFP RCTX", (1, 3, 7, 3, 4), Restrict(), (RW @ ~SCTLR_EL1.EnRCTX,), "SPECRES"),
    SystemOp("DVP RCTX", (1, 3, 7, 3, 5), Restrict(), (RW @ ~SCTLR_EL1.EnRCTX,), "SPECRES"),
    SystemOp("CPP RCTX", (1, 3, 7, 3, 7), Restrict(), (RW @ ~SCTLR_EL1.EnRCTX,), "SPECRES"),
)

_AT_TRAP = (RW @ HCR_EL2.AT,)

AT_OPS = (
    SystemOp("AT S1E1R", (1, 0, 7, 8, 0), At(1, 1, False), _AT_TRAP),
    SystemOp("AT S1E1W", (1, 0, 7, 8, 1), At(1, 1, True), _AT_TRAP),
    SystemOp("AT S1E0R", (1, 0, 7, 8, 2), At(1, 0, False), _AT_TRAP),
    SystemOp("AT S1E0W", (1, 0, 7, 8, 3), At(1, 0, True), _AT_TRAP),
    SystemOp("AT S1E1RP", (1, 0, 7, 9, 0), At(1, 1, False, True), _AT_TRAP, "PAN2"),
    SystemOp("AT S1E1WP", (1, 0, 7, 9, 1), At(1, 1, True, True), _AT_TRAP, "PAN2"),
    SystemOp("AT S1E2R", (1, 4, 7, 8, 0), At(1, 2, False)),
    SystemOp("AT S1E2W", (1, 4, 7, 8, 1), At(1, 2, True)),
    SystemOp("AT S12E1R", (1, 4, 7, 8, 4), At(2, 1, False)),
    SystemOp("AT S12E1W", (1, 4, 7, 8, 5), At(2, 1, True)),
    SystemOp("AT S12E0R", (1, 4, 7, 8, 6), At(2, 0, False)),
    SystemOp("AT S12E0W", (1, 4, 7, 8, 7), At(2, 0, True)),
)

_REACH = ((Shareable.LOCAL, ""), (Shareable.INNER, "IS"), (Shareable.OUTER, "OS"))
_CRM = {Shareable.LOCAL: 7, Shareable.INNER: 3, Shareable.OUTER: 1}
_RANGE_CRM = {Shareable.LOCAL: 6, Shareable.INNER: 2, Shareable.OUTER: 5}
_REACH_TRAP = {
    Shareable.LOCAL: (RW @ HCR_EL2.TTLB,),
    Shareable.INNER: (RW @ HCR_EL2.TTLB, RW @ HCR_EL2.TTLBIS),
    Shareable.OUTER: (RW @ HCR_EL2.TTLB, RW @ HCR_EL2.TTLBOS),
}


def _tlbi() -> tuple[SystemOp, ...]:
    ops: list[SystemOp] = []

    def add(name: str, enc: tuple[int, int, int, int], action: Tlbi) -> None:
        outer = "TLBIOS" if action.shareable is Shareable.OUTER else None
        traps = _REACH_TRAP[action.shareable] if enc[0] == 0 else ()
        ops.append(SystemOp(f"TLBI {name}", (1, *enc), action, traps, "TLBIRANGE" if action.ranged else outer))

    for reach, suffix in _REACH:
        crm, range_crm = _CRM[reach], _RANGE_CRM[reach]
        for op2, name, by, last in (
            (0, "VMALLE1", TlbiBy.ALL, False),
            (1, "VAE1", TlbiBy.VA, False),
            (2, "ASIDE1", TlbiBy.ASID, False),
            (3, "VAAE1", TlbiBy.VA_ANY_ASID, False),
            (5, "VALE1", TlbiBy.VA, True),
            (7, "VAALE1", TlbiBy.VA_ANY_ASID, True),
        ):
            add(name + suffix, (0, 8, crm, op2), Tlbi(Regime.EL1, by, reach, last))
            if by in (TlbiBy.VA, TlbiBy.VA_ANY_ASID):
                add("R" + name + suffix, (0, 8, range_crm, op2), Tlbi(Regime.EL1, by, reach, last, True))
        for op2, name, regime, by, last in (
            (0, "ALLE2", Regime.EL2, TlbiBy.ALL, False),
            (1, "VAE2", Regime.EL2, TlbiBy.VA, False),
            (4, "ALLE1", Regime.ALL_VMIDS, TlbiBy.ALL, False),
            (5, "VALE2", Regime.EL2, TlbiBy.VA, True),
            (6, "VMALLS12E1", Regime.EL1, TlbiBy.VM, False),
        ):
            add(name + suffix, (4, 8, crm, op2), Tlbi(regime, by, reach, last))
            if by is TlbiBy.VA:
                add("R" + name + suffix, (4, 8, range_crm, op2), Tlbi(regime, by, reach, last, True))
    for name, enc, reach, last, ranged in (
        ("IPAS2E1IS", (4, 8, 0, 1), Shareable.INNER, False, False),
        ("RIPAS2E1IS", (4, 8, 0, 2), Shareable.INNER, False, True),
        ("IPAS2LE1IS", (4, 8, 0, 5), Shareable.INNER, True, False),
        ("RIPAS2LE1IS", (4, 8, 0, 6), Shareable.INNER, True, True),
        ("IPAS2E1OS", (4, 8, 4, 0), Shareable.OUTER, False, False),
        ("IPAS2E1", (4, 8, 4, 1), Shareable.LOCAL, False, False),
        ("RIPAS2E1", (4, 8, 4, 2), Shareable.LOCAL, False, True),
        ("RIPAS2E1OS", (4, 8, 4, 3), Shareable.OUTER, False, True),
        ("IPAS2LE1OS", (4, 8, 4, 4), Shareable.OUTER, True, False),
        ("IPAS2LE1", (4, 8, 4, 5), Shareable.LOCAL, True, False),
        ("RIPAS2LE1", (4, 8, 4, 6), Shareable.LOCAL, True, True),
        ("RIPAS2LE1OS", (4, 8, 4, 7), Shareable.OUTER, True, True),
    ):
        add(name, enc, Tlbi(Regime.EL1, TlbiBy.IPA, reach, last, ranged))
    return tuple(ops)


TLBI_OPS = _tlbi()
SYSTEM_OPS = tuple(replace(op, traps=op.traps + traps_of(op.mnemonic)) for op in (*CACHE_OPS, *AT_OPS, *TLBI_OPS))

BY_ENCODING: dict[int, SystemOp] = {op.encoding: op for op in SYSTEM_OPS}
if len(BY_ENCODING) != len(SYSTEM_OPS):
    raise TableError("two system instructions share an encoding")
