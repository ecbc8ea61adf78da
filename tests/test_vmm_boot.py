"""Kernel formats, where they go, the device tree and the ramdisk writer."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path
from struct import pack

import fdt as fdtlib
import pytest
import zstandard

from trapline.devices.memory import GuestRam
from trapline.errors import BadInput
from trapline.vmm import board, boot, fdt, images
from trapline.vmm.board import RAM_BASE, MiB, Region
from trapline.vmm.images import ElfImage, FlatImage, LinuxImage
from trapline.vmm.initramfs import Cpio, Module, transitive

CODE = b"\x1f\x20\x03\xd5" * 64


def linux_image(text_offset: int = 0, image_size: int = 3 * MiB, flags: int = 0, body: bytes = CODE) -> bytes:
    return pack("<IIQQQQQQ4sI", 0x14000010, 0, text_offset, image_size, flags, 0, 0, 0, b"ARM\x64", 0) + body


def elf(segments: list[tuple[int, int, bytes, int]], entry: int, machine: int = 183) -> bytes:
    """An ELF file with (virtual address, physical address, data, size in memory) segments."""
    table = 64 + 56 * len(segments)
    headers, body = b"", b""
    for virtual, physical, data, size in segments:
        headers += pack("<IIQQQQQQ", 1, 7, table + len(body), virtual, physical, len(data), size, 4096)
        body += data
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return ident + pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 64, 0, 0) + headers + body


def zboot(kind: bytes, payload: bytes) -> bytes:
    header = pack("<2sxx4sII8x32s", b"MZ", b"zimg", 128, len(payload), kind)
    return header.ljust(128, b"\0") + payload


def test_plain_image() -> None:
    data = linux_image(text_offset=0x10000)
    assert images.parse(data, "k") == LinuxImage(data, 0x10000, 3 * MiB)


def test_image_without_a_size_is_an_old_one() -> None:
    kernel = images.parse(linux_image(image_size=0, text_offset=5), "k")
    assert isinstance(kernel, LinuxImage) and kernel.text_offset == 0x80000


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(linux_image()),
        zboot(b"gzip", gzip.compress(linux_image())),
        zboot(b"zstd22", zstandard.compress(linux_image())),
        zboot(b"xzkern", lzma.compress(linux_image())),
        gzip.compress(zboot(b"gzip", gzip.compress(linux_image()))),
    ],
    ids=["gzip", "zboot-gzip", "zboot-zstd", "zboot-xz", "gzip-zboot"],
)
def test_packed_images(packed: bytes) -> None:
    assert images.parse(packed, "k") == images.parse(linux_image(), "k")
    with pytest.raises(BadInput, match="truncated"):
        images.parse(packed[:-20], "k")


def test_elf_uses_physical_addresses() -> None:
    kernel = images.parse(elf([(0xFFFF_0000_0000, RAM_BASE, b"abcd", 16)], 0xFFFF_0000_0002), "k")
    assert isinstance(kernel, ElfImage)
    assert kernel.entry == RAM_BASE + 2
    assert [(s.address, bytes(s.data), s.memory_size) for s in kernel.segments] == [(RAM_BASE, b"abcd", 16)]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (elf([(0, RAM_BASE, b"abcd", 16)], 0)[:-1], "truncated|damaged"),
        (elf([], 0), "nothing to load"),
        (elf([(0, 0, b"a", 1)], 0, machine=62), "ELF file for x64"),
        (b"\x7fELF", "damaged"),
        (linux_image(flags=1), "big-endian"),
        (linux_image()[:60], "truncated"),
        (bytes(0x202) + b"HdrS" + bytes(100), "x86 kernel"),
        (b"MZ" + bytes(200), "EFI program"),
        (zboot(b"lz4", b"x" * 100), "compressed with 'lz4'"),
        (zboot(b"gzip", b"x" * 100)[:150], "truncated"),
        (b"\x1f\x8b" + bytes(20), "damaged"),
    ],
)
def test_bad_kernels_get_one_line(data: bytes, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint) as caught:
        images.parse(data, "k")
    assert "\n" not in str(caught.value)


def test_truncated_image_is_noticed_by_its_efi_header() -> None:
    sections = pack("<8sIIIIIIHHI", b".text", 0x1000, 0x1000, 0x4000, 0x1000, 0, 0, 0, 0, 0)
    header = bytearray(linux_image(body=b"PE\0\0" + pack("<HHIIIHH", 0xAA64, 1, 0, 0, 0, 0, 0) + sections))
    header[60:64] = pack("<I", 64)
    whole = bytes(header).ljust(0x5000, b"\0")
    assert isinstance(images.parse(whole, "k"), LinuxImage)
    with pytest.raises(BadInput, match="truncated, 20479 of 20480 bytes"):
        images.parse(whole[:-1], "k")


def test_read_file_complaints(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, complaint in ((tmp_path, "directory"), (tmp_path / "empty", "empty"), (tmp_path / "none", "No such file")):
        with pytest.raises(BadInput, match=complaint):
            images.read_file(path, "--kernel")


def test_linux_is_entered_at_the_start_of_ram() -> None:
    plan = boot.plan_kernel(images.parse(linux_image(), "k"), b"ramdisk", 512 * MiB)
    assert plan.entry == RAM_BASE
    assert plan.initrd == Region(RAM_BASE + 128 * MiB, 7)
    assert plan.dtb == RAM_BASE + 130 * MiB


def test_small_machines_keep_everything_inside() -> None:
    plan = boot.plan_kernel(images.parse(linux_image(), "k"), b"r" * MiB, 16 * MiB)
    assert plan.initrd == Region(RAM_BASE + 8 * MiB, MiB)
    assert plan.dtb + boot.DTB_ROOM <= RAM_BASE + 16 * MiB


def test_flat_binaries_find_the_device_tree_at_the_start_of_ram_too() -> None:
    plan = boot.plan_kernel(FlatImage(CODE), b"", 16 * MiB)
    assert (plan.entry, plan.dtb_copy, plan.initrd) == (RAM_BASE + 0x80000, RAM_BASE, None)
    assert plan.dtb > plan.entry, "kvm-unit-tests insist on having it above themselves"


def test_elf_that_starts_at_the_start_of_ram_gets_its_device_tree_elsewhere() -> None:
    kernel = images.parse(elf([(0, RAM_BASE, b"abcd", MiB)], 0), "k")
    plan = boot.plan_kernel(kernel, b"", 64 * MiB)
    assert plan.dtb >= RAM_BASE + MiB and plan.dtb_copy is None


@pytest.mark.parametrize(
    ("kernel", "initrd", "ram"),
    [
        (LinuxImage(CODE, 0, 600 * MiB), b"", 512 * MiB),
        (LinuxImage(CODE, 0, MiB), bytes(20 * MiB), 16 * MiB),
        (FlatImage(bytes(2 * MiB)), b"", MiB),
        (ElfImage((images.Segment(0, b"x", 1),), 0), b"", 64 * MiB),
    ],
    ids=["kernel", "initrd", "flat", "elf-outside"],
)
def test_what_does_not_fit_is_refused(kernel: images.KernelImage, initrd: bytes, ram: int) -> None:
    with pytest.raises(BadInput, match="RAM is|do not fit"):
        boot.plan_kernel(kernel, initrd, ram)


def test_load_writes_everything() -> None:
    memory = bytearray(16 * MiB)
    plan = boot.plan_kernel(FlatImage(CODE), b"initrd", len(memory))
    boot.load(plan, b"dtb", GuestRam(RAM_BASE, memoryview(memory)))
    assert memory[:3] == b"dtb" == memory[plan.dtb - RAM_BASE :][:3]
    assert memory[0x80000 : 0x80000 + len(CODE)] == CODE
    assert plan.initrd is not None
    assert memory[plan.initrd.base - RAM_BASE :][:6] == b"initrd"


DESCRIPTION = fdt.Description(
    ram=512 * MiB, cpus=18, virtio_slots=(0, 2), bootargs="console=ttyAMA0", initrd=Region(RAM_BASE + 0x100_0000, 0x1234), seed=bytes(40)
)


def test_device_tree_says_what_the_machine_has() -> None:
    tree = fdtlib.parse_dtb(fdt.build(DESCRIPTION))
    assert tree.get_node(f"memory@{RAM_BASE:x}").get_property("reg").data == [0, RAM_BASE, 0, 512 * MiB]
    assert [node.get_property("reg").value for node in tree.get_node("cpus").nodes] == [*range(16), 0x100, 0x101]
    chosen = tree.get_node("chosen")
    assert chosen.get_property("bootargs").value == "console=ttyAMA0"
    assert chosen.get_property("linux,initrd-end").data == [0, RAM_BASE + 0x100_1234]
    assert tree.get_node("virtio_mmio@a000400").get_property("interrupts").data == [0, 0x12, 1]
    assert tree.get_node("pl011@9000000").get_property("interrupts").data == [0, 1, 4]
    assert tree.get_node("pcie@10000000").get_property("reg").data == [0x40, 0x1000_0000, 0, 0x1000_0000]


def test_device_tree_is_stable_and_small() -> None:
    assert fdt.build(DESCRIPTION) == fdt.build(DESCRIPTION)
    assert len(fdt.build(DESCRIPTION)) < 16384


def test_device_tree_without_parameters() -> None:
    tree = fdtlib.parse_dtb(fdt.build(fdt.Description(ram=MiB)))
    assert b"bootargs" in fdt.build(fdt.Description(ram=MiB))
    assert not tree.get_node("chosen").exist_property("linux,initrd-start")


def test_device_tree_compiler_has_no_complaint(tmp_path: Path) -> None:
    if shutil.which("dtc") is None:
        pytest.skip("dtc is not installed (Debian package device-tree-compiler)")
    blob = tmp_path / "t.dtb"
    blob.write_bytes(fdt.build(DESCRIPTION))
    done = subprocess.run(["dtc", "-I", "dtb", "-O", "dts", "-o", "/dev/null", str(blob)], capture_output=True, text=True, check=True)
    ours = [line for line in done.stderr.splitlines() if "Warning" in line and "pci" not in line]
    assert not ours


def test_board_windows_do_not_overlap() -> None:
    regions = sorted((r for r in vars(board).values() if isinstance(r, Region)), key=lambda region: region.base)
    for lower, upper in zip(regions, regions[1:], strict=False):
        assert lower.base + lower.size <= upper.base


def test_ramdisk_is_read_by_cpio(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed (Debian package cpio)")
    archive = Cpio()
    archive.file("a/b/file", b"content", 0o755)
    archive.symlink("a/link", "b/file")
    data = archive.finish()
    done = subprocess.run(["cpio", "-idm"], input=data, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/link").read_bytes() == b"content"
    assert (tmp_path / "a/b/file").stat().st_mode & 0o777 == 0o755


def test_modules_list_what_they_need() -> None:
    base, ring = Module("virtio", "v.ko", b""), Module("virtio_ring", "r.ko", b"", ("virtio",))
    block = Module("virtio_blk", "b.ko", b"", ("virtio_ring", "virtio", "absent"))
    assert transitive(block, [base, ring, block]) == ["virtio_ring", "virtio"]
