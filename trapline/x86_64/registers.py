"""Control registers, EFER and RFLAGS as bit fields, under the manuals' names."""

from __future__ import annotations

from trapline.registers import Field, Register


class Cr0(Register, width=64):
    """Protection, paging and the FPU."""

    PE = Field(0)  # protected mode
    MP = Field(1)
    EM = Field(2)
    TS = Field(3)
    ET = Field(4)  # always 1
    NE = Field(5)
    WP = Field(16)  # the supervisor obeys read-only pages
    AM = Field(18)
    NW = Field(29)
    CD = Field(30)
    PG = Field(31)  # paging


class Cr4(Register, width=64):
    """Extensions that software has to ask for."""

    VME = Field(0)
    PVI = Field(1)
    TSD = Field(2)
    DE = Field(3)
    PSE = Field(4)  # 4 MiB pages
    PAE = Field(5)  # entries of 64 bits
    MCE = Field(6)
    PGE = Field(7)
    PCE = Field(8)
    OSFXSR = Field(9)  # SSE
    OSXMMEXCPT = Field(10)
    UMIP = Field(11)
    LA57 = Field(12)
    VMXE = Field(13)
    FSGSBASE = Field(16)
    PCIDE = Field(17)
    OSXSAVE = Field(18)
    SMEP = Field(20)
    SMAP = Field(21)
    PKE = Field(22)


class Efer(Register, width=64):
    """The extended feature enable register, MSR 0xc0000080."""

    SCE = Field(0)  # SYSCALL
    LME = Field(8)  # long mode, once paging is on
    LMA = Field(10)  # long mode is active
    NXE = Field(11)  # no-execute pages
    SVME = Field(12)
    FFXSR = Field(14)


class Rflags(Register, width=64):
    """Flags. Bit 1 is always 1."""

    CF = Field(0)
    FIXED = Field(1)
    PF = Field(2)
    AF = Field(4)
    ZF = Field(6)
    SF = Field(7)
    TF = Field(8)
    IF = Field(9)
    DF = Field(10)
    OF = Field(11)
    IOPL = Field(13, 12)
    NT = Field(14)
    RF = Field(16)
    VM = Field(17)
    AC = Field(18)
    VIF = Field(19)
    VIP = Field(20)
    ID = Field(21)


RFLAGS_RESET = int(Rflags(FIXED=1))
