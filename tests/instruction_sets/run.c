/* Labels and logits of a picture that is given as raw bytes: run NETWORK THREADS HEIGHT WIDTH < RGB > LABELS+LOGITS */
#include <stdio.h>
#include <stdlib.h>

#include "liteseg.h"

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, liteseg_last_error());
  return 1;
}

int main(int count, char** given) {
  if (count != 5) {
    return 2;
  }
  liteseg_options options = LITESEG_OPTIONS;
  options.threads = atoi(given[2]);
  const int height = atoi(given[3]), width = atoi(given[4]);
  liteseg_network* network = NULL;
  if (liteseg_open(given[1], &options, &network) != LITESEG_OK) {
    return failed("open");
  }
  const size_t pixels = (size_t)height * (size_t)width, classes = (size_t)liteseg_classes(network);
  uint8_t* picture = malloc(3 * pixels);
  uint8_t* labels = malloc(pixels);
  float* logits = malloc(pixels * classes * sizeof(float));
  if (picture == NULL || labels == NULL || logits == NULL || fread(picture, 3, pixels, stdin) != pixels) {
    return 2;
  }
  const liteseg_image image = {picture, height, width, 0, LITESEG_RGB};
  if (liteseg_labels(network, &image, labels, 0, 0) != LITESEG_OK ||
      liteseg_logits(network, &image, logits, 0, 0) != LITESEG_OK) {
    return failed("run");
  }
  fprintf(stderr, "%s\n", liteseg_instruction_set());
  fwrite(labels, 1, pixels, stdout);
  fwrite(logits, sizeof(float), pixels * classes, stdout);
  liteseg_close(network);
  free(picture);
  free(labels);
  free(logits);
  return 0;
}
