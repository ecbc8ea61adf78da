"""The machine's clock and random numbers in IR: apart from the rest, because native functions are linked against it.

A PE either shares the host's monotonic clock, or lives in virtual time: one nanosecond for each instruction that it has retired,
and what its `clock_offset` says for the instructions of others and for time without instructions. Random numbers are then a sequence
that follows from `random`, else the host's.
"""

from __future__ import annotations

from trapline.engine.state import EngineState

TICK_SHIFT = 4
"""One tick of the system counter is 16 ns."""

CLOCK = f"""
declare i32 @clock_gettime(i32, ptr)
declare i64 @getrandom(ptr, i64, i32)

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

; 64 random bits. In virtual time: a Weyl sequence, mixed.
define i64 @trapline_random(ptr %cpu) {{
  %mode_at = getelementptr i8, ptr %cpu, i64 {EngineState.virtual_time.offset}
  %mode = load i64, ptr %mode_at
  %real = icmp eq i64 %mode, 0
  br i1 %real, label %host, label %virtual
virtual:
  %state_at = getelementptr i8, ptr %cpu, i64 {EngineState.random.offset}
  %state = load i64, ptr %state_at
  %next = add i64 %state, {0x9E3779B97F4A7C15}
  store i64 %next, ptr %state_at
  %high1 = lshr i64 %next, 30
  %mixed1 = xor i64 %next, %high1
  %product1 = mul i64 %mixed1, {0xBF58476D1CE4E5B9}
  %high2 = lshr i64 %product1, 27
  %mixed2 = xor i64 %product1, %high2
  %product2 = mul i64 %mixed2, {0x94D049BB133111EB}
  %high3 = lshr i64 %product2, 31
  %mixed3 = xor i64 %product2, %high3
  ret i64 %mixed3
host:
  %place = alloca i64
  store i64 0, ptr %place
  %got = call i64 @getrandom(ptr %place, i64 8, i32 0)
  %value = load i64, ptr %place
  ret i64 %value
}}
"""
"""The machine's clock and random numbers, which native functions call."""
