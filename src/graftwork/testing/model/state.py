"""What is stored: state dicts, safetensors, copies, pickles, moving averages and seeds."""

# ruff: noqa: D102  the name of a check is its sentence

from __future__ import annotations

import copy
import io
import pickle
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from graftwork.testing.model.subject import CLASSES, ModelDeclaration, Subject, agree, single


def aliases(state: dict[str, Tensor]) -> list[str]:
    """Return the groups of keys that name the same storage, as text."""
    keys: dict[int, list[str]] = defaultdict(list)
    for key, tensor in state.items():
        if tensor.numel():
            keys[tensor.untyped_storage().data_ptr()].append(key)
    return [" = ".join(group) for group in keys.values() if len(group) > 1]


class StateChecks(ModelDeclaration):
    """Saving, copying and building a model again."""

    def answers_alike(self, model: nn.Module, subject: Subject, what: str) -> None:
        """Fail unless a model in evaluation mode gives exactly the shared model's output."""
        with torch.no_grad():
            agree(single(model(subject.images())), subject.logits, what, rtol=0.0, atol=0.0)

    def test_state_dict_round_trip(self, subject: Subject) -> None:
        file = io.BytesIO()
        torch.save(subject.model.state_dict(), file)
        file.seek(0)
        other = subject.build(seed=1)
        other.load_state_dict(torch.load(file, weights_only=True))
        self.answers_alike(other, subject, "output before and after a state-dict round trip")

    def test_every_stored_tensor_has_one_key(self, subject: Subject) -> None:
        shared = aliases(subject.model.state_dict())
        assert not shared, f"safetensors refuses, and a moving average updates twice, shared keys: {shared}"

    def test_safetensors_round_trip(self, subject: Subject) -> None:
        from safetensors.torch import load, save

        other = subject.build(seed=1)
        other.load_state_dict(load(save(subject.model.state_dict())))
        self.answers_alike(other, subject, "output before and after a safetensors round trip")

    def test_local_weights_load_through_timm(self, subject: Subject, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        file = tmp_path / "weights.safetensors"
        save_file(subject.model.state_dict(), file)
        overlay = {"file": str(file), "num_classes": CLASSES}
        same = subject.raw(seed=1, pretrained=True, pretrained_cfg_overlay=overlay).eval()
        self.answers_alike(same, subject, "output before and after loading by create_model(pretrained=True)")
        changed = {"num_classes": 5, "in_chans": 1}
        other = subject.raw(seed=1, pretrained=True, pretrained_cfg_overlay=overlay, **changed).eval()
        source = subject.model.state_dict()
        body = {
            name: tensor for name, tensor in other.state_dict().items() if source[name].shape == tensor.shape
        }
        lost = [name for name, tensor in body.items() if not torch.equal(tensor, source[name])]
        assert not lost, f"not taken from the file, though the shape fits: {', '.join(lost)}"
        assert len(body) < len(source), "neither the first layer nor the classifier was adapted"
        with torch.no_grad():
            assert single(other(subject.images(channels=1))).shape == (2, 5)

    def test_deepcopy_is_equal_and_independent(self, subject: Subject) -> None:
        original = subject.build()
        duplicate = copy.deepcopy(original)
        self.answers_alike(duplicate, subject, "output of a model and of its copy")
        with torch.no_grad():
            for parameter in duplicate.parameters():
                parameter.zero_()
        self.answers_alike(original, subject, "output of a model before and after its copy was emptied")

    def test_pickle_round_trip(self, subject: Subject) -> None:
        other = pickle.loads(pickle.dumps(subject.model))
        assert type(other) is type(subject.model)
        self.answers_alike(other, subject, "output before and after pickling")

    def test_moving_average_follows_the_model(self, subject: Subject) -> None:
        from timm.utils import ModelEmaV3

        model = subject.build()
        average = ModelEmaV3(model, decay=0.5)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        average.update(model)
        after = average.module.state_dict()
        for name, parameter in model.named_parameters():
            agree(after[name], 0.5 * (before[name] + parameter), f"moving average of {name}")

    def test_same_seed_gives_the_same_model(self, subject: Subject) -> None:
        first = subject.raw(seed=3, foreign_seed=0).state_dict()
        second = subject.raw(seed=3, foreign_seed=1).state_dict()
        assert list(first) == list(second)
        changed = [name for name in first if not torch.equal(first[name], second[name])]
        assert not changed, f"not decided by torch's seed: {', '.join(changed)}"

    def test_evaluation_is_repeatable(self, subject: Subject) -> None:
        before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
        self.answers_alike(subject.model, subject, "two evaluations of the same images")
        after = subject.model.state_dict()
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert not changed, f"evaluation changes the state: {', '.join(changed)}"
