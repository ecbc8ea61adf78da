"""What tests of x86 guests share: whether there can be any, and code in their memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from trapline import x86

HERE = platform.machine() == "x86_64" and os.access("/dev/kvm", os.R_OK | os.W_OK)
needs_x86_kvm = pytest.mark.skipif(not HERE, reason="NOT TESTED: /dev/kvm of an x86-64 host cannot be opened here")


EMULATES = Path("/sys/module/kvm_pvm").exists()
"""Whether this host's KVM is one without hardware support, which emulates most of what a guest does and lacks some of it."""


def place(vm: x86.X86Vm, address: int, code: str) -> None:
    """Write bytes, given in hexadecimal, into the memory at 0."""
    data = bytes.fromhex(code)
    vm.memory[0][address : address + len(data)] = data
