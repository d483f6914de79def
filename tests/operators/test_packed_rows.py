"""Weights as rows that stay packed: the operators against the oracle, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from diffq_fast.backends import cpu
from diffq_fast.backends.cpu.loading import core
from diffq_fast.reference import packed_rows as oracle
from diffq_fast.reference.packed_rows import pack_rows
from support.operators import check, ops
from support.packed_row_forms import FORMS, Rows

needs_core = pytest.mark.skipif(not cpu.status()[0], reason=cpu.status()[1])


@pytest.mark.parametrize("name", FORMS)
def test_rows_are_what_their_levels_stand_for(name):
    given = Rows(name)
    indices = torch.tensor([given.rows - 1, 0, 1, 1])
    for unpack in (ops.unpack_rows, oracle.unpack_rows):
        assert torch.equal(unpack(indices, *given.arguments()), given.weight[indices])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 9, 20])
@pytest.mark.parametrize("name", FORMS)
def test_products_equal_those_of_the_weight_to_rounding(name, count):
    given = Rows(name, most_width=8)
    vectors = torch.randn(count, given.form.columns, generator=torch.Generator().manual_seed(1))
    product = ops.packed_linear(vectors, *given.arguments())
    exact = vectors.double() @ given.weight.double().mT
    size = vectors.abs().double() @ (given.weight.abs() + given.offset.abs()).double().mT
    assert product.shape == exact.shape
    assert bool(((product - exact).abs() <= 2**-21 * size).all())


@pytest.mark.parametrize("count", [0, 3, 9, 200])
@pytest.mark.parametrize(("int8", "most_width"), [(False, 7), (True, 7), (True, 10)])
def test_a_bias_is_added(count, int8, most_width):
    given = Rows("groups of 64 with a scale each", most_width=most_width)
    vectors = torch.randn(count, given.form.columns, generator=torch.Generator().manual_seed(1))
    bias = torch.linspace(-3, 3, given.rows)
    product = ops.packed_linear(vectors, *given.arguments(), int8)
    for dtype in (torch.float32, torch.float64):
        added = ops.packed_linear(vectors, *given.arguments(), int8, bias.to(dtype))
        assert added.dtype == torch.float32
        torch.testing.assert_close(added, product + bias, rtol=2e-5, atol=2e-5 * float(given.weight.abs().max()))


@needs_core
@pytest.mark.parametrize("bias", [torch.ones(2), torch.ones(5, 1), torch.ones(5).int()])
def test_a_bias_that_does_not_fit_is_refused(bias):
    with pytest.raises(ValueError, match=r"packed_linear: expected a floating bias \[5\], got"):
        ops.packed_linear(torch.randn(1, 64), *Rows("groups of 8").arguments(), False, bias)


def in_int8(vectors):
    """By the definition, an element at a time."""
    rounded = vectors.double().clone()
    for vector in rounded:
        for block in vector.split(64):
            most = block.abs().max()
            block.copy_(torch.tensor([round(x * 127 / float(most)) for x in block.tolist()]).double() * most / 127)
    return rounded


@pytest.mark.parametrize("widths", [(1, 4), (1, 8), (1, 16), (2, 2), (4, 4)])
@pytest.mark.parametrize("count", [1, 3, 8, 9])
@pytest.mark.parametrize("name", FORMS)
def test_products_in_int8_are_those_of_the_rounded_vectors(name, count, widths):
    given = Rows(name, widths[1], least_width=widths[0])
    vectors = torch.randn(count, given.form.columns, generator=torch.Generator().manual_seed(1))
    product = ops.packed_linear(vectors, *given.arguments(), True)
    rounded = in_int8(vectors)
    exact = rounded @ given.weight.double().mT
    size = rounded.abs() @ (given.weight.abs() + given.offset.abs()).double().mT
    assert bool(((product - exact).abs() <= 2**-21 * size).all())


@pytest.mark.parametrize("widths", [(1, 7), (8, 8)])
def test_hundreds_of_vectors_in_int8_with_any_number_of_threads(widths):
    generator = torch.Generator().manual_seed(2)
    width = torch.randint(widths[0], widths[1] + 1, (50, 3), generator=generator)
    levels = (torch.rand(50, 192, generator=generator) * 2.0 ** width.repeat_interleave(64, 1)).int()
    scales, form = torch.rand(150, generator=generator), [192, 64, 64, True, 0]
    rows = (*pack_rows(levels, width.to(torch.uint8), 64), scales, torch.empty(0), form)
    vectors = torch.randn(600, 192, generator=generator)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(ops.packed_linear(vectors, *rows, True))
    finally:
        torch.set_num_threads(before)
    halves, scale = 2.0 ** (width - 1), scales.view(50, 3)
    weight = ((levels - halves.repeat_interleave(64, 1)) * scale.repeat_interleave(64, 1)).double()
    rounded = oracle.round_activations(vectors).double()
    size = rounded.abs() @ (weight.abs() + (halves * scale).repeat_interleave(64, 1)).mT
    assert bool(((results[0] - rounded @ weight.mT).abs() <= 2**-21 * size).all())
    assert torch.equal(results[0], results[1])


def test_vectors_in_int8_keep_zeros_and_tell_what_is_not_finite():
    given = Rows("groups of 64 with a scale each", 8)
    vectors = torch.randn(6, 256, generator=torch.Generator().manual_seed(1))
    vectors[0] = 0.0
    vectors[1, :64] = 1e-40  # smaller than a block may be: zero
    vectors[2, 70] = torch.nan
    vectors[3, 200] = torch.inf
    vectors[4] *= 1e30
    product = ops.packed_linear(vectors, *given.arguments(), True)
    assert bool((product[0] == 0).all())
    assert bool(product[2:4].isnan().all())
    assert bool(product[[1, 4, 5]].isfinite().all())
    vectors[1, :64] = 0.0
    assert torch.equal(product[1], ops.packed_linear(vectors, *given.arguments(), True)[1])


@needs_core
def test_the_core_rounds_as_the_oracle_does():
    """Rows of a unit matrix give the rounded vector back."""
    packed = pack_rows(torch.eye(128).int() + 1, torch.full((128, 2), 2, dtype=torch.uint8), 64)
    form = [128, 64, 0, True, 0]  # levels 1 and 2 stand for -1 and 0
    vectors = torch.randn(2, 128, generator=torch.Generator().manual_seed(3)) * torch.tensor([[1.0], [1e-20]])
    products = ops.packed_linear(vectors, *packed, torch.ones(1), torch.empty(0), form, True)
    rounded = oracle.round_activations(vectors)
    torch.testing.assert_close(products + rounded.sum(1, keepdim=True), rounded, rtol=0, atol=2e-5)
    differences = (rounded - vectors).view(2, 2, 64).abs().amax(2) / vectors.view(2, 2, 64).abs().amax(2)
    assert bool((differences <= 0.5001 / 127).all())


@needs_core
@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (9, 64), (9, 65), (300, 200)])
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-33, 1.0, 1e37])
def test_many_vectors_are_rounded_bit_for_bit_as_the_oracle_does(shape, size):
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * size
    vectors[0, -1], vectors[-1, 0] = torch.nan, -torch.inf
    rounded, expected = torch.full(shape, 3.0), oracle.round_activations(vectors)
    core.round_activations(vectors.data_ptr(), *shape, rounded.data_ptr(), 2)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0, equal_nan=True)


def halves_and_what_is_beside_them():
    """Blocks whose first element is the largest: the others times 127 over it lie at halves, or as near as floats do,
    then one float above and below."""
    most = 0.5 + torch.rand(300, 1, generator=torch.Generator().manual_seed(5))
    most[:3] = torch.tensor([[127.0], [127 * 2.0**-30], [127 * 2.0**90]])  # exactly at halves
    halves = ((torch.arange(-126, 126).view(1, 4, 63) + 0.5) * most.view(-1, 1, 1).double() / 127).float()
    about = [halves, halves.nextafter(torch.tensor(torch.inf)), halves.nextafter(torch.tensor(-torch.inf))]
    blocks = torch.cat(about, 1)
    return torch.cat([most.view(-1, 1, 1).expand(-1, 12, 1), blocks], 2).flatten(0, 1)


def test_halves_are_rounded_by_the_quotient_and_to_even():
    """The oracle, and where it is there the core: whole numbers by one division, one product and the rounding of it."""
    vectors = halves_and_what_is_beside_them()
    most = vectors[:, :1]
    inverse, unit = torch.full_like(most, 127.0) / most, most / torch.full_like(most, 127.0)
    expected = (vectors * inverse).round() * unit
    assert torch.equal(oracle.round_activations(vectors), expected)
    if cpu.status()[0]:
        rounded = torch.empty_like(vectors)
        core.round_activations(vectors.data_ptr(), *vectors.shape, rounded.data_ptr(), 1)
        assert torch.equal(rounded, expected)


@pytest.mark.parametrize("name", FORMS)
def test_the_operator_packs_as_the_oracle_does(name):
    given = Rows(name)
    starts, size = oracle.row_starts(given.widths, given.form.columns, given.segment)
    data = ops.pack_rows(given.levels, given.widths, starts, given.segment, size)
    assert torch.equal(data, given.packed[0])
    assert torch.equal(starts, given.packed[1])


@pytest.mark.parametrize(
    "change", [{"size": 20}, {"size": 0}, {"width": 0}, {"width": 17}, {"start": -1}, {"start": 9}]
)
def test_rows_that_do_not_fit_their_data_are_refused(change):
    given = Rows("groups of 8")
    starts, size = oracle.row_starts(given.widths, given.form.columns, given.segment)
    widths = given.widths.clone()
    widths[1, 2] = change.get("width", int(widths[1, 2]))
    starts[4] = change.get("start", int(starts[4])) * (1 if "start" not in change or change["start"] < 0 else 10_000)
    with pytest.raises(ValueError, match="pack_rows: "):
        ops.pack_rows(given.levels, widths, starts, given.segment, change.get("size", size))


@pytest.mark.parametrize("width", range(1, 17))
def test_every_width(width):
    levels = torch.arange(4 * 24).view(4, 24).int() * 40503 % 2**width
    widths = torch.full((4, 3), width, dtype=torch.uint8)
    packed = pack_rows(levels, widths, 8)
    form = [24, 8, 0, True, 0]
    scales, none = torch.ones(1), torch.empty(0)
    values = ops.unpack_rows(torch.arange(4), *packed, scales, none, form)
    assert torch.equal(values, levels.float() - 2 ** (width - 1))
    assert packed[0].numel() == 4 * 4 * -(-3 * width // 4) + oracle.READ_BEHIND


@pytest.mark.parametrize("shape", [(64,), (1, 64), (2, 3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_of_any_shape_and_dtype(shape, dtype):
    given = Rows("groups of 8")
    vectors = torch.linspace(-1, 1, 64).expand(shape).to(dtype)
    product = ops.packed_linear(vectors, *given.arguments())
    assert product.shape == (*shape[:-1], given.rows)
    assert product.dtype == dtype
    rows = vectors.reshape(-1, 64)
    assert torch.equal(product.view(-1, given.rows), ops.packed_linear(rows, *given.arguments()))


def test_threads_change_nothing():
    given = Rows("groups of 8")
    vectors = torch.randn(3, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.packed_linear(vectors, *given.arguments()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_opcheck():
    given = Rows("groups of 8")
    check(ops.unpack_rows.default, torch.tensor([2, 0]), *given.arguments())
    check(ops.packed_linear.default, torch.randn(2, 64), *given.arguments())
    check(ops.packed_linear.default, torch.randn(2, 64), *given.arguments(), True)


@needs_core
@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_an_index_out_of_bounds_is_refused(index):
    with pytest.raises(ValueError, match="unpack_rows: an index or a row is out of bounds"):
        ops.unpack_rows(torch.tensor([0, index]), *Rows("groups of 8").arguments())


@needs_core
@pytest.mark.parametrize("place", range(6))
def test_rows_beyond_their_data_are_refused(place):
    data, starts, widths, *rest = Rows("groups of 8").arguments()
    if place < 5:
        starts = starts.clone()
        starts[place] = [2**30, -1, len(data) // 4, -(2**31), 2**31 - 1][place]
    else:
        data = data[: oracle.READ_BEHIND]
    with pytest.raises(ValueError, match="out of bounds"):
        ops.packed_linear(torch.randn(1, 64), data, starts, widths, *rest)
    with pytest.raises(ValueError, match="out of bounds"):
        ops.unpack_rows(torch.arange(5), data, starts, widths, *rest)


@needs_core
def test_wider_widths_than_the_data_has_are_refused():
    data, starts, widths, *rest = Rows("groups of 8", most_width=2).arguments()
    with pytest.raises(ValueError, match="out of bounds"):
        ops.packed_linear(torch.randn(1, 64), data, starts, torch.full_like(widths, 255), *rest)


@needs_core
@pytest.mark.parametrize(
    "form",
    [[], [64, 8, 0], [0, 0, 0, 0, 0], [64, 0, 0, 0, 0], [64, 7, 0, 0, 0], [64, 128, 0, 0, 0], [64, 8, 4, 0, 0],
     [2**40, 8, 0, 0, 0], [64, 8, -8, 0, 0], [-64, 8, 0, 0, 0], [72, 8, 0, 0, 0], [64, 8, 8, 0, 0]],
)  # fmt: skip
def test_forms_that_do_not_fit_are_refused(form):
    *tensors, _ = Rows("groups of 8").arguments()
    with pytest.raises(ValueError, match="packed_linear: "):
        ops.packed_linear(torch.randn(1, 64), *tensors, form)
    with pytest.raises(ValueError, match="unpack_rows: "):
        ops.unpack_rows(torch.arange(5), *tensors, form)


@needs_core
@pytest.mark.parametrize("place", range(5))
def test_tensors_of_other_dtypes_are_refused(place):
    *tensors, form = Rows("groups of 8").arguments()
    tensors[place] = tensors[place].to(torch.float64)
    with pytest.raises(ValueError, match="expected uint8 data, int32 starts, uint8 widths, float32 scales"):
        ops.packed_linear(torch.randn(1, 64), *tensors, form)


@needs_core
@pytest.mark.parametrize("vectors", [torch.randn(1, 63), torch.ones(1, 64, dtype=torch.int64), torch.tensor(1.0)])
def test_vectors_that_do_not_fit_are_refused(vectors):
    with pytest.raises(ValueError, match="packed_linear: expected a floating input of 64 columns"):
        ops.packed_linear(vectors, *Rows("groups of 8").arguments())


@pytest.mark.parametrize("group_size", [0, 8])
@pytest.mark.parametrize("unpack", [ops.unpack_rows, oracle.unpack_rows])
def test_a_weight_without_rows_has_none_to_give(unpack, group_size):
    nothing = torch.empty(0)
    rows = (torch.zeros(16).byte(), torch.zeros(1).int(), torch.empty(0, 1).byte(), nothing, nothing)
    form = [8, 8, group_size, False, 0]
    assert unpack(torch.empty(0).long(), *rows, form).shape == (0, 8)
    assert ops.packed_linear(torch.ones(2, 8), *rows, form).shape == (2, 0)
    with pytest.raises((ValueError, IndexError)):
        unpack(torch.tensor([0]), *rows, form)


OUT_OF_MEMORY = """
import resource, torch, diffq_fast.functional as F
columns = 1 << 22
widths = torch.full((2, 1), 4, dtype=torch.uint8)
data, starts, halves = F.pack_rows(torch.zeros((2, columns), dtype=torch.int32), widths, columns)
form = F.RowForm(columns, columns, 0, False, 0)
rows = F.PackedRows(data, starts, halves, torch.ones(1), torch.zeros(1), form)
vectors = torch.ones(9, columns)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)  # enough for the vectors, not for levels of 16 rows
try:
    F.packed_linear(vectors, rows, activations="int8")
except MemoryError:
    print("told")
"""


@needs_core
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_lack_of_memory_is_told():
    made = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert (made.returncode, made.stdout) == (0, "told\n"), made.stderr
