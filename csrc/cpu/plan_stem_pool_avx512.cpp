#include "plan_stem_pool_impl.h"
