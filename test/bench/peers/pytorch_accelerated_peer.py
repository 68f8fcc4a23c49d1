"""pytorch-accelerated, as its quick start has it: the default callbacks, and one of our own that counts accuracy.

The data is in memory, so it is loaded in this process. The default, a worker process for each core, takes several
times as long here.
"""
from pytorch_accelerated import Trainer
from pytorch_accelerated.callbacks import TrainerCallback
from pytorch_accelerated.trainer import DEFAULT_CALLBACKS
from torch import nn

import mnist


class AccuracyCallback(TrainerCallback):
    def on_train_epoch_start(self, trainer, **kwargs):
        self.correct, self.seen = 0, 0

    def on_train_step_end(self, trainer, batch, batch_output, **kwargs):
        self.correct += (batch_output["model_outputs"].argmax(1) == batch[1]).sum().item()
        self.seen += batch_output["batch_size"]

    def on_train_epoch_end(self, trainer, **kwargs):
        trainer.run_history.update_metric("train_accuracy", self.correct / self.seen)


class ClockCallback(TrainerCallback):
    def __init__(self, clock):
        self.clock = clock

    def on_train_epoch_start(self, trainer, **kwargs):
        self.clock.start()

    def on_train_epoch_end(self, trainer, **kwargs):
        self.clock.stop()


def prepare(dataset, clock):
    model = mnist.make_model()
    trainer = Trainer(model, loss_func=nn.CrossEntropyLoss(), optimizer=mnist.make_optimizer(model.parameters()),
                      callbacks=(AccuracyCallback, *DEFAULT_CALLBACKS, ClockCallback(clock)))

    def train_epoch():
        trainer.train(train_dataset=dataset, num_epochs=1, per_device_batch_size=mnist.BATCH_SIZE,
                      train_dataloader_kwargs={"num_workers": 0})
        history = trainer.run_history
        return history.get_latest_metric("train_loss_epoch"), history.get_latest_metric("train_accuracy")

    return train_epoch


mnist.measure(prepare)
