#pragma once
// In the place of LibTorch's header of that name, which includes Python's and of which c10d's FakeProcessGroup.hpp needs nothing.
