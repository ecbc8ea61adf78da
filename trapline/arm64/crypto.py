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
