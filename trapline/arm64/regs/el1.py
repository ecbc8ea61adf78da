"""System registers of EL1: system control, translation, exceptions, thread ids, pointer authentication, LORegions, RAS."""

from __future__ import annotations

from trapline.arm64.regs.el2 import CPTR_EL2, HCR_EL2
from trapline.arm64.sysreg import RW, R, Sysreg, W, bits, register
from trapline.registers import Field

VM_CONTROL = (R @ HCR_EL2.TRVM, W @ HCR_EL2.TVM)
"""Stage-1 controls: a hypervisor may trap all of them."""


class SCTLR_EL1(
    Sysreg,
    enc=(3, 0, 1, 0, 0),
    vncr=0x110,
    at_el2="SCTLR_EL2",
    el12=True,
    reset=bits(3, 4, 16, 18, 23),
    res1=bits(7, 8, 11, 22, 28, 29),
    write_mask=bits(range(5), 6, 9, range(12, 17), range(18, 21), 23, 26, 27, 30, 31, 33, 35, 36, 44, 57),
    after={"mmu", "trap"},
    traps=VM_CONTROL,
):
    """System Control Register (EL1). EE and E0E are RES0: the machine is little-endian."""

    M = Field(0)
    A = Field(1)
    C = Field(2)
    SA = Field(3)
    SA0 = Field(4)
    CP15BEN = Field(5)
    nAA = Field(6)
    ITD = Field(7)
    SED = Field(8)
    UMA = Field(9)
    EnRCTX = Field(10)
    EOS = Field(11)
    I = Field(12)
    EnDB = Field(13)
    DZE = Field(14)
    UCT = Field(15)
    nTWI = Field(16)
    nTWE = Field(18)
    WXN = Field(19)
    TSCXT = Field(20)
    IESB = Field(21)
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
    CMOW = Field(32)
    MSCEn = Field(33)
    EnFPM = Field(34)
    BT0 = Field(35)
    BT1 = Field(36)
    ITFSB = Field(37)
    TCF0 = Field(39, 38)
    TCF = Field(41, 40)
    ATA0 = Field(42)
    ATA = Field(43)
    DSSBS = Field(44)
    TWEDEn = Field(45)
    TWEDEL = Field(49, 46)
    EnASR = Field(54)
    EnAS0 = Field(55)
    EnALS = Field(56)
    EPAN = Field(57)
    TCSO0 = Field(58)
    TCSO = Field(59)
    EnTP2 = Field(60)
    NMI = Field(61)
    SPINTMASK = Field(62)
    TIDCP = Field(63)


class ACTLR_EL1(Sysreg, enc=(3, 0, 1, 0, 1), vncr=0x118, reset=0, write_mask=0, traps=(RW @ HCR_EL2.TACR,)):
    """Auxiliary Control Register (EL1): no implementation-defined controls."""


class CPACR_EL1(
    Sysreg,
    enc=(3, 0, 1, 0, 2),
    vncr=0x100,
    at_el2="CPTR_EL2",
    el12=True,
    reset=0,
    write_mask=0x0030_0000,
    after={"fp"},
    traps=(RW @ CPTR_EL2.TCPAC,),
):
    """Architectural Feature Access Control Register."""

    ZEN = Field(17, 16)
    FPEN = Field(21, 20)
    SMEN = Field(25, 24)
    TTA = Field(28)
    E0POE = Field(29)


class TTBR0_EL1(Sysreg, enc=(3, 0, 2, 0, 0), vncr=0x200, at_el2="TTBR0_EL2", el12=True, after={"ttbr"}, traps=VM_CONTROL):
    """Translation Table Base Register 0 (EL1)."""

    CnP = Field(0)
    BADDR = Field(47, 1)
    ASID = Field(63, 48)


class TTBR1_EL1(Sysreg, enc=(3, 0, 2, 0, 1), vncr=0x210, at_el2="TTBR1_EL2", el12=True, after={"ttbr"}, traps=VM_CONTROL):
    """Translation Table Base Register 1 (EL1)."""

    CnP = Field(0)
    BADDR = Field(47, 1)
    ASID = Field(63, 48)


class TCR_EL1(
    Sysreg,
    enc=(3, 0, 2, 0, 2),
    vncr=0x120,
    at_el2="TCR_EL2",
    el12=True,
    write_mask=bits(range(6), range(7, 35), range(36, 43), 51, 52, 55, 56, 59),
    after={"mmu"},
    traps=VM_CONTROL,
):
    """Translation Control Register (EL1)."""

    T0SZ = Field(5, 0)
    EPD0 = Field(7)
    IRGN0 = Field(9, 8)
    ORGN0 = Field(11, 10)
    SH0 = Field(13, 12)
    TG0 = Field(15, 14)
    T1SZ = Field(21, 16)
    A1 = Field(22)
    EPD1 = Field(23)
    IRGN1 = Field(25, 24)
    ORGN1 = Field(27, 26)
    SH1 = Field(29, 28)
    TG1 = Field(31, 30)
    IPS = Field(34, 32)
    AS = Field(36)
    TBI0 = Field(37)
    TBI1 = Field(38)
    HA = Field(39)
    HD = Field(40)
    HPD0 = Field(41)
    HPD1 = Field(42)
    HWU0 = Field(46, 43)
    HWU1 = Field(50, 47)
    TBID0 = Field(51)
    TBID1 = Field(52)
    NFD0 = Field(53)
    NFD1 = Field(54)
    E0PD0 = Field(55)
    E0PD1 = Field(56)
    TCMA0 = Field(57)
    TCMA1 = Field(58)
    DS = Field(59)


class ESR_EL1(Sysreg, enc=(3, 0, 5, 2, 0), vncr=0x138, at_el2="ESR_EL2", el12=True, traps=VM_CONTROL):
    """Exception Syndrome Register (EL1)."""

    ISS = Field(24, 0)
    IL = Field(25)
    EC = Field(31, 26)
    ISS2 = Field(55, 32)


class FAR_EL1(Sysreg, enc=(3, 0, 6, 0, 0), vncr=0x220, at_el2="FAR_EL2", el12=True, traps=VM_CONTROL):
    """Fault Address Register (EL1)."""


class AFSR0_EL1(Sysreg, enc=(3, 0, 5, 1, 0), vncr=0x128, at_el2="AFSR0_EL2", el12=True, reset=0, write_mask=0, traps=VM_CONTROL):
    """Auxiliary Fault Status Register 0 (EL1)."""


class AFSR1_EL1(Sysreg, enc=(3, 0, 5, 1, 1), vncr=0x130, at_el2="AFSR1_EL2", el12=True, reset=0, write_mask=0, traps=VM_CONTROL):
    """Auxiliary Fault Status Register 1 (EL1)."""


class MAIR_EL1(Sysreg, enc=(3, 0, 10, 2, 0), vncr=0x140, at_el2="MAIR_EL2", el12=True, after={"mmu"}, traps=VM_CONTROL):
    """Memory Attribute Indirection Register (EL1): eight attribute bytes."""


class AMAIR_EL1(Sysreg, enc=(3, 0, 10, 3, 0), vncr=0x148, at_el2="AMAIR_EL2", el12=True, reset=0, write_mask=0, traps=VM_CONTROL):
    """Auxiliary Memory Attribute Indirection Register (EL1)."""


class CONTEXTIDR_EL1(
    Sysreg, enc=(3, 0, 13, 0, 1), vncr=0x108, at_el2="CONTEXTIDR_EL2", el12=True, write_mask=0xFFFF_FFFF, traps=VM_CONTROL
):
    """Context ID Register (EL1): a process number for debuggers and trace."""


class VBAR_EL1(Sysreg, enc=(3, 0, 12, 0, 0), vncr=0x250, at_el2="VBAR_EL2", el12=True, write_mask=~0x7FF & (1 << 64) - 1):
    """Vector Base Address Register (EL1)."""


class ELR_EL1(Sysreg, enc=(3, 0, 4, 0, 1), vncr=0x230, at_el2="ELR_EL2", el12=True):
    """Exception Link Register (EL1)."""


class SPSR_EL1(Sysreg, enc=(3, 0, 4, 0, 0), vncr=0x160, at_el2="SPSR_EL2", el12=True):
    """Saved Program Status Register (EL1)."""

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


class SP_EL0(Sysreg, enc=(3, 0, 4, 1, 0), read="sp_el0_read", write="sp_el0_write"):
    """Stack Pointer (EL0), as EL1 sees it while it uses its own."""


class PAR_EL1(Sysreg, enc=(3, 0, 7, 4, 0), write_mask=0xFF00_FFFF_FFFF_FFFF):
    """Physical Address Register: the result of an address translation instruction."""

    F = Field(0)
    FST = Field(6, 1)
    SH = Field(8, 7)
    NS = Field(9)
    PA = Field(51, 12)
    ATTR = Field(63, 56)


PAR_EL1_PTW = 1 << 8
PAR_EL1_S = 1 << 9
"""With F=1: the fault is in a stage-1 walk; the fault is of stage 2."""


class ISR_EL1(Sysreg, enc=(3, 0, 12, 1, 0), access="RO", read="isr_read"):
    """Interrupt Status Register: what is pending, masked or not."""

    F = Field(6)
    I = Field(7)
    A = Field(8)


class RVBAR_EL1(Sysreg, enc=(3, 0, 12, 0, 1), access="RO", reset=0, present=lambda features: False):
    """Reset Vector Base Address Register (EL1): absent, because EL1 is not the highest exception level."""


class TPIDR_EL1(Sysreg, enc=(3, 0, 13, 0, 4)):
    """EL1 Software Thread ID Register."""


class TPIDR_EL0(Sysreg, enc=(3, 3, 13, 0, 2)):
    """EL0 Read/Write Software Thread ID Register."""


class TPIDRRO_EL0(Sysreg, enc=(3, 3, 13, 0, 3), write_el=1):
    """EL0 Read-Only Software Thread ID Register."""


class SCXTNUM_EL0(Sysreg, enc=(3, 3, 13, 0, 7), feature="CSV2_2", traps=(RW @ SCTLR_EL1.TSCXT, RW @ ~HCR_EL2.EnSCXT)):
    """EL0 Read/Write Software Context Number."""


class SCXTNUM_EL1(
    Sysreg, enc=(3, 0, 13, 0, 7), vncr=0x188, at_el2="SCXTNUM_EL2", el12=True, feature="CSV2_2", traps=(RW @ ~HCR_EL2.EnSCXT,)
):
    """EL1 Read/Write Software Context Number."""


PAUTH_KEYS = tuple(
    register(
        f"AP{key}Key{half}_EL1",
        f"Pointer authentication key {key}, bits {'63:0' if half == 'Lo' else '127:64'}.",
        (3, 0, 2, crm, op2),
        feature="PAuth",
        traps=(RW @ ~HCR_EL2.APK,),
    )
    for key, crm, first in (("IA", 1, 0), ("IB", 1, 2), ("DA", 2, 0), ("DB", 2, 2), ("GA", 3, 0))
    for op2, half in ((first, "Lo"), (first + 1, "Hi"))
)

LOREGIONS = tuple(
    register(name, "LORegion register.", (3, 0, 10, 4, op2), feature="LOR", reset=0, traps=(RW @ HCR_EL2.TLOR,), **row)
    for name, op2, row in (
        ("LORSA_EL1", 0, {}),
        ("LOREA_EL1", 1, {}),
        ("LORN_EL1", 2, {}),
        ("LORC_EL1", 3, {}),
        ("LORID_EL1", 7, {"access": "RO"}),
    )
)

RAS = tuple(
    register(name, "Error record register.", (3, 0, 5, crm, op2), feature="RAS", reset=0, traps=(RW @ HCR_EL2.TERR,), **row)
    for name, crm, op2, row in (
        ("ERRIDR_EL1", 3, 0, {"access": "RO"}),
        ("ERRSELR_EL1", 3, 1, {}),
        ("ERXFR_EL1", 4, 0, {"access": "RO"}),
        ("ERXCTLR_EL1", 4, 1, {}),
        ("ERXSTATUS_EL1", 4, 2, {}),
        ("ERXADDR_EL1", 4, 3, {}),
        ("ERXMISC0_EL1", 5, 0, {}),
        ("ERXMISC1_EL1", 5, 1, {}),
    )
)


class DISR_EL1(Sysreg, enc=(3, 0, 12, 1, 1), feature="RAS", reset=0):
    """Deferred Interrupt Status Register."""


class RGSR_EL1(Sysreg, enc=(3, 0, 1, 0, 5), feature="MTE2"):
    """Random Allocation Tag Seed Register."""


class GCR_EL1(Sysreg, enc=(3, 0, 1, 0, 6), feature="MTE2"):
    """Tag Control Register."""


class TFSR_EL1(Sysreg, enc=(3, 0, 5, 6, 0), vncr=0x190, feature="MTE2", el12=True):
    """Tag Fault Status Register (EL1)."""


class TFSRE0_EL1(Sysreg, enc=(3, 0, 5, 6, 1), feature="MTE2"):
    """Tag Fault Status Register (EL0)."""


class ZCR_EL1(Sysreg, enc=(3, 0, 1, 2, 0), vncr=0x1E0, at_el2="ZCR_EL2", feature="SVE", el12=True):
    """SVE Control Register (EL1)."""


class TRFCR_EL1(Sysreg, enc=(3, 0, 1, 2, 1), vncr=0x880, feature="TRF", el12=True):
    """Trace Filter Control Register (EL1)."""
