"""Pool any vision transformer of timm: cost, speed and a picture of the clusters.

    python pool_any_vit.py --model deit_small_patch16_224 --pretrained --schedule 0.58x --image photo.jpg

Without --pretrained the weights are random, so the clusters show the image's colours and nothing learnt.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

import graftwork_token_pooling as tp
from graftwork_token_pooling.visualize import save_clusters


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--schedule", default="r70", help="r70, d13, 0.58x, 2.7G or a .json file")
    parser.add_argument("--method", default="wk_medoids", choices=tp.METHODS)
    parser.add_argument("--image", type=Path, help="a photograph; random blobs without it")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("clusters.png"))
    options = parser.parse_args(arguments)

    base = timm.create_model(options.model, pretrained=options.pretrained).eval()
    pooled = tp.apply(base, options.schedule, options.method)

    tokens = base.patch_embed.num_patches
    left = tp.schedule_of(pooled).per_block(tokens, len(base.blocks))
    print(f"tokens: {tokens} -> {' '.join(map(str, left))}")
    config = resolve_data_config({}, model=base)
    batch = torch.randn(options.batch_size, *config["input_size"])
    for label, model in (("base", base), ("pooled", pooled)):
        gmacs, rate = tp.cost_of(model).gmacs, images_per_second(model, batch)
        print(f"{label:>6}: {gmacs:.3f} GMACs, {rate:.1f} images/s")

    image = Image.open(options.image).convert("RGB") if options.image else blobs()
    picture = create_transform(**config)(image).unsqueeze(0)
    print(f"clusters: {save_clusters(pooled, picture, options.out)}")


@torch.inference_mode()
def images_per_second(model: nn.Module, batch: Tensor, rounds: int = 3) -> float:
    model(batch)
    started = time.perf_counter()
    for _ in range(rounds):
        model(batch)
    return rounds * len(batch) / (time.perf_counter() - started)


def blobs() -> Image.Image:
    coarse = torch.rand(1, 3, 6, 6)
    smooth = nn.functional.interpolate(coarse, (256, 256), mode="bicubic").clamp(0, 1)[0]
    return Image.fromarray((255 * smooth).byte().permute(1, 2, 0).numpy())


if __name__ == "__main__":
    main()
