"""Pooled models: every kind of vision transformer, what they share with their base, and what comes out."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import DiffAttention, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn

import graftwork_token_pooling as tp
from graftwork_token_pooling.grafting import recast


def reference_forward(model: nn.Module, images: Tensor, counts: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Run a plain model block by block, with full attention matrices, and pool by the public operator."""
    prefix = model.num_prefix_tokens
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    owner = torch.arange(x.shape[1] - prefix).expand(len(x), -1)
    for index, block in enumerate(model.blocks, start=1):
        seen = []
        if index in counts:
            attn = block.attn
            inside = x if isinstance(block, ResPostBlock) else block.norm1(x)
            q, k, _ = attn.qkv(inside).unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
            q, k = attn.q_norm(q), attn.k_norm(k)
            seen = ((attn.scale * q) @ k.transpose(2, 3)).softmax(3).sum((1, 2))[:, prefix:]
        x = block(x)
        if index in counts:
            x, assignment, _ = tp.token_pool_with_assignment(x, seen, counts[index], prefix)
            owner = assignment.gather(1, owner)
    return model.norm(x), owner


def test_a_pooled_model_computes_what_the_operator_says(base: VisionTransformer, images: Tensor) -> None:
    pooled = tp.apply(base, "r70")
    with torch.no_grad():
        expected, expected_owner = reference_forward(base, images, {1: 44, 2: 31, 3: 21})
        tokens, owner, sizes = pooled.forward_pooled(images)
    assert torch.equal(owner, expected_owner)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(sizes, torch.stack([row.bincount(minlength=21) for row in owner]).float())


def test_gradients_change_neither_path_nor_result(base: VisionTransformer, images: Tensor) -> None:
    pooled = tp.apply(base, "r70")
    with torch.no_grad():
        expected = pooled(images)
    torch.testing.assert_close(pooled(images), expected, rtol=1e-4, atol=1e-5)


def test_parameters_and_keys_are_those_of_the_base(base: VisionTransformer) -> None:
    pooled = tp.apply(base, "r50")
    ours, theirs = pooled.state_dict(keep_vars=True), base.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)
    pooled.load_state_dict(copy.deepcopy(base.state_dict()))


def test_the_base_stays_as_it_is(base: VisionTransformer, images: Tensor) -> None:
    with torch.no_grad():
        before = base(images)
        kinds = [type(module) for module in base.modules()]
        tp.apply(base, "r50")(images)
        assert torch.equal(base(images), before)
    assert [type(module) for module in base.modules()] == kinds


def test_removing_gives_the_base_back(base: VisionTransformer, images: Tensor) -> None:
    removed = tp.remove(tp.apply(base, "r50"))
    assert type(removed) is type(base)
    assert [type(module) for module in removed.modules()] == [type(module) for module in base.modules()]
    for ours, theirs in zip(removed.modules(), base.modules()):
        assert vars(ours).keys() == vars(theirs).keys()
    with torch.no_grad():
        assert torch.equal(removed(images), base(images))


def test_keeping_every_token_is_the_base(base: VisionTransformer, images: Tensor) -> None:
    for schedule in ("r100", {2: 64}):
        with torch.no_grad():
            torch.testing.assert_close(tp.apply(base, schedule)(images), base(images))


@pytest.mark.parametrize("method", tp.METHODS)
def test_every_method_pools_every_kind(base: VisionTransformer, images: Tensor, method: str) -> None:
    pooled = tp.apply(base, "r50", method)
    with torch.no_grad():
        assert pooled(images).isfinite().all()
        tokens, _, sizes = pooled.forward_pooled(images)
    assert tokens.shape[1] - base.num_prefix_tokens == tp.schedule_of(pooled).per_block(64, 4)[-1]
    assert torch.equal(sizes.sum(1), torch.full((2,), 64.0))


@pytest.mark.parametrize("method", ["wk_medoids", "tome", "grid"])
def test_features_of_chosen_blocks_cover_the_whole_grid(
    base: VisionTransformer, images: Tensor, method: str
) -> None:
    pooled = tp.apply(base, "r50", method)
    with torch.no_grad():
        final, levels = pooled.forward_intermediates(images)
        torch.testing.assert_close(final, pooled.forward_features(images))
        tokens, owner, _ = pooled.forward_pooled(images)
        (last,) = pooled.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True, output_fmt="NLC"
        )
    assert [level.shape for level in levels] == [(2, 32, 8, 8)] * 4
    torch.testing.assert_close(last, tp.unpool(tokens, owner, base.num_prefix_tokens)[:, -64:])


def test_intermediates_take_timms_options(images: Tensor, kinds) -> None:
    pooled = tp.apply(kinds["rich"](), "r50")
    with torch.no_grad():
        pairs = pooled.forward_intermediates(
            images, [1, 3], return_prefix_tokens=True, intermediates_only=True
        )
        named = pooled.forward_intermediates(images, [0, 2], return_prefix_tokens=True, output_dict=True)
        early = pooled.forward_intermediates(images, [0], stop_early=True, intermediates_only=True)
        layers = pooled.get_intermediate_layers(images, n=[0], reshape=True)
    assert [(patches.shape, prefix.shape) for patches, prefix in pairs] == [((2, 32, 8, 8), (2, 4, 32))] * 2
    assert set(named) == {"image_intermediates", "image_intermediates_prefix", "image_features"}
    torch.testing.assert_close(early[0], named["image_intermediates"][0])
    torch.testing.assert_close(layers[0], early[0])
    with pytest.raises(ValueError, match="NCHW or NLC"):
        pooled.forward_intermediates(images, output_fmt="NHWC")


def test_an_average_is_weighted_by_cluster_size(images: Tensor, make_vit) -> None:
    model = tp.apply(make_vit(class_token=False, global_pool="avg"), "r50")
    with torch.no_grad():
        tokens, _, sizes = model.forward_pooled(images)
        weighted = (tokens * sizes.unsqueeze(2)).sum(1) / 64
        plain = tokens.mean(1)
        embedding = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(embedding, model.fc_norm(weighted))
    assert not torch.allclose(embedding, model.fc_norm(plain), atol=1e-3)


def test_features_are_pooled_where_the_head_reads_the_class_token(
    vit: VisionTransformer, images: Tensor
) -> None:
    pooled = tp.apply(vit, "r50")
    with torch.no_grad():
        assert pooled.forward_features(images).shape == (2, 1 + 8, 32)
        pooled.reset_classifier(0, "")
        assert pooled(images).shape == (2, 1 + 8, 32)
        pooled.reset_classifier(5, "avg")
        assert pooled.forward_features(images).shape == (2, 1 + 64, 32)
        assert pooled(images).shape == (2, 5)


def test_the_image_size_may_change(images: Tensor, make_vit) -> None:
    free = tp.apply(make_vit(dynamic_img_size=True), "r50")
    fixed = tp.apply(make_vit(), "r50")
    fixed.set_input_size((48, 40))
    larger = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        for model in (free, fixed):
            assert model.forward_features(larger).shape == (2, 1 + 15, 32)
            _, levels = model.forward_intermediates(larger)
            assert levels[-1].shape == (2, 32, 12, 10)
        torch.testing.assert_close(free(larger), fixed(larger))
        assert tp.apply(make_vit(dynamic_img_size=True), "r50", "grid")(larger).shape == (2, 10)


def test_patch_dropout_in_training_pools_what_is_left(images: Tensor, make_vit) -> None:
    model = tp.apply(make_vit(patch_drop_rate=0.25), "r50").train()
    assert model.forward_features(images).shape == (2, 1 + 6, 32)
    with pytest.raises(ValueError, match="patch_drop_rate=0"):
        tp.apply(make_vit(patch_drop_rate=0.25), "r50", "grid").train()(images)


@pytest.mark.parametrize("options", [{}, {"position": "pre_mlp"}, {"prop_attn": True}, {"method": "tome"}])
def test_gradient_checkpointing_changes_nothing(images: Tensor, options: dict, kinds) -> None:
    model = tp.apply(kinds["rich"](), "r50", **options)
    results = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        model.zero_grad()
        model(images).square().sum().backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("position", ["post_block", "pre_mlp"])
def test_the_position_decides_whether_the_mlp_of_the_block_is_saved(
    vit: VisionTransformer, images: Tensor, position: str
) -> None:
    pooled = tp.apply(vit, {4: 10}, position=position)
    seen: list[int] = []
    pooled.blocks[3].mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    with torch.no_grad():
        pooled(images)
    assert seen == ([11] if position == "pre_mlp" else [65])


def test_pooling_after_the_last_block_is_left_out(vit: VisionTransformer) -> None:
    assert list(tp.schedule_of(tp.apply(vit, "d8")).counts(64)) == [1, 2, 3]
    assert list(tp.schedule_of(tp.apply(vit, "d8", position="pre_mlp")).counts(64)) == [1, 2, 3, 4]


def test_proportional_attention_counts_the_patches_behind_a_token(images: Tensor, make_vit) -> None:
    """Tokens that are exact copies can be merged without any effect if attention knows their number."""
    torch.manual_seed(5)
    model = make_vit(pos_embed="none")
    copies = images[:, :, :4, :4].repeat(1, 1, 8, 8)
    pooled = tp.apply(model, {1: 1}, prop_attn=True)
    blind = tp.apply(model, {1: 1}, prop_attn=False)
    with torch.no_grad():
        torch.testing.assert_close(pooled(copies), model(copies), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(blind(copies), model(copies), atol=1e-2)


def test_scores_without_self_attention_can_choose_other_tokens(
    vit: VisionTransformer, images: Tensor
) -> None:
    with_self, without = (tp.apply(vit, {1: 20}, exclude_self=flag) for flag in (False, True))
    with torch.no_grad():
        assert not torch.equal(with_self.forward_pooled(images)[1], without.forward_pooled(images)[1])


def test_a_block_can_be_called_alone(vit: VisionTransformer) -> None:
    pooled = tp.apply(vit, "r50")
    mask = torch.rand(2, 1, 1, 65) > 0.2
    with torch.no_grad():
        assert pooled.blocks[0](torch.randn(2, 65, 32)).shape == (2, 33, 32)
        assert pooled.blocks[1](torch.randn(2, 33, 32)).shape == (2, 17, 32)
        masked = pooled.blocks[0](torch.randn(2, 65, 32), attn_mask=mask, is_causal=False)
        assert pooled.blocks(torch.randn(2, 65, 32)).shape == (2, 9, 32)
    assert masked.shape == (2, 33, 32)


def test_a_mask_is_refused(vit: VisionTransformer, images: Tensor) -> None:
    pooled = tp.apply(vit, "r50")
    for options in ({"attn_mask": torch.ones(65, 65)}, {"is_causal": True}):
        with pytest.raises(ValueError, match="takes no attention mask"):
            pooled(images, **options)
        with pytest.raises(ValueError, match="takes no attention mask"):
            pooled.forward_intermediates(images, **options)


def test_forward_passes_in_parallel_do_not_meet(vit: VisionTransformer) -> None:
    pooled = tp.apply(vit, "r50", prop_attn=True)
    batches = [torch.randn(count, 3, 32, 32) for count in (1, 2, 3, 4) * 4]
    with torch.no_grad():
        expected = [pooled(batch) for batch in batches]

    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return pooled(batch)

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(run, batches), expected):
            torch.testing.assert_close(found, wanted)


def test_a_forward_pass_leaves_no_trace(vit: VisionTransformer, images: Tensor) -> None:
    pooled = tp.apply(vit, "r50", prop_attn=True)
    before = [set(vars(module)) for module in pooled.modules()]
    pooled(images)
    assert [set(vars(module)) for module in pooled.modules()] == before
    tensors = [
        name
        for module in pooled.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    assert not tensors


@pytest.mark.parametrize("kind", ["rich", "distilled", "gated", "average", "dynamic"])
def test_every_kind_is_captured_whole(kinds, kind: str, images: Tensor) -> None:
    torch._dynamo.reset()
    pooled = tp.apply(kinds[kind](), "r50")
    with torch.no_grad():
        expected = pooled(images)
        scripted = torch.jit.script(pooled)
        torch.testing.assert_close(scripted(images), expected, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(pooled, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(pooled, (images,)).module()
        torch.testing.assert_close(exported(images), expected, rtol=1e-4, atol=1e-5)


def test_pooling_again_replaces_the_pooling(vit: VisionTransformer) -> None:
    again = tp.apply(tp.apply(vit, "r70"), {2: 10}, "tome")
    assert tp.schedule_of(again).counts(64) == {2: 10}
    assert again.pooling_options.method == "tome"


def test_constructor_and_apply_agree(images: Tensor) -> None:
    built = tp.TokenPoolingVisionTransformer(
        img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, schedule="r50", method="wk_means"
    ).eval()
    patched = tp.apply(tp.remove(built), "r50", "wk_means")
    with torch.no_grad():
        assert torch.equal(built(images), patched(images))


def test_a_variant_takes_other_settings(make_vit) -> None:
    import graftwork.timm  # noqa: F401  registers the variants

    model = timm.create_model(
        "deit_tiny_patch16_224_tp_r70", depth=2, embed_dim=24, schedule=[100, 100], method="k_means"
    )
    assert tp.schedule_of(model).counts(196) == {1: 100}
    assert model.pooling_options.method == "k_means"


@pytest.mark.parametrize("own_class", [False, True])
def test_other_models_are_refused(vit: VisionTransformer, own_class: bool) -> None:
    model = recast(vit, type("MyViT", (VisionTransformer,), {})) if own_class else nn.Linear(2, 2)
    with pytest.raises(TypeError, match="works on timm's VisionTransformer"):
        tp.apply(model)
    with pytest.raises(TypeError, match="expected a model with Token Pooling"):
        tp.remove(model)


def test_other_blocks_are_refused(make_vit) -> None:
    with pytest.raises(TypeError, match="knows timm's Block and ResPostBlock, got ParallelScalingBlock"):
        tp.apply(make_vit(block_fn=ParallelScalingBlock), "r50")


def test_other_attention_is_refused_where_its_scores_are_needed(images: Tensor, make_vit) -> None:
    model = make_vit(attn_layer=DiffAttention)
    with pytest.raises(TypeError, match="k_medoids, k_means, random or grid"):
        tp.apply(model, "r50")
    with torch.no_grad():
        assert tp.apply(model, "r50", "k_medoids")(images).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"position": "middle"}, "position must be auto, post_block or pre_mlp"),
        ({"schedule": {9: 0.5}}, "after block 9, but the model has 4 blocks"),
        ({"schedule": [10] * 5}, "lists 5 blocks, but the model has 4"),
        ({"schedule": [0]}, "must be between 1 and 64, got 0"),
        ({"schedule": [65]}, "must be between 1 and 64, got 65"),
        ({"output": "median"}, "output must be mean"),
        ({"output": "medoid", "method": "tome"}, "medoid with method wk_medoids or k_medoids"),
        ({"iterations": -1}, "iterations must not be negative"),
        ({"init": "luck"}, "init must be"),
    ],
)
def test_bad_options_are_explained_at_once(vit: VisionTransformer, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tp.apply(vit, **options)
