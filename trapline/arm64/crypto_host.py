"""Cryptographic and CRC instructions by those of an x86-64, for the functions of `crypto`."""

from __future__ import annotations

from trapline.bits.native_host import PAIR, HostForm, Let, on_vectors, split

_WORDS = "<4 x i32>"


def _aes_round(instruction: str) -> HostForm:
    """The last round of the host adds its key afterwards."""

    def body(let: Let, d: str, n: str) -> str:
        state = let(f"xor {PAIR} {d}, {n}")
        return let(f"call {PAIR} @llvm.x86.aesni.{instruction}({PAIR} {state}, {PAIR} zeroinitializer)")

    return on_vectors("aes", body)


def _mix_columns(let: Let, n: str) -> str:
    """A round that undoes a last round of decryption, all but the mixing."""
    back = let(f"call {PAIR} @llvm.x86.aesni.aesdeclast({PAIR} {n}, {PAIR} zeroinitializer)")
    return let(f"call {PAIR} @llvm.x86.aesni.aesenc({PAIR} {back}, {PAIR} zeroinitializer)")


def _carryless(let: Let, args: list[str]) -> str:
    n, m = (let(f"insertelement {PAIR} poison, i64 {a}, i64 0") for a in args)
    return split(let, let(f"call {PAIR} @llvm.x86.pclmulqdq({PAIR} {n}, {PAIR} {m}, i8 0)"))


def _crc32c(let: Let, args: list[str]) -> str:
    acc, value, size = args
    if size == "64":
        wide = let(f"call i64 @llvm.x86.sse42.crc32.64.64(i64 {let(f'zext i32 {acc} to i64')}, i64 {value})")
        return let(f"trunc i64 {wide} to i32")
    return let(f"call i32 @llvm.x86.sse42.crc32.32.{size}(i32 {acc}, i{size} {let(f'trunc i64 {value} to i{size}')})")


def _words(let: Let, vector: str) -> str:
    return let(f"bitcast {PAIR} {vector} to {_WORDS}")


def _shuffled(let: Let, a: str, b: str, order: tuple[int, ...]) -> str:
    """Words of b:a by number, those of `a` first."""
    mask = ", ".join(f"i32 {k}" for k in order)
    return let(f"shufflevector {_WORDS} {a}, {_WORDS} {b}, <4 x i32> <{mask}>")


def _sha256(let: Let, x: str, y: str, w: str, order: tuple[int, ...]) -> str:
    """Four rounds from (a, b, c, d) and (e, f, g, h); the host takes (f, e, b, a) and (h, g, d, c), two rounds at a time."""
    x, y, w = (_words(let, v) for v in (x, y, w))
    abef, cdgh = _shuffled(let, x, y, (5, 4, 1, 0)), _shuffled(let, x, y, (7, 6, 3, 2))
    for words in ((0, 1, 0, 1), (2, 3, 2, 3)):
        pair = _shuffled(let, w, w, words)
        call = f"call {_WORDS} @llvm.x86.sha256rnds2({_WORDS} {cdgh}, {_WORDS} {abef}, {_WORDS} {pair})"
        abef, cdgh = let(call), abef
    return let(f"bitcast {_WORDS} {_shuffled(let, cdgh, abef, order)} to {PAIR}")


def _sha256_schedule_0(let: Let, d: str, n: str) -> str:
    d, n = _words(let, d), _words(let, n)
    return let(f"bitcast {_WORDS} {let(f'call {_WORDS} @llvm.x86.sha256msg1({_WORDS} {d}, {_WORDS} {n})')} to {PAIR}")


def _sha256_schedule_1(let: Let, d: str, n: str, m: str) -> str:
    d, n, m = (_words(let, v) for v in (d, n, m))
    total = let(f"add {_WORDS} {d}, {_shuffled(let, n, m, (1, 2, 3, 4))}")
    return let(f"bitcast {_WORDS} {let(f'call {_WORDS} @llvm.x86.sha256msg2({_WORDS} {total}, {_WORDS} {m})')} to {PAIR}")


AESE, AESD = _aes_round("aesenclast"), _aes_round("aesdeclast")
AESMC = on_vectors("aes", _mix_columns)
AESIMC = on_vectors("aes", lambda let, n: let(f"call {PAIR} @llvm.x86.aesni.aesimc({PAIR} {n})"))
PMULL = HostForm("pclmul", _carryless)
CRC32C = HostForm("sse4.2", _crc32c)
SHA256H = on_vectors("sha", lambda let, d, n, m: _sha256(let, d, n, m, (7, 6, 3, 2)))
SHA256H2 = on_vectors("sha", lambda let, d, n, m: _sha256(let, n, d, m, (5, 4, 1, 0)))
SHA256SU0 = on_vectors("sha", _sha256_schedule_0)
SHA256SU1 = on_vectors("sha", _sha256_schedule_1)
