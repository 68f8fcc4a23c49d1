// Compiled once for all tests.
#include <torch/torch.h>
