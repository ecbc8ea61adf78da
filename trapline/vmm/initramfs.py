"""Initial ramdisks: a writer for the cpio format the kernel unpacks, and what belongs into the ramdisk of the guest."""

from __future__ import annotations

import io
import lzma
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zstandard
from elftools.elf.elffile import ELFFile

NEWC_MAGIC = "070701"
NEWC_ALIGN = 4
TRAILER = "TRAILER!!!"


class Cpio:
    """Builds an archive in the "newc" format. Same content, same bytes: owner is root and the time is 0."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0
        self._directories: set[str] = set()

    def directory(self, path: str) -> None:
        """A directory, with those above it."""
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            name = "/".join(parts[:count])
            if name and name not in self._directories:
                self._directories.add(name)
                self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file; its directories are made as needed."""
        self._make_parent(path)
        self._entry(path.strip("/"), stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._make_parent(path)
        self._entry(path.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int) -> None:
        """A character device."""
        self._make_parent(path)
        self._entry(path.strip("/"), stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The archive."""
        self._entry(TRAILER, 0)
        return self._out.getvalue()

    def _make_parent(self, path: str) -> None:
        parent, _, _ = path.strip("/").rpartition("/")
        if parent:
            self.directory(parent)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        self._out.write((NEWC_MAGIC + "".join(f"{number:08x}" for number in numbers)).encode())
        for part in (encoded, data):
            self._out.write(part)
            self._out.write(bytes(-self._out.tell() % NEWC_ALIGN))


@dataclass(slots=True)
class Module:
    """A kernel module: uncompressed file, what it needs, the names it also answers to."""

    name: str
    path: str
    data: bytes
    depends: tuple[str, ...] = ()
    aliases: tuple[str, ...] = field(default=())


def unzstd(data: bytes) -> bytes:
    """Unpack a zstd stream, with or without its size in the header."""
    return zstandard.ZstdDecompressor().stream_reader(data).read()


DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {".ko": bytes, ".ko.xz": lzma.decompress, ".ko.zst": unzstd}


def module_name(path: Path) -> str:
    """The name a module file is known by: without directory and suffixes, dashes as underscores."""
    return path.name.split(".")[0].replace("-", "_")


def load_module(path: Path, root: Path) -> Module:
    """Read a module file under `root`, and what it says about itself."""
    suffix = "." + path.name.split(".", 1)[1]
    data = DECOMPRESS[suffix](path.read_bytes())
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    text = section.data().decode("ascii", "replace") if section else ""
    facts = [fact.split("=", 1) for fact in text.split("\0") if "=" in fact]
    needs = [name for key, value in facts if key == "depends" for name in value.split(",") if name]
    aliases = tuple(value for key, value in facts if key == "alias")
    inside = path.relative_to(root).with_name(path.name.split(".")[0] + ".ko")
    return Module(module_name(path), str(inside), data, tuple(name.replace("-", "_") for name in needs), aliases)


def collect_modules(tree: Path, wanted: Iterable[str]) -> list[Module]:
    """The wanted modules under `tree` (lib/modules/VERSION) and all they need, each after what it needs.

    A wanted name without a file is left out: in that kernel it is built in.
    """
    files = {module_name(path): path for path in (tree / "kernel").rglob("*.ko*")}
    found: dict[str, Module] = {}

    def visit(name: str) -> None:
        if name in found or name not in files:
            return
        module = load_module(files[name], tree)
        for needed in module.depends:
            visit(needed)
        found[name] = module

    for name in wanted:
        visit(name)
    return list(found.values())


def add_modules(archive: Cpio, version: str, modules: list[Module]) -> None:
    """Put modules where modprobe looks for them, with the two index files it reads."""
    base = f"lib/modules/{version}"
    paths = {module.name: module.path for module in modules}
    needs = {module.name: transitive(module, modules) for module in modules}
    depends = "".join(f"{m.path}: {' '.join(paths[n] for n in needs[m.name])}".rstrip() + "\n" for m in modules)
    aliases = "".join(f"alias {alias} {m.name}\n" for m in modules for alias in m.aliases)
    for module in modules:
        archive.file(f"{base}/{module.path}", module.data)
    archive.file(f"{base}/modules.dep", depends.encode())
    archive.file(f"{base}/modules.alias", aliases.encode())


def transitive(module: Module, modules: list[Module]) -> list[str]:
    """Everything a module needs, what is needed first last: the order of modules.dep."""
    by_name = {other.name: other for other in modules}
    order: list[str] = []
    for name in module.depends:
        if name in by_name:
            order += [n for n in (name, *transitive(by_name[name], modules)) if n not in order]
    return order
