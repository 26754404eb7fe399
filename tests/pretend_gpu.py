"""A pretend CUDA device on the CPU, for tests without a GPU: it finds tensors of mixed devices, host waits, and
collectives that NCCL refuses.

    with PretendGpu() as gpu:
        model.to("cuda")
        ...
    gpu.waits        where the host would have waited for the device, and how often
    gpu.launches     the operations that launch kernels, and how often

All tensors are CPU tensors and all values are computed. A storage is marked when it is moved to `cuda` or made there,
and every result of an operation on marked storages is marked. Two modes keep the marks: one sees calls of the Python
API, where devices are named, the other sees the operations that these calls and backward passes consist of.

The device is as slow as can be: what is enqueued has run once the host waits for it, and not before. Several streams
are one; there is nothing of memory, or of CUDA's arithmetic and autocast lists.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from nccl_rules import nccl_rules
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

import groundray
from groundray.data import device_decoding

PACKAGE = f"{Path(groundray.__file__).parent}/"
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
SHAPE, DEVICE, IS_CUDA = (vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "device", "is_cuda"))
Place = Literal["cuda", "pinned", "pageable"]
aten = torch.ops.aten

# The size of their result, or of something within, depends on values: the host waits for these.
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "bool",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.unique_dim.default: "unique",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# Operations without a kernel, besides views.
NO_LAUNCH = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten._unsafe_view}
TAKES_BOTH = INDEXING | {aten.copy_.default, aten._to_copy.default, aten.detach.default, aten.set_.source_Tensor}
# Operations that a CPU lacks: the product of two matrices of half precision in float32.
STAND_INS = {aten.mm.dtype_out: lambda a, b, dtype, *, out: aten.mm.out(a.to(dtype), b.to(dtype), out=out)}


class MixedDevices(RuntimeError):
    """An operation that a GPU refuses: its tensors are not all on one device."""


class NotReady(RuntimeError):
    """The host reads what the device has not yet computed, as far as it knows."""


class PretendGpu:
    """Run the code inside the context as on a machine with one GPU.

    Attributes:
        waits: lines at which the host waits for the device, with the cause, and the number of waits at each. Blocking
            copies between host and device wait, and so does what reads a value.
        pageable: lines that start a copy of pageable memory to the device, and bytes copied. The host does not wait
            for the device there, but copies the bytes itself.
        launches: names of operations on the GPU that launch at least one kernel, and how often: all but views.
        collectives: descriptions of NCCL's collectives, whose rules are checked (`nccl_rules`).
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.pageable: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.collectives: list[str] = []
        self._calls, self._operations = _Calls(self), _Operations(self)
        # of each Python call in progress, whether tensors that it makes are on the GPU
        self._makes_on_gpu: list[bool] = []
        self._enqueued = self._reached = 0  # moments of the device: the last one, and the last that the host knows past
        self._in_call = 0  # calls in progress within which the mode of calls is off

    def reset(self) -> None:
        """Forget what was counted."""
        for counts in (self.waits, self.pageable, self.launches, self.collectives):
            counts.clear()

    def __enter__(self) -> PretendGpu:
        self._stack = contextlib.ExitStack()
        for name, value in _cuda_api(self).items():
            self._stack.enter_context(mock.patch(name, value))
        self.collectives = self._stack.enter_context(nccl_rules(_device_of, gloo="cpu"))
        self._stack.enter_context(self._operations)
        self._stack.enter_context(self._calls)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def wait(self, cause: str, moment: int | None = None) -> None:
        """Count a wait of the host, until the device has reached a moment; None for all that is enqueued."""
        moment = self._enqueued if moment is None else moment
        if moment > self._reached or cause != "Event.synchronize":
            self.waits[f"{cause} @ {_line()}"] += 1
        self._reached = max(self._reached, moment)

    def enqueue(self) -> int:
        """Return the moment at which the device will have done what is enqueued so far."""
        self._enqueued += 1
        return self._enqueued

    def check_reached(self, moment: int) -> None:
        """Raise NotReady if the host has not waited for a moment."""
        if moment > self._reached:
            raise NotReady(f"what the device has not yet done is read: wait for an event first @ {_line()}")

    # calls of the Python API

    def call(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        on_gpu = any(is_on_gpu(x) for x in _tensors((args, kwargs)))
        if function in (Tensor.untyped_storage, Tensor.data_ptr, Tensor.__len__, SHAPE):
            return function(*args, **kwargs)
        if function == DEVICE:
            return CUDA if on_gpu else CPU
        if function == IS_CUDA:
            return on_gpu
        if function is Tensor.is_pinned:
            return place_of(args[0]) == "pinned"
        if function is Tensor.pin_memory:
            return _mark(args[0].clone(), "pinned")
        if function in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self._move(function, args, kwargs)
        if function in (Tensor.numpy, Tensor.__array__) and on_gpu:
            raise TypeError(f"a tensor on cuda:0 has no NumPy array, copy it with .cpu() first @ {_line()}")
        if function in (Tensor.tolist, Tensor.item, Tensor.numpy, Tensor.__array__) and not on_gpu:
            self.check_reached(getattr(args[0].untyped_storage(), "copied_at", 0))
        if function is Tensor.tolist and on_gpu:
            self.wait("tolist")
        if function is Tensor.backward:  # its own Python code, and that of custom backward passes, is seen too
            gradient = args[1] if len(args) > 1 else kwargs.pop("gradient", None)
            with self._calls:
                return torch.autograd.backward(args[0], gradient, *args[2:], **kwargs)
        pinned = bool(kwargs.pop("pin_memory", False))
        wanted = kwargs.get("device")
        to_gpu = on_gpu if wanted is None else torch.device(wanted).type == "cuda"
        if wanted is not None and to_gpu:
            kwargs["device"] = CPU
        if to_gpu and function in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            self.wait("numbers copied to the device")
        with self._outside_calls(to_gpu):
            result = function(*args, **kwargs)
        if wanted is not None or pinned or function is Tensor.new_tensor:
            _mark(result, "cuda" if to_gpu else "pinned" if pinned else "pageable")
        return result

    def _move(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        x, *rest = args
        if function in (Tensor.cuda, Tensor.cpu):
            rest = ["cuda" if function is Tensor.cuda else "cpu"]
        elif rest and isinstance(rest[0], Tensor):
            rest[:1] = [rest[0].device if not is_on_gpu(rest[0]) else CUDA, rest[0].dtype]
        copy = bool(kwargs.pop("copy", False))
        device, dtype, non_blocking, form = torch._C._nn._parse_to(*rest, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        before = place_of(x)
        after: Place = before if device is None else "cuda" if device.type == "cuda" else "pageable"
        moves = (before == "cuda") != (after == "cuda")
        if moves:
            self._copied(x, before, non_blocking)
            if before == "cuda" and non_blocking:
                after = "pinned"
        options = ({"dtype": dtype} if dtype else {}) | ({"memory_format": form} if form else {})
        with self._outside_calls(after == "cuda"):
            result = x.to(CPU, copy=copy or moves, **options)
        if result is not x:
            _mark(result, after)
            if after == "pinned":
                result.untyped_storage().copied_at = self.enqueue()  # pyright: ignore[reportAttributeAccessIssue]
        return result

    def _copied(self, source: Tensor, place: Place, non_blocking: bool) -> None:
        """Count a copy between host and device."""
        if not non_blocking:
            self.wait("blocking copy to the host" if place == "cuda" else "blocking copy to the device")
        if place == "pageable":
            self.pageable[_line()] += source.nbytes

    @contextlib.contextmanager
    def _outside_calls(self, makes_on_gpu: bool) -> Iterator[None]:
        self._in_call += 1
        self._makes_on_gpu.append(makes_on_gpu)
        try:
            yield
        finally:
            self._makes_on_gpu.pop()
            self._in_call -= 1

    # operations

    def operation(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensors = _tensors((args, kwargs))
        marks = [is_on_gpu(x) for x in tensors]
        on_gpu = any(marks)
        if operation.namespace == "groundray":
            return self._composite(operation, args, kwargs, on_gpu)
        if on_gpu:
            self._check_devices(operation, args, tensors, marks)
            if operation in WAITS:
                self.wait(WAITS[operation])
        if operation is aten.copy_.default:
            if marks[0] != marks[1] and tensors[1].dim() > 0:
                self._copied(tensors[1], place_of(tensors[1]), bool(kwargs.get("non_blocking", any(args[2:]))))
            return operation(*args, **kwargs)
        if (device := kwargs.get("device")) is not None and torch.device(device).type == "cuda":
            kwargs["device"], on_gpu = CPU, True
        result = (STAND_INS.get(operation) or operation)(*args, **kwargs)
        if not on_gpu and (tensors or not self._makes_on_gpu or not self._makes_on_gpu[-1]):
            return result
        if not operation.is_view and operation.overloadpacket not in NO_LAUNCH:
            self.launches[operation.name()] += 1
        return _mark(result, "cuda")

    def _check_devices(
        self, operation: Any, args: Sequence[Any], tensors: Sequence[Tensor], marks: Sequence[bool]
    ) -> None:
        if operation in INDEXING:
            indices = _tensors(args[1])
            if not is_on_gpu(args[0]) and any(is_on_gpu(x) for x in indices):
                raise MixedDevices(f"{operation}: expected indices on cpu, as the indexed tensor is @ {_line()}")
            if is_on_gpu(args[0]) and not all(is_on_gpu(x) for x in indices):
                self.wait("indices copied to the device")
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.wait("mask as index")
        if operation in TAKES_BOTH or operation.namespace == "c10d":
            return
        takes_numbers = not operation.name().startswith("aten::_fused")  # CPU tensors of no dimension count as numbers
        for x, marked in zip(tensors, marks, strict=True):
            if not marked and (x.dim() or not takes_numbers):
                shape = tuple(x.shape)
                raise MixedDevices(f"{operation}: expected all tensors on cuda:0, got {shape} on cpu @ {_line()}")

    def _composite(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any], on_gpu: bool) -> Any:
        """Run an operator that is written in Python in terms of others, all of which are seen."""
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
        within, self._in_call = self._in_call, 0
        self._makes_on_gpu.append(on_gpu)
        try:
            with self._operations, self._calls if within else contextlib.nullcontext():
                return operation.redispatch(keys, *args, **kwargs)
        finally:
            self._makes_on_gpu.pop()
            self._in_call = within


class _Calls(TorchFunctionMode):
    def __init__(self, gpu: PretendGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.call(func, args, dict(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: PretendGpu):
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.operation(func, args, dict(kwargs or {}))


def is_on_gpu(x: Tensor) -> bool:
    """Return True if a tensor is on the pretend GPU."""
    return place_of(x) == "cuda"


def place_of(x: Tensor) -> Place:
    """Return where a tensor's memory is."""
    return getattr(x.untyped_storage(), "place", "pageable")


def _device_of(x: Tensor) -> str:
    """Return the kind of a tensor's device, in hooks of a backward pass too, which no mode of calls sees."""
    return "cuda" if is_on_gpu(x) else "cpu"


def _mark(result: Any, place: Place) -> Any:
    for x in _tensors(result):
        x.untyped_storage().place = place  # pyright: ignore[reportAttributeAccessIssue]
    return result


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in trees.tree_leaves(tree) if isinstance(x, Tensor)]


def _line() -> str:
    """Return the innermost line of groundray that runs now; outside it, the innermost that is not torch's."""
    frames = traceback.extract_stack()
    own = [frame for frame in frames if frame.filename.startswith(PACKAGE)]
    other = [frame for frame in frames if frame.filename != __file__ and "/torch/" not in frame.filename]
    frame = (own or other)[-1]
    return f"{frame.filename.removeprefix(PACKAGE)}:{frame.lineno}  {frame.line}"


def _cuda_api(gpu: PretendGpu) -> dict[str, Any]:
    """Return stand-ins for the names of torch.cuda that groundray uses, by name."""
    autocast, grouped = torch.autocast, torch._C._group_tensors_by_device_and_dtype

    def by_device_and_dtype(*args: Any) -> dict[Any, Any]:
        groups = grouped(*args)
        return {(CUDA if is_on_gpu(_tensors(group)[0]) else CPU, kind): group for (_, kind), group in groups.items()}

    class Event:
        def __init__(self, **_: Any):
            self._moment, self._time = 0, 0.0

        def record(self, stream: Any = None) -> None:
            self._moment, self._time = gpu.enqueue(), time.perf_counter()

        def synchronize(self) -> None:
            gpu.wait("Event.synchronize", self._moment)

        def query(self) -> bool:
            return self._moment <= gpu._reached

        def wait(self, stream: Any = None) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            for event in (self, end):
                gpu.check_reached(event._moment)
            return (end._time - self._time) * 1e3

    class Stream:
        def __init__(self, *_: Any, **__: Any):
            pass

        def wait_stream(self, stream: Any) -> None:
            pass

        def wait_event(self, event: Any) -> None:
            pass

        def record_event(self, event: Event | None = None) -> Event:
            event = event or Event()
            event.record()
            return event

        def synchronize(self) -> None:
            gpu.wait("Stream.synchronize")

    current = Stream()
    decode_jpegs = device_decoding.decode_jpegs
    return {
        "torch.cuda.Event": Event,
        "torch.cuda.Stream": Stream,
        "torch.cuda.current_stream": lambda *_: current,
        "torch.cuda.stream": lambda _: contextlib.nullcontext(),
        "torch.cuda.device": lambda _: contextlib.nullcontext(),
        "torch.cuda.synchronize": lambda *_: gpu.wait("synchronize"),
        "torch.cuda.get_device_name": lambda *_: "NVIDIA H100 80GB HBM3",
        "torch.cuda.max_memory_allocated": lambda *_: 0,
        "torch.Tensor.record_stream": lambda x, stream: None,
        "torch._C._group_tensors_by_device_and_dtype": by_device_and_dtype,
        "groundray.data.device_decoding.decode_jpegs": lambda jpegs, _: _mark(decode_jpegs(jpegs, "cpu"), "cuda"),
        # the modes see one thread
        "groundray.data.device_copies.one_ahead": lambda items, name: items,
        "torch.autocast": lambda _, *args, **kwargs: autocast("cpu", *args, **kwargs),
    }
