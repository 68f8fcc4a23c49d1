#!/usr/bin/env python3
"""Reference values for averages of weights, smoothed labels and mixed targets, computed with plain torch.

Prints JSON; usage: averaging.py > averaging.json
"""
import json
import platform

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

torch.manual_seed(7)


def plain(tensor):
    return tensor.detach().double().tolist()


def ema(weights, decay, warmup, start_step, gamma=1.0, power=2 / 3, min_decay=0.0):
    """ModelEmaV3 of timm: weights[0] are those before the first update, and steps count from 1."""
    average, course = weights[0].clone(), []
    for step in range(1, len(weights)):
        n = max(0, step - start_step - 1)
        if n <= 0:
            now = 0.0
        elif warmup == "power":
            now = max(min(1 - (1 + n / gamma) ** -power, decay), min_decay)
        else:
            now = decay
        average.lerp_(weights[step], weight=1.0 - now)
        course.append(plain(average))
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
    """The soft targets of timm's mixup_target, and its SoftTargetCrossEntropy."""
    classes = logits.shape[1]
    off, on = smoothing / classes, 1.0 - smoothing + smoothing / classes
    soft = lambda t: torch.full((len(t), classes), off).scatter_(1, t[:, None], on)
    target = soft(targets) * share + soft(targets[permutation]) * (1.0 - share)
    return torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean().item()


weights = [torch.randn(3) for _ in range(8)]
logits, targets, permutation = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.randperm(6)
print(json.dumps({
    "versions": {"python": platform.python_version(), "torch": torch.__version__},
    "weights": [plain(weight) for weight in weights],
    "ema": [{"decay": d, "warmup": w, "start_step": s, "averages": ema(weights, d, w, s)}
            for d, w, s in [(0.9, "none", 0), (0.9, "power", 0), (0.5, "power", 2), (0.99, "none", 3)]],
    "swa": swa(weights),
    "batch_statistics": [batch_statistics(momentum) for momentum in (0.1, 0.3)],
    "logits": plain(logits), "targets": targets.tolist(), "permutation": permutation.tolist(),
    "label_smoothing": [{"smoothing": s, "loss": F.cross_entropy(logits, targets, label_smoothing=s).item()} for s in (0.0, 0.1, 0.4)],
    "mixed": [{"share": r, "smoothing": s, "loss": mixed(logits, targets, permutation, r, s)} for r, s in [(0.3, 0.0), (0.8, 0.1), (1.0, 0.1)]],
}, indent=1))
