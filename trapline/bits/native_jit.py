"""Compiled native functions as Python callables, for tests and tools. Importing this module loads LLVM."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm

from trapline.bits.native import NativeFunction
from trapline.bits.native_llvm import llvm_return
from trapline.bits.native_types import SCALARS, Extern, IntType, PtrType, Type

SLOT = 16
"""Bytes per argument and result in the buffers that entry functions use."""


class Compiled:
    """One compiled function; keeps the code it belongs to alive."""

    def __init__(self, function: NativeFunction[Any, Any], address: int, owner: object):
        self.function = function
        self.address = address
        self._entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._owner = owner

    def __call__(self, *args: Any) -> Any:
        kinds, ret = self.function.params, self.function.ret
        results: tuple[Type, ...] = ret if isinstance(ret, tuple) else () if ret is None else (ret,)
        buffer = (ctypes.c_uint8 * (SLOT * max(1, len(kinds), len(results))))()
        for i, (kind, arg) in enumerate(zip(kinds, args, strict=True)):
            number = ctypes.addressof(arg) if isinstance(kind, PtrType) else arg & kind.mask
            buffer[i * SLOT : (i + 1) * SLOT] = number.to_bytes(SLOT, "little")  # type: ignore[assignment]
        self._entry(ctypes.addressof(buffer))
        words = [int.from_bytes(bytes(buffer[i * SLOT : (i + 1) * SLOT]), "little") for i in range(len(results))]
        values = [kind(word) for kind, word in zip(results, words)]
        return tuple(values) if isinstance(ret, tuple) else values[0] if values else None


def _entry_text(function: NativeFunction[Any, Any]) -> str:
    """A function that takes arguments from a buffer and leaves results there."""
    lines, args = list[str](), list[str]()
    for i, kind in enumerate(function.params):
        lines.append(f"%a{i} = getelementptr i8, ptr %buffer, i64 {i * SLOT}")
        lines.append(f"%v{i} = load {'i8' if kind.llvm == 'i1' else kind.llvm}, ptr %a{i}, align 1")
        if kind.llvm == "i1":
            lines.append(f"%b{i} = trunc i8 %v{i} to i1")
        args.append(f"{kind.llvm} %{'b' if kind.llvm == 'i1' else 'v'}{i}")
    ret = function.ret
    call = f"call {llvm_return(ret)} @{function.symbol}({', '.join(args)})"
    lines.append(call if ret is None else f"%result = {call}")
    for i, kind in enumerate(ret if isinstance(ret, tuple) else () if ret is None else (ret,)):
        value = "%result"
        if isinstance(ret, tuple):
            lines.append(f"%r{i} = extractvalue {llvm_return(ret)} %result, {i}")
            value = f"%r{i}"
        lines.append(f"%o{i} = getelementptr i8, ptr %buffer, i64 {i * SLOT}")
        wide = value
        if kind.llvm != "ptr" and kind.llvm != "i128":
            lines.append(f"%w{i} = zext {kind.llvm} {value} to i128")
            wide = f"%w{i}"
        lines.append(f"store {'ptr' if kind.llvm == 'ptr' else 'i128'} {wide}, ptr %o{i}, align 1")
    body = "\n  ".join([*lines, "ret void"])
    return f'define void @"entry {function.symbol}"(ptr %buffer) {{\n  {body}\n}}\n'


def _bind(host: Extern) -> Any:
    """Make a host function's Python version callable from compiled code; the result must be kept."""
    ctypes_of = {kind: ctype for ctype, kind in SCALARS.items()}

    def convert(kind: Type) -> Any:
        return ctypes_of[kind] if isinstance(kind, IntType) else ctypes.POINTER(kind.ctype)

    def call(*args: Any) -> Any:
        return host(*[arg.contents if isinstance(kind, PtrType) else arg for kind, arg in zip(host.params, args)])

    callback = ctypes.CFUNCTYPE(convert(host.ret) if host.ret else None, *map(convert, host.params))(call)
    llvm.add_symbol(host.symbol, ctypes.cast(callback, ctypes.c_void_p).value)
    return callback


def compile_module(functions: Sequence[NativeFunction[Any, Any]], text: str, optimize: int) -> dict[str, Callable[..., Any]]:
    """Compile `text`, which defines `functions`; see `native.compile_functions`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text + "".join(_entry_text(function) for function in functions))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=optimize)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=optimize))
    builder.getModulePassManager().run(module, builder)
    hosts = {host.symbol: host for function in functions for host in _externs(function)}
    callbacks = [_bind(host) for host in hosts.values() if host.python is not None]
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    owner = (engine, callbacks)
    return {f.name: Compiled(f, engine.get_function_address(f"entry {f.symbol}"), owner) for f in functions}


def _externs(function: NativeFunction[Any, Any]) -> list[Extern]:
    return function.tree.externs + [host for callee in function.tree.calls for host in _externs(callee)]
