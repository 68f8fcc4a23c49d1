#!/usr/bin/env python3
"""Files of Python's torch.save, good and bad, and what the good ones hold; needs torch.

usage: python_files.py FOLDER         writes them and expected.json
       python_files.py --check FILE   loads a file that torchbus wrote, with weights_only=True, and compares it with `types`
"""
import json
import os
import sys
from pathlib import Path

import torch


class Command:
    """Unpickled in Python, it makes a file called `executed`."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def types():
    values = torch.arange(12.0).view(3, 4)
    tensors = {"float": values, "half": values.half(), "bfloat16": values.bfloat16(), "double": values.double(), "long": values.long(), "int": values.int(),
               "short": values.short(), "char": values.char(), "byte": values.byte(), "bool": values > 3}
    return tensors | {"transposed": values.t(), "row": values[1], "every_second": values[:, ::2], "scalar": torch.tensor(2.5), "empty": torch.empty(0, 3),
                      "parameter": torch.nn.Parameter(values.clone())}


def described(tensors):
    return {name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "values": tensor.detach().double().flatten().tolist()}
            for name, tensor in tensors.items()}


def write(folder):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 4)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    torch.save(state, folder / "state_dict.pt")
    torch.save({"epoch": 3, "name": "a run", "best": 0.5, "done": False, "history": [1, 2.5, None], "state_dict": {"module." + name: tensor for name, tensor in state.items()}},
               folder / "nested.pt")
    torch.save({"model": state, "optimizer": optimizer.state_dict()}, folder / "two.pt")
    torch.save(types(), folder / "types.pt")
    torch.save(model, folder / "module.pt")
    torch.save({"weight": torch.ones(2), "command": Command()}, folder / "command.pt")
    torch.save(state, folder / "before_1_6.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 1)).save(folder / "script.pt")
    torch.save([torch.ones(2)], folder / "list.pt")
    expected = {"torch": torch.__version__, "state_dict": described(state), "types": described(types())}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def check(file):
    loaded, expected = torch.load(file, weights_only=True), types()
    assert type(loaded) is dict and list(loaded) == list(expected), list(loaded)
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor.detach()), name
    print(f"{file}: {len(loaded)} tensors, as they should be; torch {torch.__version__}")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1] == "--check" else write(Path(sys.argv[1]))
