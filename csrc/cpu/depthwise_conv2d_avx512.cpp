#include "depthwise_conv2d_impl.h"
