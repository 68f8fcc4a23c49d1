"""A loop written by hand, as PyTorch's quick start has it: DataLoader, forward, backward, step."""
from torch import nn
from torch.utils.data import DataLoader

import mnist


def prepare(dataset, clock):
    model = mnist.make_model()
    optimizer = mnist.make_optimizer(model.parameters())
    loss_fn = nn.CrossEntropyLoss()
    loader = DataLoader(dataset, batch_size=mnist.BATCH_SIZE, shuffle=True)

    def train_epoch():
        clock.start()
        model.train()
        loss_sum, correct = 0.0, 0
        for inputs, targets in loader:
            outputs = model(inputs)
            loss = loss_fn(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss_sum += loss.item() * len(targets)
            correct += (outputs.argmax(1) == targets).sum().item()
        clock.stop()
        return loss_sum / len(dataset), correct / len(dataset)

    return train_epoch


mnist.measure(prepare)
