#include "upsample_concat_impl.h"
