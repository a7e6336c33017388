"""Checkpoints of the released layout; none can be downloaded, so they are built to its description."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import save_file
from timm.models.convmixer import ConvMixer
from torch import Tensor, nn

from graftwork_spin import CheckpointError, SpinConvMixer, load_released
from graftwork_spin.checkpoint import convert_released


def released(
    dim: int = 12, depth: int = 6, stored: int = 3, kernel: int = 3, patch: int = 7, classes: int = 5
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    def batch_norm(prefix: str) -> dict[str, Tensor]:
        return {
            f"{prefix}.weight": 1 + normal(dim),
            f"{prefix}.bias": normal(dim),
            f"{prefix}.running_mean": normal(dim),
            f"{prefix}.running_var": 1 + normal(dim).abs(),
            f"{prefix}.num_batches_tracked": torch.tensor(7),
        }

    state = {}
    for i in range(stored):
        state[f"pwise_w.{i}"] = normal(dim, dim, 1, 1)
        state[f"pwise_b.{i}"] = normal(dim)
    state["patch_embed.conv.weight"] = normal(dim, 3, patch, patch)
    state["patch_embed.conv.bias"] = normal(dim)
    state |= batch_norm("patch_embed.bn")
    for layer in range(depth):
        state[f"blocks.{layer}.dwise_blk.0.weight"] = normal(dim, 1, kernel, kernel)
        state[f"blocks.{layer}.dwise_blk.0.bias"] = normal(dim)
        state |= batch_norm(f"blocks.{layer}.dwise_blk.2") | batch_norm(f"blocks.{layer}.bn2")
    return state | {"head.fc.weight": normal(classes, dim), "head.fc.bias": normal(classes)}


def oracle(state: dict[str, Tensor], mapping: list[int]) -> nn.Module:
    """timm's ConvMixer under the documented key map, with the second residual that the released block has."""
    dim, _, patch, _ = state["patch_embed.conv.weight"].shape
    kernel, classes = state["blocks.0.dwise_blk.0.weight"].shape[-1], len(state["head.fc.bias"])
    model = ConvMixer(dim, len(mapping), kernel, patch, num_classes=classes, act_layer=nn.ReLU)
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("patch_embed.conv", "stem.0").replace("patch_embed.bn", "stem.2")
        name = re.sub(r"(blocks\.\d+)\.dwise_blk\.(\d)", r"\1.0.fn.\2", name)
        name = re.sub(r"(blocks\.\d+)\.bn2", r"\1.3", name).replace("head.fc", "head")
        if not name.startswith("pwise"):
            renamed[name] = tensor
    for layer, index in enumerate(mapping):
        renamed[f"blocks.{layer}.1.weight"] = state[f"pwise_w.{index}"]
        renamed[f"blocks.{layer}.1.bias"] = state[f"pwise_b.{index}"]
    model.load_state_dict(renamed)

    class Residual(nn.Module):
        def __init__(self, block: nn.Sequential) -> None:
            super().__init__()
            self.depthwise, self.pointwise = block[0], block[1:]

        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise(x)
            return x + self.pointwise(x)

    model.blocks = nn.Sequential(*[Residual(block) for block in model.blocks])
    return model.eval()


def test_the_full_size_layout_has_457_and_425_tensors():
    assert len(released(8, 32, 32)) == 457
    assert len(released(8, 32, 16)) == 425


@pytest.mark.parametrize("wrap", ["bare", "model_state", "module"])
@pytest.mark.parametrize("stored", [6, 3, 2, 1])
def test_a_released_file_computes_what_its_layout_describes(tmp_path, images, stored, wrap):
    state = released(stored=stored)
    content = {
        "bare": state,
        "model_state": {"epoch": 299, "model_state": state},
        "module": {f"module.{name}": tensor for name, tensor in state.items()},
    }[wrap]
    torch.save(content, tmp_path / "weights.pyth")
    model = load_released(tmp_path / "weights.pyth")
    assert not model.training and all(p.requires_grad for p in model.parameters())
    mapping = [layer // (6 // stored) for layer in range(6)]
    torch.testing.assert_close(model(images), oracle(state, mapping)(images))


def test_a_safetensors_file_and_another_mapping_are_read(tmp_path, images):
    state = released()
    save_file(state, tmp_path / "weights.safetensors")
    model = load_released(tmp_path / "weights.safetensors", mapping="strided")
    torch.testing.assert_close(model(images), oracle(state, [0, 1, 2, 0, 1, 2])(images))


def test_a_loaded_network_is_saved_and_loaded_as_our_own(tmp_path, images):
    torch.save(released(), tmp_path / "weights.pyth")
    model = load_released(tmp_path / "weights.pyth")
    other = SpinConvMixer(12, 6, patch_size=7, num_classes=5).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))


def test_a_variant_takes_a_released_file_as_its_pretrained_weights(tmp_path, images):
    import timm

    state = released()
    torch.save(state, tmp_path / "weights.pyth")
    model = timm.create_model(
        "convmixer_spin",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "weights.pyth"), "num_classes": 5},
        dim=12,
        depth=6,
        patch_size=7,
    ).eval()
    torch.testing.assert_close(model(images), oracle(state, [0, 0, 1, 1, 2, 2])(images))


def damaged(change: str) -> dict[str, Tensor]:
    state = released()
    if change == "foreign":
        return {"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}
    if change == "missing":
        del state["blocks.4.bn2.running_var"]
    if change == "shape":
        state["blocks.2.dwise_blk.0.bias"] = torch.zeros(13)
    if change == "extra":
        state["momentum.0"] = torch.zeros(1)
    if change == "timm":
        return ConvMixer(12, 2).state_dict()
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("foreign", "first wrong key is 'conv1.weight'"),
        ("timm", "first wrong key is 'stem.0.weight'"),
        ("missing", "first missing key is 'blocks.4.bn2.running_var'"),
        ("shape", r"first wrong key is 'blocks.2.dwise_blk.0.bias' of shape \(13,\), expected \(12,\)"),
        ("extra", "first wrong key is 'momentum.0'"),
    ],
)
def test_a_wrong_file_is_refused_by_its_first_wrong_key(tmp_path, change, message):
    torch.save(damaged(change), tmp_path / "wrong.pyth")
    with pytest.raises(CheckpointError, match=message):
        load_released(tmp_path / "wrong.pyth")


def test_a_git_lfs_pointer_is_recognised_and_explained(tmp_path):
    pointer = tmp_path / "WS.pyth"
    pointer.write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:b60730182330a23947bcec455170f8f047db79840c33f98176daf03ba3cebbe4\nsize 44624480\n"
    )
    with pytest.raises(CheckpointError, match=r"git-LFS pointer .* 44624480 bytes.*git lfs pull"):
        load_released(pointer)


@pytest.mark.parametrize("suffix", [".pyth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pyth":
        torch.save(released(), whole)
    else:
        save_file(released(), whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="cut"):
        load_released(cut)


def test_a_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"model_state": released(), "hook": print}, tmp_path / "code.pyth")
    with pytest.raises(CheckpointError, match="Only tensors are read"):
        load_released(tmp_path / "code.pyth")


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save({"epoch": 3, "best": 71.2}, tmp_path / "log.pyth")
    with pytest.raises(CheckpointError, match="first wrong key is 'epoch', a int"):
        load_released(tmp_path / "log.pyth")
    with pytest.raises(FileNotFoundError):
        load_released(tmp_path / "absent.pyth")


def test_a_mapping_that_does_not_fit_the_file_is_refused(tmp_path):
    torch.save(released(stored=4), tmp_path / "four.pyth")
    with pytest.raises(CheckpointError, match="4 tensors for 6 layers"):
        load_released(tmp_path / "four.pyth")
    with pytest.raises(CheckpointError, match="uses 3 tensors, the checkpoint holds 4"):
        load_released(tmp_path / "four.pyth", mapping=[0, 0, 1, 1, 2, 2])


def test_a_wrong_state_dict_leaves_the_network_it_was_meant_for_alone(images):
    import timm

    state = released()
    del state["blocks.5.bn2.bias"]
    model = timm.create_model("convmixer_spin", dim=12, depth=6, patch_size=7, num_classes=5).eval()
    before = model(images)
    with pytest.raises(CheckpointError):
        model.load_state_dict(convert_released(state, model.sharing.mapping))
    assert torch.equal(model(images), before)
