#include "plan_stem_impl.h"
