"""What the peers share: MNIST in memory, the model, its optimizer, and how an epoch is measured."""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

BATCH_SIZE = 32
MEAN, STD = 0.1307, 0.3081
WARM_UP_SAMPLES = 64 * BATCH_SIZE
IDX_HEADER_BYTES = {"images": 16, "labels": 8}


def folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCHBUS_DATA") or cache / "torchbus") / "mnist"


def read_idx(part: str, kind: str, item_bytes: int) -> torch.Tensor:
    path = folder() / f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
    if not path.is_file():
        sys.exit(f"{path.name}: not found in TORCHBUS_DATA/mnist; run torchbus data fetch mnist")
    header, content = IDX_HEADER_BYTES[kind], bytearray(path.read_bytes())
    expected = header + item_bytes * int.from_bytes(content[4:8], "big")
    if len(content) != expected:
        sys.exit(f"{path.name}: {len(content)} bytes, expected {expected}; run torchbus data fetch mnist")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header)


def load(part: str = "train") -> TensorDataset:
    """Images as floats [n, 784], normalised, and labels as int64 [n]; `part` is train or t10k."""
    images = read_idx(part, "images", 784).view(-1, 784).float().div_(255).sub_(MEAN).div_(STD)
    return TensorDataset(images, read_idx(part, "labels", 1).long())


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def make_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Clock:
    """Times an epoch: a peer starts and stops it where its library says that an epoch begins and ends."""

    def start(self, *_):
        self.seconds = None
        self.begin = time.perf_counter()

    def stop(self, *_):
        self.seconds = time.perf_counter() - self.begin


def measure(prepare) -> None:
    """Prints {"seconds", "loss", "accuracy"} of one epoch, as the last line.

    `prepare(dataset, clock)` builds model, optimizer and trainer, and returns a function that trains for one epoch
    and returns mean loss and accuracy. A short run on other objects goes before the one that counts, so that what a
    library imports or sets up at its first use is not held against it.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="train on the first LIMIT samples only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs, targets = load().tensors
    prepare(TensorDataset(inputs[:WARM_UP_SAMPLES], targets[:WARM_UP_SAMPLES]), Clock())()

    clock = Clock()
    train_epoch = prepare(TensorDataset(inputs[: options.limit], targets[: options.limit]), clock)
    loss, accuracy = train_epoch()
    if torch.get_num_threads() != options.threads:
        sys.exit(f"trained with {torch.get_num_threads()} threads, expected {options.threads}")
    print("\n" + json.dumps({"seconds": clock.seconds, "loss": float(loss), "accuracy": float(accuracy)}), flush=True)
