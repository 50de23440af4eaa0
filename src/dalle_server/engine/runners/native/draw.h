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
static float most_noise(uint32_t word) { return 0.69316f * (float)(_lzcnt_u32(~word) + 1); }

/* The place of the largest logit + noise among `count` candidates; the first of equals. */
static int best_of(const float *logits, const int64_t *ids, int count, NoiseKey key) {
    int best = 0, largest = 0;
    for (int i = 1; i < count; i++) largest = logits[i] > logits[largest] ? i : largest;
    double score = -INFINITY;
    /* The largest logit first: it sets a bar that most others cannot reach. */
    for (int start = -1; start < count; start += start < 0 ? 1 : LANES) {
        const int first = start < 0 ? largest : start, size = start < 0 ? 1 : count - start < LANES ? count - start : LANES;
        int64_t block[LANES] = {0};
        uint32_t words[LANES];
        for (int i = 0; i < size; i++) block[i] = ids[first + i];
        philox(block, key, words);
        for (int i = 0; i < size; i++) {
            if ((double)logits[first + i] + (double)most_noise(words[i]) < score) continue;
            const double found = (double)logits[first + i] + noise_of(words[i]);
            if (found > score || (found == score && first + i < best)) {
                score = found;
                best = first + i;
            }
        }
    }
    return best;
}
