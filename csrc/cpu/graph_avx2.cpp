#include "graph_impl.h"
