"""`trapline doctor`: what this host offers, which backend would be used, and why."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from trapline.abi.caps import Cap
from trapline.backends.select import DEVICE, X86_MACHINES, choose, open_system, open_x86
from trapline.errors import TraplineError
from trapline.paths import cache_root
from trapline.vmm import guests

LIBRARIES = ("llvmlite", "fdt", "pyelftools", "zstandard", "capstone")
OPTIONAL = {"capstone": "only needed for disassembly in reports"}
TOOLS = {
    "apt-get": "fetches the Debian guest for `make run`",
    "dpkg-deb": "unpacks it",
    "qemu-system-aarch64": "only for `make bench` and tests",
    "qemu-aarch64": "only for tests",
    "aarch64-linux-gnu-gcc": "only for tests",
}
NAME_WIDTH = 22


def print_report() -> int:
    """Print everything; 0 if a guest could run here, else 1."""
    usable = True
    for section, rows in (("host", host()), ("libraries", libraries()), ("KVM", kvm()), ("files", files()), ("tools", tools())):
        print(f"{section}:")
        for name, text, ok in rows:
            usable &= ok
            print(f"  {name:{NAME_WIDTH}} {text}")
    print("ready: a guest can run here" if usable else "not ready: see the lines marked with MISSING")
    return 0 if usable else 1


Row = tuple[str, str, bool]


def host() -> Iterator[Row]:
    """The machine and its Python."""
    supported = sys.version_info >= (3, 11)
    yield "machine", f"{platform.machine()}, {os.cpu_count()} CPUs", True
    yield "kernel", f"{platform.system()} {platform.release()}", True
    yield "python", f"{platform.python_implementation()} {platform.python_version()}" + ("" if supported else " MISSING 3.11"), supported


def libraries() -> Iterator[Row]:
    """Python packages at run time."""
    for name in LIBRARIES:
        try:
            yield name, metadata.version(name), True
        except metadata.PackageNotFoundError:
            hint = OPTIONAL.get(name)
            yield name, f"not installed ({hint})" if hint else "MISSING: run `make setup`", hint is not None


def kvm() -> Iterator[Row]:
    """The device, the choice, and whether it opens."""
    yield DEVICE, describe_device(), True
    choice = choose()
    yield "backend", f"{choice.name}: {choice.reason}", True
    try:
        with open_system(choice.name) as system:
            cpus, ipa = system.check_extension(Cap.MAX_VCPUS), system.check_extension(Cap.ARM_VM_IPA_SIZE)
            yield "opens", f"yes: API version {system.api_version}, up to {cpus} vCPUs, {ipa or 40}-bit guest addresses", True
    except (TraplineError, OSError, ImportError) as error:
        yield "opens", f"MISSING: {error}", False
    if platform.machine() in X86_MACHINES and os.access(DEVICE, os.R_OK | os.W_OK):
        yield from x86_guests()


def x86_guests() -> Iterator[Row]:
    """What x86 guests can have on this host; nothing that an arm64 guest needs."""
    from trapline.backends.x86.probe import abilities

    try:
        with open_x86() as system:
            for name, text in abilities(system):
                yield f"x86 {name}", text, True
    except (TraplineError, OSError) as error:
        yield "x86 guests", f"cannot run here: {error}", True


def describe_device() -> str:
    """What /dev/kvm is here."""
    if not os.path.exists(DEVICE):
        return "not there"
    access = "can be opened" if os.access(DEVICE, os.R_OK | os.W_OK) else "there, but not for this user"
    return f"{access}; runs {platform.machine()} guests"


def files() -> Iterator[Row]:
    """Where things are kept."""
    cache = cache_root()
    parent = next(path for path in (cache, *cache.parents) if path.exists())
    writable = os.access(parent, os.W_OK)
    yield "cache", f"{cache}" + ("" if writable else " MISSING: not writable, set XDG_CACHE_HOME"), writable
    yield "Debian guest", "ready" if guests.is_ready() else "not fetched yet (`make run` does it)", True


def tools() -> Iterator[Row]:
    """Programs that some commands use."""
    for name, purpose in TOOLS.items():
        yield name, shutil.which(name) or f"not found ({purpose})", True
