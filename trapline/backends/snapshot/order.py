"""What restoring is on every architecture: steps in the one order that works, and the memory, which is always first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trapline.backends.objects import VmBase
from trapline.backends.snapshot.format import Snapshot
from trapline.errors import BadSnapshot, SnapshotOrder


class Ordered:
    """Restores a VM that was made like the saved one and has not run. `everything()`, or the steps in order.

    Out of order they raise SnapshotOrder. BadSnapshot if this KVM does not take what the other one had.
    """

    why: ClassVar[Mapping[str, str]]
    """The names of the steps, which are methods, in order; and why each comes before those after it."""

    def __init__(self, vm: VmBase[Any], snapshot: Snapshot | None, state: dict[str, Any]) -> None:
        """`snapshot`: where to take memory from; None if it is in place."""
        self.vm: Any = vm
        self.snapshot = snapshot
        self.state = state
        self._done: list[str] = []

    def everything(self) -> None:
        """All steps."""
        for step in self.why:
            getattr(self, step)()

    def memory(self) -> None:
        """Contents of memory slots that were not made from the snapshot; a VM of `rebuild` has them already."""
        self._step("memory")
        if self.snapshot is None:
            return
        for memory in self.vm.memory:
            if memory.slot >= 0 and memory.stored is None:
                part = self.snapshot.part(memory.slot)
                if (part.guest_phys_addr, part.size) != (memory.guest_phys_addr, memory.size):
                    raise self._bad(f"memory slot {memory.slot} is at {part.guest_phys_addr:#x} there, here at {memory.guest_phys_addr:#x}")
                self.snapshot.read_into(part, memory)

    def _step(self, name: str) -> None:
        """A step is about to be taken: SnapshotOrder if it is another one's turn."""
        steps, order = list(self.why), ", ".join(self.why)
        if name in self._done:
            raise SnapshotOrder(f"restoring: {name} was restored already. The order: {order}, each once")
        missing = [step for step in steps[: steps.index(name)] if step not in self._done]
        if missing:
            reasons = " and ".join(f"{step} ({self.why[step]})" for step in missing)
            raise SnapshotOrder(f"restoring: {name} comes after {reasons}. The order: {order}, the first run")
        if any(vcpu.has_run for vcpu in self.vm.vcpus):
            raise SnapshotOrder(f"restoring: {name} comes before the first run, and this VM has run. The order: {order}, the first run")
        self._done.append(name)

    def _check_vcpus(self) -> None:
        there, here = [each["id"] for each in self.state["vcpus"]], [vcpu.id for vcpu in self.vm.vcpus]
        if there != here:
            raise self._bad(f"it has vCPUs {there}, this VM {here}")

    def _bad(self, what: str) -> BadSnapshot:
        return BadSnapshot(f"{self.snapshot.path if self.snapshot is not None else 'the incoming machine'}: {what}")
