/* Labels of a picture from a network file: segment NETWORK PICTURE.ppm LABELS.pgm
 *
 * Reads and writes the formats that need no library (binary PPM and PGM); a robot has its pictures in memory already.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "liteseg.h"

/* the next number of a PPM header, behind spaces and comments, or -1 */
static int header_number(FILE* file) {
  int c = fgetc(file);
  while (c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == '#') {
    if (c == '#') {
      while (c != '\n' && c != EOF) {
        c = fgetc(file);
      }
    }
    c = fgetc(file);
  }
  int value = 0;
  int digits = 0;
  for (; c >= '0' && c <= '9' && digits < 6; c = fgetc(file)) {
    value = 10 * value + (c - '0');
    ++digits;
  }
  return digits > 0 ? value : -1;
}

static uint8_t* read_ppm(const char* path, int* height, int* width) {
  FILE* file = fopen(path, "rb");
  if (file == NULL) {
    fprintf(stderr, "segment: %s: %s\n", path, strerror(errno));
    return NULL;
  }
  uint8_t* pixels = NULL;
  if (fgetc(file) == 'P' && fgetc(file) == '6') {
    *width = header_number(file);
    *height = header_number(file);
    if (*width > 0 && *height > 0 && header_number(file) == 255) {
      const size_t bytes = (size_t)*width * (size_t)*height * 3;
      pixels = malloc(bytes);
      if (pixels != NULL && fread(pixels, 1, bytes, file) != bytes) {
        free(pixels);
        pixels = NULL;
      }
    }
  }
  fclose(file);
  if (pixels == NULL) {
    fprintf(stderr, "segment: %s: expected a binary PPM picture (P6) of 8 bits\n", path);
  }
  return pixels;
}

static int write_pgm(const char* path, const uint8_t* labels, int height, int width) {
  FILE* file = fopen(path, "wb");
  if (file == NULL) {
    fprintf(stderr, "segment: %s: %s\n", path, strerror(errno));
    return 0;
  }
  const size_t bytes = (size_t)width * (size_t)height;
  fprintf(file, "P5\n%d %d\n255\n", width, height);
  const int whole = fwrite(labels, 1, bytes, file) == bytes;
  if (fclose(file) != 0 || !whole) {
    fprintf(stderr, "segment: %s: could not be written\n", path);
    return 0;
  }
  return 1;
}

/* how much of the picture each class takes */
static void print_shares(const liteseg_network* network, const uint8_t* labels, size_t pixels) {
  size_t counts[256] = {0};
  for (size_t i = 0; i < pixels; ++i) {
    ++counts[labels[i]];
  }
  for (int k = 0; k < liteseg_classes(network); ++k) {
    const char* name = liteseg_class_name(network, k);
    if (counts[k] > 0) {
      printf("%5.1f %%  %s\n", 100.0 * (double)counts[k] / (double)pixels, name != NULL ? name : "(no name)");
    }
  }
}

int main(int count, char** arguments) {
  if (count != 4) {
    fprintf(stderr, "usage: segment NETWORK PICTURE.ppm LABELS.pgm\n");
    return 2;
  }
  int done = 0;
  uint8_t* labels = NULL;
  liteseg_network* network = NULL;
  liteseg_image image = {0};
  uint8_t* pixels = read_ppm(arguments[2], &image.height, &image.width);
  if (pixels == NULL) {
    return 1;
  }
  image.pixels = pixels;
  image.order = LITESEG_RGB;
  const size_t area = (size_t)image.height * (size_t)image.width;
  labels = malloc(area);
  if (labels == NULL) {
    fprintf(stderr, "segment: no memory for the labels\n");
  } else if (liteseg_open(arguments[1], NULL, &network) != LITESEG_OK ||
             liteseg_labels(network, &image, labels, 0, 0) != LITESEG_OK) {
    fprintf(stderr, "segment: %s\n", liteseg_last_error());
  } else {
    print_shares(network, labels, area);
    done = write_pgm(arguments[3], labels, image.height, image.width);
  }
  liteseg_close(network);
  free(labels);
  free(pixels);
  return done ? 0 : 1;
}
