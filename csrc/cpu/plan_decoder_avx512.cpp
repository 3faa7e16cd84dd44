#include "plan_decoder_impl.h"
