"""Boot protocols: what goes where in guest memory, and in which state the first CPU starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from trapline.devices.memory import GuestRam
from trapline.errors import BadInput
from trapline.vmm import board
from trapline.vmm.board import MiB, Region
from trapline.vmm.images import LEGACY_TEXT_OFFSET, ElfImage, FlatImage, KernelImage, LinuxImage, Segment

ALIGNMENT = 2 * MiB
"""The kernel's base and the device tree start on such a boundary (the tree may then be mapped by one block)."""

INITRD_OFFSET = 128 * MiB
"""Where the initial ramdisk goes above the start of RAM, if half of RAM is not less."""

DTB_ROOM = 2 * MiB


@dataclass(slots=True)
class Plan:
    """Where everything goes.

    entry:    the first CPU's PC.
    dtb:      the device tree, whose address the first CPU gets in X0.
    dtb_copy: where else the device tree is put, for programs that look for it there and not in X0.
    """

    entry: int
    dtb: int
    dtb_copy: int | None = None
    segments: list[Segment] = field(default_factory=list)
    initrd: Region | None = None


def plan_kernel(kernel: KernelImage, initrd: bytes, ram: int) -> Plan:
    """Lay out a kernel and its initial ramdisk in `ram` bytes at RAM_BASE; BadInput when that is too little."""
    segments, entry = place_kernel(kernel)
    for segment in segments:
        if segment.address < board.RAM_BASE or segment.address + segment.memory_size > board.RAM_BASE + ram:
            raise BadInput(
                f"the kernel needs {segment.memory_size:#x} bytes at {segment.address:#x}, "
                f"but RAM is {ram:#x} bytes at {board.RAM_BASE:#x}; give more --mem or another image"
            )
    kernel_end = max(segment.address + segment.memory_size for segment in segments)
    preferred = board.RAM_BASE + min(ram // 2, INITRD_OFFSET)
    start = align_up(max(kernel_end, preferred), ALIGNMENT)
    plan = Plan(entry, dtb=align_up(start + len(initrd), ALIGNMENT), segments=segments)
    if not isinstance(kernel, LinuxImage) and min(segment.address for segment in segments) - board.RAM_BASE >= LEGACY_TEXT_OFFSET:
        plan.dtb_copy = board.RAM_BASE  # firmware and bare-metal programs expect it there
    if initrd:
        plan.initrd = Region(start, len(initrd))
        segments.append(Segment(start, initrd, len(initrd)))
    end = max(start + len(initrd), plan.dtb + DTB_ROOM)
    if end > board.RAM_BASE + ram:
        short = -(-(end - board.RAM_BASE) // MiB)
        raise BadInput(f"kernel, initrd and device tree do not fit into {ram // MiB} MiB; give at least --mem {short}M")
    return plan


def place_kernel(kernel: KernelImage) -> tuple[list[Segment], int]:
    """The kernel's segments and its entry point."""
    match kernel:
        case LinuxImage(data, text_offset, memory_size):
            address = board.RAM_BASE + text_offset
            return [Segment(address, data, memory_size)], address
        case FlatImage(data):
            address = board.RAM_BASE + LEGACY_TEXT_OFFSET
            return [Segment(address, data, len(data))], address
        case ElfImage(segments, entry):
            return list(segments), entry


def plan_firmware(ram: int) -> Plan:
    """Firmware starts in flash and finds the device tree at the start of RAM."""
    if ram < DTB_ROOM:
        raise BadInput(f"firmware needs at least --mem {DTB_ROOM // MiB}M")
    return Plan(entry=board.FLASH.base, dtb=board.RAM_BASE)


def load(plan: Plan, dtb: bytes, ram: GuestRam) -> None:
    """Write everything into guest memory."""
    for segment in plan.segments:
        ram.view(segment.address, len(segment.data))[:] = segment.data
    for address in (plan.dtb, plan.dtb_copy):
        if address is not None:
            ram.view(address, len(dtb))[:] = dtb


def align_up(value: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-value // alignment) * alignment
