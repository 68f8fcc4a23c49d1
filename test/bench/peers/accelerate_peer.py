"""Hugging Face accelerate, as its quick tour has it: the loop by hand, around what `prepare` returns."""
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import mnist


def prepare(dataset, clock):
    accelerator = Accelerator(cpu=True)
    model = mnist.make_model()
    optimizer = mnist.make_optimizer(model.parameters())
    loss_fn = nn.CrossEntropyLoss()
    loader = DataLoader(dataset, batch_size=mnist.BATCH_SIZE, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def train_epoch():
        clock.start()
        model.train()
        loss_sum, correct = 0.0, 0
        for inputs, targets in loader:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_fn(outputs, targets)
            accelerator.backward(loss)
            optimizer.step()
            loss_sum += loss.item() * len(targets)
            correct += (outputs.argmax(1) == targets).sum().item()
        clock.stop()
        return loss_sum / len(dataset), correct / len(dataset)

    return train_epoch


mnist.measure(prepare)
