"""A small distributed training, started as a process of its own: it writes what every step trained on.

Usage: ``python training_process.py FOLDER [--epochs N] [--kill-at STEP]`` with RANK, WORLD_SIZE, MASTER_ADDR
and MASTER_PORT in the environment. A state found in the folder is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from graftwork_multiscale import MultiScaleBatchSampler, ScaledDataset, resize_batch

SAMPLES = 61  # odd, so that two ranks must pad


class Numbers(Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # as many draws as the sample says, from every generator, in the process that owns the sampler
        for _ in range(index % 7):
            random.random(), np.random.rand(), torch.rand(1)
        return torch.full((1, 8, 8), index / SAMPLES), index


def resize(height: int, width: int):
    return lambda image: resize_batch(image[None], (height, width))[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--kill-at", type=int, default=-1)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rank, together = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) > 1
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
    )
    if together:
        distributed.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sampler = MultiScaleBatchSampler(
        Numbers(), 4, base_size=16, min_size=8, max_size=24, divisor=8, seed=7, last_batch="wrap"
    )
    sampler.mark_consumed(0)
    loader = DataLoader(ScaledDataset(Numbers(), resize), batch_sampler=sampler, num_workers=options.workers)
    state_file, first_epoch = options.folder / f"state{rank}.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        sampler.load_state_dict(state["sampler"])
        first_epoch = state["sampler"]["epoch"]
    total = 0
    with (options.folder / f"steps{rank}.jsonl").open("a", encoding="utf-8") as log:
        for epoch in range(first_epoch, options.epochs):
            sampler.set_epoch(epoch)
            for images, labels in loader:
                loss = model(images).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step = sampler.state_dict()["step"]
                record = {"epoch": epoch, "step": step, "side": images.shape[-1], "samples": labels.tolist()}
                log.write(json.dumps(record) + "\n")
                log.flush()
                total += 1
                if total == options.kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)  # trained, but not saved: this step must come again
                sampler.mark_consumed()
                temporary = state_file.with_suffix(".new")
                torch.save({"model": model.state_dict(), "sampler": sampler.state_dict()}, temporary)
                temporary.replace(state_file)
    if together:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
