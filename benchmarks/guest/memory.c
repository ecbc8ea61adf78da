/* Memory: a sieve, a walk through pointers, four streams over two sizes. */
#include "bench.h"

#include <string.h>
#include <sys/mman.h>

#define MIB (1ul << 20)

/* A byte for each number below 16 Mi. */
static struct result sieve(unsigned long scale)
{
    const size_t count = 16 * MIB;
    uint8_t *composite = pages(count);
    struct result r = {.work = scale * count};
    uint64_t start = start_clock();

    for (unsigned long turn = 0; turn < scale; turn++) {
        uint64_t primes = 0;
        memset(composite, 0, count);
        for (size_t n = 2; n < count; n++) {
            if (composite[n])
                continue;
            primes++;
            for (size_t multiple = n * n; multiple < count; multiple += n)
                composite[multiple] = 1;
        }
        r.check += primes;
    }
    r.ns = now_ns() - start;
    return r;
}

/* Where line number n lies if there is one every `stride` bytes: not always at the same place of a page, for the cache's sets' sake. */
static void **line(char *memory, size_t n, size_t stride)
{
    return (void **)(memory + n * stride + (n * 7 * 64 & (stride - 1)));
}

/* One cycle through all lines, in random order. */
static struct result chase(size_t bytes, size_t stride, unsigned long scale)
{
    const size_t count = bytes / stride;
    char *memory = pages(bytes);
    void **at = (void **)memory;
    struct result r = {.work = scale * 1000};
    uint32_t seed = 31337;

    for (size_t n = 0; n < count; n++)
        *line(memory, n, stride) = line(memory, n, stride);
    for (size_t n = count - 1; n > 0; n--) { /* Sattolo's shuffle: a single cycle */
        size_t other = next_random(&seed) % n;
        void *t = *line(memory, n, stride);
        *line(memory, n, stride) = *line(memory, other, stride);
        *line(memory, other, stride) = t;
    }
    uint64_t start = start_clock();
    for (unsigned long n = 0; n < scale * 1000; n++)
        at = *at;
    r.ns = now_ns() - start;
    r.check = (char *)at - memory;
    return r;
}

#define CHASE(name, bytes, stride) \
    static struct result name(unsigned long scale) \
    { \
        return chase(bytes, stride, scale); \
    }

CHASE(chase_small, MIB, 64)
CHASE(chase_pages, 8 * MIB, 4096)
CHASE(chase_large, 32 * MIB, 64)

/* -- streams: three arrays of doubles that fill `bytes` together ------------------------------------------------------- */
enum kernel { COPY, SCALE, ADD, TRIAD };

static void stream_pass(enum kernel kernel, double *restrict to, const double *restrict a, const double *restrict b, size_t count)
{
    const double factor = 3;

    switch (kernel) {
    case COPY:
        for (size_t n = 0; n < count; n++)
            to[n] = a[n];
        break;
    case SCALE:
        for (size_t n = 0; n < count; n++)
            to[n] = factor * a[n];
        break;
    case ADD:
        for (size_t n = 0; n < count; n++)
            to[n] = a[n] + b[n];
        break;
    case TRIAD:
        for (size_t n = 0; n < count; n++)
            to[n] = a[n] + factor * b[n];
        break;
    }
}

static struct result stream(enum kernel kernel, size_t bytes, unsigned long scale)
{
    size_t count = bytes / 3 / sizeof(double);
    double *to = pages(bytes), *a = to + count, *b = a + count;
    unsigned arrays = kernel == ADD || kernel == TRIAD ? 3 : 2;
    struct result r = {.work = scale * arrays * count * sizeof(double)};

    for (size_t n = 0; n < count; n++) {
        to[n] = 0;
        a[n] = n % 1000 * 0.5;
        b[n] = 1;
    }
    uint64_t start = start_clock();
    for (unsigned long turn = 0; turn < scale; turn++) {
        a[0] = turn;
        stream_pass(kernel, to, a, b, count);
    }
    r.ns = now_ns() - start;
    for (size_t n = 0; n < count; n += count / 97)
        r.check = mix_double(r.check, to[n]);
    return r;
}

#define STREAM(name, kernel, bytes) \
    static struct result name(unsigned long scale) \
    { \
        return stream(kernel, bytes, scale); \
    }

STREAM(copy_small, COPY, MIB)
STREAM(scale_small, SCALE, MIB)
STREAM(add_small, ADD, MIB)
STREAM(triad_small, TRIAD, MIB)
STREAM(copy_large, COPY, 256 * MIB)
STREAM(scale_large, SCALE, 256 * MIB)
STREAM(add_large, ADD, 256 * MIB)
STREAM(triad_large, TRIAD, 256 * MIB)

const struct program memory_programs[] = {
    {"sieve", "number", sieve},
    {"chase-1m", "load", chase_small},
    {"chase-pages", "load", chase_pages},
    {"chase", "load", chase_large},
    {"copy-1m", "byte", copy_small},
    {"scale-1m", "byte", scale_small},
    {"add-1m", "byte", add_small},
    {"triad-1m", "byte", triad_small},
    {"copy-256m", "byte", copy_large},
    {"scale-256m", "byte", scale_large},
    {"add-256m", "byte", add_large},
    {"triad-256m", "byte", triad_large},
    {0},
};
