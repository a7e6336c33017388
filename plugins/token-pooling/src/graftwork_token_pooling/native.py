"""The K-Medoids loops in C++, for a CPU; where it cannot be had, the PyTorch loop serves."""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from graftwork import extension

CLUSTER = extension.Library(
    name="cluster_cpu",
    package="graftwork_token_pooling",
    sources=["csrc/cluster.cpp"],
    functions={
        "k_medoids": (c_void_p,) * 4 + (c_int64,) * 4 + (c_int,),
        "farthest_seeds": (c_void_p,) * 3 + (c_int64,) * 3 + (c_int,),
    },
)
"""The native library; ``python -m graftwork.extension status graftwork_token_pooling.native:CLUSTER``."""


def serves(tensor: Tensor) -> bool:
    """Say whether native code can work on a tensor: a real one on the CPU, outside of any graph capture."""
    if type(tensor) is not Tensor or tensor.device.type != "cpu":
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        extension.load(CLUSTER)
    except extension.Unavailable:
        return False
    return True


def k_medoids(gram: Tensor, weights: Tensor, seeds: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Run K-Medoids on Gram matrices; the result equals that of the PyTorch loop.

    Args:
        gram: (B, N, N) float32, inner products of the tokens.
        weights: (B, N) float32, positive.
        seeds: (B, K) int64, token index of each initial medoid.
        iterations: Rounds of assignment and update.

    Returns:
        Assignment (B, N) and medoids (B, K), both int64.

    Raises:
        graftwork.extension.Unavailable: There is no native library here.
    """
    batch, tokens = weights.shape
    clusters = seeds.shape[1]
    medoids = seeds.clone(memory_format=torch.contiguous_format)
    assignment = torch.empty(batch, tokens, dtype=torch.int64)
    extension.load(CLUSTER).k_medoids(
        extension.pointer(gram.contiguous(), torch.float32, shape=(batch, tokens, tokens), name="gram"),
        extension.pointer(weights.contiguous(), torch.float32, name="weights"),
        extension.pointer(medoids, torch.int64, shape=(batch, clusters), name="seeds"),
        extension.pointer(assignment, torch.int64, name="assignment"),
        batch,
        tokens,
        clusters,
        iterations,
        extension.threads(),
    )
    return assignment, medoids


def farthest_seeds(gram: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """Choose seeds far apart; the result equals that of the PyTorch loop.

    Args:
        gram: (B, N, N) float32, inner products of the tokens.
        weights: (B, N) float32, positive.
        clusters: K.

    Returns:
        (B, K), int64, token index of each seed.

    Raises:
        graftwork.extension.Unavailable: There is no native library here.
    """
    batch, tokens = weights.shape
    seeds = torch.empty(batch, clusters, dtype=torch.int64)
    extension.load(CLUSTER).farthest_seeds(
        extension.pointer(gram.contiguous(), torch.float32, shape=(batch, tokens, tokens), name="gram"),
        extension.pointer(weights.contiguous(), torch.float32, name="weights"),
        extension.pointer(seeds, torch.int64, name="seeds"),
        batch,
        tokens,
        clusters,
        extension.threads(),
    )
    return seeds
