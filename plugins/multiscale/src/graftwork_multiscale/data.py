"""Loading samples at their sampled size in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from graftwork_multiscale.indices import ScaledIndex

Transform = Callable[[Any], Any]
TransformFactory = Callable[[int, int], Transform]


class ScaledDataset(Dataset[Any]):
    """Applies to every sample the transform of the size that was sampled for its batch.

    Example:
        >>> images = ImageFolder("train")  # doctest: +SKIP
        >>> data = ScaledDataset(images, lambda h, w: RandomResizedCrop((h, w)))  # doctest: +SKIP
        >>> loader = DataLoader(data, batch_sampler=sampler, num_workers=8)  # doctest: +SKIP

    Transforms are made where the sample is loaded, once per size and worker, and are never changed from
    outside, so worker processes need not be told anything.

    Args:
        dataset: Map-style data set of tuples or lists; the transform gets the first element. Leave out its
            own transform.
        transforms: Makes the transform of a size, (height, width) -> transform; or a mapping from (height,
            width) to transforms. A function that is sent to worker processes by spawn must be picklable.
    """

    def __init__(
        self, dataset: Any, transforms: TransformFactory | Mapping[tuple[int, int], Transform]
    ) -> None:
        self.dataset = dataset
        self.transforms = transforms
        self._made: dict[tuple[int, int], Transform] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: ScaledIndex) -> Any:
        """Load one sample.

        Raises:
            TypeError: The index carries no size, or the sample is neither tuple nor list.
        """
        if not isinstance(item, ScaledIndex):
            raise TypeError(
                f"ScaledDataset got the index {item!r} without a size; give the DataLoader "
                "batch_sampler=MultiScaleBatchSampler(...)."
            )
        sample = self.dataset[item[1]]
        if not isinstance(sample, (tuple, list)) or not sample:
            raise TypeError(
                f"ScaledDataset expects tuples such as (image, label), got {type(sample).__name__} from "
                f"{type(self.dataset).__name__}."
            )
        return type(sample)((self._transform(item.size)(sample[0]), *sample[1:]))

    def _transform(self, size: tuple[int, int]) -> Transform:
        if size not in self._made:
            if isinstance(self.transforms, Mapping):
                if size not in self.transforms:
                    known = ", ".join(f"{height}x{width}" for height, width in self.transforms)
                    raise KeyError(f"no transform for {size[0]}x{size[1]}, only for {known}.")
                self._made[size] = self.transforms[size]
            else:
                self._made[size] = self.transforms(*size)
        return self._made[size]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": {}}


def resize_batch(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a batch where it lies, for images that all have one size in memory.

    Decoding and augmentation then cost the same at every scale, and the device does the resizing.

    Example:
        >>> resize_batch(torch.zeros(2, 3, 32, 32), (48, 48)).shape
        torch.Size([2, 3, 48, 48])

    Args:
        images: (B, C, H, W).
        size: (height, width).

    Returns:
        (B, C, height, width), bilinear, with anti-aliasing where it shrinks.
    """
    if images.shape[-2:] == torch.Size(size):
        return images
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
