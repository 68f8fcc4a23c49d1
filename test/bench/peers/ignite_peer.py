"""pytorch-ignite, as its quick start has it: a supervised trainer, and metrics attached to it.

It prints no progress bar unless one is attached. Metrics are computed while training, in one pass over the data.
"""
from ignite.engine import Events, create_supervised_trainer
from ignite.metrics import Accuracy, Average
from torch import nn
from torch.utils.data import DataLoader

import mnist


def prepare(dataset, clock):
    model = mnist.make_model()
    trainer = create_supervised_trainer(
        model, mnist.make_optimizer(model.parameters()), nn.CrossEntropyLoss(),
        output_transform=lambda x, y, y_pred, loss: (y_pred, y, loss.item()))
    Accuracy(output_transform=lambda output: output[:2]).attach(trainer, "accuracy")
    Average(output_transform=lambda output: output[2]).attach(trainer, "loss")
    trainer.add_event_handler(Events.EPOCH_STARTED, clock.start)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, clock.stop)  # after the metrics, which came first
    loader = DataLoader(dataset, batch_size=mnist.BATCH_SIZE, shuffle=True)

    def train_epoch():
        metrics = trainer.run(loader, max_epochs=1).metrics
        return metrics["loss"], metrics["accuracy"]

    return train_epoch


mnist.measure(prepare)
