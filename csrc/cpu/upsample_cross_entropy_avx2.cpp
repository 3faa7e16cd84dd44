#include "upsample_cross_entropy_impl.h"
