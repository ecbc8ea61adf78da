"""Exits of the host's /dev/kvm handled by a Python program and by one in C, side by side.

Time is the thread's processor time, in the guest, the kernel and the program together: what else the host does is no part of it.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from time import thread_time
from typing import NamedTuple

from trapline import x86
from trapline.errors import NotSupported

GUEST = "b02a e610 ebfc"  # mov al, 42; loop: out 0x10, al; jmp loop
VALUE, PORT, PLACE, MEMORY = 42, 0x10, 0x1000, 1 << 20
EXITS = 1000
ROUNDS = 60

C_LOOP = """
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

int main(void) {
    static const unsigned char code[] = {CODE};
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
    char *ram = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memcpy(ram + 0x1000, code, sizeof code);
    struct kvm_userspace_memory_region region = {.memory_size = 1 << 20, .userspace_addr = (unsigned long)ram};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) return 1;
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    char *map = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_run *run = (void *)map;
    struct kvm_sregs sregs;
    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0;
    ioctl(vcpu, KVM_SET_SREGS, &sregs);
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    if (ioctl(vcpu, KVM_SET_REGS, &regs)) return 2;
    /* One batch for each line of input. */
    for (char line[16]; fgets(line, sizeof line, stdin);) {
        unsigned long sum = 0;
        double start = seconds();
        for (int i = 0; i < EXITS; i++) {
            if (ioctl(vcpu, KVM_RUN, 0)) return 3;
            if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x10 || run->io.direction != KVM_EXIT_IO_OUT) return 4;
            sum += *(unsigned char *)(map + run->io.data_offset);
        }
        printf("%.9f %lu\\n", seconds() - start, sum);
        fflush(stdout);
    }
    return 0;
}
"""


class Rate(NamedTuple):
    """Seconds of one exit in the fastest batch of each program."""

    c: float
    python: float


def exit_rate(rounds: int = ROUNDS) -> Rate:
    """Measure both, batch by batch in turns. NotSupported without a C compiler or x86 guests."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotSupported("there is no C compiler to compare with")
    code = bytes.fromhex(GUEST)
    in_c: list[float] = []
    in_python: list[float] = []
    with tempfile.TemporaryDirectory(prefix="trapline-exits-") as folder, x86.open() as kvm, kvm.create_vm() as vm:
        source, program = Path(folder) / "loop.c", Path(folder) / "loop"
        text = ", ".join(f"0x{byte:02x}" for byte in code)
        source.write_text(C_LOOP.replace("CODE", text).replace("EXITS", str(EXITS)), encoding="ascii")
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True, timeout=60)
        vm.add_memory(0, MEMORY)[PLACE : PLACE + len(code)] = code
        vcpu = vm.create_vcpu()
        x86.real_mode(vcpu, ip=PLACE)
        with subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None and other.stdout is not None
            for _ in range(rounds):  # side by side: what else the host does falls upon both
                other.stdin.write("\n")
                other.stdin.flush()
                elapsed, total = other.stdout.readline().split()
                assert int(total) == VALUE * EXITS
                in_c.append(float(elapsed))
                in_python.append(_handle(vcpu))
            other.stdin.close()
    return Rate(min(in_c) / EXITS, min(in_python) / EXITS)


def _handle(vcpu: x86.X86Vcpu) -> float:
    """Seconds for a batch of exits in Python, each matched and its data read, under the watchdog."""
    total = handled = 0
    start = thread_time()
    for exit in vcpu.exits():
        if type(exit) is not x86.IoExit or exit.port != PORT or not exit.is_out:
            raise NotSupported(f"the guest does not run on this KVM: {exit!r}")
        total += exit.value
        handled += 1
        if handled == EXITS:
            break
    elapsed = thread_time() - start
    assert total == VALUE * EXITS
    return elapsed
