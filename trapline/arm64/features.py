"""Architecture features: which exist here, which a machine has, and the ID register values that follow.

Two words for two facts: a feature is *implemented* when this program can do it, and *enabled* when a machine shows it to its
software. What is not enabled is absent from the ID registers and UNDEFINED. Names are the manual's without the FEAT_ prefix;
lookups accept both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trapline.arm64.regs import identification as idreg
from trapline.arm64.regs.identification import (
    ID_AA64DFR0_EL1,
    ID_AA64ISAR0_EL1,
    ID_AA64ISAR1_EL1,
    ID_AA64ISAR2_EL1,
    ID_AA64MMFR0_EL1,
    ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1,
    ID_AA64PFR0_EL1,
    ID_AA64PFR1_EL1,
)
from trapline.arm64.sysreg import Sysreg, Unknown
from trapline.errors import NotSupported, TableError
from trapline.registers import Field

IdValue = tuple[Field, int]


@dataclass(frozen=True)
class Feature:
    """One FEAT_ name: what it shows in the ID registers, what it needs, and whether this program has it."""

    name: str
    doc: str
    shows: tuple[IdValue, ...] = ()
    requires: tuple[str, ...] = ()
    implemented: bool = True
    default: bool = True
    instead: tuple[str, ...] = ()
    """Features that a machine cannot have besides this one."""


def _absent(name: str, doc: str, *shows: IdValue, requires: tuple[str, ...] = ()) -> Feature:
    """A feature that is declared so that its registers and instructions have an owner, and does not work."""
    return Feature(name, doc, shows, requires, implemented=False, default=False)


def _choice(
    name: str, doc: str, *shows: IdValue, requires: tuple[str, ...] = (), instead: tuple[str, ...] = ()
) -> Feature:
    """A feature that works, and that a machine has only if asked for."""
    return Feature(name, doc, shows, requires, default=False, instead=instead)


PAUTH_LEVELS = {"EPAC": 2, "PAuth2": 3, "FPAC": 4, "FPACCOMBINE": 5}
"""What the field of the algorithm for addresses shows with these features."""

FEATURES: tuple[Feature, ...] = (
    Feature("FP", "Floating point"),
    Feature("AdvSIMD", "Advanced SIMD", requires=("FP",)),
    Feature("AES", "AESE, AESD and their column mixing", ((ID_AA64ISAR0_EL1.AES, 1),), ("AdvSIMD",)),
    Feature("PMULL", "64-bit polynomial multiplication", ((ID_AA64ISAR0_EL1.AES, 2),), ("AES",)),
    Feature("SHA1", "SHA-1 instructions", ((ID_AA64ISAR0_EL1.SHA1, 1),), ("AdvSIMD",)),
    Feature("SHA256", "SHA-256 instructions", ((ID_AA64ISAR0_EL1.SHA2, 1),), ("AdvSIMD", "SHA1")),
    Feature("CRC32", "CRC32 and CRC32C", ((ID_AA64ISAR0_EL1.CRC32, 1),)),
    Feature("LSE", "Atomic memory instructions", ((ID_AA64ISAR0_EL1.Atomic, 2),)),
    Feature("LSE2", "Single-copy atomic unaligned accesses within 16 bytes", ((ID_AA64MMFR2_EL1.AT, 1),), ("LSE",)),
    Feature("FlagM", "Condition flag manipulation", ((ID_AA64ISAR0_EL1.TS, 1),)),
    Feature("PAuth", "Pointer authentication; the algorithm, which is another feature, shows it"),
    Feature(
        "PACIMP",
        "Pointer authentication by an implementation defined algorithm, which is quick",
        ((ID_AA64ISAR1_EL1.API, 1), (ID_AA64ISAR1_EL1.GPI, 1)),
        ("PAuth",),
        instead=("PACQARMA5", "PACQARMA3"),
    ),
    _choice(
        "PACQARMA5",
        "Pointer authentication by QARMA5",
        (ID_AA64ISAR1_EL1.APA, 1),
        (ID_AA64ISAR1_EL1.GPA, 1),
        requires=("PAuth",),
        instead=("PACIMP", "PACQARMA3"),
    ),
    _choice(
        "PACQARMA3",
        "Pointer authentication by QARMA3",
        (ID_AA64ISAR2_EL1.APA3, 1),
        (ID_AA64ISAR2_EL1.GPA3, 1),
        requires=("PAuth",),
        instead=("PACIMP", "PACQARMA5"),
    ),
    _choice("EPAC", "A pointer with high bits is signed with zero", requires=("PAuth",), instead=("PAuth2",)),
    _choice("PAuth2", "A pointer's high bits take part in its code", requires=("PAuth",), instead=("EPAC",)),
    _choice("FPAC", "A check that fails is an exception", requires=("PAuth2",)),
    _choice("FPACCOMBINE", "Also where it is part of a branch or load", requires=("FPAC",)),
    Feature("PAN", "Privileged access never", ((ID_AA64MMFR1_EL1.PAN, 1),)),
    Feature("PAN2", "AT S1E1RP and S1E1WP", ((ID_AA64MMFR1_EL1.PAN, 2),), ("PAN",)),
    Feature("VHE", "Virtualization host extensions", ((ID_AA64MMFR1_EL1.VH, 1),), ("CONTEXTIDR_EL2",)),
    Feature("CONTEXTIDR_EL2", "CONTEXTIDR_EL2 exists"),
    Feature("VMID16", "16-bit VMIDs", ((ID_AA64MMFR1_EL1.VMIDBits, 2),)),
    Feature("HPDS", "Hierarchical permissions can be disabled", ((ID_AA64MMFR1_EL1.HPDS, 1),)),
    Feature("E0PD", "EL0 accesses to half of the address space fault", ((ID_AA64MMFR2_EL1.E0PD, 1),)),
    Feature("PAN3", "PAN for user-executable memory", ((ID_AA64MMFR1_EL1.PAN, 3),), ("PAN2",)),
    Feature("HAF", "Hardware update of the access flag", ((ID_AA64MMFR1_EL1.HAFDBS, 1),)),
    Feature("HAFDBS", "Hardware update of access flag and dirty state", ((ID_AA64MMFR1_EL1.HAFDBS, 2),), ("HAF",)),
    Feature("XNX", "Execute-never per exception level at stage 2", ((ID_AA64MMFR1_EL1.XNX, 1),)),
    Feature("CnP", "Common not private translations", ((ID_AA64MMFR2_EL1.CnP, 1),)),
    Feature("LPA", "52-bit physical addresses with 64 KiB pages", ((ID_AA64MMFR0_EL1.PARange, 6),)),
    Feature("LVA", "52-bit virtual addresses with 64 KiB pages", ((ID_AA64MMFR2_EL1.VARange, 1),)),
    Feature(
        "LPA2",
        "52-bit addresses with 4 and 16 KiB pages",
        (
            (ID_AA64MMFR0_EL1.TGran4, 1),
            (ID_AA64MMFR0_EL1.TGran16, 2),
            (ID_AA64MMFR0_EL1.TGran4_2, 3),
            (ID_AA64MMFR0_EL1.TGran16_2, 3),
        ),
        ("LPA", "LVA", "GTG"),
    ),
    Feature("TTST", "Small translation tables", ((ID_AA64MMFR2_EL1.ST, 1),)),
    Feature("S2FWB", "Stage 2 forces write-back", ((ID_AA64MMFR2_EL1.FWB, 1),)),
    Feature("BBM", "Block sizes may change without break-before-make", ((ID_AA64MMFR2_EL1.BBM, 2),)),
    Feature("nTLBPA", "No cached walks by physical address", ((ID_AA64MMFR1_EL1.nTLBPA, 1),)),
    Feature("TLBIOS", "Outer shareable TLB invalidation", ((ID_AA64ISAR0_EL1.TLB, 1),)),
    Feature("TLBIRANGE", "TLB invalidation by range", ((ID_AA64ISAR0_EL1.TLB, 2),), ("TLBIOS",)),
    Feature("TTL", "TLB invalidation takes level hints", ((ID_AA64MMFR2_EL1.TTL, 1),)),
    Feature(
        "GTG",
        "Stage 2 granule sizes are reported separately",
        ((ID_AA64MMFR0_EL1.TGran4_2, 2), (ID_AA64MMFR0_EL1.TGran16_2, 2), (ID_AA64MMFR0_EL1.TGran64_2, 2)),
    ),
    Feature("CSV2", "Branch predictions of one context do not serve another", ((ID_AA64PFR0_EL1.CSV2, 1),)),
    Feature("CSV2_2", "Software context numbers", ((ID_AA64PFR0_EL1.CSV2, 2),), ("CSV2",)),
    Feature("CSV2_3", "Branch history is part of the context", ((ID_AA64PFR0_EL1.CSV2, 3),), ("CSV2_2",)),
    Feature("CSV3", "Data behind a faulting load is never used", ((ID_AA64PFR0_EL1.CSV3, 1),)),
    Feature("GICv3", "System register interface to the interrupt controller", ((ID_AA64PFR0_EL1.GIC, 1),)),
    Feature("SB", "Speculation barrier", ((ID_AA64ISAR1_EL1.SB, 1),)),
    Feature("DIT", "Data independent timing", ((ID_AA64PFR0_EL1.DIT, 1),)),
    Feature("SSBS", "Speculative store bypass safe", ((ID_AA64PFR1_EL1.SSBS, 1),)),
    Feature("SSBS2", "MSR and MRS reach PSTATE.SSBS", ((ID_AA64PFR1_EL1.SSBS, 2),), ("SSBS",)),
    Feature("UAO", "User access override", ((ID_AA64MMFR2_EL1.UAO, 1),)),
    Feature("DPB", "DC CVAP", ((ID_AA64ISAR1_EL1.DPB, 1),)),
    Feature("DPB2", "DC CVADP", ((ID_AA64ISAR1_EL1.DPB, 2),), ("DPB",)),
    Feature("FP16", "Half-precision arithmetic", ((ID_AA64PFR0_EL1.FP, 1), (ID_AA64PFR0_EL1.AdvSIMD, 1)), ("AdvSIMD",)),
    Feature("SHA512", "SHA-512 instructions", ((ID_AA64ISAR0_EL1.SHA2, 2),), ("SHA256",)),
    Feature("SHA3", "SHA-3 instructions", ((ID_AA64ISAR0_EL1.SHA3, 1),), ("SHA512",)),
    Feature("SM3", "SM3 instructions", ((ID_AA64ISAR0_EL1.SM3, 1),), ("AdvSIMD",)),
    Feature("SM4", "SM4 instructions", ((ID_AA64ISAR0_EL1.SM4, 1),), ("AdvSIMD",)),
    Feature("RDM", "Rounding doubling multiply accumulate", ((ID_AA64ISAR0_EL1.RDM, 1),), ("AdvSIMD",)),
    Feature("DotProd", "Dot product", ((ID_AA64ISAR0_EL1.DP, 1),), ("AdvSIMD",)),
    Feature("FHM", "Half-precision multiply accumulate to single", ((ID_AA64ISAR0_EL1.FHM, 1),), ("FP16",)),
    Feature("FlagM2", "Flag format conversions", ((ID_AA64ISAR0_EL1.TS, 2),), ("FlagM",)),
    Feature("RNG", "Random numbers", ((ID_AA64ISAR0_EL1.RNDR, 1),)),
    Feature("JSCVT", "JavaScript conversion", ((ID_AA64ISAR1_EL1.JSCVT, 1),), ("FP",)),
    Feature("FCMA", "Complex arithmetic", ((ID_AA64ISAR1_EL1.FCMA, 1),), ("AdvSIMD",)),
    Feature("LRCPC", "Load-acquire RCpc", ((ID_AA64ISAR1_EL1.LRCPC, 1),)),
    Feature("LRCPC2", "Load-acquire RCpc and store-release with offsets", ((ID_AA64ISAR1_EL1.LRCPC, 2),), ("LRCPC",)),
    Feature("CSSC", "Common short sequence compression: ABS, CNT, CTZ, maximum, minimum", ((ID_AA64ISAR2_EL1.CSSC, 1),)),
    Feature("WFxT", "WFET and WFIT", ((ID_AA64ISAR2_EL1.WFxT, 2),)),
    Feature("FRINTTS", "Rounding to 32 and 64-bit integers", ((ID_AA64ISAR1_EL1.FRINTTS, 1),), ("FP",)),
    _absent("SPECRES", "Prediction restriction", (ID_AA64ISAR1_EL1.SPECRES, 1)),
    Feature("BF16", "BFloat16", ((ID_AA64ISAR1_EL1.BF16, 1),), ("AdvSIMD",)),
    Feature("I8MM", "Int8 matrix multiplication", ((ID_AA64ISAR1_EL1.I8MM, 1),), ("AdvSIMD",)),
    _absent("RAS", "Reliability, availability and serviceability", (ID_AA64PFR0_EL1.RAS, 1)),
    _absent("SVE", "Scalable vectors", (ID_AA64PFR0_EL1.SVE, 1)),
    _absent("SME", "Scalable matrices", (ID_AA64PFR1_EL1.SME, 1)),
    Feature("BTI", "Branch target identification", ((ID_AA64PFR1_EL1.BT, 1),)),
    _absent("MTE", "Memory tagging instructions", (ID_AA64PFR1_EL1.MTE, 1)),
    _absent("MTE2", "Memory tagging", (ID_AA64PFR1_EL1.MTE, 2), requires=("MTE",)),
    _absent("AA32EL1", "AArch32 at EL1", (ID_AA64PFR0_EL1.EL1, 2)),
    _absent("LOR", "Limited ordering regions", (ID_AA64MMFR1_EL1.LO, 1)),
    Feature("HCX", "HCRX_EL2", ((ID_AA64MMFR1_EL1.HCX, 1),)),
    Feature("MOPS", "Memory copy and memory set", ((ID_AA64ISAR2_EL1.MOPS, 1),), ("HCX",)),
    _absent("NV2", "Nested virtualization with register redirection", (ID_AA64MMFR2_EL1.NV, 2)),
    _absent("IDST", "Feature ID traps are reported with a syndrome", (ID_AA64MMFR2_EL1.IDS, 1)),
    _absent("EVT", "Finer traps of cache and TLB maintenance", (ID_AA64MMFR2_EL1.EVT, 2)),
    Feature("FGT", "Fine-grained traps", ((ID_AA64MMFR0_EL1.FGT, 1),), default=False),
    Feature("ECV", "Self-synchronizing counters", ((ID_AA64MMFR0_EL1.ECV, 1),)),
    Feature("ECV_POFF", "Physical counter offset", ((ID_AA64MMFR0_EL1.ECV, 2),), ("ECV",), default=False),
    _absent("PMUv3", "Performance monitors", (ID_AA64DFR0_EL1.PMUVer, 1)),
    _absent("TRF", "Trace filter controls", (ID_AA64DFR0_EL1.TraceFilt, 1)),
)

BASE: tuple[IdValue, ...] = (
    (ID_AA64PFR0_EL1.EL0, 1),
    (ID_AA64PFR0_EL1.EL1, 1),
    (ID_AA64PFR0_EL1.EL2, 1),
    (ID_AA64DFR0_EL1.DebugVer, 9),
    (ID_AA64DFR0_EL1.CTX_CMPs, 1),
    (ID_AA64DFR0_EL1.DoubleLock, 0xF),
    (ID_AA64MMFR0_EL1.PARange, 5),
    (ID_AA64MMFR0_EL1.ASIDBits, 2),
    (ID_AA64MMFR0_EL1.TGran16, 1),
)
"""What every machine shows: AArch64 at EL0 to EL2, Armv8.4 debug, 48-bit addresses, 16-bit ASIDs, all three granules."""

WITHOUT: dict[str, tuple[IdValue, ...]] = {
    "FP": ((ID_AA64PFR0_EL1.FP, 0xF),),
    "AdvSIMD": ((ID_AA64PFR0_EL1.AdvSIMD, 0xF),),
}
"""ID values that say a feature is missing, where zero would say it is there."""

CACHE_LINE_LOG2_WORDS = 4
"""Cache lines have 16 words, 64 bytes."""

ZERO_BLOCK_LOG2_WORDS = 4
"""DC ZVA clears 16 words, one cache line: some memset routines use it only then."""

FIXED: dict[type[Sysreg], int] = {
    idreg.MIDR_EL1: idreg.MIDR_EL1(Implementer=0, Variant=0, Architecture=0xF, PartNum=0x7A1, Revision=0),
    idreg.CTR_EL0: idreg.CTR_EL0(
        IminLine=CACHE_LINE_LOG2_WORDS,
        L1Ip=3,
        DminLine=CACHE_LINE_LOG2_WORDS,
        ERG=CACHE_LINE_LOG2_WORDS,
        CWG=CACHE_LINE_LOG2_WORDS,
        IDC=1,
        DIC=0,
        RES1=1,
    ),
    idreg.DCZID_EL0: idreg.DCZID_EL0(BS=ZERO_BLOCK_LOG2_WORDS),
    idreg.CLIDR_EL1: idreg.CLIDR_EL1(Ctype1=3, Ctype2=4, LoC=2),
}
"""Identification that no feature changes. The implementer code 0 is reserved for software, so that no erratum matches; data
caches need no cleaning before instructions are fetched (IDC)."""

CACHE_SIZES: tuple[int, ...] = (
    idreg.CCSIDR_EL1(LineSize=2, Associativity=3, NumSets=127),
    idreg.CCSIDR_EL1(LineSize=2, Associativity=3, NumSets=127),
    idreg.CCSIDR_EL1(LineSize=2, Associativity=7, NumSets=1023),
)
"""CCSIDR_EL1 by CSSELR_EL1 (level << 1 | instruction): 32 KiB L1 data and instruction, 512 KiB unified L2."""


def _plain(name: str) -> str:
    return name.removeprefix("FEAT_")


BY_NAME: dict[str, Feature] = {feature.name: feature for feature in FEATURES}

for _feature in FEATURES:
    if unknown := set(_feature.requires) - BY_NAME.keys():
        raise TableError(f"FEAT_{_feature.name} requires {unknown}, which nobody declares")


def supported(name: str) -> bool:
    """Can this program do the feature at all?"""
    feature = BY_NAME.get(_plain(name))
    return feature is not None and feature.implemented


class Features:
    """The features of one machine: immutable, hashable, `"LSE" in features`."""

    def __init__(self, names: Iterable[str] | None = None, *, breakpoints: int = 6, watchpoints: int = 4) -> None:
        """All default features, or those named; NotSupported for one that is not implemented or lacks what it requires."""
        wanted = {f.name for f in FEATURES if f.default} if names is None else {_plain(name) for name in names}
        for name in sorted(wanted):
            if not supported(name):
                raise NotSupported(f"FEAT_{name} is not implemented")
            if missing := [other for other in BY_NAME[name].requires if other not in wanted]:
                raise NotSupported(f"FEAT_{name} requires FEAT_{missing[0]}")
            if rivals := [other for other in BY_NAME[name].instead if other in wanted]:
                raise NotSupported(f"FEAT_{name} cannot be had together with FEAT_{rivals[0]}")
        self.names = frozenset(wanted)
        self.breakpoints = breakpoints
        self.watchpoints = watchpoints

    def __contains__(self, name: object) -> bool:
        """Has the machine this feature, or all of those that " & " joins?"""
        return isinstance(name, str) and all(_plain(part) in self.names for part in name.split(" & "))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Features) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        """Everything that makes this machine another one: compiled code is kept by this text."""
        return f"Features({', '.join(self)}, breakpoints={self.breakpoints}, watchpoints={self.watchpoints})"

    @property
    def _key(self) -> tuple[frozenset[str], int, int]:
        return self.names, self.breakpoints, self.watchpoints

    def with_(self, *names: str) -> Features:
        """The same machine with more features."""
        return Features(self.names | {_plain(n) for n in names}, breakpoints=self.breakpoints, watchpoints=self.watchpoints)

    def without(self, *names: str) -> Features:
        """The same machine without some features and whatever requires them."""
        gone = {_plain(name) for name in names}
        while more := {name for name in self.names - gone if gone & set(BY_NAME[name].requires)}:
            gone |= more
        return Features(self.names - gone, breakpoints=self.breakpoints, watchpoints=self.watchpoints)

    def id_values(self) -> dict[type[Sysreg], int]:
        """The value of every ID register that is not zero."""
        shown = dict(BASE)
        for name in self.names:
            for field, value in BY_NAME[name].shows:
                shown[field] = max(shown.get(field, 0), value)
        level = max((PAUTH_LEVELS[name] for name in self.names & PAUTH_LEVELS.keys()), default=1)
        for field in (ID_AA64ISAR1_EL1.API, ID_AA64ISAR1_EL1.APA, ID_AA64ISAR2_EL1.APA3):
            if field in shown:
                shown[field] = level
        for name, values in WITHOUT.items():
            if name not in self.names:
                shown.update(values)
        shown[ID_AA64DFR0_EL1.BRPs] = self.breakpoints - 1
        shown[ID_AA64DFR0_EL1.WRPs] = self.watchpoints - 1
        result: dict[type[Sysreg], int] = dict(FIXED)
        for field, value in shown.items():
            owner = field.owner
            assert owner is not None and issubclass(owner, Sysreg)
            result[owner] = field.insert(result.get(owner, 0), value)
        return result

    def reset_values(self) -> dict[type[Sysreg], int]:
        """What every register that exists holds after reset."""
        from trapline.arm64.regs import TABLE
        from trapline.arm64.regs.optional import absent_bits

        values = {reg: reg.reset_value() for reg in TABLE if reg.alias is None and reg.exists(self)}
        for reg in values:
            if isinstance(reg.reset, Unknown):
                values[reg] &= ~absent_bits(reg, self)
        return values | dict.fromkeys(idreg.ID_REGISTERS, 0) | self.id_values()
