"""A pretend CUDA device for a torch without one: a tensor that is on the wrong device fails as it would on a GPU.

``install()`` patches torch for the whole process and cannot be undone: call it in a subprocess, after the libraries
that look for a GPU when they are imported. From then on ``device="cuda"`` works, and every mistake raises what CUDA
raises, with the project's own file and line in the message; `MISTAKES` keeps those that somebody caught.

How it works: everything computes on the processor, and a mark on a tensor's storage says that it is "on cuda:0".

- Views share a storage, so they share its mark, and so do parameters and what ``.data`` is set to.
- A dispatch mode sees each operation below autograd, backward passes too: it marks results, and refuses operands that
  may not meet. As on CUDA, pointwise operations take a CPU tensor without dimensions, indexing takes CPU indices, and
  ``copy_`` crosses.
- What never gets that far is patched: ``.device``, ``.to``, ``.cpu``, ``.numpy``, ``torch.tensor``,
  ``torch.Generator``, ``torch.autocast``, ``torch.cuda``.
- A tensor made inside an operation written in C++, ``one_hot``'s zeros say, does not tell for which device: it fits
  either, and belongs to that of the first tensor it meets.

Not simulated: values (random streams, TF32, the rounding and the order of CUDA's sums; bfloat16 under autocast is the
processor's), speed, memory, streams and asynchronous errors, several GPUs, kernels that CUDA lacks but for products of
integers, pickling of marked tensors, sparse tensors (taken to be on the CPU), ``zeros_like(x, device=)`` and the like
where C++ asks for another device than x's, and threads other than the one that installed it (they can read and
move marked tensors; what they compute is unmarked).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
FREE = "fits either"  # the third state of a mark
OURS = ("rkcnn_lib", "notebooks", "tests")  # where a mistake can be; an environment may lie in the project's folder
MISTAKES: list[str] = []

INDEXING = {"aten::index", "aten::_unsafe_index"}
PUTTING = {"aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put"}
CROSSING = {"aten::copy_", "aten::set_"}  # the first operand says where the result is, the others may be anywhere
TAKES_SCALARS = {
    "aten::masked_fill",
    "aten::masked_fill_",
    "aten::fill",
    "aten::fill_",
    "aten::where",
}  # if not pointwise
NO_INTEGERS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mv", "aten::addmv", "aten::dot"}

_REAL = {name: getattr(torch.Tensor, name) for name in ("device", "to", "numpy", "__array__", "__deepcopy__")}
_REAL |= {name: getattr(torch, name) for name in ("tensor", "as_tensor", "asarray")}
_cuda_generators: dict[int, torch.Generator] = {}  # by address, and kept alive, so that no address is used again


def install() -> None:
    """Pretend, in this process and from this thread, until it ends."""
    _patch_tensors()
    _patch_torch()
    _patch_torch_cuda()
    _Watch().__enter__()


def mistake(kind: type[Exception], text: str) -> None:
    """Note what CUDA would refuse, and raise it with the innermost line of the project that led there."""
    frame, place = sys._getframe(1), "outside the project"
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(ROOT / part) for part in OURS) and path != Path(__file__).resolve():
            place = f"{path.relative_to(ROOT)}:{frame.f_lineno}"
            break
        frame = frame.f_back
    MISTAKES.append(f"{text} [{place}]")
    raise kind(MISTAKES[-1])


def _mark_of(t: torch.Tensor) -> torch.device | str:
    """CUDA, CPU or FREE."""
    try:
        return getattr(t.untyped_storage(), "pretend", CPU)
    except NotImplementedError:  # sparse
        return CPU


def _mark(t: torch.Tensor, where: torch.device | str) -> torch.Tensor:
    if _mark_of(t) != where:
        t.untyped_storage().pretend = where
    return t


def is_cuda(t: torch.Tensor) -> bool:
    """Whether a tensor is on the pretend device."""
    return _mark_of(t) == CUDA


def _asked(device: Any) -> torch.device | None:
    """The device that an argument names, if it is one of the two."""
    if device is None:
        return None
    kind = "cuda" if isinstance(device, int) else torch.device(device).type
    return {"cuda": CUDA, "cpu": CPU}.get(kind)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among some arguments or results, in order, and those in lists of them."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


class _Watch(TorchDispatchMode):
    """Sees every operation below autograd: where its operands are, and so where its results are."""

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        operands = _tensors(args) + _tensors(kwargs.values())
        made = "device" in kwargs and "pin_memory" in kwargs  # by a call from Python; only that names both
        where = _asked(kwargs["device"]) if made or _asked(kwargs.get("device")) == CUDA else None
        if where is None and not operands and "device" in kwargs:
            where = FREE
        if where in (CUDA, CPU):
            kwargs["device"] = CPU
        met = _meet(op, operands) if operands else CPU
        where = met if where is None else where
        _check_generator(kwargs, where)
        out = op(*args, **kwargs)
        if where != CPU and op._schema.name != "aten::set_":  # which hands over a storage, and so its mark
            for t in _tensors((out,)):
                _mark(t, where)
        return out


def _meet(op: Any, operands: list[torch.Tensor]) -> torch.device | str:
    """Where the results of an operation are; a mistake, where its operands may not meet."""
    marks = [_mark_of(t) for t in operands]
    if CUDA not in marks:
        return FREE if all(mark == FREE for mark in marks) else _adopted(operands, marks, CPU)
    name, lenient = op._schema.name, torch.Tag.pointwise in op.tags or op._schema.name in TAKES_SCALARS
    if name in CROSSING and marks[0] != FREE:
        return marks[0]
    if name in INDEXING | PUTTING:
        if marks[0] == CPU:
            mistake(RuntimeError, f"{name}: indices should be on the same device as the indexed tensor (cpu)")
        # indices may be on the CPU, and so may a value without dimensions
        checked = operands[-1:] if name in PUTTING and operands[-1].ndim else []
        strangers = [t for t in checked if _mark_of(t) == CPU]
    else:
        strangers = [t for t, m in zip(operands, marks, strict=True) if m == CPU and not (lenient and t.ndim == 0)]
        if lenient and marks[0] == CPU and name.endswith("_"):
            strangers = operands[:1]  # written to in place
    if strangers:
        shapes = ", ".join(str(tuple(t.shape)) for t in strangers)
        mistake(
            RuntimeError,
            f"{name}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"On the cpu: {shapes}",
        )
    if name in NO_INTEGERS and not (operands[0].is_floating_point() or operands[0].is_complex()):
        mistake(NotImplementedError, f'"{name}" not implemented on CUDA for {operands[0].dtype}')
    return _adopted(operands, marks, CUDA)


def _adopted(operands: list[torch.Tensor], marks: list, where: torch.device) -> torch.device:
    for t, mark in zip(operands, marks, strict=True):
        if mark == FREE:
            _mark(t, where)
    return where


def _check_generator(kwargs: dict, where: torch.device | str) -> None:
    generator = kwargs.get("generator")
    if generator is not None and where != FREE:
        its = CUDA if generator._cdata in _cuda_generators else CPU
        if its != where:
            mistake(RuntimeError, f"Expected a '{where.type}' device type for generator but found '{its.type}'")


class _Generator(torch._C.Generator):
    """A CPU generator that says it is on the pretend device."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        self = super().__new__(cls, "cpu")
        if _asked(device) == CUDA:
            _cuda_generators[self._cdata] = self
        return self

    def __init__(self, device: Any = "cpu") -> None:
        """Take the argument of `__new__`."""

    @property
    def device(self) -> torch.device:
        return CUDA if self._cdata in _cuda_generators else CPU


class _Move(torch.autograd.Function):
    """A copy on the other device, whose gradient goes back to where the tensor was."""

    @staticmethod
    def forward(ctx: Any, t: torch.Tensor, where: torch.device, words: dict) -> torch.Tensor:
        ctx.was, ctx.dtype = (CUDA if is_cuda(t) else CPU), t.dtype
        return _copied(t, where, words)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        return _copied(gradient, ctx.was, {"dtype": ctx.dtype}), None, None


def _copied(t: torch.Tensor, where: torch.device, words: dict) -> torch.Tensor:
    return _mark(torch.ops.aten._to_copy.default(t, **words), where)


def _moved(t: torch.Tensor, where: torch.device, copy: bool = False, **words: Any) -> torch.Tensor:
    """``t`` where it is asked to be: itself, or a copy through which gradients flow."""
    words = {name: word for name, word in words.items() if word is not None}
    if is_cuda(t) == (where == CUDA):
        return _REAL["to"](t, copy=copy, **words)
    if t.requires_grad and torch.is_grad_enabled():
        return _Move.apply(t, where, words)
    return _copied(t.detach(), where, words)


def _to(t: torch.Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
    other = kwargs.pop("other", None) if not args else args[0]
    if isinstance(other, torch.Tensor):
        return _moved(t, CUDA if is_cuda(other) else CPU, copy, dtype=other.dtype)
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    if t.is_meta or (device is not None and _asked(device) is None):
        return _REAL["to"](t, *args, copy=copy, **kwargs)
    where = _asked(device) or (CUDA if is_cuda(t) else CPU)
    return _moved(t, where, copy, dtype=dtype, memory_format=memory_format)


def _to_numpy(name: str) -> Any:
    def method(t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if is_cuda(t):
            mistake(
                TypeError,
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
                "first.",
            )
        return _REAL[name](t, *args, **kwargs)

    return method


def _from_data(name: str) -> Any:
    """``torch.tensor`` and its kin, which copy data on the processor where no mode sees it."""

    def function(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, torch.Tensor):
            where = _asked(device) or (CUDA if is_cuda(data) else CPU)
            data = data.detach() if name == "tensor" else data
            return _moved(data, where, copy=name == "tensor", dtype=kwargs.get("dtype", args[0] if args else None))
        out = _REAL[name](data, *args, **kwargs)
        return _moved(out, CUDA) if _asked(device) == CUDA else out

    return function


def _patch_tensors() -> None:
    T = torch.Tensor
    T.device = property(lambda t: CUDA if is_cuda(t) else _REAL["device"].__get__(t))
    T.is_cuda = property(is_cuda)
    T.is_cpu = property(lambda t: t.device.type == "cpu")
    T.get_device = lambda t: 0 if is_cuda(t) else -1
    T.to = _to
    T.type_as = lambda t, other: _to(t, other)
    T.cpu = lambda t, memory_format=None: _moved(t, CPU, memory_format=memory_format)
    T.cuda = lambda t, device=None, non_blocking=False, memory_format=None: _moved(t, CUDA, memory_format=memory_format)
    T.numpy, T.__array__ = _to_numpy("numpy"), _to_numpy("__array__")
    T.__deepcopy__ = lambda t, memo: _mark(_REAL["__deepcopy__"](t, memo), _mark_of(t))  # its storage is copied


def _patch_torch() -> None:
    from torch.utils._device import _device_constructors

    _device_constructors()  # remembers, once, which functions make tensors: the real ones
    for name in ("tensor", "as_tensor", "asarray"):
        setattr(torch, name, _from_data(name))
    torch.Generator = _Generator

    class Autocast(torch.autocast):
        """On the pretend device the processor's, which computes products in bfloat16 too."""

        def __init__(self, device_type: str, dtype: Any = None, enabled: bool = True, **kwargs: Any) -> None:
            if device_type == "cuda":
                device_type, dtype = "cpu", dtype or torch.float16
            super().__init__(device_type, dtype, enabled, **kwargs)

    torch.autocast = torch.amp.autocast = Autocast
    real_groups = torch._C._group_tensors_by_device_and_dtype  # optimisers and clipping ask it where tensors are

    def groups(lists: list, with_indices: bool = False) -> dict:
        found = real_groups(lists, with_indices)
        return {(CUDA if is_cuda(group[0][0][0]) else d, dtype): group for (d, dtype), group in found.items()}

    torch._C._group_tensors_by_device_and_dtype = groups


def _patch_torch_cuda() -> None:
    gigabytes = 80 * 2**30
    card = SimpleNamespace(name="pretend GPU", total_memory=gigabytes, major=9, minor=0, multi_processor_count=132)
    answers = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "is_current_stream_capturing": False,
        "device_count": 1, "current_device": 0, "set_device": None, "get_device_name": card.name,
        "get_device_properties": card, "get_device_capability": (9, 0), "mem_get_info": (gigabytes, gigabytes),
        "memory_allocated": 0, "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
        "synchronize": None, "manual_seed": None, "manual_seed_all": None, "_lazy_init": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    torch.version.cuda = "pretend"
