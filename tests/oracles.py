"""What the programs that tests compare instructions with know of the features here. A feature that is new is made known to them here.

They are Debian 12's binutils and LLVM 14, Capstone, and the CPUs of QEMU and Unicorn.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

GNU_ARCH = "armv8.7-a+fp16+crypto+sha3+sm4+rng+cssc+mops"
"""The default machine, in the words of GNU as; objdump needs none."""

LLVM_FEATURES = (
    "+fp-armv8,+neon,+crc,+lse,+aes,+sha2,+pauth,+flagm,+sb,+pan,+pan-rwv,+vh,+el3,+rcpc,+rcpc-immo,+altnzcv,+wfxt,+rand,+ccpp,+ccdp"
    ",+bti,+dit,+ssbs,+uaops,+mops,+rdm,+dotprod,+fullfp16,+fp16fml,+bf16,+i8mm,+complxnum,+jsconv,+fptoint,+sha3,+sm4"
)
"""What `Features()` has, in LLVM's words; `el3` for SMC."""

LACKED_BY: Mapping[str, frozenset[str]] = MappingProxyType(
    {"FEAT_CSSC": frozenset({"llvm", "capstone"}), "FEAT_BF16": frozenset({"unicorn"}), "FEAT_I8MM": frozenset({"unicorn"})}
)
"""Features that some of them do not know at all: "objdump" (and GNU as), "llvm", "capstone" or "unicorn"."""

RUN_BY_NOBODY: Mapping[str, str] = MappingProxyType({"FEAT_CSSC": "tests/test_isa_cssc", "FEAT_MOPS": "tests/test_mops"})
"""Features that neither QEMU nor Unicorn executes, and which test does what comparing with them would."""


def knows(program: str, feature: str | None) -> bool:
    """Whether a program knows the instructions that name this feature, or features that " & " joins."""
    return not any(program in LACKED_BY.get(part, ()) for part in (feature or "").split(" & "))


def executes(program: str, feature: str | None) -> bool:
    """Whether a program executes them."""
    return feature not in RUN_BY_NOBODY and knows(program, feature)
