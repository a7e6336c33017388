"""A small classifier and its training, for the demonstration, the accuracy benchmark and the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_subspaces.net import CompressibleNet
from graftwork_subspaces.training import learning_rate, loss_step

if TYPE_CHECKING:
    from graftwork.classify import ImageSet

SPARSE_GRID = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
WIDTH_GRID = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
BITS_GRID = (3, 4, 5, 6, 7, 8)
GRIDS: dict[str, Sequence[float]] = {"sparse": SPARSE_GRID, "width": WIDTH_GRID, "quant": BITS_GRID}

Augment = Callable[[Tensor, torch.Generator], Tensor]


class DigitsNet(nn.Module):
    """Four convolutions of 16 and 32 channels with batch norm, a classifier on all positions.

    Args:
        in_chans: Channels of the images.
        num_classes: Classes.
        channels: Of the two halves.
        size: Side of the images, a multiple of 4.
    """

    def __init__(
        self, in_chans: int = 1, num_classes: int = 10, channels: tuple[int, int] = (16, 32), size: int = 8
    ) -> None:
        super().__init__()
        narrow, wide = channels
        layers: list[nn.Module] = []
        shape = ((in_chans, narrow, 1), (narrow, narrow, 2), (narrow, wide, 1), (wide, wide, 2))
        for inputs, outputs, stride in shape:
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(wide * (size // 4) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits."""
        return self.head(self.features(x).flatten(1))  # type: ignore[no-any-return]


def shift(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to one pixel."""
    padded = functional.pad(batch, (1, 1, 1, 1), value=float(batch.min()))
    height, width = batch.shape[-2:]
    top, left = (torch.randint(0, 3, (len(batch), 1, 1), generator=generator) for _ in range(2))
    rows, columns = top + torch.arange(height).view(1, -1, 1), left + torch.arange(width).view(1, 1, -1)
    index = torch.arange(len(batch)).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)


def fit(
    net: nn.Module,
    train: ImageSet,
    *,
    epochs: int,
    batch_size: int = 64,
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    augment: Augment | None = shift,
    seed: int = 0,
    penalty: Callable[[], Tensor] | None = None,
    progress: Callable[[Iterable[int], str], Iterable[int]] | None = None,
    label: str = "training",
) -> list[float]:
    """Train with the paper's recipe: SGD with momentum, linear warm-up over five epochs, half a cosine.

    Args:
        net: Compressible network, or an ordinary one, which is trained on the plain loss.
        train: Training set.
        epochs: Passes over it.
        batch_size: Images per step; a last incomplete batch is dropped.
        lr: Peak learning rate; 0.025 for quantisation.
        weight_decay: On all parameters, as published.
        augment: Called with a batch and a generator.
        seed: Of the order of the images and of the levels.
        penalty: Added to the loss of an ordinary network.
        progress: Wraps the epochs.
        label: Text of the progress bar.

    Returns:
        Mean loss of each epoch, per level.
    """
    steps = len(train) // batch_size
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    warmup = min(5, max(1, epochs // 5))
    net.train()
    history = []
    rounds: Iterable[int] = range(epochs)
    for epoch in progress(rounds, label) if progress else rounds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch, epochs, lr, warmup)
        order = torch.randperm(len(train), generator=generator)
        total = 0.0
        for i in range(steps):
            index = order[i * batch_size : (i + 1) * batch_size]
            x, y = train.images[index], train.labels[index]
            x = x if augment is None else augment(x, generator)
            optimizer.zero_grad(set_to_none=True)
            step: dict[str, Any] = {"step": epoch * steps + i, "total_steps": epochs * steps, "seed": seed}
            if isinstance(net, CompressibleNet):
                losses = loss_step(net, x, y, **step).losses
                total += float(torch.stack(losses).mean())
            else:
                loss = functional.cross_entropy(net(x), y)
                total += float(loss.detach())
                (loss if penalty is None else loss + penalty()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        history.append(total / steps)
    net.eval()
    return history


@torch.no_grad()
def accuracy(net: nn.Module, test: ImageSet, batch_size: int = 500) -> float:
    """Return the share of right answers, from 0 to 1, at the current level."""
    right = 0
    for start in range(0, len(test), batch_size):
        logits = net(test.images[start : start + batch_size])
        right += int((logits.argmax(1) == test.labels[start : start + batch_size]).sum())
    return right / len(test)


def curve(net: CompressibleNet, test: ImageSet, grid: Sequence[float] | None = None) -> list[float]:
    """Return the accuracy at every level of a grid, from 0 to 1."""
    net.eval()
    name = net.settings.map.value_name
    values = []
    for value in GRIDS[net.settings.regime] if grid is None else grid:
        with net.at(**{name: value}):  # type: ignore[arg-type]
            values.append(accuracy(net, test))
    return values
