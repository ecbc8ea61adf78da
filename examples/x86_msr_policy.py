"""A policy for a guest's MSRs: `python examples/x86_msr_policy.py`, on an x86-64 host with /dev/kvm.

Some MSRs are shown to the guest, some are hidden behind a filter, and some exist only here: Hyper-V's TSC emulation status, of which the
guest may write nothing but zero. Each access that the policy decides is printed; an error makes the guest's instruction fault.
"""

from __future__ import annotations

import sys

from trapline import x86
from trapline.x86 import Msr
from trapline.x86_64.asm import assemble

CODE, HANDLER, STACK = 0x10_0000, 0x11_0000, 0x18_0000
DONE, FAULTED = 0x80, 0x81
FAULTS_EXPECTED = 2

ACCESSES = (
    ("rdmsr", Msr.EFER, 0),  # allowed: KVM answers
    ("rdmsr", Msr.LSTAR, 0),  # filtered: the policy answers
    ("wrmsr", Msr.LSTAR, 0x1234),  # filtered: the policy refuses
    ("rdmsr", Msr.HV_TSC_EMULATION_STATUS, 0),  # unknown to KVM: the policy has it
    ("wrmsr", Msr.HV_TSC_EMULATION_STATUS, 1),  # only zero may be written
    ("wrmsr", Msr.HV_TSC_EMULATION_STATUS, 0),
)

GUEST = "\n".join(
    f"mov ecx, {int(msr):#x}; mov eax, {value:#x}; xor edx, edx; {instruction}; out {DONE:#x}, eax" for instruction, msr, value in ACCESSES
)
FAULT = f"""
    add rsp, 8                      # the error code
    add qword ptr [rsp], 2          # rdmsr and wrmsr have two bytes
    out {FAULTED:#x}, eax
    iretq
"""


class Policy:
    """What the guest finds. A read that is not answered here gets 0 from a filtered register, and a fault from an unknown one."""

    def __init__(self) -> None:
        self.emulation_status = 1  # userspace itself may store anything

    def answer(self, exit: x86.MsrExit) -> None:
        """Decide one access."""
        match exit:
            case x86.RdmsrExit(index=Msr.HV_TSC_EMULATION_STATUS):
                exit.value = self.emulation_status
            case x86.WrmsrExit(index=Msr.HV_TSC_EMULATION_STATUS, value=0):
                self.emulation_status = 0
            case x86.RdmsrExit(msr_reason=x86.MsrExitReason.FILTER):
                exit.value = 0
            case _:
                exit.error = True


def main() -> int:
    """Run it; the exit status says whether the guest was refused what it should be."""
    with x86.open() as kvm, kvm.create_vm() as vm:
        ram = vm.add_memory(0, 2 << 20)
        for address, code in ((CODE, assemble(GUEST + "\nhlt")), (HANDLER, assemble(FAULT))):
            ram[address : address + len(code)] = code
        vm.user_space_msrs()  # before the filter: what is denied meanwhile would be a fault
        vm.set_msr_filter(x86.Range(Msr.STAR, 4))  # STAR, LSTAR, CSTAR and SYSCALL_MASK: none of them
        vcpu = vm.create_vcpu()
        vcpu.timeout = 10
        x86.long_mode(vcpu, ram, entry=CODE, stack=STACK).handle(13, HANDLER)
        policy, faults = Policy(), 0
        for exit in vcpu.exits():
            match exit:
                case x86.MsrExit():
                    policy.answer(exit)
                    print(f"{exit!r} -> {'#GP' if exit.error else hex(exit.value)}")
                case x86.IoExit(port=port) if port == FAULTED:
                    faults += 1
                case x86.IoExit():
                    pass
                case x86.HltExit():
                    return 0 if (faults, policy.emulation_status) == (FAULTS_EXPECTED, 0) else 1
                case _:
                    print(vcpu.explain(exit), file=sys.stderr)
                    return 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
