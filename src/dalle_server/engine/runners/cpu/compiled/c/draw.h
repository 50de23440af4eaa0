/* The draw of engine/sampling.py, `gumbel_max`: argmax of logit + noise, the noise of engine/rng.py.
 *
 * Philox4x32-10 of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
 * (SC 2011), with counter (id, step, image index, 0) and the seed as key. Only a few candidates need logarithms: noise
 * is at most −log(1 − u), which the leading ones of the random word bound.
 */
#pragma once
#include "vectors.h"

typedef struct {
    uint64_t seed;
    uint32_t image_index, step;
} NoiseKey;

BEGIN_TARGET

/* The first word for each of 16 ids. */
static void philox(const int64_t *ids, NoiseKey key, uint32_t words[LANES]) {
    uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
    uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
    for (int i = 0; i < LANES; i++) {
        c0[i] = (uint32_t)ids[i];
        c1[i] = key.step;
        c2[i] = key.image_index;
        c3[i] = 0;
    }
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        for (int i = 0; i < LANES; i++) {
            const uint64_t product0 = 0xD2511F53ull * c0[i], product1 = 0xCD9E8D57ull * c2[i];
            c0[i] = (uint32_t)(product1 >> 32) ^ c1[i] ^ k0;
            c1[i] = (uint32_t)product1;
            c2[i] = (uint32_t)(product0 >> 32) ^ c3[i] ^ k1;
            c3[i] = (uint32_t)product0;
        }
    }
    for (int i = 0; i < LANES; i++) words[i] = c0[i];
}

/* ln x for a normal x > 0, within 2 units in the last place: ln(m · 2^n) = 2 artanh((m − 1)/(m + 1)) + n ln 2 with m
 * near 1, by the series of artanh. A library's logarithm may be another one on the next machine.
 */
static double logarithm(double x) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int64_t sqrt_half = 0x3FE6A09E667F3BCD;
    const int64_t n = (bits - sqrt_half) >> 52;
    bits -= n << 52; /* m between √½ and √2 */
    double m, y = 1.0 / 23;
    memcpy(&m, &bits, sizeof m);
    const double s = (m - 1) / (m + 1), squared = s * s;
    for (int odd = 21; odd > 1; odd -= 2) y = y * squared + 1.0 / odd;
    return (double)n * 0x1.62e42fefa38p-1 + (2 * s + (2 * s * squared * y + (double)n * 0x1.ef35793c7673p-45));
}

static double noise_of(uint32_t word) { return -logarithm(-logarithm((word + 0.5) * 0x1p-32)); }

/* 1 − u is at least 2^−(leading ones + 1); a little more, because of what the logarithms round. */
INLINED Floats most_noise(const uint32_t words[LANES]) {
    Floats ones;
    for (int i = 0; i < LANES; i++) ones[i] = ~words[i] ? (float)__builtin_clz(~words[i]) : 32.0f;
    return ones * 0.69316f + 0.69316f;
}

static int place_of_largest(const float *x, int count) {
    Floats largest = filled(-__builtin_inff());
    for (int i = 0; i < count; i += LANES) {
        const Floats some = load(x + i, count - i);
        largest = (first_lanes(count - i) & (some > largest)) ? some : largest;
    }
    const float bar = largest_of(largest);
    int place = 0;
    while (x[place] != bar) place++;
    return place;
}

/* The place of the largest logit + noise among `count` candidates; the first of equals. No logit is NaN. */
static int best_of(const float *logits, const int64_t *ids, int count, NoiseKey key) {
    uint32_t words[LANES];
    int best = place_of_largest(logits, count); /* first: it sets a bar that most others cannot reach */
    int64_t block[LANES] = {ids[best]};
    philox(block, key, words);
    double score = (double)logits[best] + noise_of(words[0]);
    for (int start = 0; start < count; start += LANES) {
        const int left = count - start;
        for (int i = 0; i < LANES && i < left; i++) block[i] = ids[start + i];
        philox(block, key, words);
        /* Rounded to float32 the bar may rise by half a last bit: a nudge down makes up for it, and for the sum's. */
        const float bar = (float)(score - 1e-6 * (__builtin_fabs(score) + 32));
        const Ints may_win = first_lanes(left) & (load(logits + start, left) + most_noise(words) >= bar);
        if (!__builtin_reduce_or(may_win)) continue;
        for (int lane = 0; lane < LANES; lane++) {
            if (!may_win[lane]) continue;
            const double found = (double)logits[start + lane] + noise_of(words[lane]);
            if (found > score || (found == score && start + lane < best)) {
                score = found;
                best = start + lane;
            }
        }
    }
    return best;
}

END_TARGET
