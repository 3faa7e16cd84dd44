#include "plan_winograd_impl.h"
