"""Fuse a checkpoint of the unshared network into one for its shared form (weight fusion).

python fuse.py CHECKPOINT OUT [--how mean] [--rate 2]
"""

import argparse
from pathlib import Path

import torch

from graftwork_spin import fuse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--how", default="mean", choices=["mean", "choose_first"])
    parser.add_argument("--rate", type=int, default=2)
    options = parser.parse_args()
    plain = torch.load(options.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    fused = fuse(plain, options.how, rate=options.rate)
    torch.save(fused, options.out)
    print(f"{options.out}: {len(plain)} tensors fused into {len(fused)}")


if __name__ == "__main__":
    main()
