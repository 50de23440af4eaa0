/* One head of one row: softmax(q·kᵀ)·v over keys and values in float32, float16 or int8. The 1/√D is in the query's
 * weights.
 *
 * Keys lie in blocks of 16 positions, (blocks, D, 16), so that a block's 16 scores are one vector; values lie by
 * position, (positions, D rounded up to 16). An int8 key has one scale, and so has a value. Cells past a span's length
 * are never used, whatever they hold.
 */
#pragma once
#include <stddef.h>
#include "vectors.h"

#define MAX_POSITIONS 4096 /* that a row looks at */
#define MAX_SPANS 2
/* What memory is asked for before it is needed: a head is a short stretch, and the processor's own guess begins anew at
 * each. Measured.
 */
#define BLOCKS_AHEAD 2
#define VALUES_AHEAD 24

/* What a number of keys and values is kept in: bytes of a cell. */
#define EXACT 4
#define HALF 2
#define BYTE 1

typedef struct {
    char *keys;        /* (ceil(positions/16), D, 16) */
    char *values;      /* (positions, width) */
    float *key_scales, *value_scales; /* (positions), of bytes */
    int32_t head_size; /* D */
    int32_t width;     /* D rounded up to 16 */
} HeadCache;

/* The first `length` positions of a cache; a row looks at one span after the other. */
typedef struct {
    HeadCache cache;
    int32_t length;
} Span;

static size_t whole_vectors(int count) { return (size_t)(count + LANES - 1) / LANES * LANES; }

/* Of one head's cache. */
static size_t head_bytes(int positions, int head_size, int cell) {
    const size_t room = whole_vectors(positions);
    return room * ((head_size + whole_vectors(head_size)) * cell + (cell == BYTE ? 2 * sizeof(float) : 0));
}

BEGIN_TARGET

/* Head `index` of caches that hold so many positions. */
static HeadCache head_of(char *caches, size_t index, int positions, int head_size, int cell) {
    const size_t room = whole_vectors(positions), width = whole_vectors(head_size);
    char *keys = caches + index * head_bytes(positions, head_size, cell), *values = keys + room * head_size * cell;
    float *scales = (float *)(values + room * width * cell);
    return (HeadCache){keys, values, scales, scales + room, head_size, (int32_t)width};
}

INLINED Floats load_cells(const char *cells, size_t at, const int cell) {
    if (cell == EXACT) return load_all((const float *)cells + at);
    if (cell == HALF) {
        Halves x;
        memcpy(&x, (const uint16_t *)cells + at, sizeof x);
        return from_halves(x);
    }
    SignedBytes x;
    memcpy(&x, cells + at, sizeof x);
    return __builtin_convertvector(x, Floats);
}

/* Sixteen cells. */
INLINED void store_cells(char *to, Floats x, const int cell) {
    if (cell == EXACT) {
        store_all((float *)to, x);
    } else if (cell == HALF) {
        const Halves halves = to_halves(x);
        memcpy(to, &halves, sizeof halves);
    } else {
        const SignedBytes bytes = __builtin_convertvector(to_int8(x), SignedBytes);
        memcpy(to, &bytes, sizeof bytes);
    }
}

/* What makes bytes of x, and in *scale what makes x of bytes: no number where x is not all finite. */
static float factor_of(const float *x, int size, float *scale) {
    Floats largest = filled(0);
    Ints is_nan = (Ints)0; /* `larger` would lose it */
    for (int i = 0; i < size; i += LANES) {
        const Floats some = load(x + i, size - i);
        is_nan |= some != some;
        largest = larger(absolute(some), largest);
    }
    const float range = __builtin_reduce_or(is_nan) ? __builtin_nanf("") : largest_of(largest);
    *scale = range / 127;
    return range > 0 ? 127 / range : 0;
}

INLINED void write_cells(HeadCache cache, int position, const float *key, const float *value, const int cell) {
    const int size = cache.head_size;
    char *keys = cache.keys + ((size_t)(position / LANES) * size * LANES + position % LANES) * cell;
    char *values = cache.values + (size_t)position * cache.width * cell;
    const float of_key = cell == BYTE ? factor_of(key, size, cache.key_scales + position) : 1;
    const float of_value = cell == BYTE ? factor_of(value, size, cache.value_scales + position) : 1;
    for (int i = 0; i < size; i += LANES) {
        const int left = size - i;
        char cells[LANES * EXACT];
        store_cells(values + (size_t)i * cell, load(value + i, left) * of_value, cell);
        store_cells(cells, load(key + i, left) * of_key, cell);
        for (int lane = 0; lane < (left < LANES ? left : LANES); lane++) {
            memcpy(keys + (size_t)(i + lane) * LANES * cell, cells + lane * cell, cell);
        }
    }
}

static void write_key_value(HeadCache cache, int position, const float *key, const float *value, int cell) {
    if (cell == EXACT) write_cells(cache, position, key, value, EXACT);
    else if (cell == HALF) write_cells(cache, position, key, value, HALF);
    else write_cells(cache, position, key, value, BYTE);
}

INLINED void ask_for(const char *from, size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line);
}

/* Scores of a block of 16 keys. Four sums, because each multiply-add waits for the one before. */
INLINED Floats block_scores(const char *keys, size_t at, const float *query, int head_size, const int cell) {
    Floats sums[4] = {filled(0), filled(0), filled(0), filled(0)};
    int i = 0;
    for (; i + 4 <= head_size; i += 4) {
        for (int part = 0; part < 4; part++) {
            const Floats key = load_cells(keys, at + (size_t)(i + part) * LANES, cell);
            sums[part] = fused(key, filled(query[i + part]), sums[part]);
        }
    }
    for (; i < head_size; i++) {
        sums[0] = fused(load_cells(keys, at + (size_t)i * LANES, cell), filled(query[i]), sums[0]);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* → scores of a span, up to a whole vector; what is past its length weighs nothing. */
INLINED void span_scores(Span span, const float *query, float *scores, const int cell) {
    for (int i = 0; i < span.length; i += LANES) {
        const size_t at = (size_t)i * span.cache.head_size, block = (size_t)LANES * span.cache.head_size * cell;
        ask_for(span.cache.keys + at * cell + BLOCKS_AHEAD * block, block);
        Floats score = block_scores(span.cache.keys, at, query, span.cache.head_size, cell);
        if (cell == BYTE) score *= load_all(span.cache.key_scales + i);
        store_all(scores + i, first_lanes(span.length - i) ? score : filled(-__builtin_inff()));
    }
}

/* scores[0…length) → e^(score − largest), zeros up to a whole vector; returns their sum. */
static float exponentials(float *scores, int length) {
    Floats largest = filled(-__builtin_inff()), sum = filled(0);
    for (int i = 0; i < length; i += LANES) {
        const Floats some = load_all(scores + i);
        largest = (first_lanes(length - i) & (some > largest)) ? some : largest;
    }
    largest = filled(largest_of(largest));
    for (int i = 0; i < length; i += LANES) {
        const Floats kept = keep(first_lanes(length - i), exponential(load_all(scores + i) - largest));
        store_all(scores + i, kept);
        sum += kept;
    }
    return sum_of(sum);
}

/* Σ weight · value / sum over `vectors` vectors (a constant: registers) of each position, from `at` of each. */
INLINED void mix(const Span *spans, int count, const float *weights, float sum, int at, float *to, const int vectors,
                 const int cell) {
    Floats mixed[MIXED];
    for (int v = 0; v < vectors; v++) mixed[v] = filled(0);
    for (const Span *span = spans; span < spans + count; span++) {
        for (int i = 0; i < span->length; i++) {
            const Floats weight = filled(weights[i]);
            const size_t coming = (size_t)(i + VALUES_AHEAD) * span->cache.width + at;
            ask_for(span->cache.values + coming * cell, (size_t)vectors * LANES * cell);
            for (int v = 0; v < vectors; v++) {
                const size_t from = (size_t)i * span->cache.width + at + v * LANES;
                mixed[v] = fused(weight, load_cells(span->cache.values, from, cell), mixed[v]);
            }
        }
        weights += whole_vectors(span->length);
    }
    for (int v = 0; v < vectors; v++) {
        const int first = at + v * LANES;
        store(to + first, mixed[v] / sum, spans->cache.head_size - first);
    }
}

INLINED void attend_cells(const Span *spans, int count, const float *query, float *to, const int cell) {
    float scores[MAX_POSITIONS + MAX_SPANS * LANES];
    int end = 0;
    for (const Span *span = spans; span < spans + count; span++) {
        span_scores(*span, query, scores + end, cell);
        end += whole_vectors(span->length);
    }
    const float sum = exponentials(scores, end);
    end = 0;
    for (const Span *span = spans; cell == BYTE && span < spans + count; span++) {
        for (int i = 0; i < span->length; i += LANES) {
            float *weights = scores + end + i;
            store_all(weights, load_all(weights) * load_all(span->cache.value_scales + i));
        }
        end += whole_vectors(span->length);
    }
    const int width = spans->cache.width;
    int at = 0;
    for (; at + MIXED * LANES <= width; at += MIXED * LANES) mix(spans, count, scores, sum, at, to, MIXED, cell);
    for (; at + 4 * LANES <= width; at += 4 * LANES) mix(spans, count, scores, sum, at, to, 4, cell);
    for (; at < width; at += LANES) mix(spans, count, scores, sum, at, to, 1, cell);
}

/* query (D) against one span after the other, one at least → to (D). */
static void attend(const Span *spans, int count, const float *query, float *to, int cell) {
    if (cell == EXACT) attend_cells(spans, count, query, to, EXACT);
    else if (cell == HALF) attend_cells(spans, count, query, to, HALF);
    else attend_cells(spans, count, query, to, BYTE);
}

END_TARGET
