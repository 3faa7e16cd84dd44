#include "separable_conv2d_backward_impl.h"
