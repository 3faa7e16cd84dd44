#include "plan_pointwise_impl.h"
