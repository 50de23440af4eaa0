/* One token of every running image: DalleBart's decoder at one new position a row, each row at a position of its own.
 *
 * The model is that of models/dalle_bart.py. Either all of it is float32; or the products are int8 (product.h), keys
 * and values float16, and everything between them float32. An image has two rows, conditional and unconditional: rows
 * 0…N−1 and N…2N−1 of a step, rows 2s and 2s + 1 of the caches for an image in slot s. Every thread calls `decode_step`
 * with the same arguments.
 */
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#include <cpuid.h>

/* Outside of what is compiled for AVX-512: this must run on any x86-64. Bits are those of Intel's manual, CPUID. */
EXPORT int is_supported(void) {
    const unsigned os_saves = 1u << 27, f_cd_bw_vl = 1u << 16 | 1u << 28 | 1u << 30 | 1u << 31, vnni = 1u << 11,
                   registers = 0xE6;
    unsigned a, b, c, d, enabled, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & os_saves)) return 0;
    __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    if ((enabled & registers) != registers) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & f_cd_bw_vl) == f_cd_bw_vl && (c & vnni);
}

#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512cd,f16c,fma,avx2"))),   \
                             apply_to = function)
#include "attention.h"
#include "draw.h"
#include "product.h"
#include "rows.h"
#include "team.h"

typedef struct {
    Product qkv, out, cross_q, cross_out, gate_up, down;
    const float *pre_self_bias, *self_scale, *self_bias;
    const float *pre_cross_bias, *cross_scale, *cross_bias;
    const float *glu_bias, *gated_bias;
    char *keys, *values;             /* (rows, heads, a head's cache): attention.h */
    char *cross_keys, *cross_values; /* likewise, over the text */
} Layer;

typedef struct {
    int32_t width, ffn_width, heads, num_layers, image_length, text_length, threads;
    const Layer *layers;
    const float *embedding_scale, *embedding_bias, *final_bias;
    Product lm_head;
    const int32_t *text_lengths; /* of each row of the caches */
    /* Between the phases, for every row of a step: */
    float *x;      /* (rows, width) the residual stream */
    float *mixed;  /* (rows, width) what attention gives */
    float *y;      /* (rows, the widest product) */
    Inputs inputs; /* of the next product */
    Phase *phases;
} Decoder;

typedef struct {
    int32_t images;
    const int32_t *slots, *positions; /* (images) */
    const float *guidance;            /* (images) */
    const float *embeddings;          /* (images, width), token plus position */
    float *logits;                    /* (images, 16 · lm_head.tiles), guided */
} Step;

typedef struct {
    const Decoder *decoder;
    const Step *step;
    const Layer *layer;
    const Product *product;
    float *product_to;
    int rows, span;
} Context;

static float *x_of(const Context *c, int row) { return c->decoder->x + (size_t)row * c->decoder->width; }
static float *mixed_of(const Context *c, int row) { return c->decoder->mixed + (size_t)row * c->decoder->width; }
static float *y_of(const Context *c, int row) { return c->decoder->y + (size_t)row * c->product->tiles * LANES; }

static void put_input(const Context *c, int row, const float *from, int width) {
    put_row(from, width, row_of(c->decoder->inputs, (width + GROUP - 1) / GROUP, row));
}

/* The norm in front of a product, which has no scale. `mixed` serves as scratch. */
static void put_normed(const Context *c, int row, const float *bias) {
    float *h = mixed_of(c, row);
    layer_norm(x_of(c, row), h, c->decoder->width, 0, bias);
    put_input(c, row, h, c->decoder->width);
}

static void embed(const void *context, int row) {
    const Context *c = context;
    const Decoder *d = c->decoder;
    const float *from = c->step->embeddings + (size_t)(row % c->step->images) * d->width;
    layer_norm(from, x_of(c, row), d->width, d->embedding_scale, d->embedding_bias);
    put_normed(c, row, c->layer->pre_self_bias);
}

static void enter_layer(const void *context, int row) {
    const Context *c = context;
    add_to(x_of(c, row), y_of(c, row), c->decoder->width);
    put_normed(c, row, c->layer->pre_self_bias);
}

static void add_normed(const Context *c, int row, const float *scale, const float *bias) {
    layer_norm(y_of(c, row), y_of(c, row), c->decoder->width, scale, bias);
    add_to(x_of(c, row), y_of(c, row), c->decoder->width);
}

static void enter_cross_attention(const void *context, int row) {
    const Context *c = context;
    add_normed(c, row, c->layer->self_scale, c->layer->self_bias);
    put_normed(c, row, c->layer->pre_cross_bias);
}

static void enter_glu(const void *context, int row) {
    const Context *c = context;
    add_normed(c, row, c->layer->cross_scale, c->layer->cross_bias);
    put_normed(c, row, c->layer->glu_bias);
}

static void gate(const void *context, int row) {
    const Context *c = context;
    const int width = c->decoder->ffn_width;
    float *h = y_of(c, row);
    apply_gate(h, h + width, h, width);
    layer_norm(h, h, width, 0, c->layer->gated_bias);
    put_input(c, row, h, width);
}

static void leave_attention(const void *context, int row) {
    const Context *c = context;
    put_input(c, row, mixed_of(c, row), c->decoder->width);
}

static int cache_row(const Step *step, int row) { return 2 * step->slots[row % step->images] + (row >= step->images); }

static HeadCache head_cache(const Context *c, char *keys, char *values, int row, int head, int positions) {
    const int size = c->decoder->width / c->decoder->heads, width = (size + LANES - 1) / LANES * LANES;
    const int is_exact = c->decoder->inputs.is_exact;
    const size_t index = ((size_t)cache_row(c->step, row) * c->decoder->heads + head) * (is_exact ? 4 : 2);
    const size_t blocks = (positions + LANES - 1) / LANES;
    return (HeadCache){keys + index * blocks * LANES * size, values + index * positions * width, size, width, is_exact};
}

static void attend_self(const void *context, int chunk) {
    const Context *c = context;
    const Decoder *d = c->decoder;
    const int row = chunk / d->heads, head = chunk % d->heads, position = c->step->positions[row % c->step->images];
    const HeadCache cache = head_cache(c, c->layer->keys, c->layer->values, row, head, d->image_length);
    const float *query = y_of(c, row) + (size_t)head * cache.head_size;
    write_key_value(cache, position, query + d->width, query + 2 * d->width);
    attend(cache, position + 1, query, mixed_of(c, row) + (size_t)head * cache.head_size);
}

static void attend_cross(const void *context, int chunk) {
    const Context *c = context;
    const Decoder *d = c->decoder;
    const int row = chunk / d->heads, head = chunk % d->heads, length = d->text_lengths[cache_row(c->step, row)];
    const HeadCache cache = head_cache(c, c->layer->cross_keys, c->layer->cross_values, row, head, d->text_length);
    const size_t at = (size_t)head * cache.head_size;
    attend(cache, length, y_of(c, row) + at, mixed_of(c, row) + at);
}

/* lm_head has no bias, so mixing the hidden states gives the mixed logits at half the work. */
static void guide(const void *context, int image) {
    const Context *c = context;
    const int width = c->decoder->width, images = c->step->images;
    for (int row = image; row < 2 * images; row += images) {
        add_to(x_of(c, row), y_of(c, row), width);
        layer_norm(x_of(c, row), x_of(c, row), width, 0, c->decoder->final_bias);
    }
    const float *conditional = x_of(c, image), *unconditional = x_of(c, images + image);
    const __m512 strength = _mm512_set1_ps(c->step->guidance[image]);
    float *guided = mixed_of(c, image);
    for (int i = 0; i < width; i += LANES) {
        const __m512 base = load(unconditional + i, width - i);
        const __m512 away = _mm512_sub_ps(load(conditional + i, width - i), base);
        store(guided + i, _mm512_add_ps(base, _mm512_mul_ps(strength, away)), width - i);
    }
    put_input(c, image, guided, width);
}

static void multiply_span(const void *context, int chunk) {
    const Context *c = context;
    const int first = chunk * c->span, last = first + c->span;
    multiply(c->product, first, last < c->product->tiles ? last : c->product->tiles, c->decoder->inputs, c->rows,
             c->product_to);
}

/* All threads multiply `rows` rows of inputs by one matrix. What follows finds the result by the product's width. */
static void multiply_shared(Context *c, Phase **phase, const Product *product, int rows, float *to) {
    const int spans = 4 * c->decoder->threads; /* more than threads: one that was late takes fewer */
    c->product = product;
    c->product_to = to;
    c->rows = rows;
    c->span = (product->tiles + spans - 1) / spans;
    share(phase, (product->tiles + c->span - 1) / c->span, multiply_span, c);
}

/* As many as decode_step goes through. */
static int num_phases(int num_layers) { return num_layers * 14 + 2; }

EXPORT int phase_bytes(int num_layers) { return num_phases(num_layers) * (int)sizeof(Phase); }

/* Before every step, by one thread, while no other is in it. */
EXPORT void begin_step(const Decoder *decoder) {
    for (int i = 0; i < num_phases(decoder->num_layers); i++) decoder->phases[i] = (Phase){0};
}

EXPORT void decode_step(const Decoder *decoder, const Step *step) {
    Context c = {.decoder = decoder, .step = step};
    Phase *phase = decoder->phases;
    const int rows = 2 * step->images, heads = rows * decoder->heads;
    for (int index = 0; index < decoder->num_layers; index++) {
        const Layer *layer = c.layer = &decoder->layers[index];
        share(&phase, rows, index ? enter_layer : embed, &c);
        multiply_shared(&c, &phase, &layer->qkv, rows, decoder->y);
        share(&phase, heads, attend_self, &c);
        share(&phase, rows, leave_attention, &c);
        multiply_shared(&c, &phase, &layer->out, rows, decoder->y);
        share(&phase, rows, enter_cross_attention, &c);
        multiply_shared(&c, &phase, &layer->cross_q, rows, decoder->y);
        share(&phase, heads, attend_cross, &c);
        share(&phase, rows, leave_attention, &c);
        multiply_shared(&c, &phase, &layer->cross_out, rows, decoder->y);
        share(&phase, rows, enter_glu, &c);
        multiply_shared(&c, &phase, &layer->gate_up, rows, decoder->y);
        share(&phase, rows, gate, &c);
        multiply_shared(&c, &phase, &layer->down, rows, decoder->y);
    }
    share(&phase, step->images, guide, &c);
    multiply_shared(&c, &phase, &decoder->lm_head, step->images, step->logits);
}

EXPORT int draw(const float *logits, const int64_t *ids, int count, uint64_t seed, uint32_t image_index,
                uint32_t step) {
    return best_of(logits, ids, count, (NoiseKey){seed, image_index, step});
}

/* Lets Python see that its structures are these. */
EXPORT int layout(void) { return sizeof(Layer) + sizeof(Decoder) + sizeof(Step); }

EXPORT int max_positions(void) { return MAX_POSITIONS; }
#pragma clang attribute pop
