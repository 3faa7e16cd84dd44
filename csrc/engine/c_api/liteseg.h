/* liteseg: semantic segmentation on the CPU from a network file, without Python and without PyTorch.
 *
 * `liteseg export --format plan` writes a network file; docs/deployment.md goes from training to C.
 *
 * A network is opened once and is not changed by running it: any number of threads may run one network at once, and any
 * number of networks may be open. Only liteseg_close must come after every other call on the network has returned.
 * Functions that can fail return a liteseg_status; what went wrong is told by liteseg_last_error, thread by thread.
 */
#ifndef LITESEG_H
#define LITESEG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LITESEG_API __attribute__((visibility("default")))
#else
#define LITESEG_API
#endif

typedef enum liteseg_status {
  LITESEG_OK = 0,
  LITESEG_INVALID_ARGUMENT = 1, /* an argument of this call is wrong */
  LITESEG_CANNOT_READ = 2,      /* the system does not hand out the file */
  LITESEG_BROKEN_FILE = 3,      /* it is no network file, is damaged or contradicts itself */
  LITESEG_UNSUPPORTED = 4,      /* a newer file, or something that this processor cannot do */
  LITESEG_OUT_OF_MEMORY = 5,    /* of the system, or of the limit in liteseg_options */
  LITESEG_INTERNAL = 6
} liteseg_status;

typedef struct liteseg_network liteseg_network;

typedef struct liteseg_options {
  size_t size;          /* sizeof(liteseg_options), so that later versions can add to it */
  int threads;          /* that work on one call, the caller's among them, at most 1024; 0: a thread a processor */
  int bfloat16;         /* 1: compute in bfloat16, with AVX512_BF16 or AMX and networks that have the kernels */
  int64_t memory_limit; /* bytes for the weights, and bytes for the maps of one call; 0: no limit. For files that come
                         * from elsewhere: what a file asks for is refused beyond it */
} liteseg_options;

#define LITESEG_OPTIONS {sizeof(liteseg_options), 0, 0, 0}

typedef enum liteseg_order {
  LITESEG_RGB = 0,
  LITESEG_BGR = 1, /* as OpenCV has it */
  LITESEG_RGBA = 2,
  LITESEG_BGRA = 3
} liteseg_order;

/* A picture of 8 bits a value, its values pixel by pixel. */
typedef struct liteseg_image {
  const uint8_t* pixels; /* the first one of the top row */
  int height, width;
  ptrdiff_t row_bytes; /* from one row to the next; 0: rows without gaps. Below 0 where the top row lies last */
  liteseg_order order;
} liteseg_image;

/* The library's version, "0.1.0". */
LITESEG_API const char* liteseg_version(void);

/* The instruction set that networks run on: the best one of this processor, or what the environment variable
 * LITESEG_CPU_ISA says. NULL where that names none of this processor's. */
LITESEG_API const char* liteseg_instruction_set(void);

/* What the last call that failed on this thread said; "" before that. Valid until the next failure on this thread. */
LITESEG_API const char* liteseg_last_error(void);

/* Opens a network file: checks all of it, and packs its weights for this processor. options may be NULL.
 * *network is set to NULL where this fails. */
LITESEG_API liteseg_status liteseg_open(const char* path, const liteseg_options* options, liteseg_network** network);

/* The same from memory, which is not needed any more afterwards. */
LITESEG_API liteseg_status liteseg_open_memory(const void* data, size_t size, const liteseg_options* options,
                                               liteseg_network** network);

/* NULL is allowed. */
LITESEG_API void liteseg_close(liteseg_network* network);

/* -- what a network is */

LITESEG_API int liteseg_classes(const liteseg_network* network);

/* UTF-8, or NULL where the file names no classes or there is no such one. Valid until liteseg_close. */
LITESEG_API const char* liteseg_class_name(const liteseg_network* network, int index);

/* Pictures are resized by this factor before the network sees them; part of how it was trained. */
LITESEG_API double liteseg_input_scale(const liteseg_network* network);

/* Pictures whose height or width is below this after resizing are refused. */
LITESEG_API int liteseg_smallest_side(const liteseg_network* network);

/* JSON: the network's configuration and how it came to be. Valid until liteseg_close. */
LITESEG_API const char* liteseg_description(const liteseg_network* network);

LITESEG_API int liteseg_threads(const liteseg_network* network);

/* -- running it */

/* The class of every pixel of a picture: labels [height][width], at most 256 classes. height and width are those of the
 * labels, which may be another size than the picture's; both 0: the picture's own. */
LITESEG_API liteseg_status liteseg_labels(const liteseg_network* network, const liteseg_image* image, uint8_t* labels,
                                          int height, int width);

/* How much speaks for each class: logits [classes][height][width]. Labels are their arg max, and take far less time. */
LITESEG_API liteseg_status liteseg_logits(const liteseg_network* network, const liteseg_image* image, float* logits,
                                          int height, int width);

#ifdef __cplusplus
}
#endif

#endif
