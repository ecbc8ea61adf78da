"""What guest.s finds in its implementation-defined registers: `trapline run --kernel guest.bin --sysreg policy.py`."""

from itertools import count

ticks = count(1)
sysregs["S3_0_C15_C*_0"] = storage()  # eleven registers of chicken bits: keep what is written
sysregs["S3_1_C15_C*_0"] = storage()  # control of the performance counters
sysregs["S3_2_C15_C*_0"] = lambda access: next(ticks)  # the counters: they count, and that is all the guest asks
sysregs["S3_4_C15_C5_0"] = constant(0x20)
sysregs["S3_5_C15_C*_*"] = raz_wi  # interrupts to other processors: nobody else is there
