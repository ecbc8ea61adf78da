/* Advanced SIMD by intrinsics: a byte blur, a 16-bit filter, a single precision sum of products. */
#include "bench.h"

#include <arm_neon.h>

#define SIZE 16384

static uint8_t image[SIZE + 32], blurred[SIZE + 32];
static int16_t samples[SIZE + 16], filtered[SIZE + 16];
static float left[SIZE], right[SIZE];

/* Rounded mean of three neighbours' pairs, then the difference made visible with saturation. */
static void blur(void)
{
    for (int n = 0; n < SIZE; n += 16) {
        uint8x16_t here = vld1q_u8(image + n), next = vld1q_u8(image + n + 1), after = vld1q_u8(image + n + 2);
        uint8x16_t mean = vrhaddq_u8(vrhaddq_u8(here, after), next);
        uint8x16_t edge = vabdq_u8(here, after);
        vst1q_u8(blurred + n, vqaddq_u8(mean, vshrq_n_u8(edge, 2)));
    }
}

/* Four taps in 32 bits, narrowed with rounding and saturation. */
static void filter(void)
{
    static const int16_t taps[4] = {1200, 14000, 14000, 1200};
    int16x4_t t = vld1_s16(taps);

    for (int n = 0; n < SIZE; n += 8) {
        int16x8_t s0 = vld1q_s16(samples + n), s1 = vld1q_s16(samples + n + 1);
        int16x8_t s2 = vld1q_s16(samples + n + 2), s3 = vld1q_s16(samples + n + 3);
        int32x4_t low = vmull_lane_s16(vget_low_s16(s0), t, 0), high = vmull_lane_s16(vget_high_s16(s0), t, 0);
        low = vmlal_lane_s16(low, vget_low_s16(s1), t, 1);
        high = vmlal_lane_s16(high, vget_high_s16(s1), t, 1);
        low = vmlal_lane_s16(low, vget_low_s16(s2), t, 2);
        high = vmlal_lane_s16(high, vget_high_s16(s2), t, 2);
        low = vmlal_lane_s16(low, vget_low_s16(s3), t, 3);
        high = vmlal_lane_s16(high, vget_high_s16(s3), t, 3);
        vst1q_s16(filtered + n, vcombine_s16(vqrshrn_n_s32(low, 15), vqrshrn_n_s32(high, 15)));
    }
}

static float product(void)
{
    float32x4_t sum0 = vdupq_n_f32(0), sum1 = sum0;

    for (int n = 0; n < SIZE; n += 8) {
        sum0 = vfmaq_f32(sum0, vld1q_f32(left + n), vld1q_f32(right + n));
        sum1 = vfmaq_f32(sum1, vld1q_f32(left + n + 4), vld1q_f32(right + n + 4));
    }
    return vaddvq_f32(vaddq_f32(sum0, sum1));
}

static struct result prepare(uint64_t work)
{
    uint32_t seed = 99;

    for (int n = 0; n < SIZE; n++) {
        uint32_t value = next_random(&seed);
        image[n] = value;
        samples[n] = value >> 8;
        left[n] = (int)(value % 2001) / 1000.0f - 1;
        right[n] = (int)(value / 2001 % 2001) / 1000.0f - 1;
    }
    return (struct result){.work = work};
}

static struct result simd_int(unsigned long scale)
{
    struct result r = prepare(scale * 2 * SIZE);
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale; n++) {
        blur();
        filter();
        image[n % SIZE] ^= blurred[n % SIZE];
        samples[n % SIZE] ^= filtered[n % SIZE];
    }
    r.ns = now_ns() - start;
    for (int n = 0; n < SIZE; n += 61)
        r.check = mix(r.check, blurred[n] << 16 | (uint16_t)filtered[n]);
    return r;
}

static struct result simd_float(unsigned long scale)
{
    struct result r = prepare(scale * 2 * SIZE);
    uint64_t start = start_clock();

    for (unsigned long n = 0; n < scale; n++) {
        float sum = product();
        left[n % SIZE] += sum * 1e-6f;
        r.check = mix(r.check, (int32_t)(sum * 1000));
    }
    r.ns = now_ns() - start;
    return r;
}

const struct program simd_programs[] = {
    {"simd-int", "lane", simd_int},
    {"simd-f32", "flop", simd_float},
    {0},
};
