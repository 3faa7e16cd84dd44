#include "upsample_argmax_impl.h"
