"""The plugin and its model keep graftwork's contracts."""

from __future__ import annotations

import timm
import torch
from graftwork.testing import ModelContract, PluginContract

from acme_rezero import Gate


class TestPlugin(PluginContract):
    plugin = "rezero"
    distribution = "acme-rezero"


class TestReZero(ModelContract):
    variant = "deit_tiny_patch16_224_rezero"
    input_size = (3, 64, 64)
    model_kwargs = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    parameters = 5_717_440
    macs = 1_253_683_200

    def limit_case(self, subject):
        """With every gate at one it is DeiT."""
        ours = subject.build()
        with torch.no_grad():
            for module in ours.modules():
                if isinstance(module, Gate):
                    module.alpha.fill_(1)
        base = timm.create_model("deit_tiny_patch16_224", **subject.kwargs())
        gates = {name for name in ours.state_dict() if name.endswith("alpha")}
        base.load_state_dict({name: t for name, t in ours.state_dict().items() if name not in gates})
        return ours, base
