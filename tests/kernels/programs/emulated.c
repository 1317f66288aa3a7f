/* Runs a worker on an image of memory: argv[1] holds, as int64, how many places hold addresses, those places, the
   place of the parameters, and then the image, in which addresses count from its beginning. The image is written back. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void *WORKER(int64_t *parameters, int64_t number, void *, void *, void *, void *);

int main(int argc, char **argv) {
    FILE *file = fopen(argv[argc - 1], "r+b");
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *all = aligned_alloc(64, (size + 63) / 64 * 64);
    if (fread(all, 1, size, file) != (size_t)size) return 1;
    int64_t *head = (int64_t *)all;
    int64_t start = (8 * (head[0] + 2) + 63) / 64 * 64;
    char *image = all + start;
    for (int64_t i = 0; i < head[0]; i++) *(int64_t *)(image + head[1 + i]) += (int64_t)image;
    WORKER((int64_t *)(image + head[1 + head[0]]), 0, 0, 0, 0, 0);
    for (int64_t i = 0; i < head[0]; i++) *(int64_t *)(image + head[1 + i]) -= (int64_t)image;
    rewind(file);
    return fwrite(all, 1, size, file) != (size_t)size || fclose(file);
}
