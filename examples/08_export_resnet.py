#!/usr/bin/env python3
"""Exports torchvision's ResNet-18 with a new head for 08_transfer_learning.cpp.

Needs: pip install torch torchvision (tried with torch 2.15.0, torchvision 0.29.2).
Run:   python3 examples/08_export_resnet.py --pretrained resnet18.pt   (gets weights from PyTorch's hub, once)
       build/release/examples/08_transfer_learning resnet18.pt
examples/models/resnet18.pt was made with --skeleton.
"""
import argparse

import torch
import torchvision

from skeleton import save

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("path", help="file to write")
parser.add_argument("--classes", type=int, default=4)
weights = parser.add_mutually_exclusive_group()
weights.add_argument("--pretrained", action="store_true", help="weights trained on ImageNet; random otherwise")
weights.add_argument("--skeleton", action="store_true", help="no weights, compressed")
options = parser.parse_args()

torch.manual_seed(0)
model = torchvision.models.resnet18(weights="IMAGENET1K_V1" if options.pretrained else None)
model.fc = torch.nn.Linear(model.fc.in_features, options.classes)
save(model, options.path, options.skeleton)
