#!/usr/bin/env python3
"""Reference values of gradient clipping, from torch and timm. usage: clipping.py > clipping.json

Needs torch and timm; prints their versions into the result. Norms go from far below the bound to far above it.
"""
import json

import timm
import torch
from timm.utils.agc import adaptive_clip_grad

RATIO, EPSILON = 0.1, 1e-3


def parameters(seed, scale):
    """A matrix, a convolution's weight, a bias; the matrix' last row is zero, so that its norm is."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in ((4, 3), (2, 3, 2, 2), (4,)):
        parameter = torch.nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator) * scale
        made.append(parameter)
    made[0].data[3] = 0
    return made


def values(tensors):
    return [{"shape": list(tensor.shape), "values": tensor.flatten().tolist()} for tensor in tensors]


def cases():
    for seed, scale in ((1, 0.01), (2, 1.0), (3, 100.0)):
        before = parameters(seed, scale)
        case = {"weights": values([p.data for p in before]), "gradients": values([p.grad for p in before]), "norms": [], "value": [], "adaptive": []}
        for p in (2.0, 1.0, 3.0, float("inf")):
            clipped = parameters(seed, scale)
            norm = torch.nn.utils.clip_grad_norm_(clipped, 0.5, p)
            case["norms"].append({"p": "inf" if p == float("inf") else p, "norm": norm.item(), "clipped": values([c.grad for c in clipped])})
        clipped = parameters(seed, scale)
        torch.nn.utils.clip_grad_value_(clipped, 0.25)
        case["value"] = values([c.grad for c in clipped])
        clipped = parameters(seed, scale)
        adaptive_clip_grad(clipped, RATIO, EPSILON)
        case["adaptive"] = values([c.grad for c in clipped])
        yield case


print(json.dumps({"versions": {"torch": torch.__version__, "timm": timm.__version__}, "max_norm": 0.5, "max_value": 0.25,
                  "ratio": RATIO, "epsilon": EPSILON, "cases": list(cases())}))
