/* What happens to a feature map between two convolutions. A chunk is a row of it, unless said otherwise. */
#pragma once
#include <stddef.h>
#include "attention.h"
#include "convolution.h"

/* Group norm, first half: of each row and channel the mean and the squares' sum around it. A convolution does it by
 * itself where it writes whole rows.
 */
typedef struct {
    const float *from; /* (rows, columns, channels) */
    float *moments;    /* (rows, 2, channels) */
    int32_t rows, columns, channels;
} Moments;

/* Second half: of each channel what its values are multiplied with and what is added. A chunk is a group. */
typedef struct {
    const float *moments;
    const float *weight, *bias; /* (groups · group_size) */
    float *scale, *shift;       /* (channels) */
    int32_t rows, columns, channels, groups, group_size;
} Norm;

/* Inputs of a convolution: normed, through swish, cut into units and framed, all where asked for. */
typedef struct {
    const float *from;          /* (rows, columns, channels) */
    const float *scale, *shift; /* (channels), of Norm; NULL: values as they are */
    float *largest;             /* NULL, or (rows): the largest value of each row */
    void *to;                   /* (rows + 2, columns + 2, channels) float or uint8; the frame stands for 0 */
    float inverse_step;         /* of uint8 values, */
    float zero;                 /* among which this one stands for 0 */
    int32_t rows, columns, channels, is_swish, is_exact, is_framed, wraps;
} Framing;

/* A product's right side from a feature map, as a convolution's weights lie. A chunk is a tile of outputs. */
typedef struct {
    const float *from; /* (places, channels) */
    float *to;         /* tiles × units × 16: outputs are places and units channels (keys), or the reverse (values) */
    int32_t places, channels, is_keys;
} Packing;

/* softmax in place over the first `length` of each place's `width` scores; the rest become 0. A chunk is a place. */
typedef struct {
    float *scores; /* (places, width) */
    int32_t places, length, width;
} Softmax;

BEGIN_TARGET

static void measure_row(const void *what, int row) {
    const Moments *m = what;
    for (int channel = 0; channel < m->channels; channel += LANES) {
        float *to = m->moments + (size_t)row * 2 * m->channels + channel;
        measure(m->from + (size_t)row * m->columns * m->channels + channel, m->columns, m->channels, to,
                to + m->channels);
    }
}

/* Chan's formula, in double: the group's squares are its rows' and channels' own, and their means' around the mean. */
static void norm_group(const void *what, int group) {
    const Norm *n = what;
    const int first = group * n->group_size, last = first + n->group_size;
    double mean = 0, squares = 0, distances = 0;
    for (int row = 0; row < n->rows; row++) {
        const float *moments = n->moments + (size_t)row * 2 * n->channels;
        for (int i = first; i < last; i++) mean += moments[i];
    }
    mean /= (double)n->rows * n->group_size;
    for (int row = 0; row < n->rows; row++) {
        const float *moments = n->moments + (size_t)row * 2 * n->channels;
        for (int i = first; i < last; i++) {
            const double off = moments[i] - mean;
            distances += off * off;
            squares += moments[n->channels + i];
        }
    }
    const double variance = (squares + n->columns * distances) / ((double)n->rows * n->columns * n->group_size);
    const double inverse = 1 / __builtin_elementwise_sqrt(variance + 1e-6);
    for (int i = first; i < last; i++) {
        n->scale[i] = (float)(n->weight[i] * inverse);
        n->shift[i] = (float)(n->bias[i] - mean * n->weight[i] * inverse);
    }
}

typedef uint8_t Bytes __attribute__((ext_vector_type(LANES)));

INLINED void put(const Framing *in, size_t at, Floats x, const int is_exact) {
    if (is_exact) {
        store_all((float *)in->to + at, x);
        return;
    }
    Floats y = fused(x, filled(in->inverse_step), filled(in->zero));
    y = y > 0 ? y : 0;
    y = y < 255 ? y : 255;
    const Bytes bytes = __builtin_convertvector((Ints)(y + MAGIC), Bytes);
    memcpy((uint8_t *)in->to + at, &bytes, sizeof bytes);
}

INLINED void frame_pixel(const Framing *in, size_t at, const float *from, Floats *largest, const int is_exact) {
    for (int channel = 0; channel < in->channels; channel += LANES) {
        Floats x = filled(0);
        if (from) {
            x = load_all(from + channel);
            if (in->scale) x = fused(x, load_all(in->scale + channel), load_all(in->shift + channel));
            if (in->is_swish) x = swish(x);
            *largest = larger(x, *largest);
        }
        put(in, at + channel, x, is_exact);
    }
}

/* A chunk is a row of the framed map. */
INLINED void frame_row(const Framing *in, int to_row, const int is_exact) {
    const int frame = in->is_framed, width = in->columns + 2 * frame;
    const int row = in->wraps ? (to_row - frame + in->rows) % in->rows : to_row - frame;
    Floats largest = filled(-__builtin_inff());
    for (int i = 0; i < width; i++) {
        const int column = in->wraps ? (i - frame + in->columns) % in->columns : i - frame;
        const int is_inside = row >= 0 && row < in->rows && column >= 0 && column < in->columns;
        const float *from = is_inside ? in->from + ((size_t)row * in->columns + column) * in->channels : 0;
        frame_pixel(in, ((size_t)to_row * width + i) * in->channels, from, &largest, is_exact);
    }
    if (in->largest && row >= 0 && row < in->rows) in->largest[row] = largest_of(largest);
}

static void frame(const void *what, int row) {
    const Framing *in = what;
    if (in->is_exact) frame_row(in, row, 1);
    else frame_row(in, row, 0);
}

static void pack(const void *what, int tile) {
    const Packing *p = what;
    const int places = (p->places + LANES - 1) / LANES * LANES, units = p->is_keys ? p->channels : places;
    float *to = p->to + (size_t)tile * units * LANES;
    for (int unit = 0; unit < units; unit++) {
        for (int lane = 0; lane < LANES; lane++) {
            const int place = p->is_keys ? tile * LANES + lane : unit,
                      channel = p->is_keys ? unit : tile * LANES + lane;
            to[unit * LANES + lane] = place < p->places ? p->from[(size_t)place * p->channels + channel] : 0;
        }
    }
}

static void soften(const void *what, int place) {
    const Softmax *s = what;
    float *scores = s->scores + (size_t)place * s->width;
    const Floats sum = filled(exponentials(scores, s->length));
    for (int i = 0; i < s->width; i += LANES) {
        store_all(scores + i, i < s->length ? load_all(scores + i) / sum : filled(0));
    }
}

END_TARGET
