"""Identification registers: what a machine is. Their values follow from its features (arm64/features.py)."""

from __future__ import annotations

from trapline.arm64.regs.el1 import SCTLR_EL1
from trapline.arm64.regs.el2 import HCR_EL2
from trapline.arm64.sysreg import RW, R, Sysreg, register
from trapline.registers import Field

ID_GROUP_3 = (R @ HCR_EL2.TID3,)
"""Detailed feature identification."""

CACHE_ID = (RW @ HCR_EL2.TID2, RW @ HCR_EL2.TID4)
"""Cache identification."""


class MIDR_EL1(Sysreg, enc=(3, 0, 0, 0, 0), access="RO", read="midr_read", reset=0):
    """Main ID Register; EL1 reads VPIDR_EL2."""

    Revision = Field(3, 0)
    PartNum = Field(15, 4)
    Architecture = Field(19, 16)
    Variant = Field(23, 20)
    Implementer = Field(31, 24)


class MPIDR_EL1(Sysreg, enc=(3, 0, 0, 0, 5), access="RO", read="mpidr_read", reset=1 << 31):
    """Multiprocessor Affinity Register; EL1 reads VMPIDR_EL2."""

    Aff0 = Field(7, 0)
    Aff1 = Field(15, 8)
    Aff2 = Field(23, 16)
    MT = Field(24)
    U = Field(30)
    Aff3 = Field(39, 32)


class REVIDR_EL1(Sysreg, enc=(3, 0, 0, 0, 6), access="RO", reset=0, traps=(R @ HCR_EL2.TID1,)):
    """Revision ID Register."""


class AIDR_EL1(Sysreg, enc=(3, 1, 0, 0, 7), el=1, access="RO", reset=0, traps=(R @ HCR_EL2.TID1,)):
    """Auxiliary ID Register."""


class CCSIDR_EL1(Sysreg, enc=(3, 1, 0, 0, 0), access="RO", read="ccsidr_read", traps=CACHE_ID):
    """Current Cache Size ID Register: of the cache that CSSELR_EL1 selects."""

    LineSize = Field(2, 0)
    Associativity = Field(12, 3)
    NumSets = Field(27, 13)


class CLIDR_EL1(Sysreg, enc=(3, 1, 0, 0, 1), access="RO", traps=CACHE_ID):
    """Cache Level ID Register."""

    Ctype1 = Field(2, 0)
    Ctype2 = Field(5, 3)
    Ctype3 = Field(8, 6)
    LoUIS = Field(23, 21)
    LoC = Field(26, 24)
    LoUU = Field(29, 27)
    ICB = Field(32, 30)


class GMID_EL1(Sysreg, enc=(3, 1, 0, 0, 4), access="RO", feature="MTE2", reset=0, traps=(R @ HCR_EL2.TID5,)):
    """Multiple tag transfer ID register."""


class SMIDR_EL1(Sysreg, enc=(3, 1, 0, 0, 6), access="RO", feature="SME", reset=0, traps=(R @ HCR_EL2.TID1,)):
    """Streaming Mode Identification Register."""


class CSSELR_EL1(Sysreg, enc=(3, 2, 0, 0, 0), el=1, reset=0, write_mask=0xF, traps=CACHE_ID):
    """Cache Size Selection Register."""

    InD = Field(0)
    Level = Field(3, 1)


class CTR_EL0(Sysreg, enc=(3, 3, 0, 0, 1), access="RO", traps=(R @ ~SCTLR_EL1.UCT, R @ HCR_EL2.TID2)):
    """Cache Type Register."""

    IminLine = Field(3, 0)
    L1Ip = Field(15, 14)
    DminLine = Field(19, 16)
    ERG = Field(23, 20)
    CWG = Field(27, 24)
    IDC = Field(28)
    DIC = Field(29)
    RES1 = Field(31)
    TminLine = Field(37, 32)


class DCZID_EL0(Sysreg, enc=(3, 3, 0, 0, 7), access="RO", read="dczid_read"):
    """Data Cache Zero ID Register."""

    BS = Field(3, 0)
    DZP = Field(4)


class ID_AA64PFR0_EL1(Sysreg, enc=(3, 0, 0, 4, 0), access="RO", traps=ID_GROUP_3):
    """AArch64 Processor Feature Register 0."""

    EL0 = Field(3, 0)
    EL1 = Field(7, 4)
    EL2 = Field(11, 8)
    EL3 = Field(15, 12)
    FP = Field(19, 16)
    AdvSIMD = Field(23, 20)
    GIC = Field(27, 24)
    RAS = Field(31, 28)
    SVE = Field(35, 32)
    SEL2 = Field(39, 36)
    MPAM = Field(43, 40)
    AMU = Field(47, 44)
    DIT = Field(51, 48)
    RME = Field(55, 52)
    CSV2 = Field(59, 56)
    CSV3 = Field(63, 60)


class ID_AA64PFR1_EL1(Sysreg, enc=(3, 0, 0, 4, 1), access="RO", traps=ID_GROUP_3):
    """AArch64 Processor Feature Register 1."""

    BT = Field(3, 0)
    SSBS = Field(7, 4)
    MTE = Field(11, 8)
    RAS_frac = Field(15, 12)
    MPAM_frac = Field(19, 16)
    SME = Field(27, 24)
    RNDR_trap = Field(31, 28)
    CSV2_frac = Field(35, 32)
    NMI = Field(39, 36)
    MTE_frac = Field(43, 40)
    GCS = Field(47, 44)
    THE = Field(51, 48)
    MTEX = Field(55, 52)
    DF2 = Field(59, 56)
    PFAR = Field(63, 60)


class ID_AA64PFR2_EL1(Sysreg, enc=(3, 0, 0, 4, 2), access="RO", traps=ID_GROUP_3):
    """AArch64 Processor Feature Register 2."""


class ID_AA64ZFR0_EL1(Sysreg, enc=(3, 0, 0, 4, 4), access="RO", traps=ID_GROUP_3):
    """SVE Feature ID Register 0."""

    SVEver = Field(3, 0)


class ID_AA64SMFR0_EL1(Sysreg, enc=(3, 0, 0, 4, 5), access="RO", traps=ID_GROUP_3):
    """SME Feature ID Register 0."""


class ID_AA64FPFR0_EL1(Sysreg, enc=(3, 0, 0, 4, 7), access="RO", traps=ID_GROUP_3):
    """Floating-point Feature ID Register 0."""


class ID_AA64DFR0_EL1(Sysreg, enc=(3, 0, 0, 5, 0), access="RO", traps=ID_GROUP_3):
    """AArch64 Debug Feature Register 0."""

    DebugVer = Field(3, 0)
    TraceVer = Field(7, 4)
    PMUVer = Field(11, 8)
    BRPs = Field(15, 12)
    PMSS = Field(19, 16)
    WRPs = Field(23, 20)
    CTX_CMPs = Field(31, 28)
    PMSVer = Field(35, 32)
    DoubleLock = Field(39, 36)
    TraceFilt = Field(43, 40)
    TraceBuffer = Field(47, 44)
    MTPMU = Field(51, 48)
    BRBE = Field(55, 52)
    HPMN0 = Field(63, 60)


class ID_AA64DFR1_EL1(Sysreg, enc=(3, 0, 0, 5, 1), access="RO", traps=ID_GROUP_3):
    """AArch64 Debug Feature Register 1."""


class ID_AA64AFR0_EL1(Sysreg, enc=(3, 0, 0, 5, 4), access="RO", traps=ID_GROUP_3):
    """AArch64 Auxiliary Feature Register 0."""


class ID_AA64AFR1_EL1(Sysreg, enc=(3, 0, 0, 5, 5), access="RO", traps=ID_GROUP_3):
    """AArch64 Auxiliary Feature Register 1."""


class ID_AA64ISAR0_EL1(Sysreg, enc=(3, 0, 0, 6, 0), access="RO", traps=ID_GROUP_3):
    """AArch64 Instruction Set Attribute Register 0."""

    AES = Field(7, 4)
    SHA1 = Field(11, 8)
    SHA2 = Field(15, 12)
    CRC32 = Field(19, 16)
    Atomic = Field(23, 20)
    TME = Field(27, 24)
    RDM = Field(31, 28)
    SHA3 = Field(35, 32)
    SM3 = Field(39, 36)
    SM4 = Field(43, 40)
    DP = Field(47, 44)
    FHM = Field(51, 48)
    TS = Field(55, 52)
    TLB = Field(59, 56)
    RNDR = Field(63, 60)


class ID_AA64ISAR1_EL1(Sysreg, enc=(3, 0, 0, 6, 1), access="RO", traps=ID_GROUP_3):
    """AArch64 Instruction Set Attribute Register 1."""

    DPB = Field(3, 0)
    APA = Field(7, 4)
    API = Field(11, 8)
    JSCVT = Field(15, 12)
    FCMA = Field(19, 16)
    LRCPC = Field(23, 20)
    GPA = Field(27, 24)
    GPI = Field(31, 28)
    FRINTTS = Field(35, 32)
    SB = Field(39, 36)
    SPECRES = Field(43, 40)
    BF16 = Field(47, 44)
    DGH = Field(51, 48)
    I8MM = Field(55, 52)
    XS = Field(59, 56)
    LS64 = Field(63, 60)


class ID_AA64ISAR2_EL1(Sysreg, enc=(3, 0, 0, 6, 2), access="RO", traps=ID_GROUP_3):
    """AArch64 Instruction Set Attribute Register 2."""

    WFxT = Field(3, 0)
    RPRES = Field(7, 4)
    GPA3 = Field(11, 8)
    APA3 = Field(15, 12)
    MOPS = Field(19, 16)
    BC = Field(23, 20)
    PAC_frac = Field(27, 24)
    CLRBHB = Field(31, 28)
    SYSREG_128 = Field(35, 32)
    SYSINSTR_128 = Field(39, 36)
    PRFMSLC = Field(43, 40)
    RPRFM = Field(51, 48)
    CSSC = Field(55, 52)


class ID_AA64ISAR3_EL1(Sysreg, enc=(3, 0, 0, 6, 3), access="RO", traps=ID_GROUP_3):
    """AArch64 Instruction Set Attribute Register 3."""


class ID_AA64MMFR0_EL1(Sysreg, enc=(3, 0, 0, 7, 0), access="RO", traps=ID_GROUP_3):
    """AArch64 Memory Model Feature Register 0."""

    PARange = Field(3, 0)
    ASIDBits = Field(7, 4)
    BigEnd = Field(11, 8)
    SNSMem = Field(15, 12)
    BigEndEL0 = Field(19, 16)
    TGran16 = Field(23, 20)
    TGran64 = Field(27, 24)
    TGran4 = Field(31, 28)
    TGran16_2 = Field(35, 32)
    TGran64_2 = Field(39, 36)
    TGran4_2 = Field(43, 40)
    ExS = Field(47, 44)
    FGT = Field(59, 56)
    ECV = Field(63, 60)


class ID_AA64MMFR1_EL1(Sysreg, enc=(3, 0, 0, 7, 1), access="RO", traps=ID_GROUP_3):
    """AArch64 Memory Model Feature Register 1."""

    HAFDBS = Field(3, 0)
    VMIDBits = Field(7, 4)
    VH = Field(11, 8)
    HPDS = Field(15, 12)
    LO = Field(19, 16)
    PAN = Field(23, 20)
    SpecSEI = Field(27, 24)
    XNX = Field(31, 28)
    TWED = Field(35, 32)
    ETS = Field(39, 36)
    HCX = Field(43, 40)
    AFP = Field(47, 44)
    nTLBPA = Field(51, 48)
    TIDCP1 = Field(55, 52)
    CMOW = Field(59, 56)
    ECBHB = Field(63, 60)


class ID_AA64MMFR2_EL1(Sysreg, enc=(3, 0, 0, 7, 2), access="RO", traps=ID_GROUP_3):
    """AArch64 Memory Model Feature Register 2."""

    CnP = Field(3, 0)
    UAO = Field(7, 4)
    LSM = Field(11, 8)
    IESB = Field(15, 12)
    VARange = Field(19, 16)
    CCIDX = Field(23, 20)
    NV = Field(27, 24)
    ST = Field(31, 28)
    AT = Field(35, 32)
    IDS = Field(39, 36)
    FWB = Field(43, 40)
    TTL = Field(51, 48)
    BBM = Field(55, 52)
    EVT = Field(59, 56)
    E0PD = Field(63, 60)


class ID_AA64MMFR3_EL1(Sysreg, enc=(3, 0, 0, 7, 3), access="RO", traps=ID_GROUP_3):
    """AArch64 Memory Model Feature Register 3."""

    TCRX = Field(3, 0)
    SCTLRX = Field(7, 4)
    S1PIE = Field(11, 8)
    S2PIE = Field(15, 12)
    S1POE = Field(19, 16)
    S2POE = Field(23, 20)
    AIE = Field(27, 24)
    MEC = Field(31, 28)


class ID_AA64MMFR4_EL1(Sysreg, enc=(3, 0, 0, 7, 4), access="RO", traps=ID_GROUP_3):
    """AArch64 Memory Model Feature Register 4."""


_AARCH32 = {
    (1, 0): "ID_PFR0_EL1",
    (1, 1): "ID_PFR1_EL1",
    (1, 2): "ID_DFR0_EL1",
    (1, 3): "ID_AFR0_EL1",
    (1, 4): "ID_MMFR0_EL1",
    (1, 5): "ID_MMFR1_EL1",
    (1, 6): "ID_MMFR2_EL1",
    (1, 7): "ID_MMFR3_EL1",
    (2, 0): "ID_ISAR0_EL1",
    (2, 1): "ID_ISAR1_EL1",
    (2, 2): "ID_ISAR2_EL1",
    (2, 3): "ID_ISAR3_EL1",
    (2, 4): "ID_ISAR4_EL1",
    (2, 5): "ID_ISAR5_EL1",
    (2, 6): "ID_MMFR4_EL1",
    (2, 7): "ID_ISAR6_EL1",
    (3, 0): "MVFR0_EL1",
    (3, 1): "MVFR1_EL1",
    (3, 2): "MVFR2_EL1",
    (3, 4): "ID_PFR2_EL1",
    (3, 5): "ID_DFR1_EL1",
    (3, 6): "ID_MMFR5_EL1",
}

AARCH32_ID = tuple(
    register(
        name,
        "Identification of AArch32 state: zero, because no exception level can use it.",
        (3, 0, 0, crm, op2),
        access="RO",
        reset=0,
        traps=ID_GROUP_3,
    )
    for (crm, op2), name in _AARCH32.items()
)

_NAMED = {reg.encoding for reg in tuple(vars().values()) if isinstance(reg, type) and issubclass(reg, Sysreg) and reg is not Sysreg}
_NAMED |= {reg.encoding for reg in AARCH32_ID}

RESERVED_ID = tuple(
    register(
        f"ID_RESERVED_{crm}_{op2}_EL1",
        "Unallocated in the identification space: reads as zero.",
        (3, 0, 0, crm, op2),
        access="RO",
        reset=0,
        traps=ID_GROUP_3,
        mnemonic=f"S3_0_C0_C{crm}_{op2}",
    )
    for crm in range(1, 8)
    for op2 in range(8)
    if 0xC000 | crm << 3 | op2 not in _NAMED
)

ID_REGISTERS = tuple(
    reg
    for reg in (*vars().copy().values(), *AARCH32_ID, *RESERVED_ID)
    if isinstance(reg, type) and issubclass(reg, Sysreg) and reg is not Sysreg and reg.traps == ID_GROUP_3
)
"""The feature identification space, op0=3 op1=0 CRn=0 CRm=1..7."""
