"""What this package tells graftwork: its timm variants."""

from __future__ import annotations

from graftwork import ModelVariant, Paper, hookimpl
from graftwork_token_pooling.variants import BASES, SCHEDULES, record

PAPER = Paper(
    title="Token Pooling in Vision Transformers",
    url="https://arxiv.org/abs/2110.03860",
    year=2021,
    bibtex="""@inproceedings{marin2023token,
  title={Token Pooling in Vision Transformers for Image Classification},
  author={Marin, Dmitrii and Chang, Jen-Hao Rick and Ranjan, Anurag and Prabhu, Anish and
          Rastegari, Mohammad and Tuzel, Oncel},
  booktitle={IEEE/CVF Winter Conference on Applications of Computer Vision},
  year={2023}
}""",
)


@hookimpl
def graftwork_models() -> list[ModelVariant]:
    """Offer every base with every schedule. The weights are those of the base: pooling adds none."""
    return [
        ModelVariant(
            name=f"{name}_tp_{schedule}",
            summary=f"{base.label} with Token Pooling: {meaning}",
            paper=PAPER,
            target=f"graftwork_token_pooling.models:{name}_tp_{schedule}",
            base=name,
            weights={base.tag: record(name)},
        )
        for name, base in BASES.items()
        for schedule, meaning in SCHEDULES.items()
    ]
