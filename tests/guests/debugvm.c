/* Runs a guest by /dev/kvm as a script says, and prints every exit. The script: one command a line, numbers in hexadecimal.
 *
 * new            initialise the vCPU and start at the beginning of memory
 * code WORD...   instructions for the beginning of memory
 * x N VALUE      a general register
 * set ID VALUE, get ID    any register
 * bp N VALUE CONTROL, wp N VALUE CONTROL, clear     what the next `debug` says of breakpoints and watchpoints
 * debug CONTROL  KVM_SET_GUEST_DEBUG
 * run N          KVM_RUN so often; loads from devices read 0x1234 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define BASE 0x80000000ul
#define SIZE 0x100000ul
#define WORDS 1024
#define CORE(index) (0x6030000000100000ul | (index))

static int vm, vcpu;
static struct kvm_run *state;
static uint8_t *memory;
static struct kvm_guest_debug debug;

static void check(int result, const char *what) {
    if (result < 0) printf("%s: %s\n", what, strerror(errno)), exit(1);
}

static uint64_t get(uint64_t id) {
    uint64_t value = 0;
    struct kvm_one_reg reg = {id, (uint64_t)&value};
    check(ioctl(vcpu, KVM_GET_ONE_REG, &reg), "KVM_GET_ONE_REG");
    return value;
}

static void set(uint64_t id, uint64_t value) {
    struct kvm_one_reg reg = {id, (uint64_t)&value};
    check(ioctl(vcpu, KVM_SET_ONE_REG, &reg), "KVM_SET_ONE_REG");
}

static void run(void) {
    check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    long pc = get(CORE(64)) - BASE;
    if (state->exit_reason == KVM_EXIT_DEBUG) {
        unsigned ec = state->debug.arch.hsr >> 26;
        printf("debug %x far %lx pc %lx\n", state->debug.arch.hsr, ec == 0x34 ? (unsigned long)state->debug.arch.far : 0, pc);
    } else if (state->exit_reason == KVM_EXIT_MMIO) {
        printf("mmio %s %llx %u pc %lx\n", state->mmio.is_write ? "write" : "read", state->mmio.phys_addr, state->mmio.len, pc);
        if (!state->mmio.is_write) memcpy(state->mmio.data, "\x34\x12\0\0\0\0\0", 8);
    } else
        printf("exit %u pc %lx\n", state->exit_reason, pc);
}

static void command(char *line) {
    char *word = strtok(line, " \n");
    static uint64_t n[WORDS];
    int count = 0;
    if (!word) return;
    for (char *next; count < WORDS && (next = strtok(NULL, " \n"));) n[count++] = strtoull(next, NULL, 16);
    if (!strcmp(word, "new")) {
        struct kvm_vcpu_init init = {.target = KVM_ARM_TARGET_GENERIC_V8, .features = {1 << KVM_ARM_VCPU_PSCI_0_2}};
        check(ioctl(vcpu, KVM_ARM_VCPU_INIT, &init), "KVM_ARM_VCPU_INIT");
        for (int k = 0; k < 31; k++) set(CORE(2 * k), 0);
        set(CORE(64), BASE);
    } else if (!strcmp(word, "code")) {
        for (int k = 0; k < count; k++) ((volatile uint32_t *)memory)[k] = n[k];
        __builtin___clear_cache((char *)memory, (char *)memory + 4 * count);
    } else if (!strcmp(word, "x"))
        set(CORE(2 * n[0]), n[1]);
    else if (!strcmp(word, "set"))
        set(n[0], n[1]);
    else if (!strcmp(word, "get"))
        printf("%lx\n", (unsigned long)get(n[0]));
    else if (!strcmp(word, "clear"))
        memset(&debug, 0, sizeof debug);
    else if (!strcmp(word, "bp"))
        debug.arch.dbg_bvr[n[0]] = n[1], debug.arch.dbg_bcr[n[0]] = n[2];
    else if (!strcmp(word, "wp"))
        debug.arch.dbg_wvr[n[0]] = n[1], debug.arch.dbg_wcr[n[0]] = n[2];
    else if (!strcmp(word, "debug")) {
        debug.control = n[0];
        check(ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), "KVM_SET_GUEST_DEBUG");
    } else if (!strcmp(word, "run"))
        for (uint64_t k = 0; k < n[0]; k++) run();
    else
        printf("unknown %s\n", word), exit(1);
}

int main(int count, char **words) {
    static char line[16 * WORDS];
    setvbuf(stdout, NULL, _IOLBF, 0);
    int kvm = open("/dev/kvm", O_RDWR);
    check(kvm, "/dev/kvm");
    check(vm = ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {0, 0, BASE, SIZE, (uint64_t)memory};
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    check(vcpu = ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    state = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    printf("BEGIN\n");
    FILE *script = fopen(count > 1 ? words[1] : "/script", "r");
    while (script && fgets(line, sizeof line, script)) {
        printf("> %s", line);
        command(line);
    }
    printf("END\n");
    return 0;
}
