"""A decoder of torch's own transformer layers on the Python documentation that ships with CPython, grown by a policy.

    python examples/text_transformer.py                       # the policy that ships with the package
    python examples/text_transformer.py --policy heuristic    # or one that needs no training

It prints what the policy decides after every epoch, and what has grown in the end; ``text_transformer.png`` shows the
run. An epoch is whatever lies between two calls of ``end_epoch``: here 40 batches of random windows. In so short a run
the shipped policy leaves the decoder as it is; the heuristic tries a seed, and prunes it.
"""

import argparse
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper_ray.live import grow

CONTEXT = 32


class Decoder(nn.Module):
    """Predicts the next character from the last ``CONTEXT`` ones."""

    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, codes: Tensor) -> Tensor:
        """Logits ``[B, CONTEXT, vocabulary]`` of codes ``[B, CONTEXT]``."""
        h = self.characters(codes) + self.positions
        for layer in self.layers:
            h = layer(h, src_mask=self.mask, is_causal=True)
        return self.head(h)


def main() -> None:
    """Train, grow, commit, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--characters", type=int, default=400_000, help="how much of the text to use")
    parser.add_argument("--batches", type=int, default=40, help="of one epoch")
    parser.add_argument("--policy", help="an export, the file of a schedule, or a name; the shipped policy by default")
    parser.add_argument("--picture", default="text_transformer.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    text = "\n".join(topics[name] for name in sorted(topics))[: args.characters]
    alphabet = sorted(set(text))
    codes = torch.tensor([alphabet.index(character) for character in text])
    train, validation, test = codes.split([len(codes) - 2 * (len(codes) // 10), len(codes) // 10, len(codes) // 10])

    def windows(part: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and the characters that come after them, both ``[B, CONTEXT]``."""
        rows = part[starts[:, None] + torch.arange(CONTEXT + 1)]
        return rows[:, :-1], rows[:, 1:]

    model = Decoder(len(alphabet))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def result(part: Tensor) -> tuple[float, float]:
        x, y = windows(part, torch.linspace(0, len(part) - CONTEXT - 1, 128).long())
        logits = model(x)
        return F.cross_entropy(logits.mT, y).item(), 100 * (logits.argmax(-1) == y).float().mean().item()

    grower = grow(
        model,
        optimizer,
        slots=["layers.*"],
        example=codes[: 2 * CONTEXT].view(2, CONTEXT),
        evaluate=lambda: result(validation),
        max_epochs=args.epochs,
        policy=args.policy,
    )
    print(grower.decision)
    for _ in range(args.epochs):
        for _ in range(args.batches):
            x, y = windows(train, torch.randint(len(train) - CONTEXT, (32,)))
            loss = F.cross_entropy(model(x).mT, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(grower.end_epoch())

    report = grower.commit()  # the model goes on as an ordinary module
    print(report)
    report.picture().savefig(args.picture)
    with torch.no_grad():
        print(f"test accuracy {result(test)[1]:.1f} % of the next characters; {args.picture} shows the run")


if __name__ == "__main__":
    main()
