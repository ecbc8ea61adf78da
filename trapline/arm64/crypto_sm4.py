"""SM4: the block cipher's rounds, as the instructions SM4E and SM4EKEY have them; `@native` and pure.

128-bit operands and results are (low, high) pairs of u64, low first.
"""

from __future__ import annotations

from trapline.arm64.crypto import field_inverses, rotate_left
from trapline.bits.native import native, u32, u64


def _affine(x: int) -> int:
    """The affine map of the S-box, over {0, 1}: a circulant matrix and a constant."""
    result = 0xD3
    for k in range(8):
        if x >> k & 1:
            result ^= (0xCB << k | 0xCB >> 8 - k) & 0xFF
    return result


def _substitution() -> bytes:
    """The S-box: the affine map before and after an inverse in GF(2^8), modulo x^8 + x^7 + x^6 + x^5 + x^4 + x^2 + 1."""
    inverses = field_inverses(0x1F5)
    return bytes(_affine(inverses[_affine(a)]) for a in range(256))


SM4_SBOX = _substitution()


@native
def sm4_substitute(x: u32) -> u32:
    """The S-box on each byte of a word."""
    result: u32 = 0
    for k in range(4):
        result |= u32(SM4_SBOX[u64(x >> 8 * k) & 0xFF]) << 8 * k
    return result


@native
def sm4_rounds(key: u32, x_lo: u64, x_hi: u64, k_lo: u64, k_hi: u64) -> tuple[u64, u64]:
    """Four rounds on the words x with the words k: of the key schedule if `key` is 1, of the cipher if it is 0."""
    a, b, c, d = u32(x_lo), u32(x_lo >> 32), u32(x_hi), u32(x_hi >> 32)
    for i in range(4):
        word = u32((k_lo if i < 2 else k_hi) >> 32 * (i & 1))
        t = sm4_substitute(b ^ c ^ d ^ word)
        if key:
            t = t ^ rotate_left(t, 13) ^ rotate_left(t, 23)
        else:
            t = t ^ rotate_left(t, 2) ^ rotate_left(t, 10) ^ rotate_left(t, 18) ^ rotate_left(t, 24)
        a, b, c, d = b, c, d, a ^ t
    return u64(b) << 32 | u64(a), u64(d) << 32 | u64(c)


@native
def sm4e(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """SM4E: d is the state, n the round keys."""
    return sm4_rounds(0, d_lo, d_hi, n_lo, n_hi)


@native
def sm4ekey(n_lo: u64, n_hi: u64, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SM4EKEY: n is the last four round keys, m the constants."""
    return sm4_rounds(1, n_lo, n_hi, m_lo, m_hi)
