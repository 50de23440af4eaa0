/* What a layer of the text encoder and one of the decoder have in common, for rows that go through it together.
 *
 * The model is that of models/dalle_bart.py. Either all of it is float32; or products are int8 (product.h), the keys
 * and values that a picture keeps are float16, and everything between them float32.
 */
#pragma once
#include "attention.h"
#include "product.h"
#include "rows.h"
#include "team.h"

typedef struct {
    Product qkv, out, cross_q, cross_out, gate_up, down;
    const float *pre_self_bias, *self_scale, *self_bias;
    const float *pre_cross_bias, *cross_scale, *cross_bias;
    const float *glu_bias, *gated_bias;
    char *keys, *values;             /* (rows, heads, a head's cache): attention.h */
    char *cross_keys, *cross_values; /* likewise, over the text; the encoder has none, nor any `cross` above */
} Layer;

/* The sizes of a stack of layers, and what lies between its phases for every row. */
typedef struct {
    int32_t width, ffn_width, heads, num_layers, threads;
    const Layer *layers;
    const float *embedding_scale, *embedding_bias, *final_bias;
    float *x;      /* (rows, width) the residual stream */
    float *mixed;  /* (rows, width) what attention gives */
    float *y;      /* (rows, the widest product) */
    Inputs inputs; /* of the next product */
    Phase *phases; /* zeros at first */
} Stack;

typedef struct {
    const Stack *stack;
    const Layer *layer;
    const void *call; /* the decode step's or the text's own */
    const Product *product;
    float *product_to;
    Phase *phase;
    int rows, span;
} Context;

BEGIN_TARGET

static float *x_of(const Context *c, int row) { return c->stack->x + (size_t)row * c->stack->width; }
static float *mixed_of(const Context *c, int row) { return c->stack->mixed + (size_t)row * c->stack->width; }
static float *y_of(const Context *c, int row) { return c->stack->y + (size_t)row * c->product->tiles * LANES; }

static void put_input(const Context *c, int row, const float *from, int width) {
    put_row(from, width, row_of(c->stack->inputs, row));
}

/* The norm in front of a product, which has no scale. `mixed` serves as scratch. */
static void put_normed(const Context *c, int row, const float *bias) {
    float *h = mixed_of(c, row);
    layer_norm(x_of(c, row), h, c->stack->width, 0, bias);
    put_input(c, row, h, c->stack->width);
}

static void put_embedded(const Context *c, int row, const float *embedding) {
    layer_norm(embedding, x_of(c, row), c->stack->width, c->stack->embedding_scale, c->stack->embedding_bias);
    put_normed(c, row, c->layer->pre_self_bias);
}

static void enter_layer(const void *context, int row) {
    const Context *c = context;
    add_to(x_of(c, row), y_of(c, row), c->stack->width);
    put_normed(c, row, c->layer->pre_self_bias);
}

static void add_normed(const Context *c, int row, const float *scale, const float *bias) {
    layer_norm(y_of(c, row), y_of(c, row), c->stack->width, scale, bias);
    add_to(x_of(c, row), y_of(c, row), c->stack->width);
}

static void enter_cross_attention(const void *context, int row) {
    const Context *c = context;
    add_normed(c, row, c->layer->self_scale, c->layer->self_bias);
    put_normed(c, row, c->layer->pre_cross_bias);
}

static void enter_glu(const void *context, int row) {
    const Context *c = context;
    const Layer *layer = c->layer;
    const int is_crossed = layer->cross_scale != 0; /* the last attention was over the text */
    add_normed(c, row, is_crossed ? layer->cross_scale : layer->self_scale,
               is_crossed ? layer->cross_bias : layer->self_bias);
    put_normed(c, row, layer->glu_bias);
}

static void gate(const void *context, int row) {
    const Context *c = context;
    const int width = c->stack->ffn_width;
    float *h = y_of(c, row);
    apply_gate(h, h + width, h, width);
    layer_norm(h, h, width, 0, c->layer->gated_bias);
    put_input(c, row, h, width);
}

static void leave_attention(const void *context, int row) {
    const Context *c = context;
    put_input(c, row, mixed_of(c, row), c->stack->width);
}

/* The residual stream's end: the last feed-forward added, and the final norm. */
static void finish(const Context *c, int row) {
    add_to(x_of(c, row), y_of(c, row), c->stack->width);
    layer_norm(x_of(c, row), x_of(c, row), c->stack->width, 0, c->stack->final_bias);
}

static void multiply_span(const void *context, int chunk) {
    const Context *c = context;
    const int first = chunk * c->span, last = first + c->span;
    multiply(c->product, first, last < c->product->tiles ? last : c->product->tiles, c->stack->inputs, c->rows,
             c->product_to);
}

static void in_chunks(Context *c, int chunks, Work work) { share(&c->phase, chunks, work, c); }

/* All threads multiply `rows` rows of inputs by one matrix. What follows finds the result by the product's width. */
static void multiply_shared(Context *c, const Product *product, int rows, float *to) {
    const int spans = 4 * c->stack->threads; /* more than threads: one that was late takes fewer */
    c->product = product;
    c->product_to = to;
    c->rows = rows;
    c->span = (product->tiles + spans - 1) / spans;
    in_chunks(c, (product->tiles + c->span - 1) / c->span, multiply_span);
}

static void feed_forward(Context *c, int rows) {
    in_chunks(c, rows, enter_glu);
    multiply_shared(c, &c->layer->gate_up, rows, c->stack->y);
    in_chunks(c, rows, gate);
    multiply_shared(c, &c->layer->down, rows, c->stack->y);
}

END_TARGET
