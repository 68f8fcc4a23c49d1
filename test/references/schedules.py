#!/usr/bin/env python3
"""Rates of whole runs as torch, pytorch-accelerated and timm set them, for schedules_test.cpp.

usage: schedules.py > schedules.json      (pip install torch pytorch-accelerated timm)
Each case holds the schedule in torchbus' words and the rate of every update, the first one being that before any step.
"""
import importlib
import json
import sys
import types
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from pytorch_accelerated.schedulers import CosineLrScheduler, WSDLrScheduler
from torch.optim import lr_scheduler

warnings.simplefilter("ignore")


def timm_cosine():
    """timm's scheduler alone: the package as a whole would want torchvision."""
    package = types.ModuleType("timm")
    package.__path__ = [str(Path(find_spec("timm").origin).parent)]
    sys.modules["timm"] = package
    return importlib.import_module("timm.scheduler.cosine_lr").CosineLRScheduler


def optimizer(base, momentum=0.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base, momentum=momentum)


def rate(of):
    return float(of.param_groups[0]["lr"])


def stepped(base, make, steps, per_epoch=1, field="lr", momentum=0.0):
    """The rate of each update; the scheduler steps once every `per_epoch` updates."""
    of = optimizer(base, momentum)
    scheduler, values = make(of), []
    for step in range(steps):
        values.append(float(of.param_groups[0][field]))
        of.step()
        if (step + 1) % per_epoch == 0 and step + 1 < steps:
            scheduler.step()
    return values


def updated(base, make, steps, first=0):
    """Of a scheduler that is told the number of updates made."""
    of = optimizer(base)
    scheduler, values = make(of), []
    for step in range(first, first + steps):
        (scheduler.step_update if hasattr(scheduler, "step_update") else scheduler.step)(step)
        values.append(rate(of))
    return values


cases = []


def case(name, schedule, base, values, epochs=1, run_steps=None):
    cases.append({"name": name, "schedule": schedule, "base": base, "epochs": epochs, "steps": run_steps or len(values), "values": values})


def torch_cases():
    steps = 60
    for annealing in ("cos", "linear"):
        for three in (False, True):
            schedule = {"kind": "one_cycle", "annealing": "cosine" if annealing == "cos" else "linear", "three_phase": three, "rise": 0.25,
                        "initial_factor": 1 / 20, "final_factor": 1 / 20 / 500}

            def make(of, annealing=annealing, three=three):
                return lr_scheduler.OneCycleLR(of, max_lr=0.3, total_steps=steps, pct_start=0.25, anneal_strategy=annealing, three_phase=three,
                                               div_factor=20, final_div_factor=500)
            case(f"torch OneCycleLR {annealing}{' three_phase' if three else ''}", schedule, 0.3, stepped(0.3, make, steps, momentum=0.9))
            momentum = schedule | {"initial_factor": 1, "peak_factor": 0.85 / 0.95, "final_factor": 1}
            case(f"torch OneCycleLR momentum {annealing}{' three_phase' if three else ''}", momentum, 0.95,
                 stepped(0.3, make, steps, field="momentum", momentum=0.9))
    case("torch OneCycleLR defaults", {"kind": "one_cycle"}, 0.1,
         stepped(0.1, lambda of: lr_scheduler.OneCycleLR(of, max_lr=0.1, total_steps=37), 37, momentum=0.9))
    case("torch CosineAnnealingLR", {"kind": "cosine", "minimum": 0.01}, 0.5,
         stepped(0.5, lambda of: lr_scheduler.CosineAnnealingLR(of, T_max=50, eta_min=0.005), 50))
    case("torch CosineAnnealingWarmRestarts", {"kind": "cosine", "cycles": 3, "cycle_factor": 2}, 0.5,
         stepped(0.5, lambda of: lr_scheduler.CosineAnnealingWarmRestarts(of, T_0=10, T_mult=2), 70))
    case("torch MultiStepLR by epochs", {"kind": "multi_step", "milestones": ["3epoch", "8epoch"], "factor": 0.1}, 0.2,
         stepped(0.2, lambda of: lr_scheduler.MultiStepLR(of, [3, 8], gamma=0.1), 70, per_epoch=7), epochs=10)
    case("torch MultiStepLR by shares", {"kind": "multi_step", "milestones": ["0.3run", "0.8run"], "factor": 0.5}, 0.2,
         stepped(0.2, lambda of: lr_scheduler.MultiStepLR(of, [15, 40], gamma=0.5), 50))
    case("torch StepLR by epochs", {"kind": "step", "every": "2epoch", "factor": 0.3}, 0.2,
         stepped(0.2, lambda of: lr_scheduler.StepLR(of, 2, gamma=0.3), 66, per_epoch=11), epochs=6)
    case("torch ExponentialLR", {"kind": "exponential", "every": 1, "factor": 0.97}, 0.1,
         stepped(0.1, lambda of: lr_scheduler.ExponentialLR(of, gamma=0.97), 80))
    case("torch PolynomialLR", {"kind": "polynomial", "power": 0.9, "length": "0.8run"}, 0.1,
         stepped(0.1, lambda of: lr_scheduler.PolynomialLR(of, total_iters=40, power=0.9), 50))
    case("torch LinearLR", {"kind": "linear", "final_factor": 0.2, "length": 30}, 0.1,
         stepped(0.1, lambda of: lr_scheduler.LinearLR(of, start_factor=1.0, end_factor=0.2, total_iters=30), 50))
    case("torch SequentialLR", {"kind": "sequence", "parts": [
        {"length": 10, "schedule": {"kind": "linear", "warmup": "1run", "warmup_start": 0.1}},
        {"length": "0.5run", "schedule": {"kind": "cosine", "minimum": 0.2}},
        {"schedule": {"kind": "exponential", "every": 1, "factor": 0.9}}]}, 0.1,
        stepped(0.1, lambda of: lr_scheduler.SequentialLR(of, [
            lr_scheduler.LinearLR(of, start_factor=0.1, total_iters=10), lr_scheduler.CosineAnnealingLR(of, T_max=30, eta_min=0.02),
            lr_scheduler.ExponentialLR(of, gamma=0.9)], milestones=[10, 40]), 60))


def cosine_cases():
    def accelerated(of, **options):
        return CosineLrScheduler(of, total_num_epochs=10, num_update_steps_per_epoch=8, **options)

    case("pytorch-accelerated cosine", {"kind": "cosine", "minimum": 1e-6 / 0.4}, 0.4, updated(0.4, accelerated, 80), epochs=10)
    case("pytorch-accelerated cosine with cooldown and k-decay",
         {"kind": "cosine", "minimum": 0.05, "cooldown": "2epoch", "k_decay": 1.5}, 0.4,
         updated(0.4, lambda of: accelerated(of, num_cooldown_epochs=2, k_decay=1.5, min_lr_ratio=0.05), 80), epochs=10)
    # Theirs goes to the minimum as many updates early as the warm-up is long: a cosine that is cut off there.
    case("pytorch-accelerated cosine with warm-up, which it cuts off",
         {"kind": "sequence", "parts": [
             {"length": 56, "schedule": {"kind": "cosine", "length": 72, "warmup": 16, "warmup_start": 1e-6 / 0.4, "cooldown": 0, "minimum": 0.05}},
             {"schedule": {"kind": "constant", "factor": 0.05}}]}, 0.4,
         updated(0.4, lambda of: accelerated(of, num_warmup_epochs=2, num_cooldown_epochs=1, min_lr_ratio=0.05), 80), epochs=10)
    timm = timm_cosine()
    case("timm cosine", {"kind": "cosine", "minimum": 0.02, "warmup": "0.1run", "warmup_start": 0.01, "k_decay": 0.7}, 0.5,
         updated(0.5, lambda of: timm(of, t_initial=90, lr_min=0.01, warmup_t=10, warmup_lr_init=0.005, warmup_prefix=True, k_decay=0.7, t_in_epochs=False), 100))
    case("timm cosine with cycles", {"kind": "cosine", "minimum": 0.02, "warmup": 5, "warmup_start": 0.01, "cycles": 3, "cycle_factor": 2,
                                     "cycle_decay": 0.5, "cooldown": 10}, 0.5,
         updated(0.5, lambda of: timm(of, t_initial=10, lr_min=0.01, warmup_t=5, warmup_lr_init=0.005, warmup_prefix=True, cycle_mul=2.0,
                                      cycle_decay=0.5, cycle_limit=3, t_in_epochs=False), 85))
    case("timm cosine with equal cycles", {"kind": "cosine", "cycles": 4, "cycle_decay": 0.8}, 0.5,
         updated(0.5, lambda of: timm(of, t_initial=15, cycle_decay=0.8, cycle_limit=4, t_in_epochs=False), 60))


def stable_cases():
    wsd = {"kind": "warmup_stable_decay", "warmup_start": 1e-6 / 0.3, "decay": "0.2run"}

    def make(of, steps=100, **options):
        return WSDLrScheduler(of, total_steps=steps, decay_phase_ratio=0.2, lr_min=0.05, **options)

    for sqrt in (True, False):
        shape = {"shape": "sqrt" if sqrt else "inverse_proportional", "minimum": 0.05}
        name = "pytorch-accelerated warm-up-stable-decay " + shape["shape"]
        case(name, wsd | shape | {"warmup": 10}, 0.3, updated(0.3, lambda of: make(of, num_warmup_steps=10, use_inverse_sqrt_decay=sqrt), 100))
        case(name + " with three decays", wsd | shape | {"warmup": 5, "earlier_decays": ["0.25run", "0.5run"]}, 0.3,
             updated(0.3, lambda of: make(of, num_warmup_steps=5, num_checkpoints=3, use_inverse_sqrt_decay=sqrt), 100))
        first = updated(0.3, lambda of: make(of, num_warmup_steps=10, use_inverse_sqrt_decay=sqrt), 100)
        second = updated(0.3, lambda of: make(of, steps=60, use_inverse_sqrt_decay=sqrt, is_continuation_from_checkpoint=True), 60)
        case(name + " continued", wsd | shape | {"warmup": 10, "continued_from": 100}, 0.3, second, run_steps=160)
        assert len(first) == 100


def plateau_cases():
    """Metric of each epoch, and the rate after it."""
    waves = [1.0, 0.9, 0.9, 0.95, 0.89, 0.8, 0.81, 0.82, 0.83, 0.79, 0.7999, 0.7999, 0.8, 0.8, 0.8, 0.8, 0.78, 0.9, float("nan"), 0.9, 0.9, 0.9, 0.9, 0.9]
    found = []
    for options in ({"patience": 1}, {"patience": 2, "cooldown": 2, "factor": 0.5}, {"mode": "max", "patience": 1, "factor": 0.2},
                    {"patience": 1, "threshold": 0.05, "threshold_mode": "abs", "factor": 0.5}, {"patience": 0, "factor": 0.5, "min_lr": 0.02},
                    {"mode": "max", "threshold_mode": "abs", "threshold": 0.02, "patience": 2}):
        of = optimizer(0.4)
        scheduler, rates = lr_scheduler.ReduceLROnPlateau(of, **options), []
        for metric in waves:
            scheduler.step(metric)
            rates.append(rate(of))
        found.append({"options": options, "base": 0.4, "rates": rates})
    return {"metrics": [None if m != m else m for m in waves], "cases": found}


torch_cases()
cosine_cases()
stable_cases()
versions = {package: version(package) for package in ("torch", "pytorch-accelerated", "timm")}
cases_text = ",\n".join("  " + json.dumps(each) for each in cases)
print(f'{{"versions": {json.dumps(versions)},\n "plateau": {json.dumps(plateau_cases())},\n "cases": [\n{cases_text}\n]}}')
