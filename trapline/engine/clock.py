"""The machine's clock in IR: apart from the rest, because native functions are linked against it."""

CLOCK = """
declare i32 @clock_gettime(i32, ptr)

; Ticks of the system counter: host monotonic time in units of 16 ns.
define i64 @trapline_system_counter() {
  %now = alloca [2 x i64]
  %ok = call i32 @clock_gettime(i32 1, ptr %now)
  %seconds = load i64, ptr %now
  %ns_at = getelementptr i8, ptr %now, i64 8
  %ns = load i64, ptr %ns_at
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %ns
  %ticks = lshr i64 %sum, 4
  ret i64 %ticks
}
"""
"""The machine's clock, which native functions call."""
