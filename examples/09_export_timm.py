#!/usr/bin/env python3
"""Exports a vision transformer of timm for 09_timm.cpp.

Needs: pip install torch torchvision timm (tried with torch 2.15.0, torchvision 0.29.2, timm 1.0.31).
Run:   python3 examples/09_export_timm.py --pretrained vit.pt   (gets weights from the Hugging Face hub, once)
       build/release/examples/09_timm vit.pt
examples/models/vit.pt was made with --skeleton.
Another model of timm will do if it compiles: give --model.
"""
import argparse

import timm
import torch

from skeleton import save

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("path", help="file to write")
parser.add_argument("--model", default="test_vit", help="test_vit has 0.26 million parameters; its kind is used by timm's own tests")
parser.add_argument("--classes", type=int, default=6)
weights = parser.add_mutually_exclusive_group()
weights.add_argument("--pretrained", action="store_true", help="weights trained on ImageNet; random otherwise")
weights.add_argument("--skeleton", action="store_true", help="no weights, compressed")
options = parser.parse_args()

torch.manual_seed(0)
size = {"img_size": 32, "patch_size": 8} if "vit" in options.model else {}  # convolutions take images of any size
model = timm.create_model(options.model, pretrained=options.pretrained, num_classes=options.classes, scriptable=True,
                          drop_path_rate=0.05, **size)
save(model, options.path, options.skeleton)
