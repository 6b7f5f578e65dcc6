"""How an operator is defined, once for all of them: its schema, its shape inference, its backend and its gradient.

An operator is one function. It allocates its outputs with `Call.empty` and, where ``call.computes`` them, lets
``call.backend`` write them:

    @operator
    def crop_resize(call: Call, image: Tensor, boxes: Tensor | None, size: Sequence[int], ...) -> Tensor:
        out = call.empty((*image.shape[:2], *size), dtype, like=image, channels_last=is_channels_last(image))
        if call.computes(out):
            call.backend.crop_resize(out, image, boxes, ...)
        return out

The schema is made of the annotations. While shapes are inferred (`torch.compile`, `torch.export`), the same function
runs with a `Call` that computes nothing.

An operator is called with the wish for a backend and for validation first: ``crop_resize(backend, validate, image,
...)``. The first tensor decides about the device, and is the only one that a gradient may reach.

**Gradients**: `Operator.gradient` takes the usual methods of a `torch.autograd.Function`: ``setup_context``,
``backward`` and, for a forward mode, ``jvp``. Called from Python, that `Function` wraps the operator, or nothing does
where no gradient is asked for; in a graph, which holds the operator alone, it is the operator's kernel for autograd.
What that saves beside `torch.library.custom_op` is in bench/NOTES.md.

Each operator has a batching rule for `torch.vmap`: one call for each entry.
"""

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tritonsoft import memory
from tritonsoft._validation import has_tangent, should_validate
from tritonsoft.backends.protocol import Backend
from tritonsoft.backends.select import LARGE, backend_for, warn_where_numba_is_missing
from tritonsoft.geometry import Classes, Filter, Measure, Reduction

P = ParamSpec("P")
R = TypeVar("R")

_library: Any = torch.library.Library("tritonsoft", "DEF")  # type: ignore[no-untyped-call]

_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    int | None: "SymInt?",
    float: "float",
    bool: "bool",
    str: "str",
    Filter: "str",
    Reduction: "str",
    Measure: "str",
    Classes: "str",
    torch.dtype: "ScalarType",
    Sequence[int]: "SymInt[]",
    list[Tensor]: "Tensor[]",
    tuple[Tensor, Tensor]: "(Tensor, Tensor)",
    tuple[Tensor, Tensor, Tensor]: "(Tensor, Tensor, Tensor)",
    tuple[Tensor, Tensor, Tensor, Tensor]: "(Tensor, Tensor, Tensor, Tensor)",
}


class Call(NamedTuple):
    """One call of an operator: who computes it, and whether the values that it reads are checked."""

    chosen: Backend | None  # None while shapes are inferred
    validate: bool

    @property
    def backend(self) -> Backend:
        """Who writes the outputs; only where the call computes them."""
        assert self.chosen is not None
        return self.chosen

    def empty(self, shape: Sequence[int], dtype: torch.dtype, like: Tensor, channels_last: bool = False) -> Tensor:
        """An output on the device of ``like``."""
        if self.chosen is None:
            return like.new_empty_strided(shape, memory.strides_of(shape, channels_last), dtype=dtype)
        return memory.empty(shape, dtype, like.device, channels_last)

    def zero(self, output: Tensor) -> Tensor:
        """The output of a call that has nothing to compute but a number."""
        return output if self.chosen is None else output.zero_()

    def computes(self, *outputs: Tensor) -> bool:
        """Whether there is anything to write."""
        return self.chosen is not None and any(output.numel() > 0 for output in outputs)


_INFERENCE = Call(None, False)


class Operator(Generic[P, R]):
    """A registered operator; `operator` makes one of a function."""

    def __init__(self, body: Callable[Concatenate[Call, P], R]) -> None:
        self.body = body
        self.name = body.__name__
        self.__doc__ = body.__doc__
        qualified = f"tritonsoft::{self.name}"
        _library.define(self.name + _schema(body), tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(self.name, self._compute, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, self._infer, lib=_library)
        torch.library.register_vmap(qualified, self._batch, lib=_library)
        self.overload = getattr(torch.ops.tritonsoft, self.name).default
        self._gradient: Any = None
        self._function: Any = None

    def __call__(self, backend: str | None, validate: bool | None, *inputs: P.args, **_: P.kwargs) -> R:
        result: R
        if torch.compiler.is_compiling():
            result = self.overload(backend, validate, *inputs)
        elif self._gradient is not None and _transforms_are_active():
            result = self._transformable(backend, validate, inputs)
        else:
            result = self._differentiable(backend, validate, *inputs)
        return result

    # --- what torch calls --------------------------------------------------------------------------------------------

    def _compute(self, backend: str | None, validate: bool | None, *inputs: Any) -> Any:
        device = inputs[0].device
        if backend is None and device.type == "cpu" and inputs[0].numel() >= LARGE:
            warn_where_numba_is_missing()
        body: Any = self.body
        return body(Call(backend_for(device.type, backend), should_validate(device, validate)), *inputs)

    def _infer(self, backend: str | None, validate: bool | None, *inputs: Any) -> Any:
        body: Any = self.body
        return body(_INFERENCE, *inputs)

    def _batch(self, info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
        results = []
        for entry in range(info.batch_size):
            pairs = zip(inputs, in_dims, strict=True)
            results.append(
                self.overload(*(value.select(dim, entry) if isinstance(dim, int) else value for value, dim in pairs))
            )
        if not results:
            raise ValueError(f"torch.vmap of tritonsoft's {self.name} needs at least one entry")
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = [torch.stack(outputs) for outputs in zip(*results, strict=True)]
        return type(results[0])(stacked), type(results[0])([0] * len(stacked))

    def _differentiable(self, *inputs: Any) -> Any:
        if self._function is not None:
            needs_gradient = torch.is_grad_enabled() and _any(inputs, lambda tensor: tensor.requires_grad)
            if _transforms_are_active() and (needs_gradient or _any(inputs, has_tangent)):
                raise RuntimeError(
                    f"tritonsoft's {self.name} cannot be compiled under torch.func or in forward mode; without "
                    "torch.compile both work"
                )
            if needs_gradient:
                return self._function.apply(*inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*inputs)

    # --- its gradient ------------------------------------------------------------------------------------------------

    def gradient(self, definition: type) -> type:
        """Decorates a class with the static methods ``setup_context``, ``backward`` and perhaps ``jvp``.

        As those of `torch.autograd.Function`, but ``setup_context`` is told the backend too, ``backward`` is
        only called with a gradient of the first output and returns that of the first tensor alone, and ``jvp`` takes
        the tangent of that one alone.
        """
        overload, setup_context, backward = self.overload, definition.setup_context, definition.backward  # type: ignore[attr-defined]

        def forward(ctx: Any, backend: str | None, validate: bool | None, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = overload(backend, validate, *inputs)
            ctx.num_others = len(inputs) - 1
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output, backend)
            return output

        def gradient(ctx: Any, *grads: Any) -> Any:
            grad = None if grads[0] is None else backward(ctx, *grads)
            return None, None, grad, *(None,) * ctx.num_others

        # The name that a result shows as its `grad_fn` is given when the class is made.
        name = "".join(part.capitalize() for part in self.name.split("_"))
        methods = {"forward": staticmethod(forward), "backward": staticmethod(gradient)}
        self._gradient = definition
        make_class: Any = type(torch.autograd.Function)
        self._function = make_class(name, (torch.autograd.Function,), methods)
        _library.impl(self.name, self._differentiable, "Autograd")
        return definition

    def _transformable(self, backend: str | None, validate: bool | None, inputs: Sequence[Any]) -> Any:
        """A call under `torch.func` or in forward mode: by a `Function` of this call's tensors alone."""
        overload, definition, name = self.overload, self._gradient, self.name
        places = [place for place, value in enumerate(inputs) if isinstance(value, Tensor)]

        def all_inputs(tensors: Sequence[Tensor]) -> list[Any]:
            whole = list(inputs)
            for place, tensor in zip(places, tensors, strict=True):
                whole[place] = tensor
            return whole

        class Gradient(torch.autograd.Function):
            generate_vmap_rule = True

            @staticmethod
            def forward(*tensors: Tensor) -> Any:
                return overload(backend, validate, *all_inputs(tensors))

            @staticmethod
            def setup_context(ctx: Any, inputs: Sequence[Tensor], output: Any) -> None:
                ctx.set_materialize_grads(False)
                definition.setup_context(ctx, all_inputs(inputs), output, backend)

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                grad = None if grads[0] is None else definition.backward(ctx, *grads)
                return grad, *(None,) * (len(places) - 1)

            @staticmethod
            def jvp(ctx: Any, tangent: Tensor | None, *others: Tensor | None) -> Any:
                if any(other is not None for other in others):
                    raise RuntimeError(f"tritonsoft's {name} can be differentiated in its first tensor only")
                if not hasattr(definition, "jvp"):
                    raise RuntimeError(
                        f"tritonsoft's {name} has no forward-mode derivative; torch.func.grad and backward() work"
                    )
                return definition.jvp(ctx, tangent)

        return Gradient.apply(*(inputs[place] for place in places))  # type: ignore[no-untyped-call]


def _any(inputs: Sequence[Any], holds: Callable[[Tensor], bool]) -> bool:
    """Whether something holds of one of the tensors."""
    return any(isinstance(value, Tensor) and holds(value) for value in inputs)


def _transforms_are_active() -> bool:
    """Whether the call is under `torch.func`, or in forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def operator(body: Callable[Concatenate[Call, P], R]) -> Operator[P, R]:
    """Registers an operator of the function's name."""
    return Operator(body)


def _schema(body: Callable[..., Any]) -> str:
    types = typing.get_type_hints(body)
    names = list(inspect.signature(body).parameters)[1:]
    inputs = ", ".join(f"{_SCHEMA_TYPES[types[name]]} {name}" for name in names)
    return f"(str? backend, bool? validate, {inputs}) -> {_SCHEMA_TYPES[types['return']]}"
