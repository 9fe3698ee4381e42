"""A Lightning module, a narrow MLP on scikit-learn's digits, grown by a policy in a callback.

    pip install 'esper-ray[lightning]'
    python examples/lightning_module.py                       # the policy that ships with the package
    python examples/lightning_module.py --policy heuristic    # or one that needs no training

The callback prints what the policy decides after every epoch and what has grown in the end, and logs ``grow/...`` to
the trainer's loggers; ``lightning_module.png`` shows the run.
"""

import argparse

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from esper_ray.live.lightning import GrowCallback


class Classifier(LightningModule):
    """Nothing in it knows that it grows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(64, 6), nn.ReLU())  # so narrow that growth pays
        self.deeper = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(6, 10)
        self.example_input_array = torch.zeros(2, 64)  # a batch of at least two inputs, to find the slots with

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of pixels ``[B, 64]``."""
        return self.head(self.deeper(self.hidden(x)))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """The loss."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Logs the loss."""
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch: list[Tensor], index: int) -> None:
        """Logs the accuracy."""
        self.log("test_accuracy", 100 * (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Seeds join it as they are born."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def score(module: Classifier, batch: list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """What the policy decides on: sum of the losses, hits and number of samples of a validation batch."""
    logits = module(batch[0])
    return F.cross_entropy(logits, batch[1], reduction="sum"), (logits.argmax(1) == batch[1]).sum(), len(batch[1])


def main() -> None:
    """Fit, with growth, and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=1797, help="how many of the 1,797 to use")
    parser.add_argument("--policy", help="an export, the file of a schedule, or a name; the shipped policy by default")
    parser.add_argument("--picture", default="lightning_module.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seed_everything(0)

    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    dataset = TensorDataset(x[: args.images], y[: args.images])
    train, validation, test = random_split(dataset, [0.7, 0.15, 0.15])

    growth = GrowCallback(slots=["hidden", "deeper"], score=score, policy=args.policy, chance=10.0)
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[growth],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Classifier()
    trainer.fit(module, DataLoader(train, 32, shuffle=True), DataLoader(validation, 256))
    trainer.test(module, DataLoader(test, 256))
    if growth.report is not None:
        growth.report.picture().savefig(args.picture)
        print(f"{args.picture} shows the run")


if __name__ == "__main__":
    main()
