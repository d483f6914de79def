/* The interface from C99: prints a packed file's entries and the sums of their values. */
#include <diffq_fast.h>
#include <stdio.h>
#include <stdlib.h>

static int print_entry(const diffq_fast_file* file, size_t index) {
    diffq_fast_error error;
    diffq_fast_tensor tensor;
    float* values = NULL;
    double sum = 0;
    int64_t i;
    if (diffq_fast_describe(file, index, &tensor, &error) != DIFFQ_FAST_OK) goto failed;
    values = malloc(sizeof *values * (size_t)tensor.count + 1);
    if (values == NULL) return 1;
    if (diffq_fast_read_float32(file, index, values, (size_t)tensor.count, &error) != DIFFQ_FAST_OK)
        goto failed;
    for (i = 0; i < tensor.count; ++i) sum += values[i];
    printf("%s %s %s %g\n", tensor.name, tensor.dtype, tensor.packed ? "packed" : "plain", sum);
    free(values);
    return 0;
failed:
    fprintf(stderr, "%s\n", error.message);
    free(values);
    return 1;
}

int main(int count, char** arguments) {
    diffq_fast_error error;
    diffq_fast_file* file;
    size_t index;
    int failed = 0;
    if (count != 2 || diffq_fast_open_path(arguments[1], NULL, &file, &error) != DIFFQ_FAST_OK) {
        fprintf(stderr, "%s\n", count == 2 ? error.message : "usage: c_program FILE");
        return 1;
    }
    for (index = 0; index < diffq_fast_count(file) && !failed; ++index) failed = print_entry(file, index);
    diffq_fast_close(file);
    return failed;
}
