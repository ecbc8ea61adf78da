"""Bit-vector expressions of three 128-bit inputs, evaluated and compiled."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llvmlite.binding as llvm

from trapline.bits import Bits
from trapline.bits.evaluate import Evaluator
from trapline.bits.native import emit_module
from trapline.bits.to_llvm import METADATA, Emitter


class Inputs:
    """Three 128-bit inputs as leaves, and functions of them through both executions."""

    def __init__(self) -> None:
        self.leaves = [Bits("input", (), 128, attr=k) for k in range(3)]

    def low(self, width: int) -> list[Bits]:
        return [leaf.trunc(width) for leaf in self.leaves]

    def evaluate(self, node: Bits, values: list[int]) -> int:
        return int(Evaluator(lambda leaf: values[leaf.attr])(node))

    def compile(self, nodes: list[Bits]) -> Callable[[int, list[int]], int]:
        """One compiled function per node."""
        texts, natives = [], {}
        for k, node in enumerate(nodes):
            emit = Emitter(lambda leaf: load(leaf))

            def load(leaf: Bits, emit: Emitter = emit) -> str:
                pointer = emit.let(f"getelementptr i8, ptr %in, i64 {16 * leaf.attr}")
                return emit.let(f"load i128, ptr {pointer}, align 1")

            result = emit.let(f"zext i{node.width} {emit(node)} to i128") if node.width < 128 else emit(node)
            natives |= emit.natives
            lines = "\n".join([*emit.lines, f"store i128 {result}, ptr %out, align 1", "ret void"])
            texts.append(f"define void @f{k}(ptr %in, ptr %out) {{\nentry:\n{lines}\n}}\n")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly("\n".join(texts) + METADATA + (emit_module(list(natives.values())) if natives else ""))
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
        )
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
        functions = [kind(self._engine.get_function_address(f"f{k}")) for k in range(len(nodes))]

        def run(k: int, values: list[int]) -> int:
            data = ctypes.create_string_buffer(b"".join(v.to_bytes(16, "little") for v in values), 48)
            out = ctypes.create_string_buffer(16)
            functions[k](ctypes.addressof(data), ctypes.addressof(out))
            return int.from_bytes(out.raw, "little")

        return run
