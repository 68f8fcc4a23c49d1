#pragma once
/// Everything a program that trains needs. Include torch/torch.h before or after it for the model itself.

#include <torchbus/callbacks/device_placement.hpp>
#include <torchbus/callbacks/gradient_accumulation.hpp>
#include <torchbus/callbacks/gradient_clipping.hpp>
#include <torchbus/callbacks/learning_rate_schedule.hpp>
#include <torchbus/callbacks/limit_batches.hpp>
#include <torchbus/callbacks/metrics.hpp>
#include <torchbus/callbacks/mixed_precision.hpp>
#include <torchbus/callbacks/progress_bar.hpp>
#include <torchbus/callbacks/progress_lines.hpp>
#include <torchbus/callbacks/registry.hpp>
#include <torchbus/callbacks/terminate_on_nan.hpp>
#include <torchbus/checkpoint/safetensors.hpp>
#include <torchbus/composition.hpp>
#include <torchbus/data/fetch.hpp>
#include <torchbus/data/loader.hpp>
#include <torchbus/data/mnist.hpp>
#include <torchbus/error.hpp>
#include <torchbus/models/registry.hpp>
#include <torchbus/optim/optimizers.hpp>
#include <torchbus/optim/schedule.hpp>
#include <torchbus/trainer.hpp>
