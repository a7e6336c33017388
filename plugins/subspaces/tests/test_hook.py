"""mmengine: the hook visits the levels of every step inside the framework's own loop."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional

from graftwork_subspaces import loss_step, step_levels, wrap
from graftwork_subspaces.digits import DigitsNet

pytest.importorskip("mmengine", reason="mmengine is not installed")
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

pytestmark = pytest.mark.mmengine
STEPS = 4


class Classifier(BaseModel):
    """The least that mmengine trains: the network is a part of it, as a backbone is."""

    def __init__(self, regime="width"):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = wrap(DigitsNet(), regime=regime, input_size=(1, 8, 8), multiple=1)

    def forward(self, inputs, labels, mode="tensor"):
        logits = self.backbone(inputs)
        if mode == "loss":
            return {"loss": functional.cross_entropy(logits, labels)}
        return [logits]


class Recorder(Hook):
    """Notes the level that the framework's own step ran at."""

    def __init__(self):
        self.alphas = []
        self.outside = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.outside.append(runner.model.backbone.context.entered())
        scalars = runner.message_hub.log_scalars["train/lcs_alpha"].data
        self.alphas.append(float(scalars[0][-1]))


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2 * STEPS

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"inputs": torch.randn(1, 8, 8, generator=generator), "labels": torch.tensor(index % 10)}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)
    yield
    logging.shutdown()


def train(folder, model, hook, recorder, **wrapper):
    runner = Runner(
        model,
        str(folder),
        train_dataloader={
            "dataset": Data(), "batch_size": 2, "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": STEPS},
        optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.05}, **wrapper},
        custom_hooks=[{"priority": "LOWEST", "type": Recorder}] if recorder is None else [hook, recorder],
        default_hooks={"checkpoint": None},
        log_level="ERROR",
        experiment_name=f"{folder.name}-{id(model)}",
    )  # fmt: skip
    return runner.train()


@pytest.mark.parametrize("name", ["graftwork.LCSHook", "graftwork_subspaces.LCSHook"])
@pytest.mark.parametrize("regime", ["width", "sparse"])
def test_runner_trains_as_loss_step_does(tmp_path, name, regime):
    recorder, model, expected = Recorder(), Classifier(regime), Classifier(regime)
    train(tmp_path, model, {"type": name, "seed": 7}, recorder)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.05)
    expected.backbone.train()
    data, alphas = Data(), []
    for step in range(STEPS):
        pair = [data[2 * step], data[2 * step + 1]]
        x, y = (torch.stack([item[key] for item in pair]) for key in ("inputs", "labels"))
        optimizer.zero_grad()
        losses = loss_step(expected.backbone, x, y, step=step, total_steps=STEPS, seed=7)
        optimizer.step()
        alphas.append(losses.levels[-1].alpha)
    assert recorder.alphas == pytest.approx(alphas)
    for (key, ours), theirs in zip(model.named_parameters(), expected.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, k=key: f"{k}: {text}")
    assert not model.backbone.context.entered()


def test_accumulated_iterations_visit_the_same_levels(tmp_path):
    recorder, model = Recorder(), Classifier("sparse")
    train(tmp_path, model, {"type": "graftwork.LCSHook"}, recorder, accumulative_counts=2)
    expected = [step_levels(model.backbone, step, STEPS // 2)[0].alpha for step in range(STEPS // 2)]
    assert recorder.alphas == pytest.approx([alpha for alpha in expected for _ in range(2)])


def test_model_without_a_compressible_network_is_refused(tmp_path):
    model = Classifier()
    model.backbone = DigitsNet()
    with pytest.raises(ValueError, match=r"graftwork_subspaces\.wrap"):
        train(tmp_path, model, {"type": "graftwork.LCSHook"}, Recorder())


def test_validation_runs_at_the_level_asked_for():
    from graftwork_subspaces.hook import LCSHook

    model = Classifier()
    runner = type("Runner", (), {"model": model})()
    hook = LCSHook(eval_alpha=0.25)
    hook.before_val_epoch(runner)
    assert model.backbone.context.level().alpha == 0.25
    hook.after_val_epoch(runner)
    assert not model.backbone.context.entered()


def test_importing_the_package_needs_no_mmengine(fresh_python):
    fresh_python(
        "import sys; import graftwork_subspaces; assert 'mmengine' not in sys.modules; "
        "from graftwork_subspaces import LCSHook; assert 'mmengine' in sys.modules"
    )
