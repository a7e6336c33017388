"""What this package tells graftwork: its timm variants."""

from __future__ import annotations

from graftwork import ModelVariant, Paper, hookimpl
from graftwork_spin.variants import CFGS, VARIANTS

PAPER = Paper(
    title="SPIN: An Empirical Evaluation on Sharing Parameters of Isotropic Networks",
    url="https://arxiv.org/abs/2207.10237",
    year=2022,
    bibtex="""@inproceedings{lin2022spin,
  title={{SPIN}: An Empirical Evaluation on Sharing Parameters of Isotropic Networks},
  author={Lin, Chien-Yu and Prabhu, Anish and Merth, Thomas and Mehta, Sachin and Ranjan, Anurag and
          Horton, Maxwell and Rastegari, Mohammad},
  booktitle={European Conference on Computer Vision},
  year={2022}
}""",
)


@hookimpl
def graftwork_models() -> list[ModelVariant]:
    """Offer every variant of the table. None has published weights; the tag describes the input."""
    return [
        ModelVariant(
            name=variant.name,
            summary=variant.summary,
            paper=PAPER,
            target=f"graftwork_spin.models:{variant.name}",
            base=variant.base,
            weights={"untrained": CFGS[variant.family]},
        )
        for variant in VARIANTS
    ]
