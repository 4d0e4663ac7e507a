/* Runs a fuzz target over the files that are named as arguments, without a fuzzer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int count, char **names) {
    int i;
    for (i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        uint8_t *data = malloc(1 << 20);
        size_t size;
        if (!file || !data)
            return 2;
        size = fread(data, 1, 1 << 20, file);
        fclose(file);
        /* A copy of its own size, so that reading beyond it is noticed. */
        uint8_t *exact = malloc(size ? size : 1);
        if (!exact)
            return 2;
        for (size_t j = 0; j < size; j++)
            exact[j] = data[j];
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        free(data);
    }
    printf("%d files\n", count - 1);
    return 0;
}
