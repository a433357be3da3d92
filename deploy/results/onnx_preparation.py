"""An ONNX graph of :func:`common.shards.fit`: any size of image in, the square that a model takes out.

The middle square is resized as Pillow's ``Image.resize`` with ``BICUBIC`` resizes it (``src/libImaging/Resample.c``):
weights of a cubic with a = -0.5, stretched by the scale where the image shrinks, rounded to multiples of 2^-22; first
along rows, then along columns, each rounded to 8 bits. All products and sums are whole numbers below 2^53, so that
float64 holds them exactly, and every pixel is the one that Pillow gives. ONNX's own ``Resize`` is up to 9 levels off.
"""

import onnx
from onnx import parser

OPSET, IR_VERSION = 20, 9
"""What onnxruntime reads since its release 1.17."""

PRECISION = 2**22
"""Pillow's: a weight is a whole multiple of one over this."""

_TEXT = """
<ir_version: {ir_version}, opset_import: ["": {opset}]>
fit (uint8[records, {channels}, height, width] image) => (uint8[records, {channels}, {size}, {size}] prepared) {{
  zero = Constant<value = double {{0.0}}>()
  half = Constant<value = double {{0.5}}>()
  one = Constant<value = double {{1.0}}>()
  two = Constant<value = double {{2.0}}>()
  white = Constant<value = double {{255.0}}>()
  precision = Constant<value = double {{{precision}.0}}>()
  size = Constant<value = double {{{size}.0}}>()

  # The middle square.
  extent = Shape<start = 2, end = 4>(image)
  side = ReduceMin<keepdims = 0>(extent)
  spare = Sub(extent, side)
  two_sides = Constant<value = int64 {{2}}>()
  first = Div(spare, two_sides)
  last = Add(first, side)
  rows_and_columns = Constant<value = int64[2] {{2, 3}}>()
  square = Slice(image, first, last, rows_and_columns)
  pixels = Cast<to = 11>(square)

  # How far each pixel of the square lies from the centre of each pixel that is made, as the cubic counts it.
  length = Cast<to = 11>(side)
  scale = Div(length, size)
  stretch = Max(scale, one)
  made = Range(zero, size, one)
  made_middle = Add(made, half)
  made_centre = Mul(made_middle, scale)
  upright = Constant<value = int64[1] {{1}}>()
  centre = Unsqueeze(made_centre, upright)
  old = Range(zero, length, one)
  old_middle = Add(old, half)
  apart = Sub(old_middle, centre)
  relative = Div(apart, stretch)
  t = Abs(relative)

  # 1.5 t^3 - 2.5 t^2 + 1 below 1, -0.5 (t^3 - 5 t^2 + 8 t - 4) below 2, else 0.
  n3 = Constant<value = double {{1.5}}>()
  n2 = Constant<value = double {{-2.5}}>()
  n_a = Mul(n3, t)
  n_b = Add(n_a, n2)
  n_c = Mul(n_b, t)
  n_d = Mul(n_c, t)
  near = Add(n_d, one)
  f2 = Constant<value = double {{-5.0}}>()
  f1 = Constant<value = double {{8.0}}>()
  f0 = Constant<value = double {{-4.0}}>()
  minus_half = Constant<value = double {{-0.5}}>()
  f_a = Add(t, f2)
  f_b = Mul(f_a, t)
  f_c = Add(f_b, f1)
  f_d = Mul(f_c, t)
  f_e = Add(f_d, f0)
  far = Mul(f_e, minus_half)
  is_near = Less(t, one)
  is_far = Less(t, two)
  tail = Where(is_far, far, zero)
  weight = Where(is_near, near, tail)
  total = ReduceSum<keepdims = 1>(weight, upright)
  share = Div(weight, total)
  scaled = Mul(share, precision)
  sign = Sign(scaled)
  magnitude = Abs(scaled)
  magnitude_and_half = Add(magnitude, half)
  rounded = Floor(magnitude_and_half)
  down = Mul(sign, rounded)
  across = Transpose<perm = [1, 0]>(down)

  r_a = MatMul(pixels, across)
  r_b = Div(r_a, precision)
  r_c = Add(r_b, half)
  r_d = Floor(r_c)
  narrow = Clip(r_d, zero, white)
  c_a = MatMul(down, narrow)
  c_b = Div(c_a, precision)
  c_c = Add(c_b, half)
  c_d = Floor(c_c)
  small = Clip(c_d, zero, white)
  prepared = Cast<to = 2>(small)
}}
"""


def preparation(channels: int, image_size: int) -> onnx.ModelProto:
    """Return the graph ``image`` (n, channels, height, width) to ``prepared`` (n, channels, size, size), both uint8.

    Args:
        channels: of an image.
        image_size: pixels on a side of what the model takes.
    """
    text = _TEXT.format(ir_version=IR_VERSION, opset=OPSET, channels=channels, size=image_size, precision=PRECISION)
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return parser.parse_model("\n".join(lines))
