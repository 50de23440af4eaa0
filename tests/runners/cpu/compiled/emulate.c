/* The compiled code for another processor, run by an emulator on memory that a test wrote into a file.
 *
 * emulate FILE BASE [FUNCTION ARGUMENTS PHASES PHASE_BYTES]…: maps the file at BASE, where its pointers expect to be,
 * and calls the functions one after the other. What they compute is in the file then. Alone it answers `lowered`.
 */
#include "library.c"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

static void *pointer(const char *text) { return (void *)(uintptr_t)strtoull(text, 0, 10); }

int main(int count, char **words) {
    struct stat file;
    if (count == 1) return is_supported() ? lowered() : 1;
    const int opened = open(words[1], O_RDWR);
    if (!is_supported() || opened < 0 || fstat(opened, &file)) return 2;
    void *base = pointer(words[2]);
    if (mmap(base, file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, opened, 0) != base) return 3;
    for (int i = 3; i + 3 < count; i += 4) {
        memset(pointer(words[i + 2]), 0, strtoull(words[i + 3], 0, 10));
        if (words[i][0] == 'd') decode_step(pointer(words[i + 1]));
        else if (words[i][0] == 'r') run_operations(pointer(words[i + 1]));
        else encode_text(pointer(words[i + 1]));
    }
    return 0;
}
