#include "plan_convolution_impl.h"
