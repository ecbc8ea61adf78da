"""QARMA, the tweakable block cipher of architected pointer authentication, with 64-bit blocks.

From R. Avanzi, "The QARMA Block Cipher Family" (2017): its names for the steps; QARMA5 is five rounds with the S-box sigma 2, QARMA3
three rounds with sigma 1. A state is sixteen cells of four bits, the first in the highest bits, as four rows of four.
"""

from __future__ import annotations

from trapline.bits.native import native, u1, u64

ALPHA = 0xC0AC_29B7_C97C_50DD
CONSTANTS: tuple[u64, ...] = (
    0x0000_0000_0000_0000, 0x1319_8A2E_0370_7344, 0xA409_3822_299F_31D0, 0x082E_FA98_EC4E_6C89, 0x4528_21E6_38D0_1377,
)  # fmt: skip
"""Digits of pi."""

SIGMA1 = (10, 13, 14, 6, 15, 7, 3, 5, 9, 8, 0, 12, 11, 1, 2, 4)
SIGMA2 = (11, 6, 8, 15, 12, 0, 9, 14, 3, 7, 4, 5, 13, 2, 1, 10)
TAU = (0, 11, 6, 13, 10, 1, 12, 7, 5, 14, 3, 8, 15, 4, 9, 2)
H = (6, 5, 14, 15, 0, 1, 2, 3, 7, 12, 13, 4, 8, 9, 10, 11)
TWEAKED_CELLS = (0, 1, 3, 4, 8, 11, 13)


def _inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(permutation.index(k) for k in range(16))


def _omega(cell: int) -> int:
    """The register that steps some cells of the tweak: (b3, b2, b1, b0) becomes (b0 + b1, b3, b2, b1)."""
    return cell >> 1 | ((cell ^ cell >> 1) & 1) << 3


_OMEGA = tuple(_omega(cell) for cell in range(16))
_SAME = tuple(range(16))

BOXES: tuple[u64, ...] = (*SIGMA2, *_inverse(SIGMA2), *SIGMA1, *_inverse(SIGMA1))
"""S-boxes: that of QARMA5, its inverse, that of QARMA3, its inverse."""
SHUFFLES: tuple[u64, ...] = (*TAU, *_inverse(TAU), *H, *_inverse(H))
"""Which cell goes to each place: of the state, back; of the tweak, back."""
STEPS: tuple[u64, ...] = (*_OMEGA, *_SAME, *_inverse(_OMEGA), *_SAME)
"""Values of a tweak's cell: a stepped one, any other; and back."""
IS_TWEAKED: tuple[u64, ...] = tuple(int(cell in TWEAKED_CELLS) for cell in range(16))
FORWARDS, BACK = 0, 16
FOR_TWEAK = 32


@native
def shuffle(state: u64, which: u64) -> u64:
    """Move cells as SHUFFLES has it from `which` on."""
    result: u64 = 0
    for k in range(16):
        result = result << 4 | state >> (60 - 4 * SHUFFLES[which + u64(k)]) & 15
    return result


@native
def substitute(state: u64, box: u64) -> u64:
    """Put every cell through an S-box."""
    result: u64 = 0
    for k in range(16):
        result = result << 4 | BOXES[box + (state >> (60 - 4 * u64(k)) & 15)]
    return result


@native
def rotate_cells(state: u64) -> u64:
    """Rotate each cell left by one bit."""
    return state << 1 & 0xEEEE_EEEE_EEEE_EEEE | state >> 3 & 0x1111_1111_1111_1111


@native
def mix(state: u64) -> u64:
    """MixColumns by the circulant matrix (0, rho, rho squared, rho), which is its own inverse: whole rows at a time."""
    first = rotate_cells((state << 16 | state >> 48) ^ (state << 48 | state >> 16))
    return first ^ rotate_cells(rotate_cells(state << 32 | state >> 32))


@native
def step_tweak(tweak: u64) -> u64:
    """The tweak of the next round."""
    moved = shuffle(tweak, FOR_TWEAK + FORWARDS)
    result: u64 = 0
    for k in range(16):
        cell = moved >> (60 - 4 * u64(k)) & 15
        result = result << 4 | STEPS[cell + (0 if IS_TWEAKED[u64(k)] != 0 else u64(16))]
    return result


@native
def step_tweak_back(tweak: u64) -> u64:
    """The tweak of the round before."""
    result: u64 = 0
    for k in range(16):
        cell = tweak >> (60 - 4 * u64(k)) & 15
        result = result << 4 | STEPS[cell + (32 if IS_TWEAKED[u64(k)] != 0 else u64(48))]
    return shuffle(result, FOR_TWEAK + BACK)


@native
def qarma(data: u64, tweak: u64, whitening: u64, core: u64, short: u1) -> u64:
    """Encrypt a block under the key `whitening`:`core`; `short` for QARMA3."""
    rounds: u64 = 2 if short else u64(4)
    box: u64 = 32 if short else u64(0)
    final = (whitening >> 1 | whitening << 63) ^ whitening >> 63
    state = data ^ whitening
    k: u64 = 0
    while k <= rounds:
        state = state ^ core ^ tweak ^ CONSTANTS[k]
        if k != 0:
            state = mix(shuffle(state, FORWARDS))
        state = substitute(state, box)
        tweak = step_tweak(tweak)
        k += 1
    state = substitute(mix(shuffle(state ^ final ^ tweak, FORWARDS)), box)
    state = shuffle(mix(shuffle(state, FORWARDS)) ^ core, BACK)
    state = shuffle(mix(substitute(state, box + 16)), BACK)
    state = state ^ whitening ^ tweak
    k = 0
    while k <= rounds:
        state = substitute(state, box + 16)
        if k != rounds:
            state = shuffle(mix(state), BACK)
        tweak = step_tweak_back(tweak)
        state = state ^ core ^ tweak ^ CONSTANTS[rounds - k] ^ ALPHA
        k += 1
    return state ^ final
