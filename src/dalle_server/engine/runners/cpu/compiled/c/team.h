/* Threads that go through the same phases together. A phase is a number of chunks that any thread may take; the next
 * begins when every chunk is done, not when every thread is there: one that the system holds up costs a chunk's time
 * at most, and if it never comes the others finish without it.
 */
#pragma once
#include <stdatomic.h>
#include "target.h"
#ifdef _WIN32
#include <windows.h>
#define give_way() SwitchToThread()
#else
#include <time.h>
#define give_way() nanosleep(&(struct timespec){0, 50000}, 0)
#endif

#define SPINS 1000 /* 10 to 50 µs: longer than a phase between products. Then the core is somebody else's. */

typedef struct {
    _Alignas(64) atomic_int taken; /* a cache line each: everybody writes here */
    _Alignas(64) atomic_int done;
} Phase;

typedef void (*Work)(const void *context, int chunk);

BEGIN_TARGET

/* Take part in `*phase` until it is over, and go on to the one behind it. */
static void share(Phase **phase, int chunks, Work work, const void *context) {
    Phase *now = (*phase)++;
    int chunk;
    while ((chunk = atomic_fetch_add_explicit(&now->taken, 1, memory_order_relaxed)) < chunks) {
        work(context, chunk);
        atomic_fetch_add_explicit(&now->done, 1, memory_order_release);
    }
    for (int spins = 0; atomic_load_explicit(&now->done, memory_order_acquire) < chunks; spins++) {
        if (spins < SPINS) pause_briefly();
        else give_way();
    }
}

END_TARGET
