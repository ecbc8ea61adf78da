"""Hand-written IR: entering and leaving compiled code, and the pseudo-handlers of a predecoded page.

These few functions are in IR because they tail-call handlers in the handlers' own calling convention. Everything else that
compiled code needs is in `runtime`.
"""

from __future__ import annotations

from trapline.arm64.state import CpuState
from trapline.engine.handler import CC, PROTOTYPE
from trapline.engine.state import ALONE, PAGE_HEADER, PAGE_INSNS, RECORD_SHIFT, RECORD_SIZE, EngineState, Exit, Shared

_ARCH_PC = int(CpuState.pc.offset)

DECODE_AHEAD = 32
"""How many instructions are predecoded at a time."""


def _field(name: str) -> int:
    return int(getattr(EngineState, name).offset)


def _pc_of_record() -> str:
    return f"""
  %here = ptrtoint ptr %rec to i64
  %records_at = getelementptr i8, ptr %cpu, i64 {_field("records")}
  %records = load i64, ptr %records_at
  %distance = sub i64 %here, %records
  %offset = lshr i64 %distance, {RECORD_SHIFT}
  %page_at = getelementptr i8, ptr %cpu, i64 {_field("page_va")}
  %page = load i64, ptr %page_at
  %pc = add i64 %page, %offset
  %pc_at = getelementptr i8, ptr %cpu, i64 {_ARCH_PC}
  store i64 %pc, ptr %pc_at"""


def text() -> str:
    """The module's IR."""
    resume = f"musttail call {CC} void @trapline_resume(ptr %cpu, ptr %rec, ptr %tlb, i64 poison)\n  ret void"
    pc_at = f"%pc_at = getelementptr i8, ptr %cpu, i64 {_ARCH_PC}"
    return f"""
declare i64 @trapline_lookup(ptr)
declare void @trapline_service(ptr)
declare void @trapline_land(ptr, i64)
declare void @trapline_begin(ptr)
declare void @trapline_start(ptr)
declare void @trapline_continue(ptr)
declare void @trapline_fp_exception(ptr, ptr)
declare void @trapline_interrupt_hypervisor(ptr)
declare i32 @trapline_decode_word(i32, i64)

; Enter the guest from EL2; start a PE where it is; go on after an exit that was not one to EL2. All return the exit code.
define i32 @trapline_enter(ptr %cpu) {{
  call void @trapline_begin(ptr %cpu)
  %code = call i32 @trapline_run(ptr %cpu)
  ret i32 %code
}}

define i32 @trapline_launch(ptr %cpu) {{
  call void @trapline_start(ptr %cpu)
  %code = call i32 @trapline_run(ptr %cpu)
  ret i32 %code
}}

define i32 @trapline_proceed(ptr %cpu) {{
  call void @trapline_continue(ptr %cpu)
  %code = call i32 @trapline_run(ptr %cpu)
  ret i32 %code
}}

define internal i32 @trapline_run(ptr %cpu) {{
  %tlb_at = getelementptr i8, ptr %cpu, i64 {_field("tlb")}
  %tlb = load ptr, ptr %tlb_at
  call {CC} void @trapline_resume(ptr %cpu, ptr null, ptr %tlb, i64 poison)
  %exit_at = getelementptr i8, ptr %cpu, i64 {_field("exit_code")}
  %code = load i32, ptr %exit_at
  ret i32 %code
}}

; Continue at arch.pc, wherever that is now; return to the caller of trapline_run if an exit is due.
define {CC} void @trapline_resume({PROTOTYPE}) {{
  %found = call i64 @trapline_lookup(ptr %cpu)
  %none = icmp eq i64 %found, 0
  br i1 %none, label %leave, label %go
leave:
  ret void
go:
  %next = inttoptr i64 %found to ptr
  %tlb_at = getelementptr i8, ptr %cpu, i64 {_field("tlb")}
  %tlb2 = load ptr, ptr %tlb_at
  %handler = load ptr, ptr %next
  musttail call {CC} void %handler(ptr %cpu, ptr %next, ptr %tlb2, i64 poison)
  ret void
}}

; A branch that missed: what waits is served, as it is where one hits.
define {CC} void @trapline_goto({PROTOTYPE}) {{
  {pc_at}
  store i64 %aux, ptr %pc_at
  %pending_at = getelementptr i8, ptr %cpu, i64 {_field("poll_kick")}
  %pending = load volatile i64, ptr %pending_at
  %nothing = icmp eq i64 %pending, 0
  br i1 %nothing, label %go, label %serve
serve:
  call void @trapline_service(ptr %cpu)
  br label %go
go:
  {resume}
}}

; A call or jump that missed, or whose target page is guarded.
define {CC} void @trapline_goto_landing({PROTOTYPE}) {{{_pc_of_record()}
  call void @trapline_land(ptr %cpu, i64 %aux)
  {resume}
}}

define {CC} void @trapline_poll({PROTOTYPE}) {{{_pc_of_record()}
  call void @trapline_service(ptr %cpu)
  {resume}
}}

; A counting engine has retired as many instructions as it was asked for.
define {CC} void @trapline_stop({PROTOTYPE}) {{{_pc_of_record()}
  call void @trapline_interrupt_hypervisor(ptr %cpu)
  {resume}
}}

define {CC} void @trapline_fp_trap({PROTOTYPE}) {{
  call void @trapline_fp_exception(ptr %cpu, ptr %rec)
  {resume}
}}

; The record after the last instruction of a page: go on in the next page.
define {CC} void @trapline_page_end({PROTOTYPE}) {{{_pc_of_record()}
  {resume}
}}

; One instruction for a debugger: decode it as if it were alone on its page, run it. The record after it is a page's end.
define {CC} void @trapline_lone({PROTOTYPE}) {{
  %header_at = getelementptr i8, ptr %rec, i64 -{PAGE_HEADER}
  %code = load ptr, ptr %header_at
  {pc_at}
  %pc = load i64, ptr %pc_at
  %offset = and i64 %pc, 4095
  %word_at = getelementptr i8, ptr %code, i64 %offset
  %word = load volatile i32, ptr %word_at
  %shape = call i32 @trapline_decode_word(i32 %word, i64 {ALONE})
  %shape64 = zext i32 %shape to i64
  %shared_at = getelementptr i8, ptr %cpu, i64 {_field("shared")}
  %shared = load ptr, ptr %shared_at
  %handlers_at = getelementptr i8, ptr %shared, i64 {Shared.handlers.offset}
  %handlers = load ptr, ptr %handlers_at
  %handler_at = getelementptr ptr, ptr %handlers, i64 %shape64
  %handler = load volatile ptr, ptr %handler_at
  %have = icmp ne ptr %handler, null
  br i1 %have, label %go, label %missing
missing:
  %missing_at = getelementptr i8, ptr %cpu, i64 {_field("missing_word")}
  store i32 %word, ptr %missing_at
  %alone_at = getelementptr i8, ptr %cpu, i64 {_field("missing_alone")}
  store i32 1, ptr %alone_at
  %exit_at = getelementptr i8, ptr %cpu, i64 {_field("exit_code")}
  store i32 {Exit.COMPILE}, ptr %exit_at
  ret void
go:
  %fills_at = getelementptr i8, ptr %shared, i64 {Shared.fills.offset}
  %fills = load ptr, ptr %fills_at
  %fill_at = getelementptr ptr, ptr %fills, i64 %shape64
  %fill_fn = load ptr, ptr %fill_at
  call void %fill_fn(i32 %word, ptr %rec)
  musttail call {CC} void %handler(ptr %cpu, ptr %rec, ptr %tlb, i64 poison)
  ret void
}}

; In place of a region that is still to be checked.
define {CC} void @trapline_check({PROTOTYPE}) {{{_pc_of_record()}
  %exit_at = getelementptr i8, ptr %cpu, i64 {_field("exit_code")}
  store i32 {Exit.CHECK}, ptr %exit_at
  ret void
}}

; Every record starts with this handler: predecode from here on, then run what was decoded.
define {CC} void @trapline_undecoded({PROTOTYPE}) {{{_pc_of_record()}
  %ok = call i32 @trapline_decode(ptr %cpu, ptr %rec)
  %missing = icmp eq i32 %ok, 0
  br i1 %missing, label %leave, label %go
leave:
  ret void
go:
  %handler = load ptr, ptr %rec
  musttail call {CC} void %handler(ptr %cpu, ptr %rec, ptr %tlb, i64 poison)
  ret void
}}

; Predecode up to {DECODE_AHEAD} instructions from a record; 0 and an exit if the first one has no handler yet.
define i32 @trapline_decode(ptr %cpu, ptr %rec) {{
entry:
  %records_at = getelementptr i8, ptr %cpu, i64 {_field("records")}
  %records = load i64, ptr %records_at
  %here = ptrtoint ptr %rec to i64
  %distance = sub i64 %here, %records
  %first = udiv i64 %distance, {RECORD_SIZE}
  %header = sub i64 %records, {PAGE_HEADER}
  %header_ptr = inttoptr i64 %header to ptr
  %code = load ptr, ptr %header_ptr
  %shared_at = getelementptr i8, ptr %cpu, i64 {_field("shared")}
  %shared = load ptr, ptr %shared_at
  %handlers_at = getelementptr i8, ptr %shared, i64 {Shared.handlers.offset}
  %handlers = load ptr, ptr %handlers_at
  %fills_at = getelementptr i8, ptr %shared, i64 {Shared.fills.offset}
  %fills = load ptr, ptr %fills_at
  %undecoded_at = getelementptr i8, ptr %shared, i64 {Shared.undecoded.offset}
  %undecoded = load ptr, ptr %undecoded_at
  %last = add i64 %first, {DECODE_AHEAD}
  %beyond = icmp ugt i64 %last, {PAGE_INSNS}
  %end = select i1 %beyond, i64 {PAGE_INSNS}, i64 %last
  br label %loop
loop:
  %i = phi i64 [ %first, %entry ], [ %following, %decoded ]
  %record_offset = mul i64 %i, {RECORD_SIZE}
  %record_address = add i64 %records, %record_offset
  %record = inttoptr i64 %record_address to ptr
  %old = load ptr, ptr %record
  %fresh = icmp eq ptr %old, %undecoded
  br i1 %fresh, label %read, label %done
read:
  %word_offset = shl i64 %i, 2
  %word_at = getelementptr i8, ptr %code, i64 %word_offset
  %word = load volatile i32, ptr %word_at
  %shape = call i32 @trapline_decode_word(i32 %word, i64 %i)
  %shape64 = zext i32 %shape to i64
  %handler_at = getelementptr ptr, ptr %handlers, i64 %shape64
  %handler = load volatile ptr, ptr %handler_at
  %have = icmp ne ptr %handler, null
  br i1 %have, label %fill, label %absent
fill:
  %fill_at = getelementptr ptr, ptr %fills, i64 %shape64
  %fill_fn = load ptr, ptr %fill_at
  call void %fill_fn(i32 %word, ptr %record)
  fence release
  store volatile ptr %handler, ptr %record
  ; Another vCPU may have changed the word and reset the record before the store above: then decode what is there now.
  fence seq_cst
  %again = load volatile i32, ptr %word_at
  %stable = icmp eq i32 %again, %word
  br i1 %stable, label %decoded, label %changed
changed:
  store volatile ptr %undecoded, ptr %record
  br label %read
decoded:
  %following = add i64 %i, 1
  %finished = icmp uge i64 %following, %end
  br i1 %finished, label %done, label %loop
absent:
  %is_first = icmp eq i64 %i, %first
  br i1 %is_first, label %missing, label %done
missing:
  %missing_at = getelementptr i8, ptr %cpu, i64 {_field("missing_word")}
  store i32 %word, ptr %missing_at
  %alone_at = getelementptr i8, ptr %cpu, i64 {_field("missing_alone")}
  store i32 0, ptr %alone_at
  %exit_at = getelementptr i8, ptr %cpu, i64 {_field("exit_code")}
  store i32 {Exit.COMPILE}, ptr %exit_at
  ret i32 0
done:
  ret i32 1
}}
"""
