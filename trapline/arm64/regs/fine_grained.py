"""Fine-grained traps (FEAT_FGT): one bit for each register and system instruction that EL2 may want to see used below it.

The registers and their bits, and the names of what each bit traps. `traps_of` gives the traps of one register or instruction; a bit
for something that no machine has is RES0.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import new_class
from typing import Any, Final

from trapline.arm64.sysreg import RW, Encoding, R, Sysreg, Trap, W
from trapline.registers import Field

KEYS = ("APDAKey", "APDBKey", "APGAKey", "APIAKey", "APIBKey")

_GENERAL: Final = (
    "AFSR0_EL1", "AFSR1_EL1", "AIDR_EL1", "AMAIR_EL1", *KEYS, "CCSIDR_EL1", "CLIDR_EL1", "CONTEXTIDR_EL1", "CPACR_EL1", "CSSELR_EL1",
    "CTR_EL0", "DCZID_EL0", "ESR_EL1", "FAR_EL1", "ISR_EL1", "LORC_EL1", "LOREA_EL1", "LORID_EL1", "LORN_EL1", "LORSA_EL1", "MAIR_EL1",
    "MIDR_EL1", "MPIDR_EL1", "PAR_EL1", "REVIDR_EL1", "SCTLR_EL1", "SCXTNUM_EL1", "SCXTNUM_EL0", "TCR_EL1", "TPIDR_EL1", "TPIDRRO_EL0",
    "TPIDR_EL0", "TTBR0_EL1", "TTBR1_EL1", "VBAR_EL1", "ICC_IGRPENn_EL1", "ERRIDR_EL1", "ERRSELR_EL1", "ERXFR_EL1", "ERXCTLR_EL1",
    "ERXSTATUS_EL1", "ERXMISCn_EL1", "ERXPFGF_EL1", "ERXPFGCTL_EL1", "ERXPFGCDN_EL1", "ERXADDR_EL1",
)  # fmt: skip
"""HFGRTR_EL2 and HFGWTR_EL2, from bit 0."""

_READ_ONLY: Final = frozenset(
    ("AIDR_EL1", "CCSIDR_EL1", "CLIDR_EL1", "CTR_EL0", "DCZID_EL0", "ISR_EL1", "LORID_EL1", "MIDR_EL1", "MPIDR_EL1", "REVIDR_EL1",
     "ERRIDR_EL1", "ERXFR_EL1", "ERXPFGF_EL1")
)  # fmt: skip

_DEBUG: Final = {
    "DBGBCRn_EL1": 0, "DBGBVRn_EL1": 1, "DBGWCRn_EL1": 2, "DBGWVRn_EL1": 3, "MDSCR_EL1": 4, "DBGCLAIM": 5, "DBGAUTHSTATUS_EL1": 6,
    "DBGPRCR_EL1": 7, "OSLAR_EL1": 8, "OSLSR_EL1": 9, "OSECCR_EL1": 10, "OSDLR_EL1": 11,
}  # fmt: skip
"""HDFGRTR_EL2 and HDFGWTR_EL2."""
_DEBUG_READ_ONLY, _DEBUG_WRITE_ONLY = frozenset(("DBGAUTHSTATUS_EL1", "OSLSR_EL1")), frozenset(("OSLAR_EL1",))

_OPERATIONS: Final = (
    "IC IALLUIS", "IC IALLU", "IC IVAU", "DC IVAC", "DC ISW", "DC CSW", "DC CISW", "DC CVAU", "DC CVAP", "DC CVADP", "DC CIVAC", "DC ZVA",
    "AT S1E1R", "AT S1E1W", "AT S1E0R", "AT S1E0W", "AT S1E1RP", "AT S1E1WP",
    *(f"TLBI {name}OS" for name in ("VMALLE1", "VAE1", "ASIDE1", "VAAE1", "VALE1", "VAALE1", "RVAE1", "RVAAE1", "RVALE1", "RVAALE1")),
    *(f"TLBI {name}IS" for name in ("VMALLE1", "VAE1", "ASIDE1", "VAAE1", "VALE1", "VAALE1", "RVAE1", "RVAAE1", "RVALE1", "RVAALE1")),
    *(f"TLBI {name}" for name in ("RVAE1", "RVAAE1", "RVALE1", "RVAALE1", "VMALLE1", "VAE1", "ASIDE1", "VAAE1", "VALE1", "VAALE1")),
    "CFP RCTX", "DVP RCTX", "CPP RCTX", "ERET", "SVC_EL0", "SVC_EL1", "DC CVAC",
)  # fmt: skip
"""HFGITR_EL2, from bit 0."""

_FAMILIES: Final = {
    **{f"{key}{half}_EL1": key for key in KEYS for half in ("Lo", "Hi")},
    **{f"DBG{kind}{n}_EL1": f"DBG{kind}n_EL1" for kind in ("BCR", "BVR", "WCR", "WVR") for n in range(16)},
    **{f"ERXMISC{n}_EL1": "ERXMISCn_EL1" for n in range(4)},
    "ICC_IGRPEN0_EL1": "ICC_IGRPENn_EL1",
    "ICC_IGRPEN1_EL1": "ICC_IGRPENn_EL1",
    "DBGCLAIMSET_EL1": "DBGCLAIM",
    "DBGCLAIMCLR_EL1": "DBGCLAIM",
}
"""Registers that share a bit."""


def _identifier(name: str) -> str:
    return name.replace(" ", "")


def _declare(name: str, enc: Encoding, vncr: int, bits: dict[str, int]) -> type[Sysreg]:
    fields: dict[str, Any] = {_identifier(trapped): Field(bit) for trapped, bit in bits.items()}
    mask = sum(1 << bit for bit in bits.values())
    row: dict[str, Any] = {"enc": enc, "vncr": vncr, "feature": "FGT", "reset": 0, "write_mask": mask, "after": {"trap"}}
    doc = "Fine-grained trap register."
    return new_class(name, (Sysreg,), row, lambda body: body.update(__doc__=doc, __module__=__name__, **fields))


def _without(bits: dict[str, int], absent: frozenset[str]) -> dict[str, int]:
    return {name: bit for name, bit in bits.items() if name not in absent}


_GENERAL_BITS = {name: bit for bit, name in enumerate(_GENERAL)}
HFGRTR_EL2: Any = _declare("HFGRTR_EL2", (3, 4, 1, 1, 4), 0x1B8, _GENERAL_BITS)
HFGWTR_EL2: Any = _declare("HFGWTR_EL2", (3, 4, 1, 1, 5), 0x1C0, _without(_GENERAL_BITS, _READ_ONLY))
HFGITR_EL2: Any = _declare("HFGITR_EL2", (3, 4, 1, 1, 6), 0x1C8, {name: bit for bit, name in enumerate(_OPERATIONS)})
HDFGRTR_EL2: Any = _declare("HDFGRTR_EL2", (3, 4, 3, 1, 4), 0x1D0, _without(_DEBUG, _DEBUG_WRITE_ONLY))
HDFGWTR_EL2: Any = _declare("HDFGWTR_EL2", (3, 4, 3, 1, 5), 0x1D8, _without(_DEBUG, _DEBUG_READ_ONLY))
HAFGRTR_EL2: Any = _declare("HAFGRTR_EL2", (3, 4, 3, 1, 6), 0x1E8, {})


def _traps(name: str) -> Iterator[Trap]:
    key = _identifier(_FAMILIES.get(name, name))
    for direction, *registers in ((R, HFGRTR_EL2, HDFGRTR_EL2), (W, HFGWTR_EL2, HDFGWTR_EL2), (RW, HFGITR_EL2)):
        for register in registers:
            field = vars(register).get(key)
            if isinstance(field, Field):
                yield (direction @ field).with_feature("FGT")


def traps_of(name: str) -> tuple[Trap, ...]:
    """The fine-grained traps of a register or system instruction, by its name."""
    return tuple(_traps(name))
