"""Cryptographic, polynomial and CRC arithmetic of A64, by the manual's names; every function is `@native` and pure.

128-bit operands and results are (low, high) pairs of u64, low first: `d_lo, d_hi` and so on.

  AESE, AESD                 aese aesd (d_lo, d_hi, n_lo, n_hi) -> tuple[u64, u64]      AddRoundKey, ShiftRows, SubBytes (or the inverses)
  AESMC, AESIMC              aesmc aesimc (n_lo, n_hi) -> tuple[u64, u64]
  SHA1C, SHA1P, SHA1M        sha1c sha1p sha1m (d_lo, d_hi, n: u32, m_lo, m_hi) -> tuple[u64, u64]
  SHA1H                      sha1h (n: u32) -> u32
  SHA1SU0                    sha1su0 (d_lo, d_hi, n_lo, n_hi, m_lo, m_hi) -> tuple[u64, u64]
  SHA1SU1                    sha1su1 (d_lo, d_hi, n_lo, n_hi) -> tuple[u64, u64]
  SHA256H, SHA256H2          sha256h sha256h2 (d_lo, d_hi, n_lo, n_hi, m_lo, m_hi) -> tuple[u64, u64]      in the order Qd, Qn, Vm
  SHA256SU0                  sha256su0 (d_lo, d_hi, n_lo, n_hi) -> tuple[u64, u64]
  SHA256SU1                  sha256su1 (d_lo, d_hi, n_lo, n_hi, m_lo, m_hi) -> tuple[u64, u64]
  PMULL (1Q from 1D)         polynomial_multiply_64 (n: u64, m: u64) -> tuple[u64, u64]
  PMULL (8H from 8B)         polynomial_multiply_long_8 (n: u64, m: u64) -> tuple[u64, u64]    eight 8x8 -> 16-bit products
  PMUL (8B)                  polynomial_multiply_8 (n: u64, m: u64) -> u64              eight lanes, low 8 bits of each product
  CRC32B, H, W, X            crc32 (acc: u32, value: u64, size: u32) -> u32             size in bits, 8..64; value zero-extended
  CRC32CB, H, W, X           crc32c (acc: u32, value: u64, size: u32) -> u32
"""

from __future__ import annotations

from trapline.arm64 import crypto_host as forms
from trapline.bits.native import native, u32, u64, u128


def field_multiply(a: int, b: int, polynomial: int) -> int:
    """Product in GF(2^8) modulo a polynomial of degree 8."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (polynomial if a & 0x80 else 0)
        b >>= 1
    return product


def field_inverses(polynomial: int) -> bytes:
    """The inverse of each element of the field; zero for zero."""
    table = bytearray(256)
    for a in range(1, 256):
        if not table[a]:
            inverse = next(b for b in range(1, 256) if field_multiply(a, b, polynomial) == 1)
            table[a], table[inverse] = inverse, a
    return bytes(table)


def _substitution() -> bytes:
    """The S-box of AES: inverse in the field modulo x^8 + x^4 + x^3 + x + 1, then the affine map."""
    box = bytearray(256)
    for a, inverse in enumerate(field_inverses(0x11B)):
        box[a] = 0x63 ^ inverse
        for shift in range(1, 5):
            box[a] ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
    return bytes(box)


def _crc_table(polynomial: int) -> tuple[int, ...]:
    """What 8, 16, ... 64 steps of the reflected shift register do to each low byte: eight tables of 256 words."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
        table.append(crc)
    for k in range(256, 2048):
        table.append(table[k - 256] >> 8 ^ table[table[k - 256] & 0xFF])
    return tuple(table)


SBOX = _substitution()
INVERSE_SBOX = bytes(SBOX.index(a) for a in range(256))
SHIFT_ROWS = bytes((i + 4 * (i % 4)) % 16 for i in range(16))  # where byte i of the result comes from
INVERSE_SHIFT_ROWS = bytes((i - 4 * (i % 4)) % 16 for i in range(16))
CRC32_TABLE: tuple[u32, ...] = _crc_table(0xEDB8_8320)
CRC32C_TABLE: tuple[u32, ...] = _crc_table(0x82F6_3B78)

EACH_NIBBLE = 0x1111_1111_1111_1111
EACH_BYTE = 0x0101_0101_0101_0101
EACH_HALFWORD = 0x0001_0001_0001_0001


@native(host=forms.AESE)
def aese(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """AESE: AddRoundKey, AESShiftRows, AESSubBytes."""
    state = u128(d_hi ^ n_hi) << 64 | u128(d_lo ^ n_lo)
    low: u64 = 0
    high: u64 = 0
    for i in range(8):
        low |= u64(SBOX[u64(state >> 8 * SHIFT_ROWS[i]) & 0xFF]) << 8 * i
        high |= u64(SBOX[u64(state >> 8 * SHIFT_ROWS[i + 8]) & 0xFF]) << 8 * i
    return low, high


@native(host=forms.AESD)
def aesd(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """AESD: AddRoundKey, AESInvShiftRows, AESInvSubBytes."""
    state = u128(d_hi ^ n_hi) << 64 | u128(d_lo ^ n_lo)
    low: u64 = 0
    high: u64 = 0
    for i in range(8):
        low |= u64(INVERSE_SBOX[u64(state >> 8 * INVERSE_SHIFT_ROWS[i]) & 0xFF]) << 8 * i
        high |= u64(INVERSE_SBOX[u64(state >> 8 * INVERSE_SHIFT_ROWS[i + 8]) & 0xFF]) << 8 * i
    return low, high


@native
def double_bytes(x: u64) -> u64:
    """Each byte times two in the field of AES."""
    return ((x & 0x7F * EACH_BYTE) << 1) ^ (((x >> 7) & EACH_BYTE) * 0x1B)


@native
def rotate_columns(x: u64, count: u64) -> u64:
    """Each 32-bit column rotated right by 8 or 16."""
    mask = u64(0xFFFF_FFFF >> count) * 0x0000_0001_0000_0001
    return ((x >> count) & mask) | ((x << (32 - count)) & (mask ^ 0xFFFF_FFFF_FFFF_FFFF))


@native
def mix_columns(x: u64) -> u64:
    """Two columns times the polynomial {03}x^3 + {01}x^2 + {01}x + {02}."""
    pairs = x ^ rotate_columns(x, 8)
    return double_bytes(pairs) ^ rotate_columns(x, 8) ^ rotate_columns(pairs, 16)


@native(host=forms.AESMC)
def aesmc(n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """AESMC: AESMixColumns."""
    return mix_columns(n_lo), mix_columns(n_hi)


@native
def inverse_mix_columns(x: u64) -> u64:
    """The inverse polynomial is mix_columns' times {04}x^2 + {05}."""
    return mix_columns(x ^ double_bytes(double_bytes(x ^ rotate_columns(x, 16))))


@native(host=forms.AESIMC)
def aesimc(n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """AESIMC: AESInvMixColumns."""
    return inverse_mix_columns(n_lo), inverse_mix_columns(n_hi)


@native
def rotate_left(x: u32, count: u32) -> u32:
    """ROL of a word, by 1 to 31."""
    return x << count | x >> (32 - count)


@native
def sha_choose(x: u32, y: u32, z: u32) -> u32:
    """SHAchoose."""
    return ((y ^ z) & x) ^ z


@native
def sha_majority(x: u32, y: u32, z: u32) -> u32:
    """SHAmajority."""
    return (x & y) | ((x | y) & z)


CHOOSE, PARITY, MAJORITY = range(3)


@native
def sha1_hash(kind: u32, d_lo: u64, d_hi: u64, n: u32, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """Four rounds of SHA-1 with the function `kind`; d holds the words a to d, n is e, m the schedule plus constant."""
    a, b, c, d, e = u32(d_lo), u32(d_lo >> 32), u32(d_hi), u32(d_hi >> 32), n
    for i in range(4):
        if kind == CHOOSE:
            mixed = sha_choose(b, c, d)
        elif kind == PARITY:
            mixed = b ^ c ^ d
        else:
            mixed = sha_majority(b, c, d)
        word = u32((m_lo if i < 2 else m_hi) >> 32 * (i & 1))
        total = e + rotate_left(a, 5) + mixed + word
        a, b, c, d, e = total, a, rotate_left(b, 30), c, d
    return u64(b) << 32 | u64(a), u64(d) << 32 | u64(c)


@native
def sha1c(d_lo: u64, d_hi: u64, n: u32, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA1C: choose."""
    return sha1_hash(CHOOSE, d_lo, d_hi, n, m_lo, m_hi)


@native
def sha1p(d_lo: u64, d_hi: u64, n: u32, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA1P: parity."""
    return sha1_hash(PARITY, d_lo, d_hi, n, m_lo, m_hi)


@native
def sha1m(d_lo: u64, d_hi: u64, n: u32, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA1M: majority."""
    return sha1_hash(MAJORITY, d_lo, d_hi, n, m_lo, m_hi)


@native
def sha1h(n: u32) -> u32:
    """SHA1H: fixed rotate."""
    return rotate_left(n, 30)


@native
def sha1su0(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA1SU0: first half of a schedule update."""
    return d_lo ^ d_hi ^ m_lo, d_hi ^ n_lo ^ m_hi


@native
def sha1su1(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """SHA1SU1: second half; the last word depends on the first result."""
    t_lo = d_lo ^ (n_lo >> 32 | n_hi << 32)
    t_hi = d_hi ^ n_hi >> 32
    w0 = rotate_left(u32(t_lo), 1)
    w1 = rotate_left(u32(t_lo >> 32), 1)
    w2 = rotate_left(u32(t_hi), 1)
    w3 = rotate_left(u32(t_hi >> 32), 1) ^ rotate_left(w0, 1)
    return u64(w1) << 32 | u64(w0), u64(w3) << 32 | u64(w2)


@native
def rotations(x: u32, i: u32, j: u32, k: u32) -> u32:
    """The sum over GF(2) of three right rotations: the upper-case sigmas of SHA-256."""
    return rotate_left(x, 32 - i) ^ rotate_left(x, 32 - j) ^ rotate_left(x, 32 - k)


@native
def sha256_hash(x_lo: u64, x_hi: u64, y_lo: u64, y_hi: u64, w_lo: u64, w_hi: u64) -> tuple[u64, u64, u64, u64]:
    """SHA256hash: four rounds; x holds the words a to d, y e to h, w the schedule plus constant."""
    a, b, c, d = u32(x_lo), u32(x_lo >> 32), u32(x_hi), u32(x_hi >> 32)
    e, f, g, h = u32(y_lo), u32(y_lo >> 32), u32(y_hi), u32(y_hi >> 32)
    for i in range(4):
        word = u32((w_lo if i < 2 else w_hi) >> 32 * (i & 1))
        first = h + rotations(e, 6, 11, 25) + sha_choose(e, f, g) + word
        second = rotations(a, 2, 13, 22) + sha_majority(a, b, c)
        a, b, c, d, e, f, g, h = first + second, a, b, c, d + first, e, f, g
    return u64(b) << 32 | u64(a), u64(d) << 32 | u64(c), u64(f) << 32 | u64(e), u64(h) << 32 | u64(g)


@native(host=forms.SHA256H)
def sha256h(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA256H: the words a to d after four rounds."""
    x_lo, x_hi, _, _ = sha256_hash(d_lo, d_hi, n_lo, n_hi, m_lo, m_hi)
    return x_lo, x_hi


@native(host=forms.SHA256H2)
def sha256h2(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA256H2: the words e to h after four rounds; here n holds a to d."""
    _, _, y_lo, y_hi = sha256_hash(n_lo, n_hi, d_lo, d_hi, m_lo, m_hi)
    return y_lo, y_hi


@native
def small_sigma_0(x: u32) -> u32:
    """sigma0 of SHA-256."""
    return rotate_left(x, 25) ^ rotate_left(x, 14) ^ x >> 3


@native
def small_sigma_1(x: u32) -> u32:
    """sigma1 of SHA-256."""
    return rotate_left(x, 15) ^ rotate_left(x, 13) ^ x >> 10


@native(host=forms.SHA256SU0)
def sha256su0(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64) -> tuple[u64, u64]:
    """SHA256SU0: each word plus sigma0 of the next one."""
    w0 = u32(d_lo) + small_sigma_0(u32(d_lo >> 32))
    w1 = u32(d_lo >> 32) + small_sigma_0(u32(d_hi))
    w2 = u32(d_hi) + small_sigma_0(u32(d_hi >> 32))
    w3 = u32(d_hi >> 32) + small_sigma_0(u32(n_lo))
    return u64(w1) << 32 | u64(w0), u64(w3) << 32 | u64(w2)


@native(host=forms.SHA256SU1)
def sha256su1(d_lo: u64, d_hi: u64, n_lo: u64, n_hi: u64, m_lo: u64, m_hi: u64) -> tuple[u64, u64]:
    """SHA256SU1: adds the words seven back and sigma1 of the words two back, the last two of them new."""
    w0 = u32(d_lo) + u32(n_lo >> 32) + small_sigma_1(u32(m_hi))
    w1 = u32(d_lo >> 32) + u32(n_hi) + small_sigma_1(u32(m_hi >> 32))
    w2 = u32(d_hi) + u32(n_hi >> 32) + small_sigma_1(w0)
    w3 = u32(d_hi >> 32) + u32(m_lo) + small_sigma_1(w1)
    return u64(w1) << 32 | u64(w0), u64(w3) << 32 | u64(w2)


@native
def polynomial_multiply_64_32(n: u64, m: u64) -> u128:
    """PolynomialMult of 64 by 32 bits, by multiplying numbers of which every fourth bit counts.

    A digit of such a product sums at most eight bits, so nothing carries into the next one, and its lowest bit is their parity.
    """
    product: u128 = 0
    for k in range(4):
        digits: u128 = 0
        for i in range(4):
            digits ^= u128(n & EACH_NIBBLE << i) * u128(m & EACH_NIBBLE << ((k - i) & 3))
        product |= digits & (u128(EACH_NIBBLE) << 64 | u128(EACH_NIBBLE)) << k
    return product


@native(host=forms.PMULL)
def polynomial_multiply_64(n: u64, m: u64) -> tuple[u64, u64]:
    """PolynomialMult of 64 by 64 bits: (low, high)."""
    product = polynomial_multiply_64_32(n, m & 0xFFFF_FFFF) ^ polynomial_multiply_64_32(n, m >> 32) << 32
    return u64(product), u64(product >> 64)


@native
def spread_bytes(x: u32) -> u64:
    """Four bytes, each zero-extended to a halfword."""
    pairs = (u64(x) | u64(x) << 16) & 0x0000_FFFF_0000_FFFF
    return (pairs | pairs << 8) & 0x00FF_00FF_00FF_00FF


@native
def polynomial_multiply_halfwords(n: u64, m: u64) -> u64:
    """PolynomialMult in each of four halfwords, of operands of 8 bits."""
    product: u64 = 0
    for i in range(8):
        product ^= (n << i) & (((m >> i) & EACH_HALFWORD) * 0xFFFF)
    return product


@native
def polynomial_multiply_long_8(n: u64, m: u64) -> tuple[u64, u64]:
    """PolynomialMult in eight lanes of 8 by 8 bits, giving 16."""
    return (
        polynomial_multiply_halfwords(spread_bytes(u32(n)), spread_bytes(u32(m))),
        polynomial_multiply_halfwords(spread_bytes(u32(n >> 32)), spread_bytes(u32(m >> 32))),
    )


@native
def polynomial_multiply_8(n: u64, m: u64) -> u64:
    """PolynomialMult in eight lanes of 8 by 8 bits, the low 8 bits of each."""
    product: u64 = 0
    for i in range(8):
        product ^= ((n & (0xFF >> u64(i)) * EACH_BYTE) << i) & (((m >> i) & EACH_BYTE) * 0xFF)
    return product


@native
def crc32(acc: u32, value: u64, size: u32) -> u32:
    """CRC32B, H, W, X: the checksum `acc` continued with the low `size` bits of `value`."""
    mixed = u64(acc) ^ value
    result = u32(u64(acc) >> size)
    count = u64(size >> 3)
    for i in range(count):
        result ^= CRC32_TABLE[(count - 1 - i) << 8 | (mixed >> 8 * i & 0xFF)]
    return result


@native(host=forms.CRC32C)
def crc32c(acc: u32, value: u64, size: u32) -> u32:
    """CRC32CB, H, W, X: the same for the Castagnoli polynomial."""
    mixed = u64(acc) ^ value
    result = u32(u64(acc) >> size)
    count = u64(size >> 3)
    for i in range(count):
        result ^= CRC32C_TABLE[(count - 1 - i) << 8 | (mixed >> 8 * i & 0xFF)]
    return result
