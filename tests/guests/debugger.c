/* A debugger and what it debugs in one program: single steps, hardware breakpoints and watchpoints, BRK, all through ptrace.
 *
 * Prints what it saw. Addresses are printed relative to the debuggee's own labels, so that the text is the same wherever it runs. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef NT_ARM_HW_BREAK
#define NT_ARM_HW_BREAK 0x402
#define NT_ARM_HW_WATCH 0x403
#endif

struct registers {
    uint64_t x[31], sp, pc, pstate;
};

struct debug_state {
    uint32_t info, pad;
    struct {
        uint64_t address;
        uint32_t control, pad;
    } slots[16];
};

enum { EXECUTE = 0, LOAD = 1, STORE = 2, ENABLE = 1, USER = 2 << 1 };

extern char walk[], walk_end[], visited[], touch[];
uint64_t watched[8] __attribute__((aligned(64)));
static const char *volatile text = "hello from the debuggee\n";

__asm__(
    ".text\n.globl walk, walk_end, visited, touch\n.balign 64\n"
    "walk:  mov x9, #2\n"
    "again: subs x9, x9, #1\n"
    "       b.ne again\n"
    "       bl leaf\n"
    "retry: ldaxr x10, [x0]\n"
    "       add x10, x10, #1\n"
    "       stlxr w11, x10, [x0]\n"
    "       cbz w11, done\n"
    "done:  mov x8, #172\n" /* getpid */
    "       svc #0\n"
    "       adr x12, over\n"
    "       br x12\n"
    "       nop\n"
    "over:  add v0.4s, v0.4s, v0.4s\n"
    "walk_end: b walk_end\n"
    "leaf:  ret\n"
    "visited: add x0, x0, #1\n"
    "       ret\n"
    /* x0: memory */
    "touch: mov x1, #0x55\n"
    "t0:    str x1, [x0]\n"
    "t1:    ldr x2, [x0, #8]\n"
    "t2:    strb w1, [x0, #17]\n"
    "t3:    stp x1, x1, [x0, #24]\n"
    "t4:    ldp x2, x3, [x0, #40]\n"
    "t5:    ldadd x1, x2, [x0, #0]\n"
    "t6:    ldr w2, [x0, #20]\n"
    "       ret\n");

static pid_t child;

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static struct registers get(void) {
    struct registers r;
    struct iovec io = {&r, sizeof r};
    if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &io)) fail("GETREGSET");
    return r;
}

static void set(struct registers r) {
    struct iovec io = {&r, sizeof r};
    if (ptrace(PTRACE_SETREGSET, child, NT_PRSTATUS, &io)) fail("SETREGSET");
}

/* Let the child go on by `request`; the signal that stopped it. */
static int go(int request) {
    int status;
    if (ptrace(request, child, 0, 0)) fail("ptrace");
    if (waitpid(child, &status, 0) != child) fail("waitpid");
    if (WIFEXITED(status)) {
        printf("exited %d\n", WEXITSTATUS(status));
        exit(1);
    }
    return WSTOPSIG(status);
}

static void call(void *function, uint64_t argument) {
    struct registers r = get();
    r.pc = (uint64_t)function;
    r.x[30] = (uint64_t)walk_end; /* where it stays */
    r.x[0] = argument;
    set(r);
}

static int debug_slots(int kind) {
    struct debug_state state;
    struct iovec io = {&state, sizeof state};
    if (ptrace(PTRACE_GETREGSET, child, kind, &io)) fail("GETREGSET of debug registers");
    return state.info & 0xff;
}

static int put(int kind, int slot, void *address, unsigned control) {
    struct debug_state state;
    struct iovec io = {&state, sizeof state};
    if (ptrace(PTRACE_GETREGSET, child, kind, &io)) fail("GETREGSET of debug registers");
    state.slots[slot].address = (uint64_t)address;
    state.slots[slot].control = control;
    io.iov_len = offsetof(struct debug_state, slots) + (slot + 1) * sizeof state.slots[0];
    return ptrace(PTRACE_SETREGSET, child, kind, &io) ? errno : 0;
}

static void stopped(const char *what, int signal, void *base) {
    siginfo_t info;
    struct registers r = get();
    if (ptrace(PTRACE_GETSIGINFO, child, 0, &info)) fail("GETSIGINFO");
    printf("%s: signal %d code %d at +%ld address %+ld\n", what, signal, info.si_code, (long)(r.pc - (uint64_t)base),
           (long)((uint64_t)info.si_addr - (uint64_t)(what[0] == 'w' ? (char *)watched : (char *)base)));
}

static void step_through(void) {
    printf("steps:");
    call(walk, (uint64_t)watched);
    for (int n = 0; n < 40; n++) {
        struct registers r = get();
        if (r.pc < (uint64_t)walk || r.pc > (uint64_t)visited) {
            printf(" outside");
            break;
        }
        printf(" %ld", (long)(r.pc - (uint64_t)walk) / 4);
        if (r.pc == (uint64_t)walk_end) break;
        /* A monitor does not survive the debugger: leave the retry loop as one does. */
        if (r.pc == (uint64_t)walk + 7 * 4 && r.x[11]) {
            printf(" (failed)");
            r.x[11] = 0;
            set(r);
        }
        int signal = go(PTRACE_SINGLESTEP);
        if (signal != SIGTRAP) {
            printf(" signal %d", signal);
            break;
        }
    }
    printf("\n");
}

static void breakpoints(void) {
    printf("breakpoints: %d\n", debug_slots(NT_ARM_HW_BREAK));
    printf("set: %d\n", put(NT_ARM_HW_BREAK, 0, visited, 0xf << 5 | EXECUTE << 3 | USER | ENABLE));
    printf("set: %d\n", put(NT_ARM_HW_BREAK, 1, walk + 5 * 4, 0xf << 5 | EXECUTE << 3 | USER | ENABLE));
    call(visited, 1);
    stopped("breakpoint", go(PTRACE_CONT), walk);
    stopped("breakpoint again", go(PTRACE_CONT), walk);
    printf("moved: %d\n", put(NT_ARM_HW_BREAK, 0, visited + 4, 0xf << 5 | EXECUTE << 3 | USER | ENABLE));
    stopped("step", go(PTRACE_SINGLESTEP), walk);
    stopped("next breakpoint", go(PTRACE_CONT), walk);
    printf("x0 %ld\n", (long)get().x[0]);
    call(walk, (uint64_t)watched);
    stopped("breakpoint in a loop", go(PTRACE_CONT), walk);
    printf("cleared: %d\n", put(NT_ARM_HW_BREAK, 0, 0, 0) | put(NT_ARM_HW_BREAK, 1, 0, 0));
}

static void watch(const char *name, int offset, unsigned mask, int kind) {
    unsigned control = mask << 5 | kind << 3 | USER | ENABLE;
    printf("set: %d\n", put(NT_ARM_HW_WATCH, 0, (char *)watched + offset, control));
    memset(watched, 0, sizeof watched);
    call(touch, (uint64_t)watched);
    /* A breakpoint is where it ends. */
    if (put(NT_ARM_HW_BREAK, 0, walk_end, 0xf << 5 | USER | ENABLE)) fail("end");
    for (int n = 0; n < 10; n++) {
        int signal = go(PTRACE_CONT);
        if (get().pc == (uint64_t)walk_end) break;
        stopped(name, signal, touch);
        /* Past it, as debuggers go. */
        if (put(NT_ARM_HW_WATCH, 0, (char *)watched + offset, control & ~ENABLE)) fail("disable");
        stopped("  step", go(PTRACE_SINGLESTEP), touch);
        if (put(NT_ARM_HW_WATCH, 0, (char *)watched + offset, control)) fail("enable");
    }
    if (put(NT_ARM_HW_BREAK, 0, 0, 0) | put(NT_ARM_HW_WATCH, 0, 0, 0)) fail("clear");
}

static void software_breakpoint(void) {
    long word = ptrace(PTRACE_PEEKTEXT, child, visited, 0);
    if (ptrace(PTRACE_POKETEXT, child, visited, (word & ~0xffffffffL) | 0xd4200000 | 7 << 5)) fail("POKETEXT");
    call(visited, 41);
    stopped("brk", go(PTRACE_CONT), walk);
    if (ptrace(PTRACE_POKETEXT, child, visited, word)) fail("POKETEXT");
    stopped("stepped", go(PTRACE_SINGLESTEP), walk);
    printf("x0 %ld\n", (long)get().x[0]);
}

/* Every instruction of a system call made by the C library. */
static void count_steps(void) {
    int steps = 0, signal;
    call((void *)write, 1);
    struct registers r = get();
    r.x[1] = (uint64_t)text;
    r.x[2] = strlen(text);
    set(r);
    do {
        signal = go(PTRACE_SINGLESTEP);
        steps++;
        r = get();
    } while (signal == SIGTRAP && r.pc != (uint64_t)walk_end && steps < 100000);
    printf("the call took more than %d steps and returned %ld\n", steps > 5 ? 5 : steps, (long)r.x[0]);
}

static int count_hits(uint64_t address, int kind, int length) {
    struct perf_event_attr attr = {.type = PERF_TYPE_BREAKPOINT, .size = sizeof attr, .bp_type = kind, .bp_addr = address, .bp_len = length};
    int kernel = address >> 63; /* those are of a CPU, not of a process */
    int file = syscall(SYS_perf_event_open, &attr, kernel ? -1 : 0, kernel ? 0 : -1, -1, 0);
    if (file < 0) fail("perf_event_open");
    return file;
}

static long hits(int file) {
    uint64_t count = 0;
    if (read(file, &count, sizeof count) != sizeof count) fail("read");
    close(file);
    return count;
}

static uint64_t kernel_symbol(const char *wanted) {
    FILE *file = fopen("/proc/kallsyms", "r");
    unsigned long address;
    char name[256];
    while (file && fscanf(file, "%lx %*c %255s%*[^\n]", &address, name) == 2)
        if (!strcmp(name, wanted)) return fclose(file), address;
    fail(wanted);
    return 0;
}

/* The kernel counts by itself, and steps over what it stopped at: in this process, and in its own code. */
static void perf(void) {
    int file = count_hits((uint64_t)&watched[3], HW_BREAKPOINT_W, 8);
    for (int n = 0; n < 10; n++) *(volatile uint64_t *)&watched[3] = n;
    printf("perf: %ld stores", hits(file));
    file = count_hits((uint64_t)visited, HW_BREAKPOINT_X, 8);
    for (int n = 0; n < 7; n++) ((void (*)(uint64_t))visited)(n);
    printf(", %ld calls", hits(file));
    file = count_hits(kernel_symbol("__arm64_sys_getppid"), HW_BREAKPOINT_X, 8);
    for (int n = 0; n < 12; n++) syscall(SYS_getppid);
    /* An interrupt that comes while the kernel steps through itself has it count once more. */
    printf(", %s system calls", hits(file) >= 12 ? "all" : "too few");
    file = count_hits((uint64_t)&watched[4], HW_BREAKPOINT_W, 8);
    int zero = open("/dev/zero", O_RDONLY);
    for (int n = 0; n < 5; n++)
        if (read(zero, &watched[4], 8) != 8) fail("/dev/zero");
    printf(", %ld stores by the kernel\n", hits(file));
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (;;) pause();
    }
    int status;
    if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) fail("child");
    step_through();
    breakpoints();
    printf("watchpoints: %d\n", debug_slots(NT_ARM_HW_WATCH));
    watch("watch store", 0, 0xff, STORE);
    watch("watch load", 8, 0xff, LOAD);
    watch("watch a byte", 16, 0x02, LOAD | STORE);
    watch("watch a pair", 32, 0xff, STORE);
    watch("watch half", 40, 0xf0, LOAD);
    watch("watch both", 0, 0x0f, LOAD | STORE);
    watch("watch nothing", 56, 0xff, LOAD | STORE);
    software_breakpoint();
    count_steps();
    perf();
    kill(child, SIGKILL);
    printf("END\n");
    return 0;
}
