"""Fields of registers that exist only with a feature. Without it they keep their reset value: RES0, and SPAN RES1."""

from __future__ import annotations

from collections.abc import Container

from trapline.arm64.regs.el1 import SCTLR_EL1, SPSR_EL1, TCR_EL1
from trapline.arm64.regs.el2 import CNTHCTL_EL2, HCR_EL2, HCRX_EL2, SCTLR_EL2, SPSR_EL2
from trapline.arm64.regs.special import FPCR
from trapline.arm64.sysreg import Sysreg
from trapline.registers import Field

_SPSR: dict[str, tuple[Field, ...]] = {
    "BTI": (SPSR_EL1.BTYPE,),
    "SSBS": (SPSR_EL1.SSBS,),
    "PAN": (SPSR_EL1.PAN,),
    "UAO": (SPSR_EL1.UAO,),
    "DIT": (SPSR_EL1.DIT,),
    "MTE2": (SPSR_EL1.TCO,),
}
"""SPSR_EL2 has them in the same places."""

_NEEDS: dict[type[Sysreg], dict[str, tuple[Field, ...]]] = {
    FPCR: {"FP16": (FPCR.FZ16,)},
    HCR_EL2: {
        "VHE": (HCR_EL2.E2H,),
        "LOR": (HCR_EL2.TLOR,),
        "RAS": (HCR_EL2.TERR, HCR_EL2.TEA, HCR_EL2.FIEN),
        "PAuth": (HCR_EL2.APK, HCR_EL2.API),
        "NV2": (HCR_EL2.NV, HCR_EL2.NV1, HCR_EL2.AT, HCR_EL2.NV2),
        "S2FWB": (HCR_EL2.FWB,),
        "EVT": (HCR_EL2.TID4, HCR_EL2.TICAB, HCR_EL2.TOCU, HCR_EL2.TTLBIS, HCR_EL2.TTLBOS),
        "AMUv1p1": (HCR_EL2.AMVOFFEN,),
        "CSV2_2": (HCR_EL2.EnSCXT,),
        "MTE2": (HCR_EL2.ATA, HCR_EL2.DCT, HCR_EL2.TID5),
        "TWED": (HCR_EL2.TWEDEn, HCR_EL2.TWEDEL),
        "RME": (HCR_EL2.GPF,),
        "MIOCNCE": (HCR_EL2.MIOCNCE,),
    },
    CNTHCTL_EL2: {
        "ECV": (CNTHCTL_EL2.EL1TVT, CNTHCTL_EL2.EL1TVCT, CNTHCTL_EL2.EVNTIS),
        "ECV_POFF": (CNTHCTL_EL2.ECV,),
        "NV2": (CNTHCTL_EL2.EL1NVPCT, CNTHCTL_EL2.EL1NVVCT),
        "RME": (CNTHCTL_EL2.CNTVMASK, CNTHCTL_EL2.CNTPMASK),
    },
    HCRX_EL2: {"MOPS": (HCRX_EL2.MSCEn, HCRX_EL2.MCE2)},
    TCR_EL1: {
        "HAF": (TCR_EL1.HA,),
        "HAFDBS": (TCR_EL1.HD,),
        "HPDS": (TCR_EL1.HPD0, TCR_EL1.HPD1),
        "E0PD": (TCR_EL1.E0PD0, TCR_EL1.E0PD1),
        "LPA2": (TCR_EL1.DS,),
        "PAuth": (TCR_EL1.TBID0, TCR_EL1.TBID1),
    },
    SPSR_EL1: _SPSR,
    SPSR_EL2: _SPSR,
    SCTLR_EL1: {
        "BTI": (SCTLR_EL1.BT0, SCTLR_EL1.BT1),
        "PAuth": (SCTLR_EL1.EnIA, SCTLR_EL1.EnIB, SCTLR_EL1.EnDA, SCTLR_EL1.EnDB),
        "PAN": (SCTLR_EL1.SPAN,),
        "PAN3": (SCTLR_EL1.EPAN,),
        "MOPS": (SCTLR_EL1.MSCEn,),
        "SSBS": (SCTLR_EL1.DSSBS,),
        "CSV2_2": (SCTLR_EL1.TSCXT,),
    },
    SCTLR_EL2: {
        "BTI": (SCTLR_EL2.BT0, SCTLR_EL2.BT),
        "PAuth": (SCTLR_EL2.EnIA, SCTLR_EL2.EnIB, SCTLR_EL2.EnDA, SCTLR_EL2.EnDB),
        "PAN": (SCTLR_EL2.SPAN,),
        "PAN3": (SCTLR_EL2.EPAN,),
        "MOPS": (SCTLR_EL2.MSCEn,),
        "SSBS": (SCTLR_EL2.DSSBS,),
        "CSV2_2": (SCTLR_EL2.TSCXT,),
    },
}
"""The fields by register and feature."""


def absent_bits(reg: type[Sysreg], features: Container[str]) -> int:
    """The bits of a register that a write leaves alone for want of a feature."""
    needs = _NEEDS.get(reg, {})
    return sum(field.mask for feature, fields in needs.items() if feature not in features for field in fields)
