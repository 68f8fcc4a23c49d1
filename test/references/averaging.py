#!/usr/bin/env python3
"""Reference values for averages of weights, smoothed labels and mixed targets, from torch and timm.

Prints JSON; usage: averaging.py > averaging.json
"""
import json
import platform

import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel, update_bn

torch.manual_seed(7)


def plain(tensor):
    return tensor.detach().double().tolist()


def ema(weights, decay, warmup, start_step):
    """ModelEmaV3 of timm: weights[0] are those before the first update, and steps count from 1."""
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight.data = weights[0].reshape(1, 3).clone()
    average = ModelEmaV3(model, decay=decay, use_warmup=warmup == "power", update_after_step=start_step)
    course = []
    for step in range(1, len(weights)):
        model.weight.data = weights[step].reshape(1, 3).clone()
        average.update(model, step=step)
        course.append(plain(average.module.weight.reshape(3)))
    return course


def swa(weights):
    model = torch.nn.Linear(3, 1, bias=False)
    averaged, course = None, []
    for weight in weights:
        model.weight.data = weight.reshape(1, 3).clone()
        averaged = averaged or AveragedModel(model)
        averaged.update_parameters(model)
        course.append(plain(averaged.module.weight.reshape(3)))
    return course


def batch_statistics(momentum):
    torch.manual_seed(11)
    linear, norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2, momentum=momentum)
    batches = [torch.randn(4, 3) * (i + 1) + i for i in range(3)]
    model = torch.nn.Sequential(linear, norm)
    update_bn(batches, model)
    return {"momentum": momentum, "weight": plain(linear.weight), "bias": plain(linear.bias), "batches": [plain(batch) for batch in batches],
            "running_mean": plain(norm.running_mean), "running_var": plain(norm.running_var)}


def mixed(logits, targets, permutation, share, smoothing):
    """timm's soft targets and loss. Its mixup pairs each sample with the one at the other end of the batch."""
    assert torch.equal(permutation, torch.arange(len(targets)).flip(0))
    soft = mixup_target(targets, logits.shape[1], share, smoothing)
    return SoftTargetCrossEntropy()(logits, soft).item()


weights = [torch.randn(3) for _ in range(8)]
logits, targets, permutation = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.arange(6).flip(0)
print(json.dumps({
    "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
    "weights": [plain(weight) for weight in weights],
    "ema": [{"decay": d, "warmup": w, "start_step": s, "averages": ema(weights, d, w, s)}
            for d, w, s in [(0.9, "none", 0), (0.9, "power", 0), (0.5, "power", 2), (0.99, "none", 3)]],
    "swa": swa(weights),
    "batch_statistics": [batch_statistics(momentum) for momentum in (0.1, 0.3)],
    "logits": plain(logits), "targets": targets.tolist(), "permutation": permutation.tolist(),
    "label_smoothing": [{"smoothing": s, "loss": F.cross_entropy(logits, targets, label_smoothing=s).item()} for s in (0.0, 0.1, 0.4)],
    "mixed": [{"share": r, "smoothing": s, "loss": mixed(logits, targets, permutation, r, s)} for r, s in [(0.3, 0.0), (0.8, 0.1), (1.0, 0.1)]],
}, indent=1))
