"""Small image classification on data that needs no download: what demos and accuracy benchmarks train on.

Images are held as float tensors in memory; the sets meant here (scikit-learn's digits, a few thousand
CIFAR-10 images) fit easily. Anything larger belongs to timm's own training script.
"""

from __future__ import annotations

import io
import math
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

Progress = Callable[[Iterable[int], str], Iterable[int]]


@dataclass(frozen=True)
class ImageSet:
    """A classification set in memory.

    Args:
        images: (N, C, H, W) float32, normalised.
        labels: (N,) int64.
        classes: Name of each class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FitResult:
    """What a training run gave.

    Args:
        accuracy: Top-1 on the test set after the last epoch, in percent.
        losses: Mean training loss of each epoch.
        seconds: Wall-clock seconds of the training loop.
        images_per_second: Training throughput.
    """

    accuracy: float
    losses: tuple[float, ...]
    seconds: float
    images_per_second: float


def load_digits(*, size: int = 8, channels: int = 1, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Load scikit-learn's handwritten digits, 1,797 real scans of 8x8 pixels, split 3:1 by class.

    Example:
        >>> train, test = load_digits(size=32, channels=3)
        >>> train.images.shape, len(test)
        (torch.Size([1347, 3, 32, 32]), 450)

    Args:
        size: Side in pixels after bilinear enlargement.
        channels: 1, or 3 for models that want colour.
        seed: Seed of the split.

    Returns:
        Training set and test set.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    bunch = sklearn_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target).long()
    if size != images.shape[-1]:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = ((images - 0.305) / 0.376).repeat(1, channels, 1, 1)
    train, test = train_test_split(
        range(len(labels)), test_size=0.25, random_state=seed, stratify=labels.numpy()
    )
    names = tuple(str(digit) for digit in range(10))
    return ImageSet(images[train], labels[train], names), ImageSet(images[test], labels[test], names)


def load_image_tree(path: Path, *, size: int = 32) -> ImageSet:
    """Load a folder or tar archive with one sub-folder of images per class.

    Args:
        path: Folder, ``.tar`` or ``.tar.gz``.
        size: Side in pixels; other images are resized.

    Returns:
        The set, normalised with the mean and deviation customary for CIFAR-10.

    Raises:
        FileNotFoundError: Nothing is there, or it holds no image.
    """
    import numpy as np
    from PIL import Image

    path = Path(path)
    names: list[str] = []
    pixels: list[Tensor] = []
    for name, data in _image_files(path):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        names.append(name)
        pixels.append(torch.from_numpy(np.array(image)))
    if not pixels:
        raise FileNotFoundError(f"{path} holds no image; expected one sub-folder of images per class.")
    classes = tuple(sorted(set(names)))
    index = {name: i for i, name in enumerate(classes)}
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)
    images = (torch.stack(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return ImageSet(images, torch.tensor([index[name] for name in names]), classes)


def _image_files(path: Path) -> Iterator[tuple[str, bytes]]:
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in suffixes:
                yield file.parent.name, file.read_bytes()
    elif path.is_file():
        with tarfile.open(path) as archive:
            for member in sorted(archive.getmembers(), key=lambda m: m.name):
                if member.isfile() and Path(member.name).suffix.lower() in suffixes:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield Path(member.name).parent.name, stream.read()
    else:
        raise FileNotFoundError(f"{path} does not exist; expected a folder or a tar archive of images.")


def fit(
    model: nn.Module,
    train: ImageSet,
    test: ImageSet,
    *,
    epochs: int,
    lr: float = 3e-3,
    weight_decay: float = 0.02,
    batch_size: int = 64,
    warmup: float = 0.1,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    label: str = "training",
) -> FitResult:
    """Train a classifier with AdamW, linear warm-up and a cosine decay, then test it.

    Weight decay follows timm's rule: none on biases, norms and what ``model.no_weight_decay()`` names.

    Args:
        model: Maps (B, C, H, W) to logits (B, classes); trained in place.
        train: Training set.
        test: Test set, looked at once, at the end.
        epochs: Passes over the training set.
        lr: Peak learning rate.
        weight_decay: AdamW's decay.
        batch_size: Images per step; a last incomplete batch is dropped.
        warmup: Share of the steps spent in warm-up.
        augment: Called with a batch and a generator.
        label_smoothing: Of the cross-entropy.
        seed: Of the order of the images and of the augmentation.
        device: Where to train.
        progress: Wraps the epochs, as tqdm does.
        label: Text of the progress bar.

    Returns:
        Accuracy, losses and timing.

    Raises:
        ValueError: The training set is smaller than one batch.
    """
    from timm.optim import create_optimizer_v2

    steps = len(train) // batch_size
    if steps == 0:
        raise ValueError(f"batch_size {batch_size} is larger than the training set of {len(train)} images.")
    model.to(device).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=weight_decay)
    total, warm = epochs * steps, max(1, round(warmup * epochs * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(seed)
    images, labels = train.images.to(device), train.labels.to(device)
    losses = []
    started = time.perf_counter()
    rounds: Iterable[int] = range(epochs)
    for _ in progress(rounds, label) if progress else rounds:
        order = torch.randperm(len(train), generator=generator).to(device)
        sum_of_losses = torch.zeros((), device=device)
        for step in range(steps):
            index = order[step * batch_size : (step + 1) * batch_size]
            batch = images[index]
            if augment is not None:
                batch = augment(batch, generator)
            loss = functional.cross_entropy(model(batch), labels[index], label_smoothing=label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            sum_of_losses += loss.detach()
        losses.append(float(sum_of_losses) / steps)
    seconds = time.perf_counter() - started
    return FitResult(
        evaluate(model, test, device=device), tuple(losses), seconds, total * batch_size / seconds
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, data: ImageSet, *, batch_size: int = 256, device: str | torch.device = "cpu"
) -> float:
    """Return top-1 accuracy in percent; the model is left in the mode it was in."""
    was_training = model.training
    model.to(device).eval()
    correct = 0
    for start in range(0, len(data), batch_size):
        logits = model(data.images[start : start + batch_size].to(device))
        correct += int((logits.argmax(1).cpu() == data.labels[start : start + batch_size]).sum())
    model.train(was_training)
    return 100 * correct / len(data)


def flip_and_shift(pad: int = 4) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Augment small images as usual: random horizontal flip and a shift of up to `pad` pixels."""

    def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
        flip = torch.rand(len(batch), generator=generator).to(batch.device) < 0.5
        batch = torch.where(flip.view(-1, 1, 1, 1), batch.flip(-1), batch)
        height, width = batch.shape[-2:]
        padded = functional.pad(batch, (pad, pad, pad, pad), mode="reflect")
        top, left = (
            torch.randint(0, 2 * pad + 1, (len(batch), 1, 1), generator=generator).to(batch.device)
            for _ in range(2)
        )
        rows = top + torch.arange(height, device=batch.device).view(1, -1, 1)
        columns = left + torch.arange(width, device=batch.device).view(1, 1, -1)
        index = torch.arange(len(batch), device=batch.device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[index, rows, columns].permute(0, 3, 1, 2)

    return augment
