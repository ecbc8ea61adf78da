"""The GICv3 CPU interface and its virtualisation registers.

With HCR_EL2.IMO or FMO set, accesses to ICC_* at EL1 work on the virtual CPU interface (list registers); the functions named
`icv_*` implement that. There is no physical CPU interface at EL1 otherwise: the machine's interrupts end at EL2.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.regs.el2 import HCR_EL2, ICH_HCR_EL2
from trapline.arm64.sysreg import RW, Encoding, Sysreg, W, register
from trapline.registers import Field

LIST_REGISTERS = 4
"""How many ICH_LR<n>_EL2 there are."""


def _never(features: object) -> bool:
    """No machine has the register: five priority bits need one active priorities register, not four."""
    return False


def _absent_if(absent: bool | int) -> dict[str, Any]:
    return {"present": _never} if absent else {}


GROUP0 = (RW @ ICH_HCR_EL2.TALL0,)
GROUP1 = (RW @ ICH_HCR_EL2.TALL1,)
COMMON = (RW @ ICH_HCR_EL2.TC,)
SGI = (W @ HCR_EL2.IMO, W @ HCR_EL2.FMO, RW @ ICH_HCR_EL2.TC)


def _icc(name: str, enc: Encoding, doc: str, **row: Any) -> type[Sysreg]:
    """A CPU interface register served by `icv_<name>_read` and `icv_<name>_write`."""
    stem = "icv_" + name.removeprefix("ICC_").removesuffix("_EL1").lower()
    access = row.get("access", "RW")
    if access != "WO":
        row["read"] = stem + "_read"
    if access != "RO":
        row["write"] = stem + "_write"
        row["after"] = {"irq"}
    return register(name, doc, enc, feature="GICv3", reset=0, **row)


ICC_PMR_EL1 = _icc("ICC_PMR_EL1", (3, 0, 4, 6, 0), "Interrupt Priority Mask Register.", traps=COMMON)
ICC_IAR0_EL1 = _icc("ICC_IAR0_EL1", (3, 0, 12, 8, 0), "Interrupt Acknowledge Register 0.", access="RO", traps=GROUP0)
ICC_EOIR0_EL1 = _icc("ICC_EOIR0_EL1", (3, 0, 12, 8, 1), "End Of Interrupt Register 0.", access="WO", traps=GROUP0)
ICC_HPPIR0_EL1 = _icc("ICC_HPPIR0_EL1", (3, 0, 12, 8, 2), "Highest Priority Pending Register 0.", access="RO", traps=GROUP0)
ICC_BPR0_EL1 = _icc("ICC_BPR0_EL1", (3, 0, 12, 8, 3), "Binary Point Register 0.", traps=GROUP0)
ICC_AP0R = tuple(
    _icc(f"ICC_AP0R{n}_EL1", (3, 0, 12, 8, 4 + n), "Active Priorities Group 0 Register.", traps=GROUP0, **_absent_if(n)) for n in range(4)
)
ICC_AP1R = tuple(
    _icc(f"ICC_AP1R{n}_EL1", (3, 0, 12, 9, n), "Active Priorities Group 1 Register.", traps=GROUP1, **_absent_if(n)) for n in range(4)
)
ICC_DIR_EL1 = _icc(
    "ICC_DIR_EL1",
    (3, 0, 12, 11, 1),
    "Deactivate Interrupt Register.",
    access="WO",
    traps=(RW @ ICH_HCR_EL2.TC, RW @ ICH_HCR_EL2.TDIR),
)
ICC_RPR_EL1 = _icc("ICC_RPR_EL1", (3, 0, 12, 11, 3), "Running Priority Register.", access="RO", traps=COMMON)
ICC_IAR1_EL1 = _icc("ICC_IAR1_EL1", (3, 0, 12, 12, 0), "Interrupt Acknowledge Register 1.", access="RO", traps=GROUP1)
ICC_EOIR1_EL1 = _icc("ICC_EOIR1_EL1", (3, 0, 12, 12, 1), "End Of Interrupt Register 1.", access="WO", traps=GROUP1)
ICC_HPPIR1_EL1 = _icc("ICC_HPPIR1_EL1", (3, 0, 12, 12, 2), "Highest Priority Pending Register 1.", access="RO", traps=GROUP1)
ICC_BPR1_EL1 = _icc("ICC_BPR1_EL1", (3, 0, 12, 12, 3), "Binary Point Register 1.", traps=GROUP1)
ICC_CTLR_EL1 = _icc("ICC_CTLR_EL1", (3, 0, 12, 12, 4), "Interrupt Controller Control Register.", traps=COMMON)
ICC_IGRPEN0_EL1 = _icc("ICC_IGRPEN0_EL1", (3, 0, 12, 12, 6), "Interrupt Group 0 Enable.", traps=GROUP0)
ICC_IGRPEN1_EL1 = _icc("ICC_IGRPEN1_EL1", (3, 0, 12, 12, 7), "Interrupt Group 1 Enable.", traps=GROUP1)

SGI_REGISTERS = tuple(
    register(
        name,
        "Software Generated Interrupt Register.",
        (3, 0, 12, 11, op2),
        feature="GICv3",
        access="WO",
        write="sgi_write",
        reset=0,
        traps=SGI,
    )
    for name, op2 in (("ICC_SGI1R_EL1", 5), ("ICC_ASGI1R_EL1", 6), ("ICC_SGI0R_EL1", 7))
)


class ICC_SRE_EL2(Sysreg, enc=(3, 4, 12, 9, 5), feature="GICv3", reset=0xF, write_mask=0x8, res1=0x7):
    """Interrupt Controller System Register Enable (EL2): the memory-mapped interface does not exist."""

    SRE = Field(0)
    DFB = Field(1)
    DIB = Field(2)
    Enable = Field(3)


class ICC_SRE_EL1(Sysreg, enc=(3, 0, 12, 12, 5), feature="GICv3", reset=0x7, write_mask=0, res1=0x7, traps=(RW @ ~ICC_SRE_EL2.Enable,)):
    """Interrupt Controller System Register Enable (EL1): always enabled."""

    SRE = Field(0)
    DFB = Field(1)
    DIB = Field(2)


class ICH_VTR_EL2(Sysreg, enc=(3, 4, 12, 11, 1), feature="GICv3", access="RO", reset=4 << 29 | 4 << 26 | 7 << 19 | LIST_REGISTERS - 1):
    """Interrupt Controller VGIC Type Register: 4 list registers, 5 priority and preemption bits, 16-bit INTIDs, no SEIs."""

    ListRegs = Field(4, 0)
    DVIM = Field(18)
    TDS = Field(19)
    nV4 = Field(20)
    A3V = Field(21)
    SEIS = Field(22)
    IDbits = Field(25, 23)
    PREbits = Field(28, 26)
    PRIbits = Field(31, 29)


class ICH_MISR_EL2(Sysreg, enc=(3, 4, 12, 11, 2), feature="GICv3", access="RO", read="ich_misr_read"):
    """Interrupt Controller Maintenance Interrupt State Register."""

    EOI = Field(0)
    U = Field(1)
    LRENP = Field(2)
    NP = Field(3)
    VGrp0E = Field(4)
    VGrp0D = Field(5)
    VGrp1E = Field(6)
    VGrp1D = Field(7)


class ICH_EISR_EL2(Sysreg, enc=(3, 4, 12, 11, 3), feature="GICv3", access="RO", read="ich_eisr_read"):
    """Interrupt Controller End of Interrupt Status Register."""


class ICH_ELRSR_EL2(Sysreg, enc=(3, 4, 12, 11, 5), feature="GICv3", access="RO", read="ich_elrsr_read"):
    """Interrupt Controller Empty List Register Status Register."""


class ICH_VMCR_EL2(Sysreg, enc=(3, 4, 12, 11, 7), vncr=0x4C8, feature="GICv3", reset=0, after={"irq"}):
    """Interrupt Controller Virtual Machine Control Register."""

    VENG0 = Field(0)
    VENG1 = Field(1)
    VAckCtl = Field(2)
    VFIQEn = Field(3)
    VCBPR = Field(4)
    VEOIM = Field(9)
    VBPR1 = Field(20, 18)
    VBPR0 = Field(23, 21)
    VPMR = Field(31, 24)


class ListRegister(Sysreg, enc=(3, 4, 12, 12, 0), name="ICH_LR0_EL2", vncr=0x400, feature="GICv3", reset=0, after={"irq"}):
    """Interrupt Controller List Register: one virtual interrupt."""

    vINTID = Field(31, 0)
    pINTID = Field(44, 32)
    Priority = Field(55, 48)
    NMI = Field(59)
    Group = Field(60)
    HW = Field(61)
    State = Field(63, 62)


ICH_LR = (
    ListRegister,
    *(
        register(
            f"ICH_LR{n}_EL2",
            "Interrupt Controller List Register.",
            (3, 4, 12, 12 + n // 8, n % 8),
            vncr=0x400 + 8 * n,
            feature="GICv3",
            reset=0,
            after={"irq"},
            **_absent_if(n // LIST_REGISTERS),
        )
        for n in range(1, 16)
    ),
)
ICH_AP0R = tuple(
    register(
        f"ICH_AP0R{n}_EL2",
        "Hyp Active Priorities Group 0 Register.",
        (3, 4, 12, 8, n),
        vncr=0x480 + 8 * n,
        feature="GICv3",
        reset=0,
        after={"irq"},
        **_absent_if(n),
    )
    for n in range(4)
)
ICH_AP1R = tuple(
    register(
        f"ICH_AP1R{n}_EL2",
        "Hyp Active Priorities Group 1 Register.",
        (3, 4, 12, 9, n),
        vncr=0x4A0 + 8 * n,
        feature="GICv3",
        reset=0,
        after={"irq"},
        **_absent_if(n),
    )
    for n in range(4)
)
