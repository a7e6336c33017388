"""The CUDA source: compiled by nvcc where there is one, and its kernels run on threads of the host."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from graftwork import extension
from graftwork.extension.library import INCLUDE
from graftwork_butterfly import kernels, native
from graftwork_butterfly.functional import apply_staged
from graftwork_butterfly.structure import Structure, structure

HERE = Path(__file__).parent
CSRC = Path(native.__file__).parent / "csrc"
SHAPES = [(16, 16, 4), (24, 24, 4), (58, 58, 4), (16, 40, 4), (40, 16, 4), (7, 7, 8), (30, 30, 6), (2, 5, 4)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the host")
    output = tmp_path_factory.mktemp("host") / "butterfly.so"
    source = CSRC / "butterfly_cuda.cu"
    flags = ["-x", "c++", "-std=c++20", "-O1", "-D__CUDACC__", "-shared", "-fPIC", "-pthread"]
    folders = [f"-I{folder}" for folder in (HERE / "cuda_on_host", INCLUDE, CSRC)]
    subprocess.run([compiler, *flags, *folders, str(source), "-o", str(output)], check=True)
    return ctypes.CDLL(str(output))


def arguments(x: Tensor, plan: Structure, channels_last: bool) -> tuple:
    layout = (ctypes.c_int32 * len(plan.layout))(*plan.layout)
    images, _, pixels = x.shape
    return (
        ctypes.c_int64(images),
        ctypes.c_int64(pixels),
        layout,
        native.DTYPES[x.dtype],
        int(channels_last),
        None,
    )


def address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def stored(x: Tensor, channels_last: bool) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2) if channels_last else x.contiguous()


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("residual", ["first_last", "none"])
@pytest.mark.parametrize(("inputs", "outputs", "base"), SHAPES)
def test_kernels_on_host_threads_equal_the_reference(
    library: ctypes.CDLL, inputs: int, outputs: int, base: int, residual: str, channels_last: bool
) -> None:
    plan = structure(inputs, outputs, base, residual)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for pixels in (1, 37):
        x, grad = (torch.randn(2, c, pixels, generator=generator) for c in (inputs, outputs))
        weight = torch.randn(plan.weights, generator=generator)
        exact = x.double().requires_grad_(), weight.double().requires_grad_()
        expected = apply_staged(*exact, plan.layout)
        gradients = torch.autograd.grad(expected, exact, grad.double())
        x, grad = stored(x, channels_last), stored(grad, channels_last)
        y, gx = stored(torch.empty(2, outputs, pixels), channels_last), torch.empty_like(x)
        rest = arguments(x, plan, channels_last)
        assert library.bft_forward_cuda(address(x), address(weight), address(y), *rest) == 0
        assert torch.allclose(y.double(), expected, rtol=1e-4, atol=1e-4)
        blocks = 3
        sums = torch.zeros(blocks, plan.weights)
        pointers = (address(x), address(weight), address(grad), address(gx), address(sums))
        assert library.bft_backward_cuda(*pointers, blocks, *rest) == 0
        assert torch.allclose(gx.double(), gradients[0], rtol=1e-4, atol=1e-4)
        assert torch.allclose(sums.sum(0).double(), gradients[1], rtol=1e-4, atol=1e-3)


def test_bfloat16_kernel_on_host_threads_is_rounded_once(library: ctypes.CDLL) -> None:
    plan = structure(40, 16)
    x = torch.randn(2, 40, 9).bfloat16()
    weight = torch.randn(plan.weights)
    y = torch.empty(2, 16, 9, dtype=torch.bfloat16)
    rest = arguments(x, plan, False)
    assert library.bft_forward_cuda(address(x), address(weight), address(y), *rest) == 0
    expected = apply_staged(x.double(), weight.double(), plan.layout)
    assert float((y.double() - expected).norm() / expected.norm()) < 3e-3


def test_a_tile_that_fits_no_shared_memory_is_refused(library: ctypes.CDLL) -> None:
    plan = structure(2**15, 2**15)
    x, weight = torch.zeros(1, 2**15, 1), torch.zeros(plan.weights)
    library.graftwork_error.restype = ctypes.c_char_p
    assert library.bft_forward_cuda(address(x), address(weight), address(x), *arguments(x, plan, False)) == 1
    assert b"32768 channels do not fit into the 65536 bytes" in library.graftwork_error()


@pytest.mark.slow
def test_nvcc_compiles_the_source() -> None:
    try:
        path = extension.build(native.CUDA)
    except extension.Unavailable as error:
        if "no CUDA compiler was found" in str(error):
            pytest.skip(str(error))
        raise
    assert path.stat().st_size > 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (256, 256), (1024, 1024), (64, 150), (150, 64)])
def test_kernels_on_the_device_equal_the_reference(
    inputs: int, outputs: int, memory: torch.memory_format, dtype: torch.dtype
) -> None:
    plan = structure(inputs, outputs)
    x = torch.randn(2, inputs, 9, 11, device="cuda", dtype=dtype).contiguous(memory_format=memory)
    weight = torch.randn(plan.weights, device="cuda") / 2
    probe = torch.randn(2, outputs, 9, 11, device="cuda", dtype=dtype)
    exact = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = apply_staged(exact[0].flatten(2), exact[1], plan.layout).view(probe.shape)
    gradients = torch.autograd.grad(expected, exact, probe.double())
    x.requires_grad_()
    weight.requires_grad_()
    y = kernels.fused(x, weight, plan.layout)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for found, other in zip((y, *torch.autograd.grad(y, (x, weight), probe)), (expected, *gradients)):
        assert float((found.detach().double() - other).norm() / other.norm()) < tolerance
