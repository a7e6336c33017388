"""Levels: the map from position to compression, who runs at which, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
import threading
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from graftwork_subspaces import (
    BiasedEndpoints,
    Discrete,
    Fixed,
    LevelError,
    LevelMap,
    Sandwich,
    Uniform,
    step_levels,
    wrap,
)
from graftwork_subspaces.digits import DigitsNet
from graftwork_subspaces.samplers import step_generator
from graftwork_subspaces.training import warmup_steps


def digits(regime="sparse", subspace="line", **options):
    torch.manual_seed(0)
    options = {"multiple": None if "parity" in options else 1, **options}
    return wrap(DigitsNet(), regime=regime, subspace=subspace, input_size=(1, 8, 8), **options)


def tiny(regime):
    """As little as shows every kind of layer, because a compiler's time counts in operations."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)]
    return wrap(nn.Sequential(*layers), regime=regime, input_size=(1, 8, 8), multiple=1)


# the map


def test_bit_table_of_the_published_grid_and_its_boundaries():
    level_map = LevelMap("quant", 3, 8)
    assert [level_map.value(a) for a in (0.166, 0.333, 0.499, 0.666, 0.833, 1.0)] == [3, 4, 5, 6, 7, 8]
    for m in range(1, 7):
        assert level_map.value(m / 6) == m + 2, "a boundary belongs to the lower bit width"
        if m < 6:
            assert level_map.value(m / 6 + 1e-6) == m + 3
        assert level_map.alpha(m + 2) == pytest.approx(m / 6)
    assert level_map.value(0.0) == 3


@pytest.mark.parametrize("regime", ["sparse", "width"])
def test_affine_map_spreads_the_range_over_the_whole_line(regime):
    level_map = LevelMap(regime, 0.2, 0.8)
    assert level_map.value(0) == pytest.approx(0.2) and level_map.value(1) == pytest.approx(0.8)
    for value in (0.2, 0.35, 0.8):
        assert level_map.value(level_map.alpha(value)) == pytest.approx(value)


def test_upstream_map_takes_the_position_as_kept_fraction():
    level_map = LevelMap("sparse", 0.005, 0.05, "upstream")
    assert level_map.value(0.03) == 0.03 and level_map.alpha(0.03) == 0.03
    assert level_map.spread(0.0) == 0.005 and level_map.spread(1.0) == pytest.approx(0.05)
    net = digits(alpha_map="upstream", levels={"lo": 0.005, "hi": 0.05})
    with net.at(0.05):
        pass
    with pytest.raises(LevelError, match="outside the trained range"), net.at(0.5):
        pass


@pytest.mark.parametrize("levels", [{"lo": 0.0}, {"lo": 0.9, "hi": 0.5}, {"hi": 1.5}, {"low": 0.1}])
def test_bad_ranges_are_refused(levels):
    with pytest.raises(LevelError):
        digits(levels=levels)


@pytest.mark.parametrize("levels", [{"lo": 1}, {"lo": 0}, {"hi": 9}, {"lo": 3.5}])
def test_bits_below_two_above_eight_or_broken_are_refused(levels):
    with pytest.raises(LevelError, match="bits"):
        digits("quant", levels=levels)


# entering


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan")])
def test_position_outside_the_line_is_refused(alpha):
    with pytest.raises(LevelError, match="position from 0"), digits().at(alpha):
        pass


@pytest.mark.parametrize(
    ("regime", "level"),
    [("sparse", {"width": 0.5}), ("width", {"bits": 4}), ("quant", {"kept": 0.5}), ("sparse", {}),
     ("width", {"width": 0.0}), ("quant", {"bits": 1}), ("quant", {"bits": 2.5}), ("width", {"width": 1.2})],
)  # fmt: skip
def test_levels_of_another_kind_are_refused(regime, level):
    with pytest.raises(LevelError), digits(regime).at(**level):
        pass


def test_position_and_level_together_are_refused():
    with pytest.raises(LevelError, match="name one level"), digits().at(0.5, kept=0.5):
        pass


@pytest.mark.parametrize(
    ("regime", "level"), [("sparse", {"kept": 0.01}), ("width", {"width": 0.1}), ("quant", {"bits": 2})]
)
def test_untrained_levels_are_refused_or_warned_about(regime, level):
    with pytest.raises(LevelError, match="trained range"), digits(regime).at(**level):
        pass
    net = digits(regime, outside="warn")
    with pytest.warns(UserWarning, match="trained range"), net.at(**level) as entered:
        assert entered.value == next(iter(level.values()))
        assert entered.alpha == pytest.approx(0.0) or regime == "quant"


def test_levels_nest_and_are_left_after_an_error():
    net = digits()
    default = net.context.level().alpha
    with net.at(0.2):
        with net.at(0.8):
            assert net.context.level().alpha == 0.8
        assert net.context.level().alpha == 0.2
    with pytest.raises(RuntimeError, match="inside"), net.at(0.3):
        raise RuntimeError("inside")
    assert net.context.level().alpha == default == 1.0


def test_two_networks_in_one_thread_have_levels_of_their_own():
    first, second = digits(), digits()
    with first.at(0.1), second.at(0.9):
        assert (first.context.level().alpha, second.context.level().alpha) == (0.1, 0.9)


def test_copies_and_pickles_have_levels_of_their_own():
    net = digits()
    with net.at(0.1):
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert other.context.level().alpha == 1.0
            assert all(layer.context is other.context for layer in other.layers())
            with other.at(0.7):
                assert net.context.level().alpha == 0.1


@pytest.mark.parametrize("regime", ["sparse", "width", "quant"])
def test_threads_serve_different_levels_at_the_same_time(regime):
    net = digits(regime).eval()
    x = torch.randn(2, 1, 8, 8)
    alphas = [0.2, 0.4, 0.6, 0.8]
    with torch.no_grad():
        expected = []
        for alpha in alphas:
            with net.at(alpha):
                expected.append(net(x))
    wrong: list[float] = []
    barrier = threading.Barrier(len(alphas))

    def serve(alpha, answer):
        barrier.wait()
        for _ in range(20):
            with torch.no_grad(), net.at(alpha):
                if not torch.equal(net(x), answer):
                    wrong.append(alpha)

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(alphas, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len({tuple(answer.flatten().tolist()) for answer in expected}) == len(alphas)


def test_no_module_holds_the_level():
    net = digits("width").eval()

    def attributes():
        return [
            (name, key, repr(value))
            for name, module in net.model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (int, float, str, tuple, torch.Tensor))
        ]

    before = attributes()
    with torch.no_grad(), net.at(0.3):
        net(torch.randn(1, 1, 8, 8))
        assert attributes() == before


@pytest.mark.parametrize("regime", ["sparse", "width", "quant"])
def test_switching_leaves_no_trace(regime):
    net = digits(regime)
    net.train()
    with net.at(0.5):
        net(torch.randn(4, 1, 8, 8))
    net.eval()
    x = torch.randn(2, 1, 8, 8)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        with net.at(0.3):
            first = net(x)
        for alpha in (0.0, 0.9, 1.0):
            with net.at(alpha):
                net(torch.randn(8, 1, 8, 8) * 100)
        with net.at(0.3):
            assert torch.equal(net(x), first)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_compiled_network_follows_the_level_without_recompiling():
    torch._dynamo.reset()
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    for regime in ("sparse", "quant"):
        net = tiny(regime).train()
        graphs = 0
        compiled = torch.compile(net, backend=count, fullgraph=True)
        x = torch.randn(2, 1, 8, 8)
        for alpha in (0.2, 0.4, 0.9):
            level = net.make_level(alpha, net.settings.map.value(alpha))
            with net.context.enter(level):
                torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)
        assert graphs <= 2, f"{regime}: {graphs} graphs for three levels"


def test_compiled_network_takes_prepared_weights_as_inputs():
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    net = tiny("sparse").eval()
    compiled = torch.compile(net, backend=keep, fullgraph=True)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for alpha in (0.2, 0.4, 0.9):
            with net.at(alpha):
                torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)
    assert len(graphs) <= 2
    called = {str(node.target) for graph in graphs for node in graph.graph.nodes if node.op != "placeholder"}
    assert not any("sort" in name or "kthvalue" in name or "lerp" in name for name in called), called


def test_compiled_network_has_one_graph_per_width():
    torch._dynamo.reset()
    net = tiny("width").eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        for width in (0.25, 0.5, 0.25):
            with net.at(width=width):
                torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_recomputes_at_the_level_of_the_step():
    from torch.utils.checkpoint import checkpoint

    net = digits("width")
    x = torch.randn(2, 1, 8, 8)
    features = net.model.features

    class Checkpointed(nn.Module):
        def forward(self, x):
            return net.model.head(checkpoint(features, x, use_reentrant=False).flatten(1))

    grads = []
    for model in (net.model, Checkpointed()):
        net.zero_grad()
        with net.at(width=0.5):
            loss = model(x).square().mean()
            # autograd runs recomputation of a GPU's work in threads of its own, which have entered no level
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        grads.append([p.grad.clone() for p in net.parameters()])
    for plain, recomputed in zip(*grads):
        torch.testing.assert_close(plain, recomputed)


# samplers and schedules


def draws(sampler, count=4000):
    return [sampler.draw(step_generator(0, step)) for step in range(count)]


def test_biased_sampler_visits_the_ends_half_of_the_time():
    values = [v for (v,) in draws(BiasedEndpoints(0.5))]
    sigma = math.sqrt(0.25 / len(values))
    ends = [v for v in values if v in (0.0, 1.0)]
    assert abs(len(ends) / len(values) - 0.5) < 3 * sigma
    assert abs(sum(ends) / len(ends) - 0.5) < 3 * math.sqrt(0.25 / len(ends))
    inside = [v for v in values if v not in (0.0, 1.0)]
    assert abs(sum(inside) / len(inside) - 0.5) < 3 * math.sqrt(1 / 12 / len(inside))


def test_bits_are_drawn_with_equal_odds():
    net = digits("quant", "point", warmup=0.0)
    counts = dict.fromkeys(range(3, 9), 0)
    for step in range(3000):
        counts[int(step_levels(net, step, 3000)[0].value)] += 1
    sigma = math.sqrt(3000 * (1 / 6) * (5 / 6))
    assert all(abs(count - 500) < 4 * sigma for count in counts.values()), counts


def test_sandwich_has_both_ends_and_uniform_rest():
    for values in draws(Sandwich(4), 50):
        assert values[:2] == [0.0, 1.0] and len(values) == 4
        assert all(0 < v < 1 for v in values[2:])
    with pytest.raises(ValueError, match="both ends"):
        Sandwich(1)


def test_other_samplers():
    assert all(0 <= v <= 1 for values in draws(Uniform(3), 100) for v in values)
    assert {v for (v,) in draws(Discrete((0.2, 0.7)), 100)} == {0.2, 0.7}
    assert Fixed((0.1, 1.0)).draw(step_generator(0, 0)) == [0.1, 1.0]
    with pytest.raises(ValueError, match="positions"):
        Discrete((0.5, 1.2))


def test_draws_depend_on_seed_step_and_rank_only():
    def value(*arguments):
        return float(torch.rand((), generator=step_generator(*arguments)))

    assert value(1, 2) == value(1, 2)
    points = [(seed, step, rank) for seed in range(4) for step in range(50) for rank in range(4)]
    assert len({value(*point) for point in points}) == len(points)


@pytest.mark.parametrize(
    ("epochs", "images", "batch"), [(200, 50_000, 128), (90, 1_281_167, 128), (3, 10, 1)]
)
def test_warmup_lasts_four_fifths_of_the_steps_rounded_up(epochs, images, batch):
    steps = epochs * (images // batch)
    assert warmup_steps(0.8, steps) == math.ceil(round(0.8 * steps, 6))


def test_line_ramps_monotonically_to_its_level():
    net = digits(sampler=Fixed((0.0,)))
    kept = [step_levels(net, step, 100)[0].value for step in range(100)]
    assert kept[0] == 1.0 and all(a >= b for a, b in pairwise(kept))
    assert kept[40] == pytest.approx(0.025 + 0.975 * 0.5)
    assert all(value == pytest.approx(0.025) for value in kept[80:])


def test_sparse_point_trains_dense_then_at_random():
    net = digits("sparse", "point")
    kept = [step_levels(net, step, 100)[0].value for step in range(100)]
    assert all(value == 1.0 for value in kept[:80])
    assert all(0.025 <= value <= 1 for value in kept[80:]) and len(set(kept[80:])) > 10


def test_quantised_line_draws_bits_from_the_start_and_rounds_inputs_later():
    net = digits("quant")
    levels = [step_levels(net, step, 100)[0] for step in range(100)]
    assert len({level.value for level in levels[:80]}) == 6
    assert [level.inputs_too for level in levels] == [False] * 80 + [True] * 20
    assert [level.observe for level in levels] == [False] * 80 + [True] * 20


def test_quantised_point_keeps_eight_bits_until_the_delay_ends():
    net = digits("quant", "point")
    levels = [step_levels(net, step, 100)[0] for step in range(100)]
    assert {level.value for level in levels[:80]} == {8} and len({level.value for level in levels[80:]}) > 3
    shared = [set(level.bits) for level in levels[80:]]
    assert all(len(bits) == 1 for bits in shared)
    per_layer = digits("quant", "point", bits_per="layer")
    assert any(len(set(step_levels(per_layer, step, 100)[0].bits)) > 1 for step in range(80, 100))


def test_upstream_parity_switches_what_the_published_code_does_differently():
    sparse, width = digits("sparse", parity="upstream"), digits("width", parity="upstream")
    quant = digits("quant", "point", parity="upstream")
    assert sparse.settings.map.kind == "upstream"
    assert {space.step for space in width.settings.plan.spaces} == {1}
    assert quant.settings.bits_per == "layer"
    assert bool((sparse.named_layers()["features.1"].weight == 0.5).all())
    alphas = {step_levels(sparse, step, 100)[0].alpha for step in range(100)}
    assert min(alphas) == 0.025 and max(alphas) == 1.0


# what cannot be wrapped


def test_shared_modules_are_refused_by_name():
    model = DigitsNet()
    model.again = model.features[9]
    with pytest.raises(ValueError, match=r"'again' is the same object as 'features\.9'|'features\.9'"):
        wrap(model, regime="sparse")


def test_tied_parameters_are_refused_by_name():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"1\.weight"):
        wrap(model, regime="sparse")


def test_batch_norm_kept_by_mistake_is_refused_by_name():
    model = DigitsNet()
    model.features[4] = nn.SyncBatchNorm(16)
    with pytest.raises(ValueError, match=r"features\.4 would keep batch statistics"):
        wrap(model, regime="sparse")


def test_batch_norm_kept_knowingly_is_allowed():
    net = digits(norm="batch")
    assert any("running_mean" in key for key in net.state_dict())


@pytest.mark.parametrize(
    "options",
    [{"regime": "depth"}, {"subspace": "plane"}, {"norm": "none"}, {"parity": "paper"}, {"warmup": 1.5},
     {"skip": ("stemm",)}, {"alpha_map": "cubic"}],
)  # fmt: skip
def test_misspelt_options_are_refused(options):
    with pytest.raises(ValueError):
        wrap(DigitsNet(), **{"regime": "sparse", **options})


def test_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="no convolution"):
        wrap(nn.Sequential(nn.ReLU()), regime="sparse")


def test_threads_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = digits().eval()
        with torch.no_grad(), net.at(0.5):
            net(torch.zeros(1, 1, 8, 8))
