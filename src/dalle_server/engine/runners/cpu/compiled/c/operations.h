/* The VQGAN, both ways: a list of operations over feature maps, one after the other, each shared by all threads.
 * vqgan/halves.py writes the list, so no layer's order is told here.
 */
#pragma once
#include "convolution.h"
#include "feature_maps.h"
#include "team.h"

typedef struct {
    int32_t kind, chunks;
    const void *what;
} Operation;

typedef struct {
    const Operation *operations;
    Phase *phases; /* one an operation */
    int32_t count;
} Program;

BEGIN_TARGET

static void run_program(const Program *program) {
    static const Work work[] = {convolve, measure_row, norm_group, frame, pack, soften};
    Phase *phase = program->phases;
    for (const Operation *o = program->operations; o < program->operations + program->count; o++) {
        share(&phase, o->chunks, work[o->kind], o->what);
    }
}

END_TARGET
