"""An ordinary timm training script: nothing in it knows of graftwork.

    graftwork run train.py --data DIR --model convmixer_spin ...

DIR holds ``train/`` and ``val/``, each with one sub-folder of images per class.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, ParseKwargs, accuracy, random_seed
from tqdm import tqdm

log = logging.getLogger("train")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE")
    parser.add_argument("--initial-checkpoint", default="", help="weights to start from")
    parser.add_argument("--resume", default="", help="checkpoint to continue from")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--ema-decay", type=float, default=0.99, help="0 switches the moving average off")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output/timm_training"))
    return parser.parse_args()


def make_loaders(options, model, classes):
    data = resolve_data_config({"img_size": options.img_size}, model=model)
    shared = {
        "input_size": data["input_size"],
        "batch_size": options.batch_size,
        "mean": data["mean"],
        "std": data["std"],
        "num_workers": options.workers,
        "device": torch.device(options.device),
        "use_prefetcher": False,
        "persistent_workers": options.workers > 0,
    }
    train = create_dataset("", root=options.data / "train", is_training=True, class_map=classes)
    val = create_dataset("", root=options.data / "val", class_map=classes)
    return (
        create_loader(train, is_training=True, scale=(0.6, 1.0), interpolation="bilinear", **shared),
        create_loader(val, crop_pct=1.0, interpolation="bilinear", **shared),
    )


def train_epoch(epoch, options, model, loader, optimizer, scheduler, criterion, ema):
    model.train()
    losses = AverageMeter()
    started, seen = time.perf_counter(), 0
    for step, (images, labels) in enumerate(tqdm(loader, desc=f"epoch {epoch}", leave=False)):
        images, labels = images.to(options.device), labels.to(options.device)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if ema is not None:
            ema.update(model)
        scheduler.step_update(epoch * len(loader) + step + 1)
        losses.update(loss.item(), len(images))
        seen += len(images)
    return losses.avg, seen / (time.perf_counter() - started)


@torch.no_grad()
def validate(options, model, loader):
    model.eval()
    top1 = AverageMeter()
    for images, labels in loader:
        logits = model(images.to(options.device))
        top1.update(accuracy(logits, labels.to(options.device))[0].item(), len(images))
    return top1.avg


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments()
    random_seed(options.seed)
    names = sorted(folder.name for folder in (options.data / "train").iterdir() if folder.is_dir())
    classes = {name: index for index, name in enumerate(names)}
    model = timm.create_model(
        options.model,
        num_classes=len(classes),
        checkpoint_path=options.initial_checkpoint,
        **options.model_kwargs,
    ).to(options.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info(f"{options.model}: {parameters:,} parameters")

    train_loader, val_loader = make_loaders(options, model, classes)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=options.lr, weight_decay=options.weight_decay)
    scheduler, epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=options.epochs,
        warmup_epochs=options.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=len(train_loader),
    )
    ema = ModelEmaV3(model, decay=options.ema_decay, use_warmup=True) if options.ema_decay else None
    start = 0
    if options.resume:
        start = resume_checkpoint(model, options.resume, optimizer)
        if ema is not None:
            timm.models.load_checkpoint(ema.module, options.resume, use_ema=True)
        scheduler.step_update(start * len(train_loader))
    options.output.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(
        model,
        optimizer,
        model_ema=ema,
        checkpoint_dir=str(options.output),
        recovery_dir=str(options.output),
        max_history=2,
    )
    criterion = LabelSmoothingCrossEntropy(options.smoothing)
    for epoch in range(start, epochs):
        loss, speed = train_epoch(epoch, options, model, train_loader, optimizer, scheduler, criterion, ema)
        result = {
            "model": options.model,
            "epoch": epoch,
            "parameters": parameters,
            "loss": round(loss, 4),
            "images_per_second": round(speed, 1),
            "top1": round(validate(options, model, val_loader), 2),
        }
        if ema is not None:
            result["top1_ema"] = round(validate(options, ema.module, val_loader), 2)
        log.info(
            "  ".join(f"{key} {value}" for key, value in result.items() if key not in ("model", "parameters"))
        )
        saver.save_checkpoint(epoch, metric=result["top1"])
        with (options.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
