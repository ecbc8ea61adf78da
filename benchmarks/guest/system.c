/* The kernel's paths: system calls, signals, pipes, processes, faults, the scheduler, timers. */
#define _GNU_SOURCE
#include "bench.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct result getppid_loop(unsigned long scale)
{
    struct result r = {.work = scale * 1000};
    long parent = syscall(SYS_getppid);
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale * 1000; n++)
        r.check += syscall(SYS_getppid) == parent;
    r.ns = now_ns() - start;
    return r;
}

static volatile unsigned long delivered;

static void on_signal(int number)
{
    delivered += number == SIGUSR1;
}

static struct result signals(unsigned long scale)
{
    struct sigaction action = {.sa_handler = on_signal};
    struct result r = {.work = scale * 100};
    pid_t self = getpid();

    sigaction(SIGUSR1, &action, NULL);
    delivered = 0;
    uint64_t start = start_clock();
    for (unsigned long n = 0; n < scale * 100; n++)
        kill(self, SIGUSR1);
    r.ns = now_ns() - start;
    r.check = delivered;
    return r;
}

static void keep_to_first_cpu(void)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(0, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static pid_t child_or_die(void)
{
    pid_t child = fork();

    if (child < 0)
        die("fork");
    return child;
}

static void await(pid_t child)
{
    int status;

    if (waitpid(child, &status, 0) != child || status)
        die("child");
}

static struct result ping_pong(unsigned long scale)
{
    struct result r = {.work = scale * 100};
    int there[2], back[2];
    unsigned char byte = 0;

    keep_to_first_cpu();
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t child = child_or_die();
    if (!child) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            byte++;
            if (write(back[1], &byte, 1) != 1)
                _exit(1);
        }
        _exit(0);
    }
    uint64_t start = start_clock();
    for (unsigned long n = 0; n < scale * 100; n++)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            die("ping-pong");
    r.ns = now_ns() - start;
    r.check = byte;
    close(there[1]);
    close(there[0]);
    await(child);
    close(back[0]);
    close(back[1]);
    return r;
}

static struct result fork_exit(unsigned long scale)
{
    struct result r = {.work = scale};
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale; n++) {
        pid_t child = child_or_die();
        if (!child)
            _exit(0);
        await(child);
        r.check++;
    }
    r.ns = now_ns() - start;
    return r;
}

static struct result fork_exec(unsigned long scale)
{
    struct result r = {.work = scale};
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale; n++) {
        pid_t child = child_or_die();
        if (!child) {
            execl("/proc/self/exe", "trapbench", "nothing", (char *)NULL);
            _exit(1);
        }
        await(child);
        r.check++;
    }
    r.ns = now_ns() - start;
    return r;
}

static struct result page_faults(unsigned long scale)
{
    const size_t bytes = 4ul << 20;
    struct result r = {.work = scale * (bytes / 4096)};
    uint64_t start = start_clock();

    for (unsigned long turn = 0; turn < scale; turn++) {
        volatile unsigned char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            die("mmap");
        madvise((void *)memory, bytes, MADV_NOHUGEPAGE);
        for (size_t at = 0; at < bytes; at += 4096)
            r.check += ++memory[at];
        munmap((void *)memory, bytes);
    }
    r.ns = now_ns() - start;
    return r;
}

/* Two processes on one CPU hand it to each other. */
static struct result yields(unsigned long scale)
{
    struct result r = {.work = 2 * scale * 100};

    keep_to_first_cpu();
    uint64_t start = start_clock();
    pid_t child = child_or_die();
    for (unsigned long n = 0; n < scale * 100; n++)
        r.check += sched_yield() == 0;
    if (!child)
        _exit(0);
    await(child);
    r.ns = now_ns() - start;
    return r;
}

/* How long a sleep of a millisecond is. */
static struct result sleeps(unsigned long scale)
{
    const struct timespec millisecond = {.tv_nsec = 1000000};
    struct result r = {.work = scale};
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale; n++)
        r.check += nanosleep(&millisecond, NULL) == 0;
    r.ns = now_ns() - start;
    return r;
}

/* A process on every CPU, all with the same integer work. */
static struct result throughput(unsigned long scale)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct result r = {.work = scale * cpus};
    pid_t children[64];
    uint64_t start = start_clock();

    for (long n = 0; n < cpus && n < 64; n++) {
        children[n] = child_or_die();
        if (!children[n]) {
            uint64_t hash = 0;
            for (unsigned long round = 0; round < scale; round++)
                hash = mix(hash, integer_round(round));
            _exit(hash == 0);
        }
    }
    for (long n = 0; n < cpus && n < 64; n++)
        await(children[n]);
    r.ns = now_ns() - start;
    r.check = integer_round(scale);
    return r;
}

const struct program system_programs[] = {
    {"getppid", "call", getppid_loop},
    {"signal", "signal", signals},
    {"pipe", "round", ping_pong},
    {"fork", "fork", fork_exit},
    {"exec", "exec", fork_exec},
    {"fault", "page", page_faults},
    {"yield", "call", yields},
    {"sleep-1ms", "sleep", sleeps},
    {"smp", "round", throughput},
    {0},
};
