"""Processors by name: `-lse,-pauth` is everything that works here but for two features.

A description is a comma list: an optional base (`max`, which is understood, `armv8.0` and so on), then `+name` to add a feature and `-name`
to remove one, each with what it requires or what requires it. Features have the names that Linux shows in /proc/cpuinfo, the
manual's names without FEAT_ in any case, and a few that QEMU uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from trapline.arm64.features import BY_NAME, FEATURES, Features
from trapline.errors import BadInput, TableError

HWCAPS: Mapping[str, str] = MappingProxyType(
    {
        "asimd": "AdvSIMD", "neon": "AdvSIMD", "sha2": "SHA256", "atomics": "LSE", "uscat": "LSE2", "fphp": "FP16",
        "asimdhp": "FP16", "asimdrdm": "RDM", "asimddp": "DotProd", "asimdfhm": "FHM", "ilrcpc": "LRCPC2", "dcpop": "DPB",
        "dcpodp": "DPB2", "paca": "PAuth", "pacg": "PAuth", "frint": "FRINTTS", "epan": "PAN3", "qarma5": "PACQARMA5",
        "qarma3": "PACQARMA3", "pauth-impdef": "PACIMP", "pauth-qarma5": "PACQARMA5", "pauth-qarma3": "PACQARMA3",
    }
)  # fmt: skip
"""Other names of features: those of Linux (Documentation/arch/arm64/elf_hwcaps.rst) and QEMU that are not the manual's."""

ALWAYS = frozenset({"FP", "AdvSIMD", "GICv3", "GTG", "CONTEXTIDR_EL2"})
"""Features that every machine has: nothing here is made to work without them."""

ARCHITECTURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("armv8.0", (*sorted(ALWAYS), "CSV2", "CSV3")),
    ("armv8.1", ("CRC32", "LSE", "RDM", "PAN", "VHE", "VMID16", "HPDS", "HAF", "HAFDBS", "LOR")),
    ("armv8.2", ("PAN2", "UAO", "DPB", "CnP", "XNX")),
    ("armv8.3", ("PAuth", "PACIMP", "JSCVT", "FCMA", "LRCPC")),
    ("armv8.4", ("LSE2", "FlagM", "DIT", "LRCPC2", "DotProd", "TLBIOS", "TLBIRANGE", "TTL", "TTST", "S2FWB", "IDST", "RAS", "TRF")),
    ("armv8.5", ("FlagM2", "FRINTTS", "SB", "SSBS", "SSBS2", "BTI", "DPB2", "E0PD", "CSV2_2", "CSV2_3", "SPECRES", "EVT")),
    ("armv8.6", ("BF16", "I8MM", "ECV", "FGT")),
    ("armv8.7", ("WFxT", "HCX", "PAN3")),
    ("armv8.8", ("MOPS",)),
    ("armv8.9", ("CSSC",)),
)
"""What each version of the architecture adds that it asks for; extensions that it leaves open are not among them. A version of this
program has those that work in it. Speculation safety (CSV2, CSV3) and the description of granules are in all."""

if unknown := {name for _, names in ARCHITECTURES for name in names} - BY_NAME.keys():
    raise TableError(f"architecture versions ask for {sorted(unknown)}, which nobody declares")


def _bases() -> dict[str, frozenset[str]]:
    implemented = {f.name for f in FEATURES if f.implemented}
    found = {"max": frozenset(f.name for f in FEATURES if f.default)}
    so_far: set[str] = set()
    for version, names in ARCHITECTURES:
        so_far |= implemented & set(names)
        found[version] = frozenset(so_far)
    return found


BASES: Mapping[str, frozenset[str]] = MappingProxyType(_bases())
"""Sets of features to start from."""

ALGORITHMS = frozenset({"PACIMP", *BY_NAME["PACIMP"].instead})
"""Pointer authentication is there with one of these; the first unless said otherwise."""

NAMES: Mapping[str, str] = MappingProxyType(
    {f.name.lower(): f.name for f in FEATURES if f.implemented}
    | {alias: name for alias, name in HWCAPS.items() if BY_NAME[name].implemented}
)
"""Feature by the names that a description may use."""


def parse(description: str) -> Features:
    """The features that a description gives a machine; BadInput, in one line, for a name that is not one."""
    words = [word.strip() for word in description.split(",") if word.strip()]
    chosen = set(BASES["max"])
    if words and words[0][0] not in "+-":
        base = words.pop(0)
        if base.lower() not in BASES:
            raise BadInput(f"no CPU is called {base!r}: start with {', '.join(BASES)}, or +NAME, or -NAME")
        chosen = set(BASES[base.lower()])
    for word in words:
        name = NAMES.get(word[1:].lower().removeprefix("feat_"))
        if word[0] not in "+-" or name is None:
            raise BadInput(f"{word!r} is not + or - and one of: {', '.join(sorted(NAMES))}")
        if word[0] == "-" and name in ALWAYS:
            raise BadInput(f"{word!r}: every machine has FEAT_{name}")
        chosen = _with(chosen, name) if word[0] == "+" else _without(chosen, name)
        if word[0] == "+" and name == "PAuth" and not chosen & ALGORITHMS:
            chosen.add("PACIMP")
    if not chosen & ALGORITHMS:
        chosen = _without(chosen, "PAuth")
    return Features(chosen)


def _with(chosen: Iterable[str], name: str) -> set[str]:
    """A feature, what it requires, and not what it stands instead of."""
    result = set(chosen)
    for other in BY_NAME[name].instead:
        result = _without(result, other)
    for other in BY_NAME[name].requires:
        result = _with(result, other)
    return result | {name}


def _without(chosen: Iterable[str], name: str) -> set[str]:
    """No such feature, and none that requires it."""
    result = set(chosen) - {name}
    for other in sorted(result):
        if name in BY_NAME[other].requires:
            result = _without(result, other)
    return result
