/* Integer programs: a mix of lists, small matrices, a state machine and a CRC; and a plain loop of known length. */
#include "bench.h"

#include <string.h>

/* -- lists ------------------------------------------------------------------------------------------------------------ */
#define NODES 96

struct node {
    struct node *next;
    int16_t key;
    uint16_t tag;
};

static struct node *merge(struct node *a, struct node *b, int by_tag)
{
    struct node head, *tail = &head;

    while (a && b) {
        int first = by_tag ? a->tag <= b->tag : a->key <= b->key;
        struct node **from = first ? &a : &b;
        tail->next = *from;
        tail = *from;
        *from = (*from)->next;
    }
    tail->next = a ? a : b;
    return head.next;
}

static struct node *sort(struct node *list, unsigned length, int by_tag)
{
    struct node *middle = list, *second;

    if (length < 2)
        return list;
    for (unsigned n = 1; n < length / 2; n++)
        middle = middle->next;
    second = middle->next;
    middle->next = NULL;
    return merge(sort(list, length / 2, by_tag), sort(second, length - length / 2, by_tag), by_tag);
}

static struct node *reverse(struct node *list)
{
    struct node *done = NULL;

    while (list) {
        struct node *next = list->next;
        list->next = done;
        done = list;
        list = next;
    }
    return done;
}

static uint32_t find_all(const struct node *list, uint32_t *seed)
{
    uint32_t sum = 0;

    for (int searches = 0; searches < 24; searches++) {
        int16_t wanted = next_random(seed) % 512;
        uint32_t steps = 0;
        for (const struct node *n = list; n; n = n->next, steps++)
            if (n->key == wanted) {
                sum += n->tag;
                break;
            }
        sum = sum * 31 + steps;
    }
    return sum;
}

static uint32_t list_work(uint32_t seed)
{
    static struct node storage[NODES];
    struct node *list = NULL;
    uint32_t sum;

    for (int n = 0; n < NODES; n++) {
        storage[n] = (struct node){.next = list, .key = next_random(&seed) % 512, .tag = n};
        list = &storage[n];
    }
    sum = find_all(list, &seed);
    list = sort(list, NODES, 0);
    sum += find_all(list, &seed);
    list = reverse(list);
    sum ^= find_all(list, &seed);
    list = sort(list, NODES, 1);
    for (const struct node *n = list; n; n = n->next)
        sum = sum * 5 + n->key;
    return sum;
}

/* -- matrices --------------------------------------------------------------------------------------------------------- */
#define SIDE 10

static uint32_t matrix_work(uint32_t seed)
{
    static int16_t a[SIDE][SIDE], b[SIDE][SIDE];
    static int32_t c[SIDE][SIDE];
    uint32_t sum = 0;

    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) {
            a[i][j] = next_random(&seed);
            b[i][j] = next_random(&seed) & 1023;
        }
    for (int pass = 0; pass < 4; pass++) {
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) {
                int32_t total = 0;
                for (int k = 0; k < SIDE; k++)
                    total += a[i][k] * b[k][j];
                c[i][j] = total;
            }
        for (int i = 0; i < SIDE; i++)
            for (int j = 0; j < SIDE; j++) {
                int32_t value = c[i][j];
                int32_t bits = (value >> 2 & 15) * (value >> 5 & 127);
                sum += bits > 400 ? 10 : value > 0;
                a[i][j] += (int16_t)(value + pass);
            }
    }
    return sum;
}

/* -- a state machine: which kinds of numbers are in a text ------------------------------------------------------------ */
enum state { START, SIGN, DIGITS, POINT, FRACTION, EXPONENT, EXPONENT_SIGN, EXPONENT_DIGITS, WRONG, STATES };

static enum state step(enum state s, char c, uint32_t *seen)
{
    int digit = c >= '0' && c <= '9';

    seen[s]++;
    switch (s) {
    case START:
        return digit ? DIGITS : c == '+' || c == '-' ? SIGN : c == '.' ? POINT : WRONG;
    case SIGN:
        return digit ? DIGITS : c == '.' ? POINT : WRONG;
    case DIGITS:
        return digit ? DIGITS : c == '.' ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case POINT:
        return digit ? FRACTION : WRONG;
    case FRACTION:
        return digit ? FRACTION : c == 'e' ? EXPONENT : WRONG;
    case EXPONENT:
        return digit ? EXPONENT_DIGITS : c == '+' || c == '-' ? EXPONENT_SIGN : WRONG;
    case EXPONENT_SIGN:
        return digit ? EXPONENT_DIGITS : WRONG;
    case EXPONENT_DIGITS:
        return digit ? EXPONENT_DIGITS : WRONG;
    default:
        return WRONG;
    }
}

static uint32_t machine_work(uint32_t seed)
{
    static const char *const words[] = {"512", "-7.25", "+.5", "6.02e23", "1e-9", "0x1f", "12..3", "e5", "-", "3.e+8", "77q", "1e+"};
    static char text[1024];
    uint32_t seen[STATES] = {0}, ended[STATES] = {0};
    size_t length = 0;

    while (length < sizeof text - 16) {
        const char *word = words[next_random(&seed) % (sizeof words / sizeof *words)];
        while (*word)
            text[length++] = *word++;
        text[length++] = ',';
    }
    for (int pass = 0; pass < 2; pass++) {
        enum state s = START;
        for (size_t at = 0; at < length; at++) {
            if (text[at] == ',') {
                ended[s]++;
                s = START;
            } else
                s = step(s, text[at], seen);
        }
        for (size_t at = pass; at < length; at += 23) /* damage it for the second pass */
            if (text[at] != ',')
                text[at] ^= 1;
    }
    uint32_t sum = 0;
    for (int s = 0; s < STATES; s++)
        sum = sum * 17 + seen[s] + (ended[s] << 8);
    return sum;
}

/* -- CRC, a bit at a time --------------------------------------------------------------------------------------------- */
static uint16_t crc16(uint16_t crc, uint32_t value)
{
    for (int bit = 0; bit < 32; bit++) {
        uint32_t out = (crc ^ value) & 1;
        crc >>= 1;
        value >>= 1;
        if (out)
            crc ^= 0xa001;
    }
    return crc;
}

uint64_t integer_round(uint32_t seed)
{
    uint16_t crc = 0;

    for (uint32_t turn = 0; turn < 4; turn++) {
        crc = crc16(crc, list_work(seed + turn));
        crc = crc16(crc, matrix_work(seed ^ turn << 8));
        crc = crc16(crc, machine_work(seed + 77 * turn));
        for (uint32_t n = 0; n < 64; n++)
            crc = crc16(crc, n * seed);
    }
    return crc;
}

static struct result integer_mix(unsigned long scale)
{
    struct result r = {.work = scale};
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale; n++)
        r.check = mix(r.check, integer_round(0x1234567 + n));
    r.ns = now_ns() - start;
    return r;
}

/* A million instructions per unit of scale: 4 a turn. */
static struct result spin(unsigned long scale)
{
    struct result r = {.work = scale};
    uint64_t turns = scale * 250000, sum = 0, start = start_clock();

    __asm__ volatile("1: add %0, %0, %1\n   eor %0, %0, %1, lsl #3\n   subs %1, %1, #1\n   b.ne 1b" : "+r"(sum), "+r"(turns) : : "cc");
    r.ns = now_ns() - start;
    r.check = sum;
    return r;
}

const struct program integer_programs[] = {
    {"int-mix", "round", integer_mix},
    {"spin", "Minsn", spin},
    {0},
};
