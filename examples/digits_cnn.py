"""A plain CNN on scikit-learn's digits, in a plain loop, grown by a policy.

    python examples/digits_cnn.py                       # the policy that ships with the package
    python examples/digits_cnn.py --policy heuristic    # or one that needs no training

It prints what the policy decides after every epoch, and what has grown in the end; ``digits_cnn.png`` shows the run.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from esper_ray.live import grow


def main() -> None:
    """Train, grow, commit, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--images", type=int, default=1797, help="how many of the 1,797 to use")
    parser.add_argument("--policy", help="an export, the file of a schedule, or a name; the shipped policy by default")
    parser.add_argument("--picture", default="digits_cnn.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    # Images [B, C, H, W] from 0 to 1: 70 % to train on, 15 % for the policy to decide on, 15 % that nobody sees.
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[: args.images] / 16
    y = torch.tensor(digits.target)[: args.images]
    parts = torch.randperm(len(y)).split([len(y) - 2 * (len(y) * 15 // 100), *[len(y) * 15 // 100] * 2])
    train, validation, test = ((x[part], y[part]) for part in parts)

    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),  # "1": a seed can grow on what comes out here
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),  # "4": and here
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def result(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        logits = model(images)
        return F.cross_entropy(logits, labels).item(), 100 * (logits.argmax(1) == labels).float().mean().item()

    grower = grow(
        model,
        optimizer,
        slots=["1", "4"],
        example=x[:2],
        evaluate=lambda: result(*validation),
        max_epochs=args.epochs,
        chance=10.0,
        policy=args.policy,
    )
    print(grower.decision)
    for _ in range(args.epochs):
        for batch in torch.randperm(len(train[0])).split(32):
            loss = F.cross_entropy(model(train[0][batch]), train[1][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(grower.end_epoch())

    report = grower.commit()  # the model goes on as an ordinary module
    print(report)
    report.picture().savefig(args.picture)
    with torch.no_grad():
        print(f"test accuracy {result(*test)[1]:.1f} %; {args.picture} shows the run")


if __name__ == "__main__":
    main()
