"""IEEE 754 arithmetic of the host on bit patterns, as intrinsics of the native subset: u32 is binary32, u64 binary64.

`floating` has their meaning. A result that is not a number is *some* NaN: callers must not let it through.
"""

from __future__ import annotations

from trapline.bits import floating
from trapline.bits.native_types import Intrinsic

float_add = Intrinsic("float_add", (None, None), "same", floating.add, sized=True, pure=True)
float_sub = Intrinsic("float_sub", (None, None), "same", floating.sub, sized=True, pure=True)
float_mul = Intrinsic("float_mul", (None, None), "same", floating.mul, sized=True, pure=True)
float_div = Intrinsic("float_div", (None, None), "same", floating.div, sized=True, pure=True)
float_sqrt = Intrinsic("float_sqrt", (None,), "same", floating.sqrt, sized=True, pure=True)
float_muladd = Intrinsic("float_muladd", (None, None, None), "same", floating.muladd, sized=True, pure=True)
"""a * b + c, rounded once."""
