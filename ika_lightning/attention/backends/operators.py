"""Functions of tensors with a derivative of their own, as operators that all of PyTorch knows how to treat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Operator = Callable[..., Any]


def differentiable_operator(
    name: str,
    forward: Callable[..., Tensor | tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, ...]],
    plain: Callable[..., Tensor],
    tensors: int,
    shapes: Callable[..., Tensor | tuple[Tensor, ...]],
    *,
    batched: bool,
) -> Operator:
    """Make a function and its hand-written derivative one operator.

    The compiler takes it as a whole and unrolls no loop; ``torch.func`` maps over it; ``torch.export`` writes down
    ``plain``. Its derivative is an operator,
    too, whose own derivative goes through ``plain``: further derivatives, and those in forward mode, cost what that
    costs, and never fail.

    (``torch.library.custom_op`` does a part of this, and imports the compiler, some seconds, at the first call.)

    Args:
        name: Name of the operator.
        forward: What it computes, of tensors and then of plain arguments: the result, and what the backward needs
            besides. Nothing that it returns shares memory with an argument.
        backward: Gradients of the tensors, None for those that have none, of the tensors, of all that ``forward``
            returned, of the gradient of its first result, and of the plain arguments.
        plain: The first result again, by PyTorch's own differentiable operations.
        tensors: How many of the arguments are tensors; they come first.
        shapes: ``forward`` on tensors without data.
        batched: Whether each tensor has a leading axis over which the function is a loop. It is mapped by joining the
            axes, else by calling it for each.
    """

    def backward_shapes(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in differentiable(arguments))

    def differentiable(arguments: tuple[Any, ...]) -> list[Tensor]:
        return [x for x in arguments[:tensors] if x.is_floating_point()]

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        ctx.plain_arguments = inputs[tensors:]
        ctx.save_for_backward(*inputs[:tensors], *_as_tuple(output))

    def differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # asked for once: activation checkpointing unpacks them a single time
        saved = ctx.saved_tensors
        grads = iter(backward_operator(*saved, grad, *ctx.plain_arguments))
        of_inputs = (next(grads) if x.is_floating_point() else None for x in saved[:tensors])
        return *of_inputs, *(None for _ in ctx.plain_arguments)

    def save_all(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        count = sum(isinstance(x, Tensor) for x in inputs)
        ctx.plain_arguments, ctx.count = inputs[count:], count
        ctx.save_for_backward(*inputs[:tensors], inputs[count - 1])

    def differentiate_again(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, grad = ctx.saved_tensors
        floating = differentiable(tuple(inputs))

        def first(*arguments: Tensor) -> tuple[Tensor, ...]:
            def of_floating(*values: Tensor) -> Tensor:
                value = iter(values)
                merged = (next(value) if x.is_floating_point() else x for x in inputs)
                return plain(*merged, *ctx.plain_arguments)

            _, pull, *_ = torch.func.vjp(of_floating, *arguments[:-1])
            pulled: tuple[Tensor, ...] = pull(arguments[-1])
            return pulled

        _, pull, *_ = torch.func.vjp(first, *floating, grad)
        pulled = pull(grads)
        of_input = iter(pulled[:-1])
        result: list[Tensor | None] = [next(of_input) if x.is_floating_point() else None for x in inputs]
        # what forward returned is a function of the tensors, whose gradient is in theirs
        result += [None] * (ctx.count - tensors - 1)
        return *result, pulled[-1], *(None for _ in ctx.plain_arguments)

    backward_operator = _operator(f"{name}_backward", backward, backward_shapes, differentiate_again, save_all, batched)
    operator = _operator(name, forward, shapes, differentiate, save, batched)
    returns = getattr(torch.ops.ika_lightning, name).default._schema.returns

    def call(*arguments: Any) -> Any:
        # what is exported has to run where this package is not
        if not (_is_forward_mode() or torch.compiler.is_exporting()):
            return operator(*arguments)
        out = plain(*arguments)
        return out if len(returns) == 1 else (out,)

    return call


def _operator(
    name: str,
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    shapes: Callable[..., Tensor | tuple[Tensor, ...]],
    differentiate: Callable[..., Any],
    save: Callable[..., None],
    batched: bool,
) -> Operator:
    qualified = f"ika_lightning::{name}"
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(qualified, "default", function)
    torch.library.register_fake(qualified, shapes)
    torch.library.register_autograd(qualified, differentiate, setup_context=save)
    operator: Operator = getattr(torch.ops.ika_lightning, name)

    class Differentiable(torch.autograd.Function):
        """The same for ``torch.func.grad``, which asks of a derivative what that of a library's operator has not."""

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return call(*arguments)

        setup_context = staticmethod(save)
        backward = staticmethod(differentiate)

    def call(*arguments: Any) -> Any:
        return Differentiable.apply(*arguments) if _is_transformed() else operator(*arguments)

    def join_axes(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        joined = []
        for argument, axis in zip(arguments, in_dims, strict=True):
            if isinstance(argument, Tensor):
                front = argument.expand(size, *argument.shape) if axis is None else argument.movedim(axis, 0)
                argument = front.flatten(0, 1)
            joined.append(argument)
        results = tuple(x.unflatten(0, (size, -1)) for x in _as_tuple(call(*joined)))
        return results, (0,) * len(results)

    def call_each(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        each = [
            call(*(x if axis is None else x.select(axis, k) for x, axis in zip(arguments, in_dims, strict=True)))
            for k in range(info.batch_size)
        ]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        results = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return results, (0,) * len(results)

    rule = join_axes if batched else call_each
    torch.library.register_vmap(qualified, rule)
    Differentiable.vmap = staticmethod(rule)  # type: ignore[method-assign]
    return call


def _is_transformed() -> bool:
    """Whether transforms of ``torch.func`` are under way, of which any may be a gradient."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


def _is_forward_mode() -> bool:
    """Whether derivatives are taken along directions, which an operator would drop without a word."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def _as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results
