#include "batch_norm_activation_impl.h"
