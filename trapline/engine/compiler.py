"""Making code: everything that needs the declarations, and so is imported only when something is missing from the cache."""

from __future__ import annotations

from typing import Any

from trapline.arm64.features import Features
from trapline.arm64.isa import load_a64
from trapline.arm64.record import Recorder
from trapline.arm64.regs import TABLE
from trapline.arm64.sysreg_functions import FUNCTIONS
from trapline.bits.native import emit_module
from trapline.bits.to_llvm import METADATA, declare_intrinsics
from trapline.engine import alarm, codemap, glue, mops, posting, runtime, slow, system, taking, tlb
from trapline.engine.access import specialise
from trapline.engine.handler import Handler
from trapline.engine.predecode import PredecoderEmitter, Shape, ShapeSpace, direct_branch, fill_text
from trapline.engine.shapes import batch_tag
from trapline.engine.stencil import assemble
from trapline.engine.stencil.emit import Stencil, Unsuited
from trapline.engine.stencil.emit import module as stencil_module

CALLED = (
    runtime.lookup, runtime.service, runtime.land, runtime.begin, runtime.start, runtime.continue_, taking.external_abort,
    taking.fp_exception, taking.raise_, taking.lines, taking.next_count, runtime.interrupt_hypervisor, slow.slow_host,
    slow.slow_store, slow.fill, system.after, tlb.flush_all, tlb.reset_tlbs,
    tlb.request_sync, alarm.set_alarm, alarm.wait_for_alarms, alarm.stop_alarms,
    codemap.find_records, codemap.reset_records, codemap.install, posting.post, posting.forget_posted,
)  # fmt: skip
"""Native functions that handlers, glue and Python call as `trapline_<name>`."""

_OF_SYSTEM = tuple(
    getattr(system, name)
    for name in (
        "mrs", "msr", "sys", "sysl", "trap_el2", "sysreg_trap", "msr_imm", "eret", "eret_auth", "pac_trap", "wfi", "wfe", "wfit",
        "wfet", "relax", "sev", "sevl", "clrex", "dsb", "tlbi", "ic_ivau", "ic_iallu", "dc_ivac", "at", "sp_alignment",
        "send_sgi", "pac_fail",
    )
)  # fmt: skip
SYSTEM = (*_OF_SYSTEM, mops.disabled, mops.mops_mismatch, mops.mops_copy, mops.mops_set)
"""System operations, called as `trapline_sys_<name>`."""


def slot(name: str) -> int:
    return TABLE[name].slot


class Compiler:
    """IR of the runtime, the predecoder and the handlers of one configuration."""

    def __init__(self, features: Features, counting: bool) -> None:
        self._features, self._counting = features, counting
        self.isa = specialise(load_a64(), FUNCTIONS, features)
        self.space = ShapeSpace(self.isa)

    @property
    def exports(self) -> dict[str, str]:
        """Names by which handlers, glue and Python know native functions of the runtime."""
        named = {"trapline_" + f.name.rstrip("_"): f.symbol for f in CALLED}
        return named | {"trapline_sys_" + f.name: f.symbol for f in SYSTEM}

    @property
    def assembler(self) -> dict[str, str]:
        """The assembler's functions by name."""
        return {f.name: f.symbol for f in (assemble.choose, assemble.assemble, assemble.publish)}

    def runtime_text(self) -> str:
        """IR of the runtime."""
        return emit_module((*CALLED, *SYSTEM), "")

    def glue_text(self) -> str:
        """IR of the glue between Python, runtime and handlers."""
        return glue.text()

    def native_text(self, function: Any) -> str:
        """IR of one native function and what it calls."""
        return emit_module([function], "")

    def decoder_text(self) -> str:
        """IR of the predecoder."""
        direct = {}
        for insn in self.space.insns:
            shape = next((k for k in range(1 << insn.shape_bits) if insn.allows(k)), None)
            delta = direct_branch(insn, shape, slot) if shape is not None else None
            if delta is not None:
                direct[insn.name + insn.pattern.text] = delta
        return PredecoderEmitter(self.space, self.isa, direct).text()

    def assembler_text(self) -> str:
        """IR of the assembler of stencils."""
        return emit_module((assemble.choose, assemble.assemble, assemble.publish), "")

    def module(self, numbers: list[int]) -> tuple[str, dict[str, Any]]:
        """IR of the handlers and fill functions of some shapes, and the native functions that they call, by symbol.

        Their addresses are in a table, first those of all handlers.
        """
        functions: list[str] = []
        externs: set[str] = set()
        intrinsics: set[str] = set()
        natives: dict[str, Any] = {}
        fill_names: dict[tuple[Any, ...], str] = {}
        fills: list[str] = []
        for number in numbers:
            handler = self._handler(number)
            for each in (handler, handler.careful_twin()):
                if each is not None:
                    functions.append(each.text())
                    externs |= each.externs
                    intrinsics |= each.emit.intrinsics
                    natives |= each.emit.natives
            slots = [(s.offset, s.size, s.expr) for s in handler.layout.slots.values()]
            key = tuple((offset, size, expr.key) for offset, size, expr in slots)
            if key not in fill_names:
                fill_names[key] = f"fill{len(fill_names)}"
                text, used, more = fill_text(fill_names[key], slots)
                functions.append(text.replace("define void", "define internal void"))
                natives |= used
                intrinsics |= more
            fills.append(fill_names[key])
        symbols = [*(f"h{n}" for n in numbers), *fills]
        table = f"@shapes_{batch_tag(numbers)} = constant [{len(symbols)} x ptr] [{', '.join(f'ptr @{each}' for each in symbols)}]\n"
        declared = [f.declare() for f in natives.values()]
        parts = [table, *functions, *sorted(externs), *declared, *declare_intrinsics(intrinsics), METADATA]
        return "\n".join(parts), natives

    def stencils(self, numbers: list[int]) -> tuple[str, dict[str, Any]]:
        """IR of the stencils of some shapes, of those that can have one, and the native functions that they call, by symbol."""
        made, texts = [], []
        called: dict[str, Any] = {}
        for number in numbers:
            handler = self._handler(number)
            handler.text()  # finds a place for each operand
            stencil = Stencil(f"s{number}", handler.recording, handler.far, handler.layout)
            try:
                texts.append(stencil.text())
            except Unsuited:
                continue
            made.append(stencil)
            called |= stencil.called
        return stencil_module(made, texts), called

    def _handler(self, number: int) -> Handler:
        shape = self.space.resolve(number)
        recording = self._record(shape)
        return Handler(f"h{number}", recording, shape is not None and shape.far, self._counting)

    def _record(self, shape: Shape | None) -> Recorder:
        if shape is None or (shape.insn.feature is not None and shape.insn.feature not in self._features):
            recorder = Recorder(slot)
            recorder.undefined()
            return recorder
        return shape.insn.record_shape(shape.number, slot)
