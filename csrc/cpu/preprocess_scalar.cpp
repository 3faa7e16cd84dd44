#include "preprocess_impl.h"
