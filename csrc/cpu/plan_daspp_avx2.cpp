#include "plan_daspp_impl.h"
