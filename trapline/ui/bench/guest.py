"""The guest of the suite: Debian's kernel, its ramdisk, and a second one with the programs."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import trapline
from trapline.errors import BadInput
from trapline.paths import cache_root
from trapline.ui.bench.rows import Row
from trapline.vmm import guests
from trapline.vmm.initramfs import Cpio

SOURCES = Path(trapline.__file__).resolve().parent.parent / "benchmarks" / "guest"
COMPILER = "aarch64-linux-gnu-gcc"
FLAGS = ("-O2", "-static", "-Wall")
LIBRARIES = ("-lm",)

PERL_PACKAGES = ("perl-base", "libc6", "libcrypt1")
PERL_FILES = (
    "usr/bin/perl",
    "usr/lib/aarch64-linux-gnu/perl-base/strict.pm",
    "usr/lib/aarch64-linux-gnu/perl-base/warnings.pm",
    "lib/aarch64-linux-gnu/libc.so.6",
    "lib/aarch64-linux-gnu/libm.so.6",
    "lib/aarch64-linux-gnu/libcrypt.so.1",
    "lib/ld-linux-aarch64.so.1",
)
"""All that a script without modules loads. `usr/lib` and `lib` may have changed places in a package."""


def source_files() -> list[Path]:
    """The C files of the guest binary."""
    found = sorted(SOURCES.glob("*.c"))
    if not found:
        raise BadInput(f"no sources in {SOURCES}: the suite runs from a checkout")
    return found


def build_binary(cache: Path | None = None) -> Path:
    """The static arm64 binary with all programs, compiled unless these sources have been."""
    sources = source_files()
    digest = hashlib.sha256(repr((COMPILER, FLAGS, LIBRARIES)).encode())
    for path in (*sources, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.read_bytes())
    out = (cache or cache_root()) / "bench" / f"trapbench-{digest.hexdigest()[:12]}"
    if out.exists():
        return out
    if shutil.which(COMPILER) is None:
        raise BadInput(f"{COMPILER} is not installed (Debian package gcc-aarch64-linux-gnu)")
    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.with_suffix(".new")
    done = subprocess.run([COMPILER, *FLAGS, "-o", str(made), *map(str, sources), *LIBRARIES], capture_output=True, text=True)
    if done.returncode:
        raise BadInput(f"{COMPILER}: {done.stderr.strip()}")
    made.replace(out)
    return out


def perl_files() -> dict[str, bytes]:
    """Debian's arm64 perl, by path in the guest; fetched once."""
    home = cache_root() / "guests" / "perl"
    if not (home / "complete").exists():
        guests.say("fetching Debian's arm64 perl-base (once, about 5 MB)")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        apt = guests.PrivateApt(cache_root() / "guests" / "debian" / "apt")
        apt.update()
        for package in PERL_PACKAGES:
            guests.run(["dpkg-deb", "-x", str(apt.download(package, home)), str(home / "root")])
        (home / "complete").touch()
    return {path: find_file(home / "root", path).read_bytes() for path in PERL_FILES}


def find_file(root: Path, path: str) -> Path:
    """A file of an unpacked package, where it is with or without the merge of / and /usr."""
    places = (root / path, root / "usr" / path, root / path.removeprefix("usr/"))
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise BadInput(f"no {path} in the unpacked packages under {root}")
    return found


SHELL = """\
PATH=/bench:$PATH
{setup}
stty -echo </dev/console
echo READY
{first}
while read -r line; do
    eval "$line" </dev/null
    echo "DONE $?"
done </dev/console
"""
"""What the guest runs: prepare, then obey the lines that come. The end of the script powers the machine off."""


def script(rows: Iterable[Row], commands: Iterable[str] = ()) -> str:
    """The guest's script; what several rows need is made once. With commands it runs those and obeys no one."""
    first = "\n".join([*commands, "exit"]) if commands else ""
    return SHELL.format(setup="\n".join(dict.fromkeys(row.setup for row in rows if row.setup)), first=first)


def ramdisk(rows: Iterable[Row], commands: Iterable[str] = ()) -> bytes:
    """A ramdisk to put after the guest's own: binary, script, and what the rows need. The kernel unpacks one after the other."""
    listed = list(rows)
    archive = Cpio()
    archive.file("bench/trapbench", build_binary().read_bytes(), 0o755)
    archive.file("bench/list", script(listed, commands).encode())
    if any(row.needs == "perl" for row in listed):
        archive.file("bench/script.pl", (SOURCES / "script.pl").read_bytes())
        for path, data in perl_files().items():
            archive.file(path, data, 0o755)
    return archive.finish()


PARAMS = 'console=ttyAMA0 panic=-1 quiet run="sh /bench/list"'
"""Kernel parameters that make the guest's init run the list and power off."""
