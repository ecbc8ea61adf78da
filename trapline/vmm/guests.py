"""Debian's arm64 kernel and busybox as a guest: fetched with the package manager, made into a kernel and an initial ramdisk.

The package manager works on a private configuration for the foreign architecture: its state and cache are in the user's cache
directory, the machine's own package state is not touched and no privilege is needed. Sources and keys are the machine's own, and
the package manager checks signatures and checksums.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from trapline.errors import BadInput
from trapline.paths import cache_root
from trapline.vmm.initramfs import Cpio, add_modules, collect_modules

KERNEL_META = "linux-image-cloud-arm64"
KERNEL_PREFIX = "linux-image-"
BUSYBOX = "busybox-static"
ARCHITECTURE = "arm64"

DRIVERS = ("virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng")
"""What the machine has and Debian's kernel has as modules."""

TOOLS = ("apt-get", "apt-cache", "apt-config", "dpkg-deb")

APPLET_DIRECTORIES = ("bin", "sbin")
BASE_APPLETS = ("sh", "mount", "modprobe", "mkdir", "cat", "ln")
"""Links that exist before busybox is asked for the rest of its applets."""

MANUAL = (
    "get two files on a Debian machine and pass them by hand: the kernel, /boot/vmlinuz-* of the package linux-image-cloud-arm64, "
    "as --kernel FILE, and an initramfs with an arm64 busybox as --initrd FILE"
)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest ready to boot."""

    kernel: Path
    initrd: Path


def prepare(cache: Path | None = None) -> Guest:
    """The Debian guest, from the cache or fetched now; progress goes to stderr. BadInput says what to do without a package manager."""
    home = (cache or cache_root()) / "guests" / "debian"
    initrd = home / f"initramfs-{recipe_hash()}.cpio"
    try:
        if not is_ready(home):
            fetch(home)
        if not initrd.exists():
            write_atomically(initrd, build_initramfs((home / "busybox").read_bytes(), home / "modules"))
    except OSError as error:
        raise BadInput(f"cannot keep the guest in {home} ({error.strerror}); name another place with XDG_CACHE_HOME") from error
    return Guest(home / "vmlinuz", initrd)


def is_ready(home: Path | None = None) -> bool:
    """Whether the packages have been fetched. The kernel is put there last."""
    return ((home or cache_root() / "guests" / "debian") / "vmlinuz").exists()


def recipe_hash() -> str:
    """Names what the ramdisk is made of besides the packages, so that a change makes a new one."""
    digest = hashlib.sha256(" ".join(DRIVERS).encode())
    for name in ("init", "profile", "report"):
        digest.update(guest_file(name))
    return digest.hexdigest()[:12]


def guest_file(name: str) -> bytes:
    """A script of the guest's, as it is in the package."""
    return (resources.files("trapline.vmm") / "guest" / name).read_bytes()


def fetch(home: Path) -> None:
    """Download the packages and unpack what is needed of them into `home`."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BadInput(f"this machine has no {missing[0]} to fetch the guest with; {MANUAL}")
    say("fetching Debian's arm64 kernel and busybox (once, about 22 MB)")
    work = home / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    apt = PrivateApt(home / "apt")
    apt.update()
    for package in (apt.newest_kernel(), BUSYBOX):
        archive = apt.download(package, work)
        run(["dpkg-deb", "-x", str(archive), str(work / "root")])
    root = work / "root"
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (modules,) = path_of_modules(root).iterdir()
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    shutil.rmtree(home / "modules", ignore_errors=True)
    (home / "modules").mkdir()
    shutil.move(modules, home / "modules" / modules.name)
    shutil.move(busybox, home / "busybox")
    shutil.move(kernel, home / "vmlinuz")
    shutil.rmtree(work)
    for old in home.glob("initramfs-*.cpio"):
        old.unlink()


def path_of_modules(root: Path) -> Path:
    """lib/modules, or usr/lib/modules where the two are one."""
    return next(path for path in (root / "lib/modules", root / "usr/lib/modules") if path.is_dir())


def build_initramfs(busybox: bytes, modules: Path) -> bytes:
    """The ramdisk: busybox, the machine's drivers (from the one directory lib/modules/VERSION in `modules`) and the init script."""
    (tree,) = modules.iterdir()
    archive = Cpio()
    for name in ("proc", "sys", "dev", "root", "tmp", "run", "mnt", "etc"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.device("dev/null", 1, 3)
    archive.file("bin/busybox", busybox, 0o755)
    for applet in BASE_APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    archive.symlink("sbin/modprobe", "../bin/busybox")  # where the kernel looks for it
    archive.file("init", guest_file("init"), 0o755)
    archive.file("bin/report", guest_file("report"), 0o755)
    archive.file("etc/modules", "".join(f"{name}\n" for name in DRIVERS).encode())
    archive.file("etc/profile", guest_file("profile"))
    add_modules(archive, tree.name, collect_modules(tree, DRIVERS))
    return archive.finish()


class PrivateApt:
    """The package manager on a configuration of our own, for arm64, in `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("state/lists/partial", "cache/archives/partial", "parts"):
            (home / name).mkdir(parents=True, exist_ok=True)
        (home / "state/status").touch()
        self._link_machine_settings()
        config = home / "apt.conf"
        config.write_text(
            f'Dir::State "{home}/state";\n'
            f'Dir::State::status "{home}/state/status";\n'
            f'Dir::Cache "{home}/cache";\n'
            f'Dir::Etc::parts "{home}/parts";\n'
        )
        self.environment = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C"}

    def _link_machine_settings(self) -> None:
        """The machine's settings (a proxy, perhaps) stay in force; its hooks, which act on the whole machine, do not."""
        parts = self.home / "parts"
        for old in parts.iterdir():
            old.unlink()
        directory = Path("/etc/apt/apt.conf.d")
        for path in directory.iterdir() if directory.is_dir() else ():
            (parts / path.name).symlink_to(path)
        hooks = [f"{group}::{when}" for group in ("APT::Update", "DPkg") for when in ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")]
        (parts / "zz-trapline").write_text(
            "".join(f"#clear {hook};\n" for hook in hooks)
            + f'#clear APT::Architectures;\nAPT::Architecture "{ARCHITECTURE}";\nAPT::Architectures {{ "{ARCHITECTURE}"; }};\n'
            + 'APT::Sandbox::User "root";\nAcquire::Languages "none";\n'
        )

    def update(self) -> None:
        """Fetch the package lists. Some of the machine's sources may have no arm64: what counts is what is found afterwards."""
        result = run(["apt-get", "update", "-q"], self.environment, check=False)
        if result.returncode:
            say("some package sources could not be read: " + last_line(result.stderr))

    def newest_kernel(self) -> str:
        """The package that the kernel's meta package stands for."""
        result = run(["apt-cache", "depends", KERNEL_META], self.environment, check=False)
        names = [line.split()[-1] for line in result.stdout.splitlines() if "Depends: " + KERNEL_PREFIX in line]
        if not names:
            raise BadInput(f"this machine's package sources have no {KERNEL_META} for {ARCHITECTURE}; {MANUAL}")
        return names[0]

    def download(self, package: str, into: Path) -> Path:
        """Download a package file, signature and checksum verified."""
        before = set(into.glob("*.deb"))
        result = run(["apt-get", "download", "-q", package], self.environment, check=False, cwd=into)
        new = set(into.glob("*.deb")) - before
        if result.returncode or len(new) != 1:
            raise BadInput(f"cannot download {package}: {last_line(result.stderr)}; {MANUAL}")
        return new.pop()


def run(
    command: list[str], environment: dict[str, str] | None = None, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool quietly; BadInput with its last words if it fails and `check` is set."""
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if check and result.returncode:
        raise BadInput(f"{command[0]} failed: {last_line(result.stderr)}")
    return result


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either complete or not there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    partial.replace(path)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"trapline: {text}", file=sys.stderr)
