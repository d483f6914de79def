"""The functional API: what each bad argument is answered with, its examples, and the order it is read in."""

import ast
import doctest
import inspect

import pytest
import torch

from diffq_fast import functional as F

W, LOGIT, KEY = torch.arange(16.0), torch.zeros(2), torch.tensor(1)
RANGE = torch.tensor([[0.0, 15.0]])
NONE = torch.zeros(0, dtype=torch.int32)


def u8(*values):
    return torch.tensor(values, dtype=torch.uint8)


def i32(*values):
    return torch.tensor(values, dtype=torch.int32)


WORDS = i32(*[0] * 3)  # 1 … 32 levels of 3 bits
PLANES = torch.zeros(1, 3, 32, dtype=torch.int64)
ROWS = F.PackedRows(
    *F.pack_rows(i32(1, 3).view(1, 2), u8(2).view(1, 1), 2), *W[:2].split(1), F.RowForm(2, 2, 0, False, 0)
)
WIDE = PLANES[:, :0, :1].expand(1, 0, 2**60)

# call -> error, words that the message must hold (who; which argument; what was expected; what came)
BAD_CALLS = {
    # coded levels
    "codes_from_steps(W.cfloat())": (TypeError, "codes_from_steps: steps floating torch.complex64"),
    "add_uniform_noise([], [], KEY, group_sizes=[])": (ValueError, "add_uniform_noise: at least one weight"),
    "weight_sizes([], [])": (ValueError, "weight_sizes: expected at least one logits"),
    "bits_from_logits(LOGIT, 2, 15, 'step')": (ValueError, "bits_from_logits: param 'bits', 'noise' 'step'"),
    "bits_from_logits(LOGIT.bool(), 2, 15)": (TypeError, "bits_from_logits: logits real torch.bool"),
    "bits_from_logits(LOGIT, 0, 15, 'noise')": (ValueError, "bits: 'noise' 0 < min_bits < max_bits min_bits=0"),
    "logits_from_bits(LOGIT, 2, 2000.0, 'noise')": (ValueError, "bits: 'noise' max_bits <= 1000 max_bits=2000"),
    "logits_from_bits(LOGIT.cfloat(), 2, 15)": (TypeError, "logits_from_bits: bits real torch.complex64"),
    "step_from_bits(LOGIT.cfloat())": (TypeError, "step_from_bits: bits real torch.complex64"),
    "whole_bits(LOGIT.cfloat())": (TypeError, "whole_bits: bits real torch.complex64"),
    "logits_from_bits(LOGIT + 3, 2, 15, 'step')": (ValueError, "logits_from_bits: param 'bits', 'noise' 'step'"),
    # weight_range
    "weight_range([])": (ValueError, "weight_range: at least one weight none"),
    "weight_range([W.long()])": (TypeError, "weight_range: weights[0] floating torch.int64"),
    "weight_range([W, W.cfloat()])": (TypeError, "weight_range: weights[1] floating torch.complex64"),
    "weight_range([W, W.to('meta')])": (ValueError, "weight_range: one device cpu meta"),
    "weight_range([W], range_scope='row')": (ValueError, "weight_range: range_scope 'tensor', 'group' 'row'"),
    "weight_range([W], group_size=-1)": (ValueError, "weight_range: group_size positive -1"),
    "weight_range([W], group_size=1.5)": (TypeError, "weight_range: group_size whole number 1.5"),
    "weight_range([W], group_size=2**63)": (ValueError, "weight_range: group_size below 2**63 9223372036854775808"),
    "weight_range([W.to_sparse()])": (TypeError, "weight_range: weights[0] dense torch.sparse_coo"),
    # noise
    "noise(KEY, 0, 10, begin=2**63 - 10)": (ValueError, "noise: begin + count below 2**63 begin=9223372036854775798"),
    "noise(KEY, 0, 2**60)": (ValueError, "noise: count below 2**60 count=1152921504606846976"),
    "noise(KEY.int(), 0, 2)": (TypeError, "noise: key int64 torch.int32"),
    "noise(KEY[None], 0, 2)": (TypeError, "noise: key without dimensions [1]"),
    "noise(KEY, 0, 2, noise_kind='normal')": (ValueError, "noise: noise_kind 'uniform', 'gaussian' 'normal'"),
    "noise(KEY, -1, 2)": (ValueError, "noise: stream between 0 and 2**32 - 1 -1"),
    "noise(KEY, 2**32, 2)": (ValueError, "noise: stream between 0 and 2**32 - 1 4294967296"),
    "noise(KEY, 0, -1)": (ValueError, "noise: count not be negative count=-1"),
    "noise(KEY, 0, 1, begin=-8)": (ValueError, "noise: begin not be negative begin=-8"),
    # add_noise
    "add_noise([], [], KEY)": (ValueError, "add_noise: at least one weight none"),
    "add_noise([W.int()], [LOGIT], KEY)": (TypeError, "add_noise: weights[0] floating torch.int32"),
    "add_noise([W], [LOGIT], KEY.float())": (TypeError, "add_noise: key int64 torch.float32"),
    "add_noise([W], [LOGIT], KEY, Options(group_size=-8))": (ValueError, "add_noise: group_size positive -8"),
    "add_noise([W], [LOGIT], KEY, Options(noise_kind='x'))": (
        ValueError,
        "add_noise: noise_kind 'uniform', 'gaussian' 'x'",
    ),
    "add_noise([W], [LOGIT], KEY, Options(param='x'))": (ValueError, "add_noise: param 'bits', 'noise' 'x'"),
    "add_noise([W], [LOGIT], KEY, Options(range_scope='x'))": (
        ValueError,
        "add_noise: range_scope 'tensor', 'group' 'x'",
    ),
    "add_noise([W], [LOGIT], KEY, Options(min_bits=0))": (
        ValueError,
        "add_noise: 0 < min_bits < max_bits min_bits=0",
    ),
    "add_noise([W], [LOGIT], KEY, Options(max_bits=2))": (
        ValueError,
        "add_noise: 0 < min_bits < max_bits max_bits=2",
    ),
    "add_noise([W], [LOGIT], KEY, Options(max_bits=NAN))": (
        ValueError,
        "add_noise: 0 < min_bits < max_bits max_bits=nan",
    ),
    "add_noise([W], [LOGIT], KEY, Options(max_bits=128))": (ValueError, "add_noise: max_bits < 128 max_bits=128"),
    "add_noise([W], [LOGIT], KEY.to('meta'))": (ValueError, "add_noise: key cpu meta"),
    "add_noise([W], [], KEY)": (ValueError, "add_noise: 1 logits, one per weight 0"),
    "add_noise([W, W], [LOGIT, LOGIT[:1]], KEY)": (ValueError, "add_noise: logits[1] [2] group of 8 16 [1]"),
    "add_noise([W], [LOGIT], KEY, Options(group_size=0))": (
        ValueError,
        "add_noise: logits[0] [1] group of all 16 [2]",
    ),
    "add_noise([W], [LOGIT[None]], KEY)": (ValueError, "add_noise: logits[0] [2] [1, 2]"),
    "add_noise([W], [LOGIT.to('meta')], KEY)": (ValueError, "add_noise: logits[0] meta cpu"),
    "add_noise([W], [LOGIT.long()], KEY)": (TypeError, "add_noise: logits[0] floating torch.int64"),
    "add_noise([W], [LOGIT], KEY, streams=[0, 1])": (ValueError, "add_noise: 1 streams, one per weight 2"),
    "add_noise([W], [LOGIT], KEY, streams=[-1])": (ValueError, "add_noise: streams between 0 and 2**32 - 1 -1"),
    "add_noise([W], [LOGIT], KEY, streams=[2**32])": (ValueError, "add_noise: streams 2**32 - 1 4294967296"),
    "add_noise([W], [LOGIT], KEY, nonfinite=torch.zeros(3))": (ValueError, "add_noise: nonfinite [1] [3]"),
    "add_noise([W], [LOGIT], KEY, nonfinite=torch.zeros(1).long())": (TypeError, "add_noise: nonfinite float32 int64"),
    # widths_from_logits
    "widths_from_logits(LOGIT, 2, 15, 'x')": (ValueError, "bits_from_logits: param 'bits', 'noise' 'x'"),
    "widths_from_logits(LOGIT, 15, 2, 'noise')": (ValueError, "bits: 0 < min_bits < max_bits min_bits=15"),
    "widths_from_logits(LOGIT > 0, 2, 15)": (TypeError, "bits_from_logits: logits real numbers torch.bool"),
    "widths_from_logits(LOGIT.to('meta'), 2, 15)": (ValueError, "widths_from_logits: logits values meta"),
    # quantize
    "quantize([], [], RANGE)": (ValueError, "quantize: at least one weight none"),
    "quantize([W.int()], [u8(3, 3)], RANGE)": (TypeError, "quantize: weights[0] floating torch.int32"),
    "quantize([W], [u8(3, 3)], RANGE, group_size=-2)": (ValueError, "quantize: group_size positive -2"),
    "quantize([W], [], RANGE)": (ValueError, "quantize: 1 widths, one per weight 0"),
    "quantize([W], [u8(3)], RANGE)": (ValueError, "quantize: widths[0] [2] group of 8 16 [1]"),
    "quantize([W], [i32(3, 3)], RANGE)": (TypeError, "quantize: widths uint8 torch.int32"),
    "quantize([W], [u8(3, 0)], RANGE)": (ValueError, "quantize: bits must be between 1 and 16, got 0"),
    "quantize([W], [u8(17, 3)], RANGE)": (ValueError, "quantize: bits must be between 1 and 16, got 17"),
    "quantize([W], [u8(3, 3)], RANGE.double())": (ValueError, "quantize: ranges float32 [1, 2] torch.float64"),
    "quantize([W], [u8(3, 3)], RANGE[0])": (ValueError, "quantize: ranges float32 [1, 2] [2]"),
    "quantize([W], [u8(3, 3)], RANGE, range_scope='group')": (ValueError, "quantize: ranges [2, 2] [1, 2]"),
    "quantize([W], [u8(3, 3)], RANGE, range_scope='x')": (ValueError, "quantize: range_scope 'tensor', 'group' 'x'"),
    "quantize([W], [u8(3, 3)], RANGE.to('meta'))": (ValueError, "quantize: ranges meta cpu"),
    # packed_word_count
    "packed_word_count(u8(3), -5, 8)": (ValueError, "packed_word_count: count -5"),
    "packed_word_count(u8(), -5, 8)": (ValueError, "packed_word_count: count -5"),
    "packed_word_count(u8(3), 5, -8)": (ValueError, "packed_word_count: group_size positive -8"),
    "packed_word_count(u8(3, 3), 5, 8)": (ValueError, "packed_word_count: widths [1] [2]"),
    "packed_word_count(u8(20), 5, 8)": (ValueError, "packed_word_count: bits must be between 1 and 16, got 20"),
    "packed_word_count(u8(3).to('meta'), 5, 8)": (ValueError, "packed_word_count: widths values meta"),
    # pack
    "pack(i32(1).to('meta'), u8(3))": (ValueError, "pack: levels values meta"),
    "pack(W, u8(3, 3))": (TypeError, "pack: levels int32 torch.float32"),
    "pack(i32(1), u8(3), group_size=-1)": (ValueError, "pack: group_size positive -1"),
    "pack(i32(1), u8())": (ValueError, "pack: widths [1] [0]"),
    "pack(i32(1), i32(3))": (TypeError, "pack: widths uint8 torch.int32"),
    "pack(i32(1), u8(17))": (ValueError, "pack: bits must be between 1 and 16, got 17"),
    "pack(i32(1, -2), u8(3))": (ValueError, "pack: levels negative -2"),
    "pack(i32(8), u8(3))": (ValueError, "pack: level 8 element 0 3 bits"),
    "pack(i32(7, 9, 1, 5), u8(3, 2), group_size=3)": (ValueError, "pack: level 9 element 1 3 bits"),
    "pack(i32(7, 7, 7, 5), u8(3, 2), group_size=3)": (ValueError, "pack: level 5 element 3 2 bits"),
    # quantize_pack
    "quantize_pack(W.int(), u8(3, 3), RANGE)": (TypeError, "quantize_pack: floating torch.int32"),
    "quantize_pack(W, u8(3), RANGE)": (ValueError, "quantize_pack: widths [2] [1]"),
    "quantize_pack(W, u8(3, 18), RANGE)": (ValueError, "quantize_pack: bits must be between 1 and 16, got 18"),
    "quantize_pack(W, u8(3, 3), RANGE, group_size=-1)": (ValueError, "quantize_pack: group_size positive -1"),
    "quantize_pack(W, u8(3, 3), RANGE.half())": (ValueError, "quantize_pack: ranges float32 torch.float16"),
    # unpack
    "unpack(WORDS, u8(3), 9)": (ValueError, "unpack: widths [2] [1]"),
    "unpack(WORDS, u8(3), -1)": (ValueError, "unpack: count -1"),
    "unpack(NONE, u8(), -1)": (ValueError, "unpack: count -1"),
    "unpack(WORDS, u8(3), 3, group_size=-2)": (ValueError, "unpack: group_size positive -2"),
    "unpack(WORDS[:2], u8(3), 3)": (ValueError, "unpack: 3 packed words 3 levels 1 groups 2"),
    "unpack(i32(0, 0, 0, 0), u8(3), 3)": (ValueError, "unpack: 3 packed words 3 levels 1 groups 4"),
    "unpack(WORDS.long(), u8(3), 3)": (TypeError, "unpack: words flat int32 torch.int64"),
    "unpack(WORDS[None], u8(3), 3)": (TypeError, "unpack: words flat int32 [1, 3]"),
    "unpack(WORDS, u8(0), 3)": (ValueError, "unpack: bits must be between 1 and 16, got 0"),
    "unpack(WORDS.to('meta'), u8(3), 3)": (ValueError, "unpack: widths meta cpu"),
    # dequantize
    "dequantize([W], [u8(3, 3)], RANGE)": (TypeError, "dequantize: levels[0] int32 torch.float32"),
    "dequantize([i32(1)], [u8()], RANGE)": (ValueError, "dequantize: widths[0] [1] [0]"),
    "dequantize([i32(1)], [u8(3)], RANGE, dtype=torch.int8)": (TypeError, "dequantize: dtype floating torch.int8"),
    "dequantize([i32(1)], [u8(3)], RANGE[:0])": (ValueError, "dequantize: ranges [1, 2] [0, 2]"),
    "dequantize([i32(1)], [u8(99)], RANGE)": (ValueError, "dequantize: bits must be between 1 and 16, got 99"),
    # fake_quantize
    "fake_quantize([W.int()], [u8(3, 3)], RANGE)": (TypeError, "fake_quantize: weights[0] floating torch.int32"),
    "fake_quantize([W], [u8(3)], RANGE)": (ValueError, "fake_quantize: widths[0] [2] group of 8 16 [1]"),
    "fake_quantize([W], [i32(3, 3)], RANGE)": (TypeError, "fake_quantize: widths uint8 torch.int32"),
    "fake_quantize([W], [u8(3, 3)], RANGE, dtype=torch.int8)": (TypeError, "fake_quantize: dtype floating torch.int8"),
    "fake_quantize([W], [u8(3, 3)], RANGE, range_scope='x')": (ValueError, "fake_quantize: range_scope 'tensor' 'x'"),
    # unpack_dequantize
    "unpack_dequantize(WORDS, u8(3), RANGE, [9])": (ValueError, "unpack_dequantize: widths [2] [1]"),
    "unpack_dequantize(WORDS[:1], u8(3), RANGE, [3])": (ValueError, "unpack_dequantize: 3 packed words 1"),
    "unpack_dequantize(WORDS, u8(3), RANGE.long(), [3])": (ValueError, "unpack_dequantize: ranges float32 torch.int64"),
    "unpack_dequantize(WORDS, u8(3), RANGE, [3], dtype=torch.bool)": (TypeError, "unpack_dequantize: dtype floating"),
    "unpack_dequantize(WORDS, u8(3), RANGE, [-1])": (ValueError, "unpack_dequantize: -1"),
    "unpack_dequantize(WORDS, u8(3), RANGE, [-1, -3])": (ValueError, "unpack_dequantize: shape [-1, -3]"),
    "unpack_dequantize(WORDS, u8(3), RANGE.to('meta'), [3])": (ValueError, "unpack_dequantize: ranges cpu meta"),
    "unpack_dequantize(NONE, u8(), RANGE, [2**40, 2**40])": (
        ValueError,
        "unpack_dequantize: shape 2**60 1099511627776",
    ),
    "unpack_dequantize(NONE, u8(), RANGE, [0, 2**70])": (ValueError, "unpack_dequantize: shape fewer than 2**60"),
    # planes
    "pack_planes(i32(1).to('meta'), 3)": (ValueError, "pack_planes: values meta"),
    "pack_planes(W, 3)": (TypeError, "pack_planes: values integers torch.float32"),
    "pack_planes(W > 3, 3)": (TypeError, "pack_planes: values integers torch.bool"),
    "pack_planes(i32(1), 3, rows=5)": (ValueError, "pack_planes: rows [8, 16, 32, 64] 5"),
    "pack_planes(i32(1), 17)": (ValueError, "pack_planes: width between 0 and 16 17"),
    "pack_planes(i32(1), -1)": (ValueError, "pack_planes: width between 0 and 16 -1"),
    "pack_planes(i32(1), 3, columns=0)": (ValueError, "pack_planes: columns positive 0"),
    "pack_planes(NONE, 3, columns=-1)": (ValueError, "pack_planes: columns positive -1"),
    "pack_planes(NONE, 3, columns=2**32)": (ValueError, "pack_planes: columns below 2**32 4294967296"),
    "pack_planes(i32(3, 8), 3)": (ValueError, "pack_planes: values between 0 and 7 3 bits 8"),
    "pack_planes(i32(3, -1), 3)": (ValueError, "pack_planes: values between 0 and 7 3 bits -1"),
    "quantize_planes(W, u8(3), RANGE)": (ValueError, "quantize_planes: widths [2] [1]"),
    "steps_from_codes(W)": (TypeError, "steps_from_codes: codes integers torch.float32"),
    "codes_from_steps(i32(1))": (TypeError, "codes_from_steps: steps floating torch.int32"),
    "level_code(W)": (TypeError, "level_code: levels integers torch.float32"),
    "level_code(i32(40000))": (ValueError, "level_code: levels between -32768 and 32767 40000"),
    "encode_levels(W)": (TypeError, "encode_levels: levels integers torch.float32"),
    "encode_levels(NONE.to('meta'))": (ValueError, "encode_levels: levels meta"),
    "encode_levels(i32(-32769))": (ValueError, "encode_levels: levels between -32768 and 32767 -32769"),
    "encode_levels(i32(9), F.LevelCode(0, 3))": (ValueError, "encode_levels: no symbol"),
    "encode_levels(i32(9), F.LevelCode(0, 17))": (ValueError, "encode_levels: code: 17 low bits 16"),
    "stream_size(WORDS, 5)": (TypeError, "stream_size: words int16 torch.int32"),
    "stream_size(WORDS.short()[:0], 5)": (ValueError, "stream_size: cut off"),
    "decode_levels(WORDS, 5)": (TypeError, "decode_levels: words int16 torch.int32"),
    "decode_levels(WORDS.short(), -1)": (ValueError, "decode_levels: count 0 to 2**60 - 1 -1"),
    "decode_levels(WORDS.short()[:1], 5)": (ValueError, "decode_levels: cut off"),
    # rows
    "pack_rows(W, u8(3), 2)": (TypeError, "pack_rows: levels int32 [rows, columns] torch.float32"),
    "pack_rows(i32(1, 2, 3, 4).view(1, 4), u8(3), 3)": (ValueError, "pack_rows: segment 4 columns 3"),
    "pack_rows(i32(1, 2, 3, 4).view(1, 4), u8(3), 0)": (ValueError, "pack_rows: segment 4 columns 0"),
    "pack_rows(i32(1, 2).view(1, 2), u8(3), 2)": (ValueError, "pack_rows: widths uint8 [1, 1] [1]"),
    "pack_rows(i32(1, 2).view(1, 2), u8(0).view(1, 1), 2)": (ValueError, "pack_rows: between 1 and 16 0"),
    "pack_rows(i32(1, 4).view(1, 2), u8(2).view(1, 1), 2)": (ValueError, "pack_rows: levels 2**width - 1 4"),
    "pack_rows(i32(1, -4).view(1, 2), u8(2).view(1, 1), 2)": (ValueError, "pack_rows: levels 2**width - 1 -4"),
    "unpack_rows(i32(0), ROWS)": (TypeError, "unpack_rows: indices flat int64 torch.int32"),
    "unpack_rows(i32(1).long(), ROWS)": (ValueError, "unpack_rows: index"),
    "unpack_rows(i32(0).long(), ROWS._replace(scales=NONE))": (TypeError, "unpack_rows: scales float32 int32"),
    "packed_linear(i32(1, 2), ROWS)": (TypeError, "packed_linear: input floating torch.int32"),
    "packed_linear(W[:2], ROWS, activations='int4')": (ValueError, "packed_linear: activations 'float', 'int8' 'int4'"),
    "packed_linear(W[:2], ROWS, bias=W[:3])": (ValueError, "packed_linear: bias floating [1] [3]"),
    "packed_linear(W[:3], ROWS)": (ValueError, "packed_linear: input 2 columns [3]"),
    "packed_linear(W[:2], ROWS._replace(starts=i32(10**6, 0)))": (ValueError, "packed_linear: row out of bounds"),
    "packed_linear(W[:2], ROWS._replace(starts=i32(0)))": (ValueError, "packed_linear: widths [0, 1] [1, 1]"),
    "packed_linear(W[:2], ROWS._replace(scales=W.view(1, -1)))": (ValueError, "packed_linear: flat scales [1, "),
    "packed_linear(W[:2], ROWS._replace(scales=W[:0]))": (ValueError, "packed_linear: scales 1 0"),
    "packed_linear(W[:2], ROWS._replace(form=F.RowForm(2, 3, 0, False, 0)))": (
        ValueError,
        "packed_linear: form segment=3",
    ),
    "unpack_planes(PLANES.float(), 5)": (TypeError, "unpack_planes: planes torch.int64 torch.float32"),
    "unpack_planes(PLANES[0], 5)": (TypeError, "unpack_planes: planes 3-dimensional 2 dimensions"),
    "unpack_planes(PLANES, 2049)": (ValueError, "unpack_planes: length between 0 and 2048 2049"),
    "unpack_planes(WIDE, 5)": (
        ValueError,
        "unpack_planes: columns 1152921504606846976",
    ),
    "unpack_planes(PLANES, -1)": (ValueError, "unpack_planes: length between 0 and 2048 -1"),
    "unpack_planes(PLANES.expand(1, 3, 32).repeat(1, 6, 1), 5)": (ValueError, "unpack_planes: at most 16 planes 18"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_bad_arguments_are_answered_with_the_promised_words(call):
    error, words = BAD_CALLS[call]
    with pytest.raises(error) as caught:
        eval(f"F.{call}", {**globals(), "NAN": float("nan"), "Options": F.NoiseOptions})
    message = str(caught.value)
    assert message.startswith(words.split()[0])
    at = 0
    for word in words.split()[1:]:
        at = message.find(word, at)
        assert at >= 0, f"{word!r} is missing, or too early, in {message!r}"


def test_every_function_that_can_refuse_has_a_row():
    rows = {call.partition("(")[0] for call in BAD_CALLS}
    assert set(F.__all__) - rows == {"draw_key", "empty_cache", "NoiseOptions", "LevelCode", "RowForm", "PackedRows"}


def test_examples_in_the_docstrings_run():
    failed, attempted = doctest.testmod(F)
    assert failed == 0
    assert attempted > 5


def test_functions_are_listed_and_defined_in_the_order_of_the_data_flow():
    tree = ast.parse(inspect.getsource(F))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    defined = [name for name in functions if not name.startswith("_")]
    assert [name for name in F.__all__ if name in defined] == defined
    imported = [name for name in F.__all__ if name not in defined]
    rules = ["bits_from_logits", "logits_from_bits", "step_from_bits", "whole_bits"]
    assert imported == ["NoiseOptions", *rules, "LevelCode", "RowForm", "PackedRows"]
    homes = {getattr(F, name).__module__ for name in imported}
    assert homes == {f"diffq_fast.reference.{module}" for module in ("bits", "options", "level_code", "packed_rows")}


def test_every_public_function_is_documented_and_typed():
    for name in F.__all__:
        function = getattr(F, name)
        assert inspect.getdoc(function), name
        if isinstance(function, type):
            continue
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, name
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, (name, parameter.name)


# -- what the checked functions add to the operators -------------------------------------------------------


def test_weight_range_values_dtype_and_no_gradient():
    weights = [torch.tensor([3.0, -1.0, 2.0], requires_grad=True), torch.zeros(0), torch.ones(2, 2)]
    found = F.weight_range(weights)
    assert found.tolist() == [[-1, 3], [0, 0], [1, 1]]
    assert not found.requires_grad
    assert F.weight_range(weights, group_size=2, range_scope="group").tolist() == [[-1, 3], [2, 2], [1, 1], [1, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_range_fits_the_export_of_its_weight(dtype):
    """weight_range promises float32 whatever the weight is, and quantize asks for it."""
    weight = torch.linspace(-1, 2, 25).to(dtype)
    found, widths = F.weight_range([weight]), u8(4, 5, 6, 7)
    assert found.dtype == torch.float32
    (levels,) = F.quantize([weight], [widths], found)
    words = F.pack(levels, widths)
    assert words.numel() == F.packed_word_count(widths, 25, 8) == 4 + 5 + 6 + 7
    assert torch.equal(F.quantize_pack(weight, widths, found), words)
    assert torch.equal(F.unpack(words, widths, 25), levels)
    (restored,) = F.dequantize([levels], [widths], found, dtype=dtype)
    assert torch.equal(F.unpack_dequantize(words, widths, found, [25], dtype=dtype), restored)
    assert restored.dtype == dtype
    assert (restored.float() - weight.float()).abs().max() <= 0.5 * 3 / 15 + 0.02


def test_add_noise_defaults_are_diffqs_and_its_streams_count_up():
    weights, logits = [torch.randn(16), torch.randn(16)], [torch.zeros(2), torch.zeros(2)]
    noisy, found = F.add_noise(weights, logits, KEY)
    explicit = F.add_noise(weights, logits, KEY, F.NoiseOptions(8, 2, 15, "bits", "gaussian", "tensor"), streams=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(noisy, explicit.noisy, strict=True))
    assert torch.equal(found, F.weight_range(weights))
    z = F.noise(KEY, 1, 16)
    amplitude = (found[1, 1] - found[1, 0]) / (2**8.5 - 1)
    torch.testing.assert_close(noisy[1], weights[1] + amplitude * z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("group_size", [0, 1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1025])
def test_packed_word_count_is_the_closed_formula(count, group_size):
    groups = -(-count // group_size) if group_size else min(count, 1)
    widths = [group % 16 + 1 for group in range(groups)]
    levels = [0] * 17
    for element in range(count):
        levels[widths[element // group_size if group_size else 0]] += 1
    expected = sum(width * -(-number // 32) for width, number in enumerate(levels))
    assert F.packed_word_count(u8(*widths), count, group_size) == expected


def test_a_group_larger_than_the_weight_costs_no_memory_and_is_the_whole_weight():
    for dtype in (torch.float32, torch.float64):  # the core's and the reference's
        results = []
        for group_size in (0, 16, 2**45, 2**63 - 1):
            weight, logit = W.to(dtype).requires_grad_(), torch.zeros(1, requires_grad=True)
            options = {"group_size": group_size, "range_scope": "group"}
            noisy, found = F.add_noise([weight], [logit], KEY, F.NoiseOptions(**options))
            grads = torch.autograd.grad((noisy[0] ** 2).sum(), (weight, logit))
            found = found.to(torch.float32)
            levels = F.quantize([weight], [u8(5)], found, **options)[0]
            words = F.pack(levels, u8(5), group_size=group_size)
            back = F.unpack_dequantize(words, u8(5), found, [16], dtype=dtype, **options)
            results.append(
                [noisy[0], found, *grads, levels, words, F.unpack(words, u8(5), 16, group_size=group_size), back]
            )
        for other in results[1:]:
            for one, two in zip(results[0], other, strict=True):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)  # sums in another order
