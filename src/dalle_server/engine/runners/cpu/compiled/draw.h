/* The draw of engine/sampling.py, `gumbel_max`: argmax of logit + noise, the noise of engine/rng.py.
 *
 * Philox4x32-10 of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
 * (SC 2011), with counter (id, step, image index, 0) and the seed as key. Only a few candidates need logarithms: noise
 * is at most −log(1 − u), which the leading ones of the random word bound.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include "vectors.h"

typedef struct {
    uint64_t seed;
    uint32_t image_index, step;
} NoiseKey;

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

static double noise_of(uint32_t word) { return -log(-log((word + 0.5) * 0x1p-32)); }

/* 1 − u is at least 2^−(leading ones + 1); a little more, because of what the logarithms round. */
static __m512 most_noise(const uint32_t words[LANES]) {
    const __m512i inverted = _mm512_xor_si512(_mm512_loadu_si512(words), _mm512_set1_epi32(-1));
    const __m512 ones = _mm512_cvtepi32_ps(_mm512_lzcnt_epi32(inverted));
    return _mm512_fmadd_ps(ones, _mm512_set1_ps(0.69316f), _mm512_set1_ps(0.69316f));
}

static int place_of_largest(const float *x, int count) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int i = 0; i < count; i += LANES) {
        largest = _mm512_mask_max_ps(largest, lanes_left(count - i), largest, load(x + i, count - i));
    }
    const float bar = _mm512_reduce_max_ps(largest);
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
        const __m512 most = _mm512_add_ps(load(logits + start, left), most_noise(words));
        /* Rounded to float32 the bar may rise by half a last bit: a nudge down makes up for it, and for the sum's. */
        const float bar = (float)(score - 1e-6 * (fabs(score) + 32));
        unsigned contenders = _mm512_mask_cmp_ps_mask(lanes_left(left), most, _mm512_set1_ps(bar), _CMP_GE_OQ);
        for (; contenders; contenders &= contenders - 1) {
            const int lane = __builtin_ctz(contenders);
            const double found = (double)logits[start + lane] + noise_of(words[lane]);
            if (found > score || (found == score && start + lane < best)) {
                score = found;
                best = start + lane;
            }
        }
    }
    return best;
}
