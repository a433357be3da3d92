"""Exact per-record gradients in one backward pass: the fast half of DP-SGD.

DP-SGD (Abadi et al. 2016) needs every record's own gradient, to clip it, where plain training needs only their sum.
Opacus' ``GradSampleModule`` lets autograd form the sum as well and then forms the records' gradients beside it, which
costs 2 to 3 times a plain step on a CPU. Here a layer's backward pass forms them *instead*, by the cheaper of two exact
ways:

- *rows*: each record's gradient explicitly, for a convolution as one batched product of the output's gradients with
  the patches of the input that each output position saw;
- *ghost*: only its norm, from the Gram matrices of the layer's inputs and output gradients (Goodfellow 2015; Li et al.
  2021, arXiv:2110.05679, section 4), and after clipping the weighted sum as one ordinary weight gradient (Bu et al.
  2022, arXiv:2210.00038: no second backward pass). For wide layers with few positions this is far cheaper, and it
  never holds records x parameters numbers.

**No record hides behind rounding.** Whoever chooses the model can choose one whose Gram matrices cancel: in float32 the
computed norm of a gradient of 10^5 can be 0. So a norm that is used for clipping is an upper bound, for any finite
weights. Write u = 2^-24 and γ_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, §3.1).

1. *Rows.* The numbers whose norm is taken are the very numbers that are added; one whose square underflows, below
   2^-63, adds nothing that counts. The norm is summed in float32 over at most 2^16 numbers at a time and in float64
   over these, so it is at most a factor 1 - γ_(2^13)/2 > 1 - 2^-12 too small (at least 8 partial sums run side by
   side).
2. *Outer products.* A linear layer's gradient is g xᵀ, its norm exactly |g| |x|: nothing can cancel. Both norms are
   taken in float64, in which no square of a float32 underflows or overflows.
3. *Ghost.* Each record's inputs and output gradients are first divided by the largest of them. With patches p_i and
   output gradients g_i at the positions i of one record, the squared norm is the sum over i, j of (p_i·p_j)(g_i·g_j),
   and M = Σ |p_i| |g_i| is at least the norm, by the triangle inequality, and a sum of positive terms. The two
   products are made in float32 and their sum in float64, so what is computed is off by at most γ_n M² with n = patch
   + filters + 6; what underflows is below 2^-126 of numbers of size 1. The bound is the computed value plus 2 γ_n M²:
   it is at least the squared norm, and at least γ_n M². The weighted sum of a ghost layer is then made in float64.
   Its rounding is below 2^-53 · 2^20 · Σ w M ≤ 2^-33 · records · C / √γ_n: nothing.

A gradient whose bound is not finite counts as zero, its numbers are taken out before anything is added. Records do not
mix before the sum: each layer treats every record by itself, so no record's numbers reach another's gradient. What is
left is how float32 adds up at most R = 256 rows of norm at most C: a sum with one row replaced by zero differs from the
same sum without it by at most 2 γ_R R C < C / 128. ``client/training.py`` clips at C (1 - 1/64), which pays for all of
this, and adds such sums in float64.

Supported are the layers of ``common/models``: Conv2d, Linear and GroupNorm; a model with a parameter elsewhere is
refused. ``tests/unit/client/test_per_record_gradients.py`` holds them to Opacus' gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from common.errors import ConfigError

SUPPORTED = (nn.Conv2d, nn.Linear, nn.GroupNorm)

GHOST_ADVANTAGE = 4
"""How many multiplications of a Gram matrix cost as much as one of the rows' product; measured."""

CACHED_ELEMENTS = 1 << 18
"""Patches made at a time, 1 MiB of float32: they are used while still in cache, and their memory is used again."""

UNIT_ROUNDOFF = 2.0**-24
"""Of float32: the largest relative error of one operation that neither overflows nor underflows."""

NORM_ELEMENTS = 1 << 16
"""Of a row whose squares are added in float32; see the module."""

_Context: TypeAlias = Any
"""Of autograd: takes any attribute."""

_aten: Any = torch.ops.aten


class _Geometry(NamedTuple):
    """How a convolution moves over its input."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


@dataclass
class _Block:
    """One parameter's gradients of every record, held as rows or only as norms and a recipe for their sum."""

    parameter: nn.Parameter
    squared_norms: Tensor
    """(records,) float64: at least those of the records' gradients; see the module."""
    weighted_sum: Callable[[Tensor], Tensor]
    """Takes (records,) float32 weights; a record of weight 0 is left out, whatever its numbers are."""
    rows: Tensor | None = field(default=None, repr=False)


class RecordGradients:
    """The gradients that one backward pass left behind, one block per parameter.

    Args:
        blocks: in any order.
        parameters: the model's, in the order of the flat vector.
        records: in the batch.
    """

    def __init__(self, blocks: Sequence[_Block], parameters: Sequence[nn.Parameter], records: int) -> None:
        by_parameter = {id(block.parameter): block for block in blocks}
        self._blocks = [by_parameter[id(parameter)] for parameter in parameters]
        self._records = records

    def norms(self) -> Tensor:
        """Return for each record at least the L2 norm of its whole gradient, (records,) float64; see the module.

        It is infinite or undefined where a gradient is, or where its square is beyond float32.
        """
        total = torch.zeros(self._records, dtype=torch.float64)
        for block in self._blocks:
            total += block.squared_norms
        return total.sqrt_()

    @torch.no_grad()
    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sum over records of weight times gradient, (d,) float64; a record of weight 0 adds nothing."""
        return torch.cat([block.weighted_sum(weights).reshape(-1).double() for block in self._blocks])

    def rows(self) -> Tensor:
        """Return every record's gradient, (records, d).

        Raises:
            ValueError: they were not kept; see ``as_rows``.
        """
        rows = [block.rows for block in self._blocks if block.rows is not None]
        if len(rows) != len(self._blocks):
            raise ValueError("explicit gradients are kept with as_rows=True only")
        return torch.cat(rows, dim=1)


def record_gradients(model: nn.Module, inputs: Tensor, labels: Tensor, *, as_rows: bool = False) -> RecordGradients:
    """Return the gradient of each record's cross-entropy.

    Args:
        model: of supported layers only; each used once a forward pass.
        inputs: (records, …), at least one record.
        labels: (records,) int64.
        as_rows: hold every gradient explicitly, as clipping by patient and integer clipping need.

    Raises:
        ConfigError: a parameter of the model belongs to a layer that is not supported.
    """
    if type(model) is nn.Linear:
        return _linear_model_gradients(model, inputs, labels, as_rows=as_rows)
    parameters = list(model.parameters())
    recorder = _Recorder(as_rows=as_rows)
    with recorder:
        loss = functional.cross_entropy(model(inputs), labels, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    if sorted(id(block.parameter) for block in recorder.blocks) != sorted(map(id, parameters)):
        names = ", ".join(layer.__name__ for layer in SUPPORTED)
        raise ConfigError(f"a model trained with privacy must hold each parameter in one layer of {names}, used once")
    return RecordGradients(recorder.blocks, parameters, len(labels))


@torch.no_grad()
def _linear_model_gradients(model: nn.Linear, inputs: Tensor, labels: Tensor, *, as_rows: bool) -> RecordGradients:
    """Return softmax regression's gradients in closed form, (p - y) x, since autograd would cost more than they do."""
    recorder = _Recorder(as_rows=as_rows)
    residuals = functional.softmax(model(inputs), dim=1)
    residuals[torch.arange(len(labels)), labels] -= 1.0
    weight, *bias = model.parameters()
    recorder.keep_linear(inputs, residuals, weight, bias[0] if bias else None)
    return RecordGradients(recorder.blocks, [weight, *bias], len(labels))


class _Recorder(TorchFunctionMode):
    """Replaces the supported layers' functions by ones whose backward pass records per-record gradients."""

    def __init__(self, *, as_rows: bool) -> None:
        super().__init__()
        self.as_rows = as_rows
        self.blocks: list[_Block] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Dispatch; anything that is not a supported layer runs as it is."""
        replacement = _REPLACEMENTS.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(self, *args, **(kwargs or {}))

    def keep_rows(
        self, parameter: nn.Parameter, rows: Tensor, as_parameter: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Record explicit gradients, (records, …); ``as_parameter`` brings a row into the parameter's order."""
        rows = rows.flatten(1)
        squared_norms = row_norms(rows).square_()
        arrange = as_parameter or (lambda row: row)
        kept = None
        if self.as_rows:
            kept = rows if as_parameter is None else torch.stack([as_parameter(row).reshape(-1) for row in rows])
        self.blocks.append(
            _Block(parameter, squared_norms, lambda weights: arrange(weights @ _silenced(rows, weights)), kept)
        )

    def keep_linear(self, x: Tensor, grad: Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Record a linear layer's: each is the outer product of grad and x, so its norm is the product of theirs."""
        if self.as_rows:
            self.keep_rows(weight, grad[:, :, None] * x[:, None, :])
        else:
            # In float64: what is lost of a small input in float32 may meet a large gradient.
            norms = row_norms(x.double()) * row_norms(grad.double())
            self.keep_ghost(
                weight,
                norms.square_(),
                lambda weights: (_silenced(grad, weights) * weights[:, None]).t() @ _silenced(x, weights),
            )
        if bias is not None:
            self.keep_rows(bias, grad)

    def keep_ghost(
        self, parameter: nn.Parameter, squared_norms: Tensor, weighted_sum: Callable[[Tensor], Tensor]
    ) -> None:
        """Record norms and how to form the weighted sum."""
        self.blocks.append(_Block(parameter, squared_norms, weighted_sum))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry, recorder: _Recorder
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.geometry, ctx.recorder = weight, bias, geometry, recorder
        return torch.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (grad,) = grads
        # Detached, or a recipe kept for later would hold the graph, and the graph holds the recorder.
        x = ctx.saved_tensors[0].detach()
        weight, geometry, recorder = ctx.weight, ctx.geometry, ctx.recorder
        positions, patch, filters = grad[0, 0].numel(), weight[0].numel(), len(weight)
        ghost_is_cheaper = GHOST_ADVANTAGE * positions * (patch + filters) < patch * filters
        if ghost_is_cheaper and not recorder.as_rows:
            _ghost_convolution(recorder, x, grad, weight, geometry)
        else:
            rows = _convolution_rows(x, grad, weight, geometry)
            _, channels, height, width = weight.shape
            recorder.keep_rows(weight, rows, lambda row: row.view(-1, height, width, channels).permute(0, 3, 1, 2))
        if ctx.bias is not None:
            recorder.keep_rows(ctx.bias, grad.sum(dim=(2, 3)))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None
        return _convolution_backward(grad, x, weight, geometry, of_input=True), None, None, None, None


def _convolution_rows(x: Tensor, grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return each record's weight gradient, (records, filters, patch), the patch as :func:`_patches` orders it."""
    positions, patch = grad[0, 0].numel(), weight[0].numel()
    rows = torch.empty(len(x), len(weight), patch)
    at_once = max(1, CACHED_ELEMENTS // (positions * patch))
    for first in range(0, len(x), at_once):
        some = slice(first, first + at_once)
        torch.bmm(grad[some].flatten(2), _patches(x[some], weight, geometry, grad.shape[2:]), out=rows[some])
    return rows


def _patches(x: Tensor, weight: Tensor, geometry: _Geometry, out_size: Sequence[int]) -> Tensor:
    """Return what each output position sees, (records, positions, height x width x channels of the kernel).

    With the channels innermost a patch is copied in long runs: about twice as fast as ``functional.unfold``.
    """
    stride, padding, dilation = geometry
    padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    padded = padded.contiguous(memory_format=torch.channels_last)
    of_record, of_channel, of_row, of_column = padded.stride()
    _, channels, height, width = weight.shape
    windows = padded.as_strided(
        (len(x), *out_size, height, width, channels),
        (
            of_record,
            of_row * stride[0],
            of_column * stride[1],
            of_row * dilation[0],
            of_column * dilation[1],
            of_channel,
        ),
    )
    return windows.reshape(len(x), -1, height * width * channels)


def _ghost_convolution(recorder: _Recorder, x: Tensor, grad: Tensor, weight: nn.Parameter, geometry: _Geometry) -> None:
    # Each record is brought to a largest number of 1 first: no product of what is small and what is large is lost.
    x_scale, grad_scale = _largest(x), _largest(grad)
    patches = _patches(x / x_scale, weight, geometry, grad.shape[2:])
    flat = (grad / grad_scale).flatten(2)
    gram = torch.bmm(patches, patches.transpose(1, 2))
    gram *= torch.bmm(flat.transpose(1, 2), flat)
    sizes = torch.linalg.vector_norm(patches, dim=2).double() * torch.linalg.vector_norm(flat, dim=1).double()
    terms = (patches.shape[2] + flat.shape[1] + 6) * UNIT_ROUNDOFF
    slack = 2 * terms / (1 - terms)
    squared_norms = gram.sum(dim=(1, 2), dtype=torch.float64).clamp_(min=0.0) + slack * sizes.sum(dim=1).square_()
    # Back in float64, where the squares of what is finite in float32 are finite, too.
    squared_norms *= (x_scale.flatten().double() * grad_scale.flatten().double()).square_()

    def weighted_sum(weights: Tensor) -> Tensor:
        return _ghost_sum(_silenced(x, weights), _silenced(grad, weights), weights, weight, geometry)

    recorder.keep_ghost(weight, squared_norms, weighted_sum)


def _ghost_sum(x: Tensor, grad: Tensor, weights: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return the weighted sum of a convolution's gradients, made in float64 some records at a time."""
    filters, channels, height, width = weight.shape
    total = torch.zeros(filters, weight[0].numel(), dtype=torch.float64)
    at_once = max(1, 8 * CACHED_ELEMENTS // (grad[0, 0].numel() * weight[0].numel()))
    for first in range(0, len(x), at_once):
        some = slice(first, first + at_once)
        patches = _patches(x[some], weight, geometry, grad.shape[2:]).double().flatten(0, 1)
        scaled = grad[some].flatten(2).double() * weights[some, None, None]
        total.addmm_(scaled.transpose(0, 1).flatten(1), patches)
    return total.view(filters, height, width, channels).permute(0, 3, 1, 2)


def row_norms(rows: Tensor) -> Tensor:
    """Return the L2 norm of each row, (records,) float64, at most a factor 1 - 2^-12 too small; see the module."""
    parts = [torch.linalg.vector_norm(part, dim=1).double() for part in torch.split(rows, NORM_ELEMENTS, dim=1)]
    norms: Tensor = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts, dim=1), dim=1)
    return norms


def _largest(values: Tensor) -> Tensor:
    """Return the largest size of each record's numbers, shaped to divide them by; 1 for a record of zeros."""
    largest = values.abs().amax(dim=tuple(range(1, values.dim())), keepdim=True)
    return torch.where(largest == 0, torch.ones_like(largest), largest)


def _silenced(values: Tensor, weights: Tensor) -> Tensor:
    """Return the records' values with those of weight 0 made zero, for zero times what is not finite is not zero."""
    kept = weights > 0
    if bool(kept.all()):
        return values
    silent: Tensor = values.clone()
    silent[~kept] = 0.0
    return silent


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, geometry: _Geometry, *, of_input: bool) -> Tensor:
    wanted = [of_input, not of_input, False]
    both = _aten.convolution_backward(grad, x, weight, None, *geometry, False, [0, 0], 1, wanted)
    gradient: Tensor = both[0] if of_input else both[1]
    return gradient


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, weight: Tensor, bias: Tensor | None, recorder: _Recorder) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.recorder = weight, bias, recorder
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (grad,) = grads
        x = ctx.saved_tensors[0].detach()
        ctx.recorder.keep_linear(x, grad, ctx.weight, ctx.bias)
        return (grad @ ctx.weight if ctx.needs_input_grad[0] else None), None, None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, recorder: _Recorder
    ) -> Tensor:
        x = x.contiguous()
        records, channels = x.shape[:2]
        positions = x[0, 0].numel()
        y, mean, inverse_deviation = _aten.native_group_norm(x, weight, bias, records, channels, positions, groups, eps)
        ctx.save_for_backward(x, mean, inverse_deviation)
        ctx.weight, ctx.bias, ctx.groups, ctx.recorder = weight, bias, groups, recorder
        out: Tensor = y
        return out

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        (grad,) = (grad.contiguous() for grad in grads)
        x, mean, inverse_deviation = ctx.saved_tensors
        records, channels = x.shape[:2]
        positions = x[0, 0].numel()
        per_channel = channels // ctx.groups
        of_bias = grad.flatten(2).sum(dim=2)
        # The gradient of the scale is Σ grad (x - mean) / deviation, with the sums over positions taken first.
        of_scale = torch.linalg.vecdot(grad.flatten(2), x.flatten(2))
        of_scale -= mean.repeat_interleave(per_channel, dim=1) * of_bias
        of_scale *= inverse_deviation.repeat_interleave(per_channel, dim=1)
        ctx.recorder.keep_rows(ctx.weight, of_scale)
        ctx.recorder.keep_rows(ctx.bias, of_bias)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None
        of_input = _aten.native_group_norm_backward(
            grad, x, mean, inverse_deviation, ctx.weight, records, channels, positions, ctx.groups, [True, False, False]
        )[0]
        return of_input, None, None, None, None, None


def _convolution(
    recorder: _Recorder,
    input: Tensor,  # noqa: A002 - torch's own name of the argument
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> object:
    if groups != 1:
        raise ConfigError("a model trained with privacy must not have grouped convolutions")
    geometry = _Geometry(stride, padding, dilation)
    return _Convolution.apply(input, weight, bias, geometry, recorder)


def _linear(recorder: _Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> object:  # noqa: A002
    return _Linear.apply(input, weight, bias, recorder)


def _group_norm(
    recorder: _Recorder,
    input: Tensor,  # noqa: A002 - torch's own name of the argument
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> object:
    return _GroupNorm.apply(input, num_groups, weight, bias, eps, recorder)


_REPLACEMENTS: Mapping[Callable[..., object], Callable[..., object]] = {
    torch.conv2d: _convolution,
    functional.linear: _linear,
    functional.group_norm: _group_norm,
}
