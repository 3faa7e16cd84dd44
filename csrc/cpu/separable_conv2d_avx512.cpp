#include "separable_conv2d_impl.h"
