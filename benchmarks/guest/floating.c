/* Double precision: bodies that attract each other, a matrix product, an LU decomposition. */
#include "bench.h"

#include <math.h>

/* -- n-body ----------------------------------------------------------------------------------------------------------- */
#define BODIES 5

struct body {
    double x, y, z, vx, vy, vz, mass;
};

static void place(struct body *bodies)
{
    uint32_t seed = 4711;

    for (int n = 0; n < BODIES; n++) { /* a heavy one in the middle, light ones around it */
        double r = n * (1.0 + (next_random(&seed) % 100) / 200.0), angle = n * 2.399963;
        double v = n ? sqrt(40.0 / r) : 0;
        bodies[n] = (struct body){
            .x = r * cos(angle), .y = r * sin(angle), .z = n * 0.01, .vx = -v * sin(angle), .vy = v * cos(angle), .mass = n ? 0.01 * n : 40.0};
    }
}

static void advance(struct body *bodies, double dt)
{
    for (int i = 0; i < BODIES; i++) {
        struct body *a = &bodies[i];
        for (int j = i + 1; j < BODIES; j++) {
            struct body *b = &bodies[j];
            double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
            double square = dx * dx + dy * dy + dz * dz;
            double pull = dt / (square * sqrt(square));
            a->vx -= dx * b->mass * pull;
            a->vy -= dy * b->mass * pull;
            a->vz -= dz * b->mass * pull;
            b->vx += dx * a->mass * pull;
            b->vy += dy * a->mass * pull;
            b->vz += dz * a->mass * pull;
        }
    }
    for (int i = 0; i < BODIES; i++) {
        bodies[i].x += dt * bodies[i].vx;
        bodies[i].y += dt * bodies[i].vy;
        bodies[i].z += dt * bodies[i].vz;
    }
}

static struct result nbody(unsigned long scale)
{
    struct body bodies[BODIES];
    struct result r = {.work = scale * 1000};

    place(bodies);
    uint64_t start = start_clock();
    for (unsigned long n = 0; n < scale * 1000; n++)
        advance(bodies, 1e-4);
    r.ns = now_ns() - start;
    for (int n = 0; n < BODIES; n++)
        r.check = mix_double(mix_double(r.check, bodies[n].x), bodies[n].vy);
    return r;
}

/* -- dense matrices --------------------------------------------------------------------------------------------------- */
#define N 120

static double a[N][N], b[N][N], c[N][N];

static void fill(double m[N][N], uint32_t seed)
{
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            m[i][j] = (double)(next_random(&seed) % 2000) / 1000 - 1 + (i == j ? 4 : 0);
}

static uint64_t digest(double m[N][N])
{
    uint64_t hash = 0;

    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            hash = mix_double(hash, m[i][j]);
    return hash;
}

static void multiply(void)
{
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++)
            c[i][j] = 0;
        for (int k = 0; k < N; k++) {
            double factor = a[i][k];
            for (int j = 0; j < N; j++)
                c[i][j] += factor * b[k][j];
        }
    }
}

static struct result matmul(unsigned long scale)
{
    struct result r = {.work = scale * (2ull * N * N * N)};

    fill(a, 1);
    fill(b, 2);
    uint64_t start = start_clock();
    for (unsigned long n = 0; n < scale; n++) {
        a[n % N][0] += 1;
        multiply();
    }
    r.ns = now_ns() - start;
    r.check = digest(c);
    return r;
}

/* With partial pivoting, in place. */
static int decompose(double m[N][N])
{
    int swaps = 0;

    for (int k = 0; k < N; k++) {
        int pivot = k;
        for (int i = k + 1; i < N; i++)
            if (fabs(m[i][k]) > fabs(m[pivot][k]))
                pivot = i;
        if (pivot != k) {
            swaps++;
            for (int j = 0; j < N; j++) {
                double t = m[k][j];
                m[k][j] = m[pivot][j];
                m[pivot][j] = t;
            }
        }
        double inverse = 1 / m[k][k];
        for (int i = k + 1; i < N; i++) {
            double factor = m[i][k] *= inverse;
            for (int j = k + 1; j < N; j++)
                m[i][j] -= factor * m[k][j];
        }
    }
    return swaps;
}

static struct result lu(unsigned long scale)
{
    struct result r = {.work = scale * (2ull * N * N * N / 3)};
    uint64_t swaps = 0, start = start_clock();

    for (unsigned long n = 0; n < scale; n++) {
        fill(a, n + 1);
        swaps += decompose(a);
    }
    r.ns = now_ns() - start;
    r.check = mix(digest(a), swaps);
    return r;
}

const struct program floating_programs[] = {
    {"nbody", "step", nbody},
    {"matmul", "flop", matmul},
    {"lu", "flop", lu},
    {0},
};
