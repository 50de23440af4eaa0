/* What the layers of texts and of pictures have in common, for rows that go through them together.
 *
 * The models are those of models/dalle_bart.py and models/janus.py: what a family has not, it leaves out. Either all of
 * it is float32; or products are int8 (product.h), the keys and values that are kept are float16 or int8, and everything
 * between them float32.
 */
#pragma once
#include "attention.h"
#include "product.h"
#include "rows.h"
#include "team.h"

typedef struct {
    Product qkv, out, cross_q, cross_out, gate_up, down;
    RowNorm pre_self, self, pre_cross, cross, glu, gated;
    char *cache; /* keys and values (rows, kv_heads, a head's): attention.h */
} Layer;

/* The sizes of a stack of layers, and what lies between its phases for every row. */
typedef struct {
    int32_t width, ffn_width, num_layers, threads;
    int32_t heads, kv_heads; /* as many neighbouring heads share keys and values as there are more of them */
    int32_t is_swish;        /* in the gate; else GELU */
    int32_t cell;            /* of the keys and values that are kept: attention.h */
    float rms_eps;           /* of norms by the root of the mean square; 0: layer norms */
    const Layer *layers;
    RowNorm embedding, final;
    const float *turns; /* (positions, 2, D/2) what rotary positions turn queries and keys by, or NULL */
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

static int exists(RowNorm norm) { return norm.scale || norm.bias; }

/* The norm in front of a product. `mixed` serves as scratch. */
static void put_normed(const Context *c, int row, RowNorm norm) {
    float *h = mixed_of(c, row);
    normalise(x_of(c, row), h, c->stack->width, norm, c->stack->rms_eps);
    put_input(c, row, h, c->stack->width);
}

static void put_embedded(const Context *c, int row, const float *embedding) {
    const Stack *stack = c->stack;
    if (exists(stack->embedding)) normalise(embedding, x_of(c, row), stack->width, stack->embedding, stack->rms_eps);
    else memcpy(x_of(c, row), embedding, (size_t)stack->width * sizeof(float));
    put_normed(c, row, c->layer->pre_self);
}

static void enter_layer(const void *context, int row) {
    const Context *c = context;
    add_to(x_of(c, row), y_of(c, row), c->stack->width);
    put_normed(c, row, c->layer->pre_self);
}

static void add_normed(const Context *c, int row, RowNorm norm) {
    if (exists(norm)) normalise(y_of(c, row), y_of(c, row), c->stack->width, norm, c->stack->rms_eps);
    add_to(x_of(c, row), y_of(c, row), c->stack->width);
}

static void enter_cross_attention(const void *context, int row) {
    const Context *c = context;
    add_normed(c, row, c->layer->self);
    put_normed(c, row, c->layer->pre_cross);
}

static void enter_glu(const void *context, int row) {
    const Context *c = context;
    const Layer *layer = c->layer;
    add_normed(c, row, layer->cross_q.tiles ? layer->cross : layer->self); /* which attention was the last */
    put_normed(c, row, layer->glu);
}

static void gate(const void *context, int row) {
    const Context *c = context;
    const int width = c->stack->ffn_width;
    float *h = y_of(c, row);
    apply_gate(h, h + width, h, width, c->stack->is_swish);
    if (exists(c->layer->gated)) normalise(h, h, width, c->layer->gated, c->stack->rms_eps);
    put_input(c, row, h, width);
}

static void leave_attention(const void *context, int row) {
    const Context *c = context;
    put_input(c, row, mixed_of(c, row), c->stack->width);
}

/* The residual stream's end: the last feed-forward added, and the final norm. */
static void finish(const Context *c, int row) {
    add_to(x_of(c, row), y_of(c, row), c->stack->width);
    normalise(x_of(c, row), x_of(c, row), c->stack->width, c->stack->final, c->stack->rms_eps);
}

/* Queries, or keys, of one head at a position. */
static void turn_head(const Context *c, float *head, int position) {
    const int size = c->stack->width / c->stack->heads;
    if (c->stack->turns) turn(head, c->stack->turns + (size_t)position * size, size / 2);
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
