#include "shuffle_unit_impl.h"
