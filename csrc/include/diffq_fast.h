/* diffq_fast: packed files, read from C.
 *
 * A packed file (docs/packed_format.md, versions 1 and 2) holds quantised weights and everything else of a
 * model's state dict. This interface opens one, from a path or from memory, verifies it, and gives its
 * tensors as float32, or products with weights that stay packed:
 *
 *     diffq_fast_error error;
 *     diffq_fast_file* file;
 *     if (diffq_fast_open_path("model.safetensors", NULL, &file, &error) != DIFFQ_FAST_OK) {
 *         fprintf(stderr, "%s\n", error.message);
 *         return 1;
 *     }
 *
 * - Nothing in a file is believed: every size, width and checksum is verified before the first level is
 * decoded. What a file makes its reader take is bounded by its length.
 * - Every function that can fail returns a status, and writes a message to `error`, which may be null. What
 * it would give is not touched then, except for the contents of a caller's buffer.
 * - There is no state beside the handles. Any number of threads may use one handle at once, except to close
 * it.
 * - No exception leaves a function. Null where a pointer is needed is DIFFQ_FAST_BAD_ARGUMENT.
 * - The library starts no threads.
 */
#ifndef DIFFQ_FAST_H
#define DIFFQ_FAST_H

#include <stddef.h>
#include <stdint.h>

/* DIFFQ_FAST_SHARED: using the shared library; DIFFQ_FAST_BUILDING: making it. CMake and pkg-config say so.
 */
#if defined(_WIN32) && defined(DIFFQ_FAST_BUILDING)
#define DIFFQ_FAST_API __declspec(dllexport)
#elif defined(_WIN32) && defined(DIFFQ_FAST_SHARED)
#define DIFFQ_FAST_API __declspec(dllimport)
#elif defined(__GNUC__)
#define DIFFQ_FAST_API __attribute__((visibility("default")))
#else
#define DIFFQ_FAST_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum diffq_fast_status {
    DIFFQ_FAST_OK = 0,
    DIFFQ_FAST_BAD_ARGUMENT = 1, /* null, out of bounds, or of another size than it must have */
    DIFFQ_FAST_CANNOT_OPEN = 2,  /* the system does not give the file */
    DIFFQ_FAST_BAD_FILE = 3,     /* damaged, truncated, hostile, or of another format or version */
    DIFFQ_FAST_OUT_OF_MEMORY = 4,
    DIFFQ_FAST_NOT_FOUND = 5,   /* no entry of that name */
    DIFFQ_FAST_UNSUPPORTED = 6, /* an entry that cannot be given in the form that is asked for */
    DIFFQ_FAST_INTERNAL = 7     /* a mistake of this library */
} diffq_fast_status;

/* What went wrong, and where: UTF-8 of the caller's path aside, printable ASCII, with a zero behind it. */
typedef struct diffq_fast_error {
    diffq_fast_status status;
    char message[1024];
} diffq_fast_error;

/* Where memory comes from: what a handle keeps, and every block whose size depends on the file, or, for a
 * matrix, on the weight. (What does not, some kilobytes while a call works and the vectors of a product,
 * comes from operator new.) allocate: a block of `bytes` bytes, more than 0, aligned like malloc's; null is a
 * failure. release: `bytes` as they were asked for. Both may be called by any thread that uses the handle. */
typedef struct diffq_fast_allocator {
    void* (*allocate)(void* context, size_t bytes);
    void (*release)(void* context, void* block, size_t bytes);
    void* context;
} diffq_fast_allocator;

/* Set what is not wanted to zero. */
typedef struct diffq_fast_options {
    const diffq_fast_allocator* allocator; /* copied; null: malloc and free */
    /* Not 0: opening reads header, layout and widths alone; the data of an entry are verified when it is
     * first read, or by diffq_fast_validate(). 0: opening verifies the whole file. */
    int lazy;
} diffq_fast_options;

typedef struct diffq_fast_file diffq_fast_file;
typedef struct diffq_fast_matrix diffq_fast_matrix;

/* One entry of the state dict. All pointers live as long as the file's handle. */
typedef struct diffq_fast_tensor {
    const char* name;    /* UTF-8, with a zero behind it; it may hold others */
    size_t name_bytes;   /* without that zero */
    const char* tied_to; /* the name of the entry that this one is the same tensor as; null: it is its own */
    /* Of the tensor in the model: BOOL, U8, I8, F8_E4M3, F8_E5M2, U16, I16, F16, BF16, U32, I32, F32, U64,
     * I64, F64 or C64; F32, F16 or BF16 for a packed one. */
    const char* dtype;
    const char* stored_dtype; /* of a plain tensor's data in the file; null for a packed one */
    const int64_t* shape;     /* [rank]; null where rank is 0 */
    size_t rank;
    int64_t count;        /* elements */
    int64_t stored_bytes; /* of its data in the file */
    int64_t group_size;   /* of a packed one: elements that share a width; 0: all */
    int packed;           /* 1: a quantised weight; 0: a plain tensor */
    int coded;            /* 1: its levels are entropy coded */
    int least_bits;       /* widths of a packed one's groups; 0 for plain ones, and for those with steps, */
    int most_bits;        /* whose levels have no width */
} diffq_fast_tensor;

/* "0.1.0": of the library. */
DIFFQ_FAST_API const char* diffq_fast_version(void);

/* A few words for a status, which may be any number. */
DIFFQ_FAST_API const char* diffq_fast_status_text(int status);

/* Opens a packed file. Where the system can, it is mapped: it must not be changed before the handle is closed
 * (replaced by another file it may be). path: UTF-8 under Windows, else as the system has it. options: may be
 * null. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_open_path(const char* path, const diffq_fast_options* options,
                                                      diffq_fast_file** file, diffq_fast_error* error);

/* The same for a file's bytes in memory, at any address. They are not copied, and must stay as they are until
 * the handle is closed. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_open_memory(const void* data, size_t bytes,
                                                        const diffq_fast_options* options,
                                                        diffq_fast_file** file, diffq_fast_error* error);

/* Gives back all that a handle has; null is let pass. */
DIFFQ_FAST_API void diffq_fast_close(diffq_fast_file* file);

/* Verifies all of a file that was opened lazily. For another one there is nothing left to do. Streams of
 * coded levels are verified up to their checksums and sizes; the rest shows when they are decoded. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_validate(const diffq_fast_file* file, diffq_fast_error* error);

/* How many entries there are: packed weights, plain tensors, and further names of these, in this order. 0 for
 * null. */
DIFFQ_FAST_API size_t diffq_fast_count(const diffq_fast_file* file);

/* Entry number `index`, from 0 on. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_describe(const diffq_fast_file* file, size_t index,
                                                     diffq_fast_tensor* tensor, diffq_fast_error* error);

/* The number of the entry of that name. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_find(const diffq_fast_file* file, const char* name, size_t* index,
                                                 diffq_fast_error* error);

/* A tensor as float32, in row-major order: a packed weight bit for bit as Python's loader gives it, rounded
 * to its dtype; plain tensors of F64, F32, F16, BF16, F8_E4M3 and F8_E5M2. count: of `values`, which must be
 * the tensor's. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_read_float32(const diffq_fast_file* file, size_t index,
                                                         float* values, size_t count,
                                                         diffq_fast_error* error);

/* A plain tensor's bytes as they lie in the file, of its stored dtype, little-endian, at any address. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_plain_data(const diffq_fast_file* file, size_t index,
                                                       const void** data, size_t* bytes,
                                                       diffq_fast_error* error);

/* A packed weight of two dimensions or more that stays packed in memory: rows are its first dimension,
 * columns all others. It does not need the file any more, and has the file's allocator. Coded levels are
 * decoded once, to the fewest bits that hold them. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_matrix_open(const diffq_fast_file* file, size_t index,
                                                        diffq_fast_matrix** matrix, diffq_fast_error* error);

/* Null is let pass. */
DIFFQ_FAST_API void diffq_fast_matrix_close(diffq_fast_matrix* matrix);

/* 0 for null. bytes: what it keeps in memory. */
DIFFQ_FAST_API size_t diffq_fast_matrix_rows(const diffq_fast_matrix* matrix);
DIFFQ_FAST_API size_t diffq_fast_matrix_columns(const diffq_fast_matrix* matrix);
DIFFQ_FAST_API size_t diffq_fast_matrix_bytes(const diffq_fast_matrix* matrix);

/* results[v][r] = the sum over c of matrix[r][c] * vectors[v][c], to rounding. vectors: [count][columns];
 * results: [count][rows]. The products are of the weight before it is rounded to F16 or BF16. */
DIFFQ_FAST_API diffq_fast_status diffq_fast_matrix_multiply(const diffq_fast_matrix* matrix,
                                                            const float* vectors, size_t count,
                                                            float* results, diffq_fast_error* error);

/* values[i] = row indices[i], float32 [count][columns]: bit for bit those of diffq_fast_read_float32(). */
DIFFQ_FAST_API diffq_fast_status diffq_fast_matrix_read_rows(const diffq_fast_matrix* matrix,
                                                             const int64_t* indices, size_t count,
                                                             float* values, diffq_fast_error* error);

#ifdef __cplusplus
}
#endif

#endif
