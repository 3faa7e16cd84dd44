#include "inverted_residual_impl.h"
