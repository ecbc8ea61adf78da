"""The machine's clock in IR: apart from the rest, because native functions are linked against it.

A PE either shares the host's monotonic clock, or lives in virtual time: one nanosecond for each instruction that it has retired,
and what its `clock_offset` says for the instructions of others and for time without instructions.
"""

from __future__ import annotations

from trapline.engine.state import EngineState

TICK_SHIFT = 4
"""One tick of the system counter is 16 ns."""

CLOCK = f"""
declare i32 @clock_gettime(i32, ptr)

; Ticks of the system counter.
define i64 @trapline_system_counter(ptr %cpu) {{
  %mode_at = getelementptr i8, ptr %cpu, i64 {EngineState.virtual_time.offset}
  %mode = load i64, ptr %mode_at
  %real = icmp eq i64 %mode, 0
  br i1 %real, label %host, label %virtual
virtual:
  %count_at = getelementptr i8, ptr %cpu, i64 {EngineState.icount.offset}
  %count = load i64, ptr %count_at
  %offset_at = getelementptr i8, ptr %cpu, i64 {EngineState.clock_offset.offset}
  %offset = load i64, ptr %offset_at
  %time = add i64 %count, %offset
  %virtual_ticks = lshr i64 %time, {TICK_SHIFT}
  ret i64 %virtual_ticks
host:
  %now = alloca [2 x i64]
  %ok = call i32 @clock_gettime(i32 1, ptr %now)
  %seconds = load i64, ptr %now
  %ns_at = getelementptr i8, ptr %now, i64 8
  %ns = load i64, ptr %ns_at
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %ns
  %ticks = lshr i64 %sum, {TICK_SHIFT}
  ret i64 %ticks
}}
"""
"""The machine's clock, which native functions call."""
