"""System registers of EL2: what a hypervisor programs."""

from __future__ import annotations

from trapline.arm64.sysreg import Sysreg, bits
from trapline.registers import Field


class HCR_EL2(Sysreg, enc=(3, 4, 1, 1, 0), vncr=0x078, reset=0, res1=1 << 31, after={"mmu", "fp", "irq", "trap"}):
    """Hypervisor Configuration Register. RW is RES1: there is no AArch32 at EL1."""

    VM = Field(0)
    SWIO = Field(1)
    PTW = Field(2)
    FMO = Field(3)
    IMO = Field(4)
    AMO = Field(5)
    VF = Field(6)
    VI = Field(7)
    VSE = Field(8)
    FB = Field(9)
    BSU = Field(11, 10)
    DC = Field(12)
    TWI = Field(13)
    TWE = Field(14)
    TID0 = Field(15)
    TID1 = Field(16)
    TID2 = Field(17)
    TID3 = Field(18)
    TSC = Field(19)
    TIDCP = Field(20)
    TACR = Field(21)
    TSW = Field(22)
    TPCP = Field(23)
    TPU = Field(24)
    TTLB = Field(25)
    TVM = Field(26)
    TGE = Field(27)
    TDZ = Field(28)
    HCD = Field(29)
    TRVM = Field(30)
    RW = Field(31)
    CD = Field(32)
    ID = Field(33)
    E2H = Field(34)
    TLOR = Field(35)
    TERR = Field(36)
    TEA = Field(37)
    MIOCNCE = Field(38)
    APK = Field(40)
    API = Field(41)
    NV = Field(42)
    NV1 = Field(43)
    AT = Field(44)
    NV2 = Field(45)
    FWB = Field(46)
    FIEN = Field(47)
    GPF = Field(48)
    TID4 = Field(49)
    TICAB = Field(50)
    AMVOFFEN = Field(51)
    TOCU = Field(52)
    EnSCXT = Field(53)
    TTLBIS = Field(54)
    TTLBOS = Field(55)
    ATA = Field(56)
    DCT = Field(57)
    TID5 = Field(58)
    TWEDEn = Field(59)
    TWEDEL = Field(63, 60)


class HCRX_EL2(Sysreg, enc=(3, 4, 1, 2, 2), vncr=0x0A0, feature="HCX", reset=0, write_mask=bits(10, 11), after={"trap"}):
    """Extended Hypervisor Configuration Register."""

    EnAS0 = Field(0)
    EnALS = Field(1)
    EnASR = Field(2)
    FnXS = Field(3)
    FGTnXS = Field(4)
    SMPME = Field(5)
    TALLINT = Field(6)
    VINMI = Field(7)
    VFNMI = Field(8)
    CMOW = Field(9)
    MCE2 = Field(10)
    MSCEn = Field(11)
    TCR2En = Field(14)
    SCTLR2En = Field(15)
    PTTWI = Field(16)
    D128En = Field(17)
    EnSNERR = Field(18)
    TMEA = Field(19)
    EnSDERR = Field(20)
    EnIDCP128 = Field(21)
    GCSEn = Field(22)
    EnFPM = Field(23)
    PACMEn = Field(24)
    SRMASKEn = Field(26)
    NVTGE = Field(27)


class SCTLR_EL2(
    Sysreg,
    enc=(3, 4, 1, 0, 0),
    reset=0x30C50830,
    res1=bits(11, 22, 28, 29),
    write_mask=bits(range(7), 10, range(12, 17), range(18, 21), 23, 26, 27, 30, 31, 33, 35, 36, 44, 57),
    after={"mmu", "trap"},
):
    """System Control Register (EL2). EE and E0E are RES0: the machine is little-endian."""

    M = Field(0)
    A = Field(1)
    C = Field(2)
    SA = Field(3)
    SA0 = Field(4)
    nAA = Field(6)
    EOS = Field(11)
    I = Field(12)
    EnDB = Field(13)
    DZE = Field(14)
    UCT = Field(15)
    nTWI = Field(16)
    nTWE = Field(18)
    WXN = Field(19)
    TSCXT = Field(20)
    EIS = Field(22)
    SPAN = Field(23)
    E0E = Field(24)
    EE = Field(25)
    UCI = Field(26)
    EnDA = Field(27)
    nTLSMD = Field(28)
    LSMAOE = Field(29)
    EnIB = Field(30)
    EnIA = Field(31)
    MSCEn = Field(33)
    BT0 = Field(35)
    BT = Field(36)
    DSSBS = Field(44)
    EPAN = Field(57)


class TCR_EL2(Sysreg, enc=(3, 4, 2, 0, 2), after={"mmu"}, overlap=True):
    """Translation Control Register (EL2); with HCR_EL2.E2H=1 it has TCR_EL1's layout."""

    T0SZ = Field(5, 0)
    IRGN0 = Field(9, 8)
    ORGN0 = Field(11, 10)
    SH0 = Field(13, 12)
    TG0 = Field(15, 14)
    PS = Field(18, 16)
    TBI = Field(20)
    HA = Field(21)
    HD = Field(22)
    HPD = Field(24)
    TBID = Field(29)
    DS = Field(32)


class VTCR_EL2(Sysreg, enc=(3, 4, 2, 1, 2), vncr=0x040, after={"mmu"}, res1=1 << 31):
    """Virtualization Translation Control Register."""

    T0SZ = Field(5, 0)
    SL0 = Field(7, 6)
    IRGN0 = Field(9, 8)
    ORGN0 = Field(11, 10)
    SH0 = Field(13, 12)
    TG0 = Field(15, 14)
    PS = Field(18, 16)
    VS = Field(19)
    HA = Field(21)
    HD = Field(22)
    HWU = Field(28, 25)
    NSW = Field(29)
    NSA = Field(30)
    RES1 = Field(31)
    DS = Field(32)
    SL2 = Field(33)
    TL1 = Field(35)
    S2PIE = Field(36)
    S2POE = Field(37)
    D128 = Field(38)
    TL0 = Field(41)
    HAFT = Field(44)


class VTTBR_EL2(Sysreg, enc=(3, 4, 2, 1, 0), vncr=0x020, after={"mmu"}):
    """Virtualization Translation Table Base Register."""

    CnP = Field(0)
    BADDR = Field(47, 1)
    VMID = Field(63, 48)


class CPTR_EL2(Sysreg, enc=(3, 4, 1, 1, 2), reset=0x33FF, after={"fp", "trap"}, overlap=True):
    """Architectural Feature Trap Register; the fields from FPEN on exist with HCR_EL2.E2H=1 only."""

    TZ = Field(8)
    TFP = Field(10)
    TSM = Field(12)
    TTA = Field(20)
    TAM = Field(30)
    TCPAC = Field(31)
    ZEN = Field(17, 16)
    FPEN = Field(21, 20)
    SMEN = Field(25, 24)
    TTA_E2H = Field(28)


class MDCR_EL2(Sysreg, enc=(3, 4, 1, 1, 1), reset=0, after={"debug", "trap"}):
    """Monitor Debug Configuration Register (EL2)."""

    HPMN = Field(4, 0)
    TPMCR = Field(5)
    TPM = Field(6)
    HPME = Field(7)
    TDE = Field(8)
    TDA = Field(9)
    TDOSA = Field(10)
    TDRA = Field(11)
    E2PB = Field(13, 12)
    TPMS = Field(14)
    EnSPM = Field(15)
    HPMD = Field(17)
    TTRF = Field(19)
    HCCD = Field(23)
    E2TB = Field(25, 24)
    HLP = Field(26)
    TDCC = Field(27)
    MTPME = Field(28)
    HPMFZO = Field(29)
    HPMFZS = Field(36)
    PMEE = Field(41, 40)
    EBWE = Field(43)


class CNTHCTL_EL2(Sysreg, enc=(3, 4, 14, 1, 0), reset=0x3, after={"timer", "trap"}, overlap=True):
    """Counter-timer Hypervisor Control Register; fields named _E2H are the layout of HCR_EL2.E2H=1."""

    EL1PCTEN = Field(0)
    EL1PCEN = Field(1)
    EVNTEN = Field(2)
    EVNTDIR = Field(3)
    EVNTI = Field(7, 4)
    ECV = Field(12)
    EL1TVT = Field(13)
    EL1TVCT = Field(14)
    EL1NVPCT = Field(15)
    EL1NVVCT = Field(16)
    EVNTIS = Field(17)
    CNTVMASK = Field(18)
    CNTPMASK = Field(19)
    EL0PCTEN_E2H = Field(0)
    EL0VCTEN_E2H = Field(1)
    EL0VTEN_E2H = Field(8)
    EL0PTEN_E2H = Field(9)
    EL1PCTEN_E2H = Field(10)
    EL1PTEN_E2H = Field(11)


class ICH_HCR_EL2(Sysreg, enc=(3, 4, 12, 11, 0), vncr=0x4C0, feature="GICv3", reset=0, after={"irq", "trap"}):
    """Interrupt Controller Hyp Control Register."""

    En = Field(0)
    UIE = Field(1)
    LRENPIE = Field(2)
    NPIE = Field(3)
    VGrp0EIE = Field(4)
    VGrp0DIE = Field(5)
    VGrp1EIE = Field(6)
    VGrp1DIE = Field(7)
    vSGIEOICount = Field(8)
    TC = Field(10)
    TALL0 = Field(11)
    TALL1 = Field(12)
    TSEI = Field(13)
    TDIR = Field(14)
    DVIM = Field(15)
    EOIcount = Field(31, 27)


class ZCR_EL2(Sysreg, enc=(3, 4, 1, 2, 0), feature="SVE"):
    """SVE Control Register (EL2)."""


class SMCR_EL2(Sysreg, enc=(3, 4, 1, 2, 6), feature="SME"):
    """SME Control Register (EL2)."""


class VPIDR_EL2(Sysreg, enc=(3, 4, 0, 0, 0), vncr=0x088):
    """Virtualization Processor ID Register: what EL1 reads from MIDR_EL1."""


class VMPIDR_EL2(Sysreg, enc=(3, 4, 0, 0, 5), vncr=0x050):
    """Virtualization Multiprocessor ID Register: what EL1 reads from MPIDR_EL1."""


class HSTR_EL2(Sysreg, enc=(3, 4, 1, 1, 3), vncr=0x080, reset=0):
    """Hypervisor System Trap Register: traps of AArch32 CP15 accesses."""


class HACR_EL2(Sysreg, enc=(3, 4, 1, 1, 7), reset=0):
    """Hypervisor Auxiliary Control Register."""


class ACTLR_EL2(Sysreg, enc=(3, 4, 1, 0, 1), reset=0):
    """Auxiliary Control Register (EL2)."""


class TTBR0_EL2(Sysreg, enc=(3, 4, 2, 0, 0), after={"ttbr"}):
    """Translation Table Base Register 0 (EL2)."""

    CnP = Field(0)
    BADDR = Field(47, 1)
    ASID = Field(63, 48)


class TTBR1_EL2(Sysreg, enc=(3, 4, 2, 0, 1), feature="VHE", after={"ttbr"}):
    """Translation Table Base Register 1 (EL2)."""

    CnP = Field(0)
    BADDR = Field(47, 1)
    ASID = Field(63, 48)


class SPSR_EL2(Sysreg, enc=(3, 4, 4, 0, 0)):
    """Saved Program Status Register (EL2)."""

    M = Field(4, 0)
    F = Field(6)
    I = Field(7)
    A = Field(8)
    D = Field(9)
    BTYPE = Field(11, 10)
    SSBS = Field(12)
    ALLINT = Field(13)
    IL = Field(20)
    SS = Field(21)
    PAN = Field(22)
    UAO = Field(23)
    DIT = Field(24)
    TCO = Field(25)
    V = Field(28)
    C = Field(29)
    Z = Field(30)
    N = Field(31)
    PM = Field(32)
    EXLOCK = Field(34)


class ELR_EL2(Sysreg, enc=(3, 4, 4, 0, 1)):
    """Exception Link Register (EL2)."""


class SP_EL1(Sysreg, enc=(3, 4, 4, 1, 0), vncr=0x240, read="sp_el1_read", write="sp_el1_write"):
    """Stack Pointer (EL1), as EL2 sees it."""


class DACR32_EL2(Sysreg, enc=(3, 4, 3, 0, 0), feature="AA32EL1"):
    """Domain Access Control Register of AArch32."""


class IFSR32_EL2(Sysreg, enc=(3, 4, 5, 0, 1), feature="AA32EL1"):
    """Instruction Fault Status Register of AArch32."""


class FPEXC32_EL2(Sysreg, enc=(3, 4, 5, 3, 0), feature="AA32EL1"):
    """Floating-Point Exception Control register of AArch32."""


class AFSR0_EL2(Sysreg, enc=(3, 4, 5, 1, 0), reset=0, write_mask=0):
    """Auxiliary Fault Status Register 0 (EL2)."""


class AFSR1_EL2(Sysreg, enc=(3, 4, 5, 1, 1), reset=0, write_mask=0):
    """Auxiliary Fault Status Register 1 (EL2)."""


class ESR_EL2(Sysreg, enc=(3, 4, 5, 2, 0)):
    """Exception Syndrome Register (EL2)."""

    ISS = Field(24, 0)
    IL = Field(25)
    EC = Field(31, 26)
    ISS2 = Field(55, 32)


class VSESR_EL2(Sysreg, enc=(3, 4, 5, 2, 3), vncr=0x508, feature="RAS"):
    """Virtual SError Exception Syndrome Register."""


class VDISR_EL2(Sysreg, enc=(3, 4, 12, 1, 1), vncr=0x500, feature="RAS"):
    """Virtual Deferred Interrupt Status Register."""


class FAR_EL2(Sysreg, enc=(3, 4, 6, 0, 0)):
    """Fault Address Register (EL2)."""


class HPFAR_EL2(Sysreg, enc=(3, 4, 6, 0, 4)):
    """Hypervisor IPA Fault Address Register."""

    FIPA = Field(47, 4)
    NS = Field(63)


class MAIR_EL2(Sysreg, enc=(3, 4, 10, 2, 0), after={"mmu"}):
    """Memory Attribute Indirection Register (EL2)."""


class AMAIR_EL2(Sysreg, enc=(3, 4, 10, 3, 0), reset=0, write_mask=0):
    """Auxiliary Memory Attribute Indirection Register (EL2)."""


class VBAR_EL2(Sysreg, enc=(3, 4, 12, 0, 0), write_mask=~0x7FF & (1 << 64) - 1):
    """Vector Base Address Register (EL2)."""


class RVBAR_EL2(Sysreg, enc=(3, 4, 12, 0, 1), access="RO", reset=0):
    """Reset Vector Base Address Register: EL2 is the highest exception level here."""


class RMR_EL2(Sysreg, enc=(3, 4, 12, 0, 2), reset=1, write_mask=0):
    """Reset Management Register: AArch64 only, and a warm reset request does nothing."""


class CONTEXTIDR_EL2(Sysreg, enc=(3, 4, 13, 0, 1), feature="VHE"):
    """Context ID Register (EL2)."""


class TPIDR_EL2(Sysreg, enc=(3, 4, 13, 0, 2), vncr=0x090):
    """EL2 Software Thread ID Register."""


class SCXTNUM_EL2(Sysreg, enc=(3, 4, 13, 0, 7), feature="CSV2_2"):
    """EL2 Read/Write Software Context Number."""


class VNCR_EL2(Sysreg, enc=(3, 4, 2, 2, 0), vncr=0x0B0, feature="NV2", after={"mmu"}):
    """Virtual Nested Control Register: where the nested hypervisor's registers live in memory."""


class CNTVOFF_EL2(Sysreg, enc=(3, 4, 14, 0, 3), vncr=0x060, reset=0, after={"timer"}):
    """Counter-timer Virtual Offset Register."""


class CNTPOFF_EL2(Sysreg, enc=(3, 4, 14, 0, 6), vncr=0x1A8, feature="ECV_POFF", reset=0, after={"timer"}):
    """Counter-timer Physical Offset Register."""


class SP_EL2(Sysreg, enc=(3, 6, 4, 1, 0), read="sp_el2_read", write="sp_el2_write"):
    """Stack Pointer (EL2), as EL3 would see it."""
