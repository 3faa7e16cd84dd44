#include "daspp_impl.h"
