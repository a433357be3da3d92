"""Per-record gradients in one backward pass, with norms that are certain: the fast half of DP-SGD.

DP-SGD (Abadi et al. 2016) needs every record's own gradient, to clip it, where plain training needs only their sum.
Opacus' ``GradSampleModule`` lets autograd form the sum as well and then forms the records' gradients beside it, which
costs 2 to 3 times a plain step on a CPU. Here a layer's backward pass forms them *instead*, by the cheaper of two ways:

- *rows*: each record's gradient explicitly, for a convolution as one batched product of the output's gradients with
  the patches of the input that each output position saw, for a grouped one as one product for each place in the kernel;
- *ghost*: only its norm, from the Gram matrices of the layer's inputs and output gradients (Goodfellow 2015; Li et al.
  2021, arXiv:2110.05679, section 4), and after clipping the weighted sum as one product (Bu et al. 2022,
  arXiv:2210.00038: no second backward pass). For wide layers with few positions this is far cheaper, and it never holds
  records x parameters numbers.

Supported are the layers of ``common/models``: Conv2d, Linear and GroupNorm; a model with a parameter elsewhere is
refused, unless it is wrapped as :class:`ByRecord`. Then ``torch.func`` runs the model on each record by itself and
gives rows, slower. ``tests/unit/client/test_per_record_gradients.py`` holds them to Opacus' gradients.

**Whose norm is bounded.** The weights may have been chosen by a lying server so that float32 rounds a large gradient to
a small norm. Therefore "record i's gradient" G_i means here, exactly and in real arithmetic: for an explicit row the
float32 numbers of that row; for a ghost layer Σ_p g_ip x_ip^T over positions p of the float32 numbers x (what the layer
saw) and g (its output's gradient). However wrongly a row, x or g was computed, it is this vector that is added, so this
vector's norm has to be bounded.

**The norms are upper bounds.** Write u = 2^-24 and v = 2^-53. No bound relies on an order of summation or on fused
multiply-adds: a sum of k products is off by at most k·u/(1 - k·u) times the sum of their sizes (Higham 2002, §3.1).

- *Rows, and x and g of linear layers*: squares are summed in float32 over at most NORM_BLOCK = 256 numbers, and these
  sums in float64. The rounding is below 2^-15 of the result, and what underflows is below 2^-126 for each number; both
  are added.
- *Linear ghost*: ‖G_i‖ = ‖g_i‖‖x_i‖, the product of two such bounds.
- *Convolution ghost*: the Gram matrices are formed in float64, in which products of float32 numbers neither overflow
  nor underflow. With A_i = Σ_p ‖g_ip‖‖x_ip‖, P positions and k numbers in a patch and a position of the output together
  the result is off by less than 2(k + P² + 8)·v·A_i². GRAM_MARGIN = 1e-6 times A_i² is added, or that much where it is
  more. Hence also A_i ≤ 10^3 times the bound of ‖G_i‖: no cancellation within a record is larger than that.

A bound that is not a number, or beyond LARGEST_NORM, is given as infinite, and the record must get the weight zero.

**The weighted sum.** Take weights w_i ≤ C/bound_i over m ≤ MOST_RECORDS = 256 records, and let one record's G_i be put
to zero. Then what :meth:`RecordGradients.weighted_sum` returns moves by at most w_i ‖G_i‖ + 2·SUM_ERROR·C in L2 norm:

- Rows and linear layers are multiplied and summed in float32 over CHUNK = 64 records, and these sums in float64. Only
  the record's own chunk moves. Per coordinate it is off by (64 + 3)u(1 + 2^-10) Σ w_i|G_i|, as w_i, its product with g
  and with x or a row are rounded once each; so in norm by 67·64·u(1 + 2^-10)·C < 2.57e-4 C.
- A ghost convolution's m·P products are summed in float64: off by 2(mP + 2)·v·Σ w_i A_i, below 6e-5 C for
  P ≤ MOST_POSITIONS = 2^12.
- Rounding to float32, and sums of chunks in float64, add at most m·u·C < 1.6e-5 C.
- What underflows is below 1e-10 C for C ≥ SMALLEST_CLIPPING_NORM, since no x, g or row is beyond LARGEST_NORM, and
  no 1/w beyond 10^21.

Together less than SUM_ERROR = 3.5e-4 of C. A record with weight zero is *replaced* by zeros, so that no infinity of it
meets a zero.

**What is assumed.** With shapes and places in the batch given, the float32 numbers of one record (x, g, rows) depend on
no other record's content. Each layer here is a sum over one record's numbers whose order the shapes alone decide;
``tests/attacks/test_clipping.py`` compares the bits.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from client.losses import score_gradients, summed_loss
from common.errors import ConfigError
from common.models.centred import CentredModel

SUPPORTED = (nn.Conv2d, nn.Linear, nn.GroupNorm)

GHOST_ADVANTAGE = 4
"""How many multiplications of a Gram matrix cost as much as one of the rows' product; measured."""

MOST_RECORDS = 256
"""The largest number of records of one weighted sum."""

CHUNK = 64
"""Records that are summed in float32; what that may lose grows with the square."""

NORM_BLOCK = 256
"""Squares that are summed in float32."""

MOST_POSITIONS = 1 << 12
"""The largest number of positions of a ghost layer's output."""

GRAM_MARGIN = 1e-6
"""The share of A_i² that is added to a squared norm from Gram matrices; an honest norm grows by less than 0.01 %."""

LARGEST_NORM = 1e15
"""A record beyond it counts as zero: training that meets such a gradient is lost anyway."""

SMALLEST_CLIPPING_NORM = 1e-6
"""C; far below it float32 would underflow."""

SUM_ERROR = 3.5e-4
"""The largest error, as a share of C, of the part of a weighted sum that one record can move."""

CACHED_ELEMENTS = 1 << 18
"""Patches made at a time, 1 MiB of float32: they are used while still in cache, and their memory is used again."""

_FLOAT32_MARGIN = 2.0**-15
_FLOAT64_MARGIN = 1e-12
_FLOAT64_UNIT = 2.0**-53
_SMALLEST_NORMAL = 2.0**-126

_MATRIX = 2
"""The number of axes of a batch of rows."""

_Context: TypeAlias = Any
"""Autograd's context, which takes any attribute."""

_aten: Any = torch.ops.aten


class _Geometry(NamedTuple):
    """How a convolution moves over its input."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]


@dataclass
class _Block:
    """One parameter's gradients of every record, held as rows or only as norms and a recipe for their sum.

    Attributes:
        parameter: of the model.
        squared_norms: (records,) float64, upper bounds; infinite or NaN for a record that must not be added.
        weighted_sum: takes weights, (records,) float64, and the numbers of the records whose weight is zero.
        rows: (records, elements) float32, where they are kept.
    """

    parameter: nn.Parameter
    squared_norms: Tensor
    weighted_sum: Callable[[Tensor, Tensor], Tensor]
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
        """Return a certain upper bound of the L2 norm of each record's whole gradient, (records,) float64.

        It is infinite for a gradient that is not finite, or too large to be added with certainty. The bound is above
        the norm by less than 2^-15 of it, but where positions of a convolution cancel to below 10^-3 of their sizes.
        """
        total = torch.zeros(self._records, dtype=torch.float64, device=self._blocks[0].squared_norms.device)
        for block in self._blocks:
            total += block.squared_norms
        return _bounded(total).sqrt_().mul_(1 + _FLOAT64_MARGIN)

    @torch.no_grad()
    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sum over records of weight times gradient, (d,); see the module for how exact it is.

        Args:
            weights: (records,) float64; zero for each record whose norm is infinite.

        Raises:
            ValueError: there are more than MOST_RECORDS records, for which the sum would not be exact enough.
        """
        if self._records > MOST_RECORDS:
            raise ValueError(f"at most {MOST_RECORDS} records can be summed at once, got {self._records}")
        left_out = (weights == 0).nonzero()[:, 0]
        return torch.cat([block.weighted_sum(weights, left_out).reshape(-1) for block in self._blocks])

    def rows(self) -> Tensor:
        """Return every record's gradient, (records, d).

        Raises:
            ValueError: they were not kept; see ``as_rows``.
        """
        rows = [block.rows for block in self._blocks if block.rows is not None]
        if len(rows) != len(self._blocks):
            raise ValueError("explicit gradients are kept with as_rows=True only")
        return torch.cat(rows, dim=1)


class ByRecord(nn.Module):
    """A model whose gradients ``torch.func`` forms, one record after the other, as if each were a batch by itself.

    Any layer will do that ``torch.func.vmap`` can run. The parameters are those of the model inside, in its order.
    """

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model inside does."""
        scores: Tensor = self.inside(x)
        return scores


def norm_bounds(rows: Tensor) -> Tensor:
    """Return a certain upper bound of each row's L2 norm, (rows,) float64; infinite as :meth:`RecordGradients.norms`.

    Args:
        rows: (rows, elements) float32.
    """
    return _bounded(_squared_norms(rows)).sqrt_().mul_(1 + _FLOAT64_MARGIN)


def weighted_rows(weights: Tensor, rows: Tensor) -> Tensor:
    """Return the sum of weight times row, (elements,), as exact as :meth:`RecordGradients.weighted_sum` is.

    Args:
        weights: (rows,) float64; zero for each row whose norm is infinite.
        rows: (rows, elements) float32.

    Raises:
        ValueError: there are more than MOST_RECORDS rows.
    """
    if len(rows) > MOST_RECORDS:
        raise ValueError(f"at most {MOST_RECORDS} rows can be summed at once, got {len(rows)}")
    return _in_chunks(torch.matmul, weights.float(), _without(rows, (weights == 0).nonzero()[:, 0]))


def _bounded(squared_norms: Tensor) -> Tensor:
    """Return the same, infinite where they are NaN or too large."""
    return torch.where(squared_norms <= LARGEST_NORM**2, squared_norms, math.inf)


def _squared_norms(rows: Tensor) -> Tensor:
    """Return an upper bound of each row's squared norm, (rows,) float64; infinite or NaN where that is too large."""
    length = rows.shape[1]
    whole = length - length % NORM_BLOCK
    total = torch.linalg.vector_norm(rows[:, whole:], dim=1).double().square_()  # 0 for no number
    if whole:
        blocks = rows[:, :whole].view(len(rows), -1, NORM_BLOCK)
        total += torch.linalg.vector_norm(blocks, dim=2).double().square_().sum(dim=1)
    bounds: Tensor = total.mul_(1 + _FLOAT32_MARGIN).add_(length * _SMALLEST_NORMAL)
    return bounds


def _in_chunks(product: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """Return a product that sums over the first axis of both, at most CHUNK records at a time in float32."""
    if len(right) <= CHUNK:
        return product(left, right)
    parts = zip(torch.split(left, CHUNK), torch.split(right, CHUNK), strict=True)
    first, *others = (product(*part) for part in parts)
    total = first.double()
    for other in others:
        total += other
    return total


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.t() @ right


def _without(tensor: Tensor, left_out: Tensor) -> Tensor:
    """Return the records with zeros in the place of some: zero times their infinities would not be zero."""
    return tensor.index_fill(0, left_out, 0.0) if len(left_out) else tensor


def record_gradients(model: nn.Module, inputs: Tensor, labels: Tensor, *, as_rows: bool = False) -> RecordGradients:
    """Return the gradient of each record's cross-entropy.

    Args:
        model: of supported layers only; each used once a forward pass. A centre is no parameter here: what the head
            sees is what the record's numbers are.
        inputs: (records, …), at least one record.
        labels: (records,) int64; of a multi-label task (records, labels) of 0 and 1.
        as_rows: hold every gradient explicitly, as clipping by patient and integer clipping need.

    Raises:
        ConfigError: a parameter of the model belongs to a layer that is not supported.
    """
    if isinstance(model, ByRecord):
        return _by_record(model, inputs, labels)
    if isinstance(model, CentredModel):
        with torch.no_grad():
            centred = model.centring(inputs)
        return record_gradients(model.head, centred, labels, as_rows=as_rows)
    if type(model) is nn.Linear:
        return _linear_model_gradients(model, inputs, labels, as_rows=as_rows)
    parameters = list(model.parameters())
    recorder = _Recorder(as_rows=as_rows)
    with recorder:
        loss = summed_loss(model(inputs), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    if sorted(id(block.parameter) for block in recorder.blocks) != sorted(map(id, parameters)):
        names = ", ".join(layer.__name__ for layer in SUPPORTED)
        raise ConfigError(f"a model trained with privacy must hold each parameter in one layer of {names}, used once")
    return RecordGradients(recorder.blocks, parameters, len(labels))


def _by_record(model: ByRecord, inputs: Tensor, labels: Tensor) -> RecordGradients:
    named = dict(model.named_parameters())
    frozen = {name: parameter.detach() for name, parameter in named.items()}

    def loss(parameters: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        # With tied weights, PyTorch would not put back the parameters of a layer that stands in two places.
        scores = torch.func.functional_call(model, parameters, (record[None],), tie_weights=False)
        return summed_loss(scores, label[None])

    of_all = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
    with warnings.catch_warnings():
        # Of a layer without a rule for batches, which is computed one record after the other.
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        rows = of_all(frozen, inputs, labels)
    recorder = _Recorder(as_rows=True)
    for name, parameter in named.items():
        recorder.keep_rows(parameter, rows[name].contiguous())
    return RecordGradients(recorder.blocks, list(named.values()), len(labels))


def mean_gradient_rows(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean of each record's cross-entropies over its copies, (records, elements).

    Args:
        model: as for :func:`record_gradients`.
        inputs: (records, copies, width) float32, at least one record.
        labels: (records,) int64, of all copies of a record; of a multi-label task (records, labels) of 0 and 1.
    """
    copies = inputs.shape[1]
    if isinstance(model, CentredModel):
        with torch.no_grad():
            inputs = model.centring(inputs)
        return mean_gradient_rows(model.head, inputs, labels)
    if type(model) is nn.Linear:
        return _mean_linear_rows(model, inputs, labels)
    repeated = labels.repeat_interleave(copies, dim=0)
    rows = record_gradients(model, inputs.flatten(0, 1), repeated, as_rows=True).rows()
    return rows.view(len(labels), copies, -1).mean(dim=1)


@torch.no_grad()
def _mean_linear_rows(model: nn.Linear, inputs: Tensor, labels: Tensor) -> Tensor:
    """Do as :func:`mean_gradient_rows` in closed form: the mean of (p - y) x over a record's copies is one product."""
    copies = inputs.shape[1]
    scores = model(inputs)
    residuals = score_gradients(scores.flatten(0, 1), labels.repeat_interleave(copies, dim=0)).view_as(scores)
    residuals /= copies
    weight, *bias = model.parameters()
    rows = inputs.new_empty(len(labels), weight.numel() + sum(each.numel() for each in bias))
    torch.bmm(residuals.transpose(1, 2), inputs, out=rows[:, : weight.numel()].view(len(labels), *weight.shape))
    if bias:
        rows[:, weight.numel() :] = residuals.sum(dim=1)
    return rows


@torch.no_grad()
def _linear_model_gradients(model: nn.Linear, inputs: Tensor, labels: Tensor, *, as_rows: bool) -> RecordGradients:
    """Return the gradients of a linear model in closed form, (p - y) x, since autograd would cost more than they do."""
    recorder = _Recorder(as_rows=as_rows)
    residuals = score_gradients(model(inputs), labels)
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
        self,
        parameter: nn.Parameter,
        rows: Tensor,
        as_parameter: Callable[[Tensor], Tensor] | None = None,
        squared_norms: Tensor | None = None,
    ) -> None:
        """Record explicit gradients, (records, …), with their norms if these are known.

        ``as_parameter`` brings a row into the parameter's order.
        """
        rows = rows.flatten(1)
        if squared_norms is None:
            squared_norms = _squared_norms(rows)
        arrange = as_parameter or (lambda row: row)
        kept = None
        if self.as_rows:
            kept = rows if as_parameter is None else torch.stack([as_parameter(row).reshape(-1) for row in rows])

        def weighted_sum(weights: Tensor, left_out: Tensor) -> Tensor:
            return arrange(_in_chunks(torch.matmul, weights.float(), _without(rows, left_out)))

        self.blocks.append(_Block(parameter, squared_norms, weighted_sum, kept))

    def keep_linear(self, x: Tensor, grad: Tensor, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Record a linear layer's: each is the outer product of grad and x, so its norm is the product of theirs."""
        of_grad = None
        if self.as_rows:
            self.keep_rows(weight, grad[:, :, None] * x[:, None, :])
        else:

            def weighted_sum(weights: Tensor, left_out: Tensor) -> Tensor:
                weighted = _without(grad, left_out) * weights.float()[:, None]
                return _in_chunks(_outer, weighted, _without(x, left_out))

            # Each factor must be within LARGEST_NORM by itself: a tiny one would hide the size of the other.
            of_grad = _bounded(_squared_norms(grad))
            self.blocks.append(_Block(weight, _bounded(_squared_norms(x)) * of_grad, weighted_sum))
        if bias is not None:
            self.keep_rows(bias, grad, squared_norms=of_grad)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: _Geometry,
        groups: int,
        recorder: _Recorder,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.geometry, ctx.groups, ctx.recorder = weight, bias, geometry, groups, recorder
        return torch.conv2d(x, weight, bias, *geometry, groups)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        (grad,) = grads
        # Detached, or a recipe kept for later would hold the graph, and the graph holds the recorder.
        x = ctx.saved_tensors[0].detach()
        weight, geometry, groups, recorder = ctx.weight, ctx.geometry, ctx.groups, ctx.recorder
        positions, patch, filters = grad[0, 0].numel(), weight[0].numel(), len(weight)
        ghost_is_cheaper = GHOST_ADVANTAGE * positions * (patch + filters) < patch * filters
        if groups > 1:
            recorder.keep_rows(weight, _grouped_rows(x, grad, weight, geometry, groups))
        elif ghost_is_cheaper and positions <= MOST_POSITIONS and not recorder.as_rows:
            _ghost_convolution(recorder, x, grad, weight, geometry)
        else:
            rows = _convolution_rows(x, grad, weight, geometry)
            _, channels, height, width = weight.shape
            recorder.keep_rows(weight, rows, lambda row: row.view(-1, height, width, channels).permute(0, 3, 1, 2))
        if ctx.bias is not None:
            recorder.keep_rows(ctx.bias, grad.sum(dim=(2, 3)))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None
        wanted = [True, False, False]
        of_input = _aten.convolution_backward(grad, x, weight, None, *geometry, False, [0, 0], groups, wanted)[0]
        return of_input, None, None, None, None, None


def _convolution_rows(x: Tensor, grad: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
    """Return each record's weight gradient, (records, filters, patch), the patch as :func:`_patches` orders it."""
    positions, patch = grad[0, 0].numel(), weight[0].numel()
    rows = x.new_empty(len(x), len(weight), patch)
    at_once = max(1, CACHED_ELEMENTS // (positions * patch))
    for first in range(0, len(x), at_once):
        some = slice(first, first + at_once)
        torch.bmm(grad[some].flatten(2), _patches(x[some], weight, geometry, grad.shape[2:]), out=rows[some])
    return rows


def _grouped_rows(x: Tensor, grad: Tensor, weight: Tensor, geometry: _Geometry, groups: int) -> Tensor:
    """Return each record's weight gradient of a grouped convolution, (records, filters, channels, height, width).

    A filter sees few channels, one where the convolution is depthwise, so patches would be small and many. Instead each
    place in the kernel takes one product over the positions of the output.
    """
    stride, padding, dilation = geometry
    padded = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    records, (filters, channels, height, width) = len(x), weight.shape
    out_height, out_width = grad.shape[2:]
    of_output = grad.reshape(records, groups, filters // groups, -1)
    rows = x.new_empty(records, groups, filters // groups, channels, height, width)
    for row, column in itertools.product(range(height), range(width)):
        first_row, first_column = row * dilation[0], column * dilation[1]
        seen = padded[
            :,
            :,
            first_row : first_row + stride[0] * (out_height - 1) + 1 : stride[0],
            first_column : first_column + stride[1] * (out_width - 1) + 1 : stride[1],
        ].reshape(records, groups, channels, -1)
        if channels == 1:
            rows[..., 0, row, column] = torch.linalg.vecdot(of_output, seen)
        else:
            rows[..., row, column] = of_output @ seen.transpose(2, 3)
    return rows.view(records, filters, channels, height, width)


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
    _, channels, height, width = weight.shape
    out_size = grad.shape[2:]
    left_and_right = _patches(x, weight, geometry, out_size).double(), grad.flatten(2).transpose(1, 2).double()
    grams = [torch.bmm(each, each.transpose(1, 2)) for each in left_and_right]
    positions = out_size[0] * out_size[1]
    sizes = (grams[0].diagonal(dim1=1, dim2=2) * grams[1].diagonal(dim1=1, dim2=2)).sqrt_().sum(dim=1)
    terms = weight[0].numel() + len(weight) + positions**2 + 8
    margin = max(GRAM_MARGIN, 2 * terms * _FLOAT64_UNIT)
    squared_norms = (grams[0] * grams[1]).sum(dim=(1, 2)).clamp_(min=0.0) + margin * sizes.square_()

    def weighted_sum(weights: Tensor, left_out: Tensor) -> Tensor:
        patches = _patches(_without(x, left_out), weight, geometry, out_size).double().flatten(0, 1)
        weighted = _without(grad, left_out).flatten(2).transpose(1, 2).double() * weights[:, None, None]
        total = (weighted.flatten(0, 1).t() @ patches).float()
        return total.view(-1, height, width, channels).permute(0, 3, 1, 2)

    recorder.blocks.append(_Block(weight, squared_norms, weighted_sum))


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
    stride: Sequence[int] | int = (1, 1),
    padding: Sequence[int] | int | str = (0, 0),
    dilation: Sequence[int] | int = (1, 1),
    groups: int = 1,
) -> object:
    if isinstance(padding, str):
        raise ConfigError(f"a convolution trained with privacy must give its padding in pixels, got {padding!r}")
    geometry = _Geometry(_pair(stride), _pair(padding), _pair(dilation))
    return _Convolution.apply(input, weight, bias, geometry, groups, recorder)


def _pair(value: Sequence[int] | int) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _linear(recorder: _Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> object:  # noqa: A002
    if input.dim() != _MATRIX:
        raise ConfigError(f"a linear layer trained with privacy must take one row a record, got {input.dim()} axes")
    return _Linear.apply(input, weight, bias, recorder)


def _group_norm(
    recorder: _Recorder,
    input: Tensor,  # noqa: A002 - torch's own name of the argument
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> object:
    if weight is None or bias is None:
        return functional.group_norm(input, num_groups, weight, bias, eps)  # It has nothing to train.
    return _GroupNorm.apply(input, num_groups, weight, bias, eps, recorder)


_REPLACEMENTS: Mapping[Callable[..., object], Callable[..., object]] = {
    torch.conv2d: _convolution,
    functional.linear: _linear,
    functional.group_norm: _group_norm,
}
