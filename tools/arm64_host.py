"""Trapline on an arm64 host that has KVM, where there is none: `python tools/arm64_host.py`.

QEMU emulates an arm64 machine with EL2, Debian's kernel on it offers /dev/kvm, and Python there runs this tree's `trapline run --backend
kvm`, which boots Debian's kernel a second time as its guest. Debian's arm64 packages (Python, about 25 MB) are fetched with apt-get into
the cache, like those of `make run`. Everything is emulated, so it takes minutes.

What is said after -- is run instead, in /root of the host: `python tools/arm64_host.py -- python3 -m trapline doctor`, or
`-- python3 -m tests.conformance --backend kvm`, which asks Linux's own KVM what the software machine is tested for.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from trapline.paths import cache_root
from trapline.vmm.guests import PrivateApt, prepare, run, say, write_atomically
from trapline.vmm.initramfs import Cpio

TREE = Path(__file__).resolve().parent.parent
PACKAGES = ("python3-minimal", "python3-pyelftools", "python3-zstandard")
NEEDLESS = {"dpkg", "tar", "libdb5.3", "media-types", "libsqlite3-0", "libkrb5-3", "libgssapi-krb5-2", "libselinux1"}
"""What apt adds for the sake of a whole system."""

PURE_PYTHON = ("fdt",)
"""Libraries without compiled code that Debian does not have: copied from this environment."""

SKIPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n")
SOURCES = ("trapline", "tests/conformance")
GUEST_COMMAND = (
    "python3 -m trapline run --backend kvm --mem 256M --timeout 600 "
    "--kernel /root/vmlinuz --initrd /root/guest.cpio --params 'console=ttyAMA0 run=\"uname -a\"'"
)
MACHINE = ["-M", "virt,virtualization=on,gic-version=GIC", "-cpu", "max,pauth-impdef=on,sve=off,sme=off", "-smp", "2", "-m", "2G"]
INIT = """#!/bin/busybox sh
export PATH=/usr/bin:/bin:/sbin:/usr/sbin HOME=/root PYTHONDONTWRITEBYTECODE=1
/bin/busybox --install -s /sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
cd /root
echo "host: $(uname -r), /dev/kvm $(test -c /dev/kvm && echo is there || echo is missing)"
{command}
echo "HOST: STATUS=$?"
poweroff -f
"""


def packages(apt: PrivateApt) -> list[str]:
    """What Python needs, by the package manager's own resolution."""
    result = run(["apt-get", "install", "--simulate", "--yes", "--no-install-recommends", *PACKAGES], apt.environment)
    names = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("Inst ")]
    return [name for name in names if name not in NEEDLESS]


def fetch(home: Path) -> Path:
    """The root directory of the host's Python, unpacked once."""
    root, work = home / "root", home / "work"
    if root.exists():
        return root
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    apt = PrivateApt(cache_root() / "guests" / "debian" / "apt")
    say("fetching Python for arm64 (once, about 25 MB)")
    for name in packages(apt):
        run(["dpkg-deb", "-x", str(apt.download(name, work)), str(work / "root")])
    (work / "root").rename(root)
    shutil.rmtree(work)
    return root


def files_of(top: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a directory, by the path it is to have."""
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top).as_posix()
        if not name.startswith(SKIPPED) and "__pycache__" not in name and (path.is_symlink() or path.is_file()):
            yield name, path


def build(root: Path, command: str, files: list[Path]) -> bytes:
    """The host's initial ramdisk: Debian's Python, this tree, the guest, and an init that runs the command."""
    guest = prepare()
    archive = Cpio()
    for name in ("proc", "sys", "dev", "tmp", "sbin", "root/.cache"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", (cache_root() / "guests" / "debian" / "busybox").read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    for name, path in files_of(root):
        if path.is_symlink():
            archive.symlink(name, path.readlink().as_posix())
        else:
            archive.file(name, path.read_bytes(), path.stat().st_mode & 0o777)
    for top in SOURCES:
        for name, path in files_of(TREE / top):
            archive.file(f"root/{top}/{name}", path.read_bytes())
    for library in PURE_PYTHON:
        spec = find_spec(library)
        assert spec is not None and spec.submodule_search_locations
        for name, path in files_of(Path(spec.submodule_search_locations[0])):
            archive.file(f"root/{library}/{name}", path.read_bytes())
    for path in files:
        archive.file(f"root/{path.name}", path.read_bytes())
    archive.file("root/vmlinuz", guest.kernel.read_bytes())
    archive.file("root/guest.cpio", guest.initrd.read_bytes())
    archive.file("init", INIT.replace("{command}", command).encode(), 0o755)
    return archive.finish()


def main(arguments: list[str]) -> int:
    """Boot the host and run the command on it; the exit status is the command's."""
    parser = argparse.ArgumentParser(prog="arm64_host.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds until it is given up")
    parser.add_argument("--gic", choices=("2", "3"), default="3", help="the host's interrupt controller, and so its guests'")
    parser.add_argument("--file", type=Path, action="append", default=[], help="put this file into /root; may be repeated")
    parser.add_argument("--print", action="store_true", help="only print QEMU's command")
    parser.add_argument("command", nargs="*", default=[GUEST_COMMAND])
    options = parser.parse_args(arguments)
    home = cache_root() / "hosts" / "arm64"
    image = home / "host.cpio"
    write_atomically(image, build(fetch(home), " ".join(options.command), options.file))
    machine = [word.replace("GIC", options.gic) for word in MACHINE]
    command = ["qemu-system-aarch64", *machine, "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot"]
    command += ["-kernel", str(prepare().kernel), "-initrd", str(image), "-append", "console=ttyAMA0 rdinit=/init loglevel=4"]
    if options.print:
        print(" ".join(command))
        return 0
    status = 1
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        watchdog = threading.Timer(options.timeout, qemu.kill)
        watchdog.start()
        try:
            for raw in qemu.stdout:
                line = raw.decode(errors="replace").rstrip("\r\n")
                print(line, flush=True)
                if line.startswith("HOST: STATUS="):
                    status = int(line.partition("=")[2])
        finally:
            watchdog.cancel()
            qemu.kill()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
