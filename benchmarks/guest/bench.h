/* The guest side of `make bench`: small programs in one static binary. Written for Trapline, MIT licence. */
#ifndef BENCH_H
#define BENCH_H

#include <stddef.h>
#include <stdint.h>

/* What a program did: how much work, in how many nanoseconds, and a value that must be the same on every machine. */
struct result {
    uint64_t work;
    uint64_t ns;
    uint64_t check;
};

/* A program: its name, what its work is counted in, and its body. `scale` is the number of rounds, at least 1. */
struct program {
    const char *name;
    const char *unit;
    struct result (*run)(unsigned long scale);
};

extern const struct program integer_programs[], floating_programs[], simd_programs[], memory_programs[], system_programs[];

uint64_t now_ns(void);
/* Say that the program begins now, for the host's clocks, and what the time is. */
uint64_t start_clock(void);
uint32_t next_random(uint32_t *state);
uint64_t mix(uint64_t hash, uint64_t value);
uint64_t mix_double(uint64_t hash, double value);
void *pages(size_t bytes);
void die(const char *what);
uint32_t crc32_update(uint32_t crc, const unsigned char *data, size_t length);

/* One round of the integer mix, for programs that want to be busy. */
uint64_t integer_round(uint32_t seed);

#endif
