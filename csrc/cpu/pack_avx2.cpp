#include "pack_impl.h"
