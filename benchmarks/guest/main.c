/* Runs one program of the suite and prints what it measured:
 *
 *   trapbench NAME SCALE                   a program of the tables
 *   trapbench run NAME INPUT COMMAND...    time a command that reads the file INPUT; the check value is the CRC of its output
 *   trapbench text FILE KIB                write a text that compresses about as well as prose does
 *   trapbench list                         names and units
 *
 * Output, one line each:  BEGIN name   and then   BENCH name unit=U work=N ns=N check=HEX
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct program *const tables[] = {integer_programs, floating_programs, simd_programs, memory_programs, system_programs};

void die(const char *what)
{
    perror(what);
    exit(1);
}

uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* xorshift32 */
uint32_t next_random(uint32_t *state)
{
    uint32_t x = *state;

    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    return *state = x;
}

uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * 0x9e3779b97f4a7c15ull;
    return hash ^ hash >> 29;
}

uint64_t mix_double(uint64_t hash, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    return mix(hash, bits);
}

/* Memory of small pages, each of them there already. */
void *pages(size_t bytes)
{
    unsigned char *start = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (start == MAP_FAILED)
        die("mmap");
    madvise(start, bytes, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < bytes; at += 4096)
        start[at] = 1;
    return start;
}

uint32_t crc32_update(uint32_t crc, const unsigned char *data, size_t length)
{
    static uint32_t table[256];

    if (!table[1])
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t value = n;
            for (int bit = 0; bit < 8; bit++)
                value = value & 1 ? value >> 1 ^ 0xedb88320u : value >> 1;
            table[n] = value;
        }
    crc = ~crc;
    while (length--)
        crc = crc >> 8 ^ table[(crc ^ *data++) & 255];
    return ~crc;
}

static const char *running;

uint64_t start_clock(void)
{
    printf("BEGIN %s\n", running);
    fflush(stdout);
    return now_ns();
}

static void report(const char *name, const char *unit, struct result r)
{
    printf("BENCH %s unit=%s work=%llu ns=%llu check=%llx\n", name, unit, (unsigned long long)r.work, (unsigned long long)r.ns,
           (unsigned long long)r.check);
    fflush(stdout);
}

/* A command's time from fork to the end, and the CRC of what it wrote. */
static int run_command(const char *name, const char *input, char **command)
{
    static unsigned char buffer[65536];
    struct result r = {.work = 1};
    int out[2], status;
    uint32_t crc = 0;
    ssize_t got;

    running = name;
    if (pipe(out))
        die("pipe");
    uint64_t start = start_clock();
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (!child) {
        int in = open(input, O_RDONLY);
        if (in < 0)
            die(input);
        dup2(in, 0);
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execvp(command[0], command);
        die(command[0]);
    }
    close(out[1]);
    while ((got = read(out[0], buffer, sizeof buffer)) > 0)
        crc = crc32_update(crc, buffer, got);
    if (waitpid(child, &status, 0) != child)
        die("waitpid");
    r.ns = now_ns() - start;
    r.check = crc;
    if (status) {
        fprintf(stderr, "%s: status %#x\n", command[0], status);
        return 1;
    }
    report(name, "run", r);
    return 0;
}

/* Words of a small invented vocabulary, short ones more often, in lines and paragraphs. */
static int write_text(const char *path, unsigned long kib)
{
    static const char *const syllables[] = {"ka", "lo", "mi", "ter", "an", "sol", "e", "ri", "un", "dor", "shi", "ba", "qu", "en", "ta", "vo"};
    FILE *file = fopen(path, "w");
    uint32_t seed = 20261;
    size_t written = 0, column = 0;

    if (!file)
        die(path);
    while (written < kib * 1024) {
        uint32_t rank = next_random(&seed) % 1024;
        rank = rank * (next_random(&seed) % 1024) / 1024;
        uint32_t word = rank * 2654435761u + 12345;
        unsigned parts = 1 + (rank > 40) + (rank > 300) + (rank > 700);
        while (parts--) {
            int length = fprintf(file, "%s", syllables[word >> 28]);
            written += length;
            column += length;
            word *= 69069;
            word += 1;
        }
        char end = column > 72 ? '\n' : ' ';
        fputc(end, file);
        written++;
        column = end == '\n' ? 0 : column + 1;
        if (next_random(&seed) % 97 == 0)
            written += fprintf(file, "(%u)%c", next_random(&seed) % 100000, end);
    }
    return fclose(file) ? 1 : 0;
}

static int list_programs(void)
{
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const struct program *p = tables[t]; p->name; p++)
            printf("%s %s\n", p->name, p->unit);
    return 0;
}

static int run_program(const char *name, unsigned long scale)
{
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const struct program *p = tables[t]; p->name; p++)
            if (!strcmp(p->name, name)) {
                running = name;
                report(name, p->unit, p->run(scale ? scale : 1));
                return 0;
            }
    fprintf(stderr, "no program %s\n", name);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "nothing")) /* what the fork and exec program starts */
        return 0;
    if (argc == 2 && !strcmp(argv[1], "list"))
        return list_programs();
    if (argc >= 5 && !strcmp(argv[1], "run"))
        return run_command(argv[2], argv[3], argv + 4);
    if (argc == 4 && !strcmp(argv[1], "text"))
        return write_text(argv[2], strtoul(argv[3], NULL, 10));
    if (argc == 3)
        return run_program(argv[1], strtoul(argv[2], NULL, 10));
    fprintf(stderr, "usage: %s NAME SCALE | run NAME INPUT COMMAND... | text FILE KIB | list\n", argv[0]);
    return 2;
}
