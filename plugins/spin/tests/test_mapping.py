from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from graftwork_spin.mapping import DISTRIBUTIONS, MAPPINGS, groups_of, sharing_mapping


def runs(mapping: tuple[int, ...]) -> list[int]:
    """Lengths of the stretches of equal neighbours."""
    lengths = [1]
    for previous, current in pairwise(mapping):
        if current == previous:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


def test_sequential_gives_neighbours_one_tensor():
    assert sharing_mapping(6, 2, "sequential") == (0, 0, 1, 1, 2, 2)


def test_strided_gives_equal_remainders_one_tensor():
    assert sharing_mapping(6, 2, "strided") == (0, 1, 2, 0, 1, 2)


def test_random_uses_every_tensor_equally_often_and_follows_its_seed():
    first = sharing_mapping(32, 4, "random", seed=0)
    assert Counter(first) == Counter(sharing_mapping(32, 4))
    assert first == sharing_mapping(32, 4, "random", seed=0)
    assert first != sharing_mapping(32, 4, "random", seed=1)
    assert first != sharing_mapping(32, 4)


def test_random_mapping_of_seed_zero_does_not_change_between_versions():
    # A checkpoint stores its mapping, so a changed generator would refuse every older one.
    assert sharing_mapping(8, 2, "random", seed=0) == (1, 3, 2, 1, 2, 0, 3, 0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize(("depth", "rate"), [(32, 2), (32, 4), (16, 2), (18, 3), (8, 2), (12, 4), (6, 6)])
def test_every_distribution_stores_the_same_number_of_tensors(depth, rate, mapping, distribution):
    layers = sharing_mapping(depth, rate, mapping, distribution)
    assert len(layers) == depth
    assert set(layers) == set(range(depth // rate))


def test_partial_distributions_share_24_of_32_layers_in_threes():
    front, middle, back = (sharing_mapping(32, 2, distribution=name) for name in ("front", "middle", "back"))
    assert runs(front) == [3] * 8 + [1] * 8
    assert runs(middle) == [1] * 4 + [3] * 8 + [1] * 4
    assert runs(back) == [1] * 8 + [3] * 8


def test_pyramid_has_its_largest_group_in_the_middle():
    assert runs(sharing_mapping(32, 2, distribution="pyramid")) == [1] * 5 + [2, 4, 9, 4, 2] + [1] * 6


def test_rate_one_shares_nothing_whatever_the_distribution():
    for distribution in DISTRIBUTIONS:
        assert sharing_mapping(5, 1, "strided", distribution) == (0, 1, 2, 3, 4)


def test_rate_that_does_not_divide_warns_and_shortens_the_last_group():
    with pytest.warns(UserWarning, match="does not divide the depth 7"):
        assert sharing_mapping(7, 3) == (0, 0, 0, 1, 1, 1, 2)


def test_explicit_mapping_is_taken_as_it_is():
    assert sharing_mapping(4, 2, [1, 0, 0, 1]) == (1, 0, 0, 1)


def test_groups_are_the_inverse_of_a_mapping():
    mapping = sharing_mapping(12, 3, "random")
    groups = groups_of(mapping)
    assert sorted(layer for group in groups for layer in group) == list(range(12))
    assert all(mapping[layer] == index for index, group in enumerate(groups) for layer in group)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0}, "from 1 .* to the depth 6"),
        ({"rate": 7}, "got 7"),
        ({"rate": 1.5}, "got 1.5"),
        ({"mapping": "cyclic"}, "sequential, strided, random"),
        ({"distribution": "top"}, "uniform, front"),
        ({"mapping": [0, 0, 1]}, "3 entries, but the network has 6 layers"),
        ({"mapping": [0, 0, 1, 1, 3, 3]}, r"\[2\] is never used"),
        ({"mapping": [-1, 0, 0, 0, 0, 0]}, "negative"),
        ({"mapping": [0] * 6, "distribution": "front"}, "leave distribution out"),
    ],
)
def test_impossible_choices_are_refused_with_a_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharing_mapping(6, **arguments)
