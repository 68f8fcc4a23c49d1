"""Lightning, as its quick start has it, with everything optional off but the progress bar that it prints by default."""
import lightning
from torch.nn import functional
from torch.utils.data import DataLoader

import mnist


class Classifier(lightning.LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.model = mnist.make_model()
        self.on_train_epoch_start, self.on_train_epoch_end = clock.start, clock.stop

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        outputs = self.model(inputs)
        loss = functional.cross_entropy(outputs, targets)
        accuracy = (outputs.argmax(1) == targets).float().mean()
        self.log_dict({"loss": loss, "accuracy": accuracy}, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return mnist.make_optimizer(self.parameters())


def prepare(dataset, clock):
    classifier = Classifier(clock)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_model_summary=False, num_sanity_val_steps=0)
    loader = DataLoader(dataset, batch_size=mnist.BATCH_SIZE, shuffle=True)

    def train_epoch():
        trainer.fit(classifier, loader)
        return trainer.callback_metrics["loss"], trainer.callback_metrics["accuracy"]

    return train_epoch


mnist.measure(prepare)
