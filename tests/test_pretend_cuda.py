"""The pretend CUDA device itself: cases whose behaviour on a GPU is known, tried in a process of their own.

Each case is a name and a function; those of `RAISES` must raise what CUDA raises, those of `WORKS` must work and
return True where they return anything.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]


def gpu(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda")


def cpu(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def leaf(*shape: int) -> torch.Tensor:
    return gpu(*shape).requires_grad_()


def numbers(*values: int, device: str = "cpu") -> torch.Tensor:
    return torch.tensor(values, device=device)


def put(index: object, value: object) -> bool:
    x = gpu(4, 3)
    x[index] = value
    return x.is_cuda


def gradient_of(function: Callable, *shape: int) -> torch.Tensor:
    weight = leaf(*shape)
    function(weight).square().sum().backward()
    return weight.grad


def gradient_of_a_cpu_leaf() -> bool:
    weight = torch.ones(3, requires_grad=True)
    (weight.to("cuda") * gpu(3)).sum().backward()
    return weight.grad.device.type == "cpu"


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        assert gradient.device == ctx.saved_tensors[0].device
        return gradient * torch.full((1,), 2.0, device=gradient.device)


def adam(**options: bool) -> bool:
    weight = leaf(3, 2)
    optimiser = torch.optim.Adam([weight], **options)
    (gpu(4, 3) @ weight).sum().backward()
    torch.nn.utils.clip_grad_norm_([weight], 1.0)
    optimiser.step()
    return optimiser.state[weight]["exp_avg"].is_cuda and weight.is_cuda


def fused_adam_with_its_step_on_the_cpu() -> None:
    weight = leaf(3)
    optimiser = torch.optim.Adam([weight], fused=True)
    moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
    optimiser.state[weight] = {"step": torch.zeros(()), **moments}
    weight.sum().backward()
    optimiser.step()


def module() -> torch.nn.Module:
    made = torch.nn.BatchNorm1d(3)
    return made.to("cuda")


def loaded_from_the_cpu() -> bool:
    linear = torch.nn.Linear(2, 2).to("cuda")
    linear.load_state_dict(torch.nn.Linear(2, 2).state_dict())
    return linear.weight.is_cuda


def product_under_autocast() -> bool:
    with torch.autocast("cuda", torch.bfloat16):
        return (gpu(2, 2) @ gpu(2, 2)).dtype == torch.bfloat16


def a_copy_on_the_cpu_is_another_tensor() -> bool:
    there = torch.ones(3, device="cuda")
    there.cpu().zero_()
    return float(there.sum()) == 3


RAISES: dict[str, tuple[type[Exception], Callable]] = {
    "a sum of both": (RuntimeError, lambda: gpu(3) + cpu(3)),
    "a CUDA scalar and a CPU vector": (RuntimeError, lambda: gpu() * cpu(3)),
    "a CUDA vector added in place to a CPU scalar": (RuntimeError, lambda: torch.tensor(1.0).add_(gpu())),
    "a product of both": (RuntimeError, lambda: gpu(2, 3) @ cpu(3, 2)),
    "cat of both": (RuntimeError, lambda: torch.cat([gpu(2), cpu(2)])),
    "stack of scalars of both": (RuntimeError, lambda: torch.stack([gpu(), torch.tensor(1.0)])),
    "where by a CPU condition": (RuntimeError, lambda: torch.where(cpu(3) > 0, gpu(3), gpu(3))),
    "masked_fill by a CPU mask": (RuntimeError, lambda: gpu(3).masked_fill(cpu(3) > 0, 0.0)),
    "a CPU tensor at CUDA indices": (RuntimeError, lambda: cpu(5)[numbers(0, 1, device="cuda")]),
    "a CPU tensor at a CUDA mask": (RuntimeError, lambda: cpu(5)[gpu(5) > 0]),
    "CPU values put at indices": (RuntimeError, lambda: put(numbers(0, 1), cpu(2, 3))),
    "CPU values put at a mask": (RuntimeError, lambda: put(gpu(4) > -9, cpu(4, 3))),
    "gather by CPU indices": (RuntimeError, lambda: gpu(2, 3).gather(1, numbers(0, 1)[:, None])),
    "index_add_ at CPU indices": (RuntimeError, lambda: gpu(3).index_add_(0, numbers(0), gpu(1))),
    "scatter_ at CPU indices": (RuntimeError, lambda: gpu(2, 3).scatter_(1, numbers(0, 1)[:, None], 1.0)),
    "embedding of CPU ids": (RuntimeError, lambda: F.embedding(numbers(0), gpu(3, 2))),
    "embedding of CPU ids by a module": (RuntimeError, lambda: torch.nn.Embedding(3, 2).to("cuda")(numbers(0))),
    "cross_entropy with CPU targets": (RuntimeError, lambda: F.cross_entropy(gpu(2, 3), numbers(0, 1))),
    "isin of both": (RuntimeError, lambda: torch.isin(numbers(0, 1, device="cuda"), numbers(0, 1))),
    "out= on the CPU": (RuntimeError, lambda: torch.cumsum(gpu(3), 0, out=torch.empty(3))),
    "lstsq of both": (RuntimeError, lambda: torch.linalg.lstsq(gpu(3, 2), cpu(3, 2))),
    "one_hot of CPU numbers": (RuntimeError, lambda: F.one_hot(numbers(0, 1), 3) @ gpu(3, 2).long()),
    "a product of integers": (RuntimeError, lambda: gpu(2, 2).long() @ gpu(2, 2).long()),
    "numpy of a CUDA tensor": (TypeError, lambda: gpu(3).numpy()),
    "asarray of a CUDA tensor": (TypeError, lambda: __import__("numpy").asarray(gpu(3))),
    "a CPU generator for a CUDA tensor": (
        RuntimeError, lambda: torch.randn(3, generator=torch.Generator(), device="cuda")),
    "a CUDA generator for a CPU tensor": (RuntimeError, lambda: torch.randperm(3, generator=torch.Generator("cuda"))),
    "normal_ by a CPU generator": (RuntimeError, lambda: gpu(3).normal_(generator=torch.Generator())),
    "fused Adam whose step is on the CPU": (RuntimeError, fused_adam_with_its_step_on_the_cpu),
    "a mistake in a backward pass": (RuntimeError, lambda: gradient_of(lambda w: Mistaken.apply(w), 3)),
}  # fmt: skip


class Mistaken(Doubled):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.full((3,), 2.0)


WORKS: dict[str, Callable] = {
    "a Python number": lambda: (2 * gpu(3) + 1).is_cuda,
    "a CPU scalar": lambda: (gpu(3) + torch.tensor(2.0)).is_cuda and (torch.tensor(2.0) * gpu(3)).is_cuda,
    "scalars of both": lambda: (torch.tensor(2.0) * gpu()).is_cuda,
    "where with a CPU scalar": lambda: torch.where(gpu(3) > 0, gpu(3), torch.tensor(0.0)).is_cuda,
    "where with numbers": lambda: torch.where(gpu(3) > 0, -1.0, 1.0).is_cuda,
    "a CUDA tensor at CPU indices": lambda: gpu(5, 2)[numbers(0, 1)].is_cuda,
    "a CUDA tensor at a CPU mask": lambda: gpu(3)[torch.tensor([True, False, True])].is_cuda,
    "a CPU slice put": lambda: put(slice(2), cpu(2, 3)),
    "a number put at a mask": lambda: put(gpu(4) > 0, 0.0),
    "a CPU scalar put at indices": lambda: put(numbers(0, 1), torch.tensor(1.0)),
    "copy_ to either side": lambda: gpu(3).copy_(cpu(3)).is_cuda and not cpu(3).copy_(gpu(3)).is_cuda,
    "a number read": lambda: float(gpu(3).sum()) == float("nan") or isinstance(gpu(1).item(), float),
    "a list read": lambda: len(gpu(3).tolist()) == 3,
    "numpy by way of cpu()": lambda: gpu(3).cpu().numpy().shape == (3,),
    "cpu() is another tensor": a_copy_on_the_cpu_is_another_tensor,
    "to() where it is, is itself": lambda: (x := gpu(3)).to("cuda") is x and x.to(x) is x,
    "to() with a dtype": lambda: (x := cpu(3).to("cuda", torch.float64)).is_cuda and x.dtype == torch.float64,
    "to() like another": lambda: cpu(3).to(gpu(1)).is_cuda and not gpu(3).to(cpu(1)).is_cuda,
    "as_tensor of either": lambda: torch.as_tensor(cpu(3), device="cuda").is_cuda and torch.as_tensor(gpu(3)).is_cuda,
    "factories": lambda: all(
        make(2, device="cuda").is_cuda and not make(2).is_cuda
        for make in (torch.zeros, torch.ones, torch.empty, torch.rand, torch.arange, torch.eye, torch.randperm)
    ),
    "likes": lambda: torch.zeros_like(gpu(3)).is_cuda and not torch.zeros_like(gpu(3), device="cpu").is_cuda,
    "news": lambda: gpu(3).new_zeros(2).is_cuda and not cpu(3).new_zeros(2).is_cuda,
    "views": lambda: gpu(4).view(2, 2).T[0].is_cuda and gpu(4).detach().is_cuda and gpu(4).unbind()[0].is_cuda,
    "several results": lambda: all(x.is_cuda for x in (*gpu(3).topk(2), *gpu(3).sort(), *torch.linalg.qr(gpu(3, 3)))),
    "an empty tensor": lambda: torch.cat([gpu(0, 3), gpu(2, 3)]).is_cuda,
    "one_hot": lambda: F.one_hot(numbers(0, 1, device="cuda"), 3).is_cuda and not F.one_hot(numbers(0, 1), 3).is_cuda,
    "a CUDA generator": lambda: torch.randn(3, generator=torch.Generator("cuda").manual_seed(1), device="cuda").is_cuda,
    "equal devices": lambda: gpu(1).device == torch.device("cuda:0") != torch.device("cuda"),
    "a gradient": lambda: gradient_of(lambda w: gpu(4, 3) @ w, 3, 2).is_cuda,
    "a gradient across cpu()": lambda: gradient_of(lambda w: w.cpu() * cpu(3), 3).is_cuda,
    "a gradient to a CPU leaf": gradient_of_a_cpu_leaf,
    "a gradient through a function of one's own": lambda: gradient_of(lambda w: Doubled.apply(w * 1), 3).is_cuda,
    "a module with a buffer": lambda: module()(gpu(4, 3)).is_cuda and module().running_mean.is_cuda,
    "a copy of a module": lambda: all(x.is_cuda for x in copy.deepcopy(module()).state_dict().values()),
    "weights loaded from the CPU": loaded_from_the_cpu,
    "Adam": adam,
    "fused Adam": lambda: adam(fused=True),
    "autocast computes in bfloat16": product_under_autocast,
}


def outcome(case: Callable) -> str:
    """What came of a case: the kind of exception and its message, or "" for an expected answer."""
    try:
        answer = case()
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return "" if answer is not False else "returned False"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    """{case: what came of it}, all tried in one process that pretends."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_pretend_cuda"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", RAISES)
def test_what_cuda_refuses_is_refused(outcomes, case):
    kinds = RAISES[case][0]
    names = [kind.__name__ for kind in (kinds, *kinds.__subclasses__())]
    assert outcomes[case].split(":")[0] in names, outcomes[case] or "nothing was raised"
    assert re.search(r"\[tests/test_pretend_cuda\.py:\d+\]$", outcomes[case]), "the line of ours is not named"


@pytest.mark.parametrize("case", WORKS)
def test_what_cuda_allows_works(outcomes, case):
    assert outcomes[case] == ""


if __name__ == "__main__":
    from tests import pretend_cuda

    pretend_cuda.install()
    tried = {name: outcome(case) for name, (_, case) in RAISES.items()} | {n: outcome(c) for n, c in WORKS.items()}
    print(json.dumps(tried))
