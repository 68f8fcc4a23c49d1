// torch.h takes 10 to 17 s a file; precompiled, 3.7 s.
#include <torch/torch.h>
