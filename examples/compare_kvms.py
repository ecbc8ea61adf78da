"""One program on two KVMs: `trapline ioctls compare examples/compare_kvms.py software software`.

The program is a VMM like any other; it knows nothing of being compared. Every call that it makes is made on both KVMs, and the first that
is answered otherwise ends the run with a report: result or errno, what was filled in, the exit, guest memory, registers. On an arm64 host,
and in tools/arm64_host.py, `software kvm` compares Trapline's KVM with Linux's.
"""

from __future__ import annotations

from trapline import MmioExit, System
from trapline.abi.vm import MEM_LOG_DIRTY_PAGES

RAM, DEVICE = 0x4000_0000, 0x0900_0000
GUEST = (
    0xB940_0001,  # loop: ldr w1, [x0]       ask the device
    0x8B01_0042,  #       add x2, x2, x1
    0xF900_0062,  #       str x2, [x3]       note the sum in memory
    0xB900_0402,  #       str w2, [x0, #4]   tell the device
    0x17FF_FFFC,  #       b   loop
)
ROUNDS = 5


def main(kvm: System) -> None:
    """A guest that adds up what a device says."""
    with kvm.create_vm() as vm:
        ram = vm.add_memory(RAM, 2 << 20, flags=MEM_LOG_DIRTY_PAGES)
        ram[0 : 4 * len(GUEST)] = b"".join(word.to_bytes(4, "little") for word in GUEST)
        vcpu = vm.create_vcpu()
        vcpu.regs.pc, vcpu.regs.x0, vcpu.regs.x3 = RAM, DEVICE, RAM + 0x1000
        told = []
        for number in range(ROUNDS):
            match vcpu.run(timeout=10):
                case MmioExit(phys_addr=0x0900_0000, is_write=False) as question:
                    question.data = number + 1
            match vcpu.run(timeout=10):
                case MmioExit(phys_addr=0x0900_0004, is_write=True) as answer:
                    told.append(answer.value)
        print(f"the guest told {told}, and wrote pages {vm.get_dirty_log(ram.slot, ram.size // 4096)}")
