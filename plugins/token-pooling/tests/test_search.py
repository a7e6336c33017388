"""The search for tokens per block: soft extract at its limits, and that it finds what a task needs."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from graftwork_token_pooling import Schedule, apply, schedule_of
from graftwork_token_pooling.search import counts_of, main, search_schedule, soft_extract


@pytest.fixture
def batches(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(images, torch.tensor([1, 2])), (images.flip(0), torch.tensor([2, 1]))]


def test_full_retention_is_the_model_itself(kinds, images: Tensor) -> None:
    for kind in ("plain", "rich", "distilled", "gated", "post-norm", "average"):
        model = kinds[kind]()
        soft = soft_extract(model)
        with torch.no_grad():
            torch.testing.assert_close(soft(images), model(images), rtol=1e-4, atol=1e-5)
        added = soft.state_dict().keys() - model.state_dict().keys()
        assert added == {f"blocks.{index}.retention" for index in range(4)}


def test_zero_retention_of_the_last_ranks_silences_exactly_those_tokens(
    vit: VisionTransformer, images: Tensor
) -> None:
    soft = soft_extract(vit)
    block = soft.blocks[0]
    seen: list[Tensor] = []
    block.mlp.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    block.norm2 = nn.Identity()
    with torch.no_grad():
        block.retention[40:] = 0
        x = torch.randn(2, 65, 32)
        block(x)
        _, scores, _ = block._attention_branch(x, None, False)
    silent = (seen[0][:, 1:] == 0).all(2)
    assert silent.sum(1).tolist() == [24, 24]
    for image in range(2):
        assert scores[image][silent[image]].max() < scores[image][~silent[image]].min()


def test_a_stronger_penalty_leaves_fewer_tokens_and_deeper_blocks_lose_more(
    vit: VisionTransformer, batches
) -> None:
    found = [
        search_schedule(vit, batches * 10, regularization=strength, epochs=1, lr_retention=2e-2).counts
        for strength in (0.0, 1e-3, 1e-1)
    ]
    for weak, strong in pairwise(found):
        assert sum(strong) < sum(weak)
    assert sorted(found[1], reverse=True) == list(found[1])
    assert found[2][-1] < 64


def test_the_search_leaves_the_model_alone_and_feeds_apply(
    vit: VisionTransformer, batches, tmp_path: Path, images: Tensor
) -> None:
    before = copy.deepcopy(vit.state_dict())
    result = search_schedule(apply(vit, "r50"), batches, regularization=1e-2, epochs=2, lr_retention=0.1)
    assert all(torch.equal(vit.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(parameter.grad is not None for parameter in vit.parameters())
    assert len(result.losses) == 2
    assert result.retention.shape == (4, 64)
    assert result.retention.min() >= 0
    assert result.retention.max() <= 1
    assert result.schedule.per_block(64, 4) == list(result.counts)
    path = result.schedule.save(tmp_path / "schedule.json", 64)
    pooled = apply(vit, str(path))
    assert schedule_of(pooled) == result.schedule.without(4)
    with torch.no_grad():
        assert pooled(images).shape == (2, 10)


def test_counts_are_floors_at_least_one_and_never_increase() -> None:
    retention = torch.tensor([[1.0, 1.0, 0.9], [0.3, 0.1, 0.0], [1.0, 1.0, 1.0]])
    assert counts_of(retention) == (2, 1, 1)
    assert counts_of(torch.full((1, 10), 0.1)) == (1,)


def test_bad_searches_are_explained(vit: VisionTransformer, batches) -> None:
    with pytest.raises(ValueError, match="regularization must not be negative"):
        search_schedule(vit, batches, regularization=-1.0)
    with pytest.raises(ValueError, match="batches gave nothing"):
        search_schedule(vit, iter(()), regularization=1e-3)
    with pytest.raises(TypeError, match="works on timm's VisionTransformer, got Linear"):
        search_schedule(nn.Linear(2, 2), batches, regularization=1e-3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(2):
            noise = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).save(tmp_path / "data" / label / f"{index}.png")
    return tmp_path / "data"


def test_the_command_writes_a_schedule_file(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "found.json"
    options = ["--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    code = main(["--model", "vit_tiny_patch16_224", "--data", str(folder), "--out", str(out), *options])
    assert code == 0
    assert "tokens after each block: " in capsys.readouterr().out
    assert Schedule.load(out).within(12)
