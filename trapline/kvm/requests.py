"""What other threads can ask of a vCPU. A request is set first, then the vCPU is kicked; it looks before each guest entry."""

from __future__ import annotations

SLEEP = 1 << 0
"""The vCPU was stopped or suspended: sleep until it is runnable again."""

RESET = 1 << 1
"""Another vCPU powered this one on: take the reset state it left."""

INTERRUPT = 1 << 2
"""Something may be pending at the interrupt controller: nothing to do but to look before entry."""

DEAD = 1 << 3
"""The VM cannot go on."""

DIRTY_RING_SOFT_FULL = 1 << 4
"""The vCPU's dirty ring was full: stay out of the guest until it is not."""

ALL = SLEEP | RESET | INTERRUPT | DEAD | DIRTY_RING_SOFT_FULL
