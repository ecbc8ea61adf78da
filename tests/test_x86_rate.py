"""How many exits a Python program handles in the time a C program takes, both doing the same with the same guest.

Time is the thread's processor time, in the guest, the kernel and the program together: what else the host does is no part of it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from time import thread_time

import pytest
from x86_machine import needs_x86_kvm, place

from trapline import x86

pytestmark = [needs_x86_kvm, pytest.mark.needs_kvm, pytest.mark.timeout(120)]

GUEST = "b02a e610 ebfc"  # mov al, 42; loop: out 0x10, al; jmp loop
EXITS = 1000
ROUNDS = 60
TARGET = 0.70
ADDED = 2e-6
"""Seconds that Python may add to an exit where those are so short that it cannot reach the target."""

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


@pytest.mark.slow
def test_exit_rate_against_a_c_loop(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("NOT TESTED: there is no C compiler to compare with")
    code = ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(GUEST))
    source, program = tmp_path / "loop.c", tmp_path / "loop"
    source.write_text(C_LOOP.replace("CODE", code).replace("EXITS", str(EXITS)))
    subprocess.run([compiler, "-O2", "-o", program, source], check=True, timeout=60)
    in_c: list[float] = []
    in_python: list[float] = []
    with (
        x86.open() as kvm,
        kvm.create_vm() as vm,
        subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdin is not None and other.stdout is not None
        vm.add_memory(0, 1 << 20)
        place(vm, 0x1000, GUEST)
        vcpu = vm.create_vcpu()
        x86.real_mode(vcpu, ip=0x1000)
        for _ in range(ROUNDS):  # side by side: what else the host does falls upon both
            other.stdin.write("\n")
            other.stdin.flush()
            elapsed, total = other.stdout.readline().split()
            assert int(total) == 42 * EXITS
            in_c.append(float(elapsed))
            in_python.append(handle(vcpu))
        other.stdin.close()
    rate = min(in_c) / min(in_python)
    print(f"\nexit in C {min(in_c) / EXITS * 1e6:.2f} us, in Python {min(in_python) / EXITS * 1e6:.2f} us: {rate:.0%} of C's rate")
    assert rate >= TARGET or (min(in_python) - min(in_c)) / EXITS <= ADDED


def handle(vcpu: x86.X86Vcpu) -> float:
    """Seconds for a batch of exits in Python, each matched and its data read, under the watchdog."""
    total = handled = 0
    start = thread_time()
    for exit in vcpu.exits():
        if type(exit) is not x86.IoExit or exit.port != 0x10 or not exit.is_out:
            pytest.fail(f"{exit!r}")
        total += exit.value
        handled += 1
        if handled == EXITS:
            break
    elapsed = thread_time() - start
    assert total == 42 * EXITS
    return elapsed
