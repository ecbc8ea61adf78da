"""Kernel files: which of the formats that distributions and test suites ship a file is, and what is inside."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, unpack_from

from trapline.errors import BadInput

LARGEST_IMAGE = 1 << 30
"""A decompressed kernel larger than this is not a kernel."""

IMAGE_HEADER = Struct("<IIQQQQQQ4sI")
"""code0, code1, text_offset, image_size, flags, res2, res3, res4, magic, pe_offset"""
IMAGE_MAGIC = b"ARM\x64"
IMAGE_BIG_ENDIAN = 1
LEGACY_TEXT_OFFSET = 0x80000
"""Where an Image without image_size (before Linux 3.17), and a flat binary, is loaded above the start of RAM."""

ZBOOT_HEADER = Struct("<2sxx4sII8x32s")
"""MZ, "zimg", payload offset, payload size, compression"""

PE_SECTION = Struct("<16xII16x")
"""SizeOfRawData, PointerToRawData"""
PE_HEADER_BYTES = 24
PE_SECTION_COUNT, PE_OPTIONAL_SIZE = 6, 20


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes and where they belong. `memory_size` counts what has to be free there, zeroed space included."""

    address: int
    data: bytes | memoryview
    memory_size: int


@dataclass(frozen=True, slots=True)
class LinuxImage:
    """An arm64 Image: to be placed `text_offset` above a 2 MiB boundary and entered at its first byte."""

    data: bytes
    text_offset: int
    memory_size: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """An executable with physical addresses of its own."""

    segments: tuple[Segment, ...]
    entry: int


@dataclass(frozen=True, slots=True)
class FlatImage:
    """Bytes without a header, to be loaded LEGACY_TEXT_OFFSET above the start of RAM."""

    data: bytes


KernelImage = LinuxImage | ElfImage | FlatImage


def read_file(path: Path, option: str) -> bytes:
    """The contents of a file that the user named; one line of complaint if that fails."""
    try:
        if path.is_dir():
            raise BadInput(f"{option} {path}: is a directory; give a file")
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{option} {path}: {error.strerror}") from error
    if not data:
        raise BadInput(f"{option} {path}: the file is empty")
    return data


def parse(data: bytes, name: str) -> KernelImage:
    """Recognise a kernel, unpacking it as often as needed. `name` is for messages."""
    if data[:2] == b"\x1f\x8b":
        return parse(decompress("gzip", data, name), name)
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        return parse(zboot_payload(data, name), name)
    if data[:4] == b"\x7fELF":
        return parse_elf(data, name)
    if data[56:60] == IMAGE_MAGIC:
        return parse_image(data, name)
    if data[0x202:0x206] == b"HdrS":
        raise BadInput(f"--kernel {name}: is an x86 kernel; give one for arm64")
    if data[:2] == b"MZ":
        raise BadInput(f"--kernel {name}: is an EFI program without an arm64 Image header; give a kernel Image")
    return FlatImage(data)


def parse_image(data: bytes, name: str) -> LinuxImage:
    """An arm64 Image by its 64-byte header."""
    if len(data) < IMAGE_HEADER.size:
        raise BadInput(f"--kernel {name}: truncated inside the Image header")
    _, _, text_offset, image_size, flags, _, _, _, _, pe_offset = IMAGE_HEADER.unpack_from(data)
    if flags & IMAGE_BIG_ENDIAN:
        raise BadInput(f"--kernel {name}: is a big-endian kernel, which this machine does not run")
    if image_size == 0:
        text_offset, image_size = LEGACY_TEXT_OFFSET, len(data)
    needed = end_of_sections(data, pe_offset)
    if len(data) < needed:
        raise BadInput(f"--kernel {name}: truncated, {len(data)} of {needed} bytes are there")
    return LinuxImage(data, text_offset, max(image_size, len(data)))


def end_of_sections(data: bytes, pe_offset: int) -> int:
    """How long a file with a PE header (the kernel's EFI stub) has to be; 0 if it has none."""
    if not 0 < pe_offset <= len(data) - PE_HEADER_BYTES or data[pe_offset : pe_offset + 4] != b"PE\0\0":
        return 0
    (count,) = unpack_from("<H", data, pe_offset + PE_SECTION_COUNT)
    (optional,) = unpack_from("<H", data, pe_offset + PE_OPTIONAL_SIZE)
    table = pe_offset + PE_HEADER_BYTES + optional
    if table + count * PE_SECTION.size > len(data):
        return table + count * PE_SECTION.size
    sections = (PE_SECTION.unpack_from(data, table + index * PE_SECTION.size) for index in range(count))
    return max((size + start for size, start in sections), default=0)


def parse_elf(data: bytes, name: str) -> ElfImage:
    """The loadable segments of an ELF file, at their physical addresses, and its entry point as a physical address."""
    # Only here: the library takes a tenth of a program's start to import.
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(io.BytesIO(data))
        if elf.get_machine_arch() != "AArch64" or not elf.little_endian:
            raise BadInput(f"--kernel {name}: is an ELF file for {elf.get_machine_arch()}; give one for little-endian AArch64")
        loads = [segment for segment in elf.iter_segments() if segment.header["p_type"] == "PT_LOAD" and segment.header["p_memsz"]]
        needed = max((load.header["p_offset"] + load.header["p_filesz"] for load in loads), default=0)
        if len(data) < needed:
            raise BadInput(f"--kernel {name}: truncated, {len(data)} of {needed} bytes are there")
        segments = tuple(Segment(load.header["p_paddr"], load.data(), load.header["p_memsz"]) for load in loads)
        entry = int(elf.header["e_entry"])
        for load in loads:
            if 0 <= entry - load.header["p_vaddr"] < load.header["p_memsz"]:
                entry = entry - load.header["p_vaddr"] + load.header["p_paddr"]
                break
    except (ELFError, ValueError, KeyError) as error:
        raise BadInput(f"--kernel {name}: is a damaged ELF file ({error})") from error
    if not segments or any(len(segment.data) > segment.memory_size for segment in segments):
        raise BadInput(f"--kernel {name}: is an ELF file with nothing to load")
    return ElfImage(segments, entry)


def zboot_payload(data: bytes, name: str) -> bytes:
    """The compressed kernel inside an EFI zboot image."""
    if len(data) < ZBOOT_HEADER.size:
        raise BadInput(f"--kernel {name}: truncated inside the zboot header")
    _, _, offset, size, kind = ZBOOT_HEADER.unpack_from(data)
    if offset + size > len(data):
        raise BadInput(f"--kernel {name}: truncated, {len(data)} of {offset + size} bytes are there")
    return decompress(kind.split(b"\0")[0].decode("ascii", "replace"), data[offset : offset + size], name)


def _gunzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    plain = stream.decompress(data, LARGEST_IMAGE)
    if not stream.eof:
        raise EOFError("the compressed data ends early or is too large")
    return plain


# The others are seldom needed, and imported then.


def _unzstd(data: bytes) -> bytes:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=LARGEST_IMAGE)
    except zstandard.ZstdError as error:
        raise EOFError(error) from error


def _unxz(data: bytes) -> bytes:
    import lzma

    stream = lzma.LZMADecompressor()
    try:
        plain = stream.decompress(data, LARGEST_IMAGE)
    except lzma.LZMAError as error:
        raise EOFError(error) from error
    if not stream.eof:
        raise EOFError("the compressed data ends early or is too large")
    return plain


DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gunzip,
    "zstd": _unzstd,
    "zstd22": _unzstd,
    "xz": _unxz,
    "xzkern": _unxz,
    "lzma": _unxz,
}


def decompress(kind: str, data: bytes, name: str) -> bytes:
    """Unpack by the name of the compression."""
    unpack = DECOMPRESSORS.get(kind)
    if unpack is None:
        raise BadInput(f"--kernel {name}: compressed with {kind!r}; there is gzip, zstd, xz and lzma")
    try:
        return unpack(data)
    except (zlib.error, EOFError) as error:
        raise BadInput(f"--kernel {name}: truncated or damaged ({kind}: {error})") from error
