"""The emulator itself: arithmetic as the PTX manual has it, and each fault that it is to notice, in kernels of a few
lines."""

from __future__ import annotations

import ast
import math
import struct
import sys

import numpy as np
import pytest

from ptx import arithmetic
from ptx.approximations import BOUNDS, MODES, Approximations
from ptx.launch import Launch, Settings, program_of
from ptx.memory import JUNK, Allocations, Unwritten
from ptx.parser import Address, UnknownPtxError, parse
from ptx.problems import SAME_VALUE, EmulationError, Problems
from ptx.schedules import SCHEDULES
from support.paths import ROOT

HEAD = """
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid {threads}
{{
    .reg .pred %p<20>;
    .reg .b16 %rs<20>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<20>;
    ld.param.b64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    setp.eq.b32 %p1, %r1, 0;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
"""


def run(body, numbers=64, threads=64, grid=1, shared=512, junk=False, **settings):
    """What a kernel makes of ``numbers`` int32 zeros (or junk), and what it did wrong. ``%rd1``: their address,
    ``%rd3``: that of the thread's own; ``%r1``, ``%r2``: thread and block; ``%p1``: the block's first thread."""
    data = np.zeros(numbers, np.uint32)
    start, unwritten = data.ctypes.data, []
    if junk:
        data.view(np.uint8)[:] = JUNK
        unwritten = [Unwritten(start, np.ones(data.nbytes, bool))]
    program = program_of(HEAD.format(threads=threads) + body + "\n    ret;\n}\n")
    where = Allocations([(start, start + data.nbytes)], unwritten, program.cell)
    problems = Problems()
    parameters = {"kernel_param_0": np.uint64(start)}
    Launch(program, grid, parameters, shared, where, Settings(**settings), problems).run()
    return data, [problem.what for problem in problems.found]


def bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


# -- arithmetic ------------------------------------------------------------------------------------------------


def test_fma_rounds_once():
    """1 + 2**-23 squared, less its rounded square: what a fused product leaves."""
    x = np.float32(1 + 2.0**-23)
    assert arithmetic.fma(x, x, -np.float32(x * x)) == np.float32(2.0**-46)
    generator = np.random.default_rng(0)
    a, b, c = (generator.standard_normal(2000).astype(np.float32) for _ in range(3))
    c = c * np.float32(2.0) ** generator.integers(-40, 10, 2000).astype(np.float32)
    exact = [math.fsum([float(x) * float(y), float(z)]) for x, y, z in zip(a, b, c, strict=True)]
    near = np.array(exact).astype(np.float32)  # rounded twice: differs only where the first hits a tie
    assert (arithmetic.fma(a, b, c) == near).mean() > 0.999


def test_fma_is_right_where_rounding_twice_is_not():
    """a * b + c just above half an ulp of 1: float64 rounds it to the tie, and the tie to even."""
    a, b, c = np.float32(2.0**-12), np.float32(2.0**-12 * (1 + 2.0**-23)), np.float32(1)
    c = np.float32(1 + 2.0**-23) if bits(float(c)) & 1 else c
    tiny = np.float32(2.0**-70)
    assert arithmetic.fma(np.float32(2.0**-24), np.float32(1), c) == 1
    assert arithmetic.fma(a, b, c) == np.float32(1 + 2.0**-23)
    assert arithmetic.fma(tiny, tiny, np.float32(1)) == 1


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda u, i: arithmetic.shift_left(u(1), u(40), 32), 0),
        (lambda u, i: arithmetic.shift_right(i(-8), u(99), 32), -1),
        (lambda u, i: arithmetic.funnel_left(u(0x80000000), u(1), u(1)), 3),
        (lambda u, i: arithmetic.product_high(u(0xFFFFFFFF), u(0xFFFFFFFF), np.uint64), 0xFFFFFFFE),
        (lambda u, i: arithmetic.product_high(np.int64(-1), np.int64(5), None), -1),
        (lambda u, i: arithmetic.quotient(i(-7), i(2)), -3),
        (lambda u, i: arithmetic.remainder(i(-7), i(2)), -1),
        (lambda u, i: arithmetic.quotient(u(7), u(0)), 0xFFFFFFFF),
        (lambda u, i: arithmetic.bit_field(u(0x12345678), u(8), u(8), False, 32), 0x56),
        (lambda u, i: arithmetic.bit_field(u(0x0000F000), u(12), u(4), True, 32), 0xFFFFFFFF),
        (lambda u, i: arithmetic.bit_field(u(0xFFFFFFFF), u(4), u(0), True, 32), 0),
        (lambda u, i: arithmetic.permute(u(0x33221100), u(0x77665544), u(0x7410)), 0x77441100),
        (lambda u, i: arithmetic.permute(u(0x000000FF), u(0), u(0x0008)), 0xFFFFFFFF),
        (lambda u, i: arithmetic.sum_of_halves(u(0x0001FFFF), u(0x00020003), "+"), 0x00030002),
        (lambda u, i: arithmetic.sum_of_halves(u(0x00010001), u(0x00020002), "-"), 0xFFFFFFFF),
        (lambda u, i: arithmetic.truth_table(u(0b1100), u(0b1010), u(0b1111), 0b10000000), 0b1000),
        (lambda u, i: arithmetic.to_integer(np.float32("nan"), np.int32), 0),
        (lambda u, i: arithmetic.to_integer(np.float32(3e9), np.int32), 2**31 - 1),
        (lambda u, i: arithmetic.to_integer(np.float32(-2.9), np.int32), -2),
        (lambda u, i: arithmetic.to_bf16(np.float32(1 + 2.0**-8)), 0x3F80),
        (lambda u, i: arithmetic.to_bf16(np.float32("nan")), 0x7FFF),
        (lambda u, i: arithmetic.to_f16(np.float32(65520)), 0x7C00),
        (lambda u, i: arithmetic.maximum(np.float32("nan"), np.float32(1), False), 1),
        (lambda u, i: math.copysign(1, arithmetic.minimum(np.float32(0), np.float32(-0.0), True)), -1),
    ],
)
def test_arithmetic(call, expected):
    with np.errstate(all="ignore"):
        assert call(np.uint32, np.int32) == expected


def test_minimum_with_nan_and_canonical_nan():
    with np.errstate(all="ignore"):
        canonical = arithmetic.canonical(np.array([0x7F800001, bits(2.0)], np.uint32).view(np.float32))
    assert canonical.view(np.uint32).tolist() == [0x7FFFFFFF, bits(2.0)]
    assert np.isnan(arithmetic.minimum(np.float32("nan"), np.float32(1), True))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BOUNDS)
def test_approximations_stay_within_the_documented_bounds(name, mode):
    x = np.linspace(0.01, 3, 5000).astype(np.float32)
    exact = {"ex2": np.exp2, "rcp": np.reciprocal, "sqrt": np.sqrt, "rsqrt": lambda x: x**-0.5, "sin": np.sin,
             "cos": np.cos, "lg2": np.log2}[name](x.astype(np.float64))  # fmt: skip
    relative, absolute = BOUNDS[name]
    error = np.abs(Approximations(mode)(name, x, True) - exact)
    bound = relative * (np.maximum(np.abs(exact), 1.0) if name == "lg2" else np.abs(exact)) + absolute
    rounding = np.spacing(np.abs(exact).astype(np.float32))
    assert (error <= bound + rounding).all()
    assert (error > rounding).any() == (mode != "exact")


# -- the parser ------------------------------------------------------------------------------------------------


def test_operands_predicates_and_blocks():
    kernel = parse(HEAD.format(threads=64) + "@!%p1 ld.global.v2.b32 { %r3, %r4 }, [ %rd1 + -8 ];\n bar.sync \t0;\n}\n")
    load = kernel.blocks[0].instructions[-1]
    assert load.operands == (("%r3", "%r4"), Address("%rd1", -8))
    assert (load.predicate, load.negated, kernel.threads) == ("%p1", True, 64)
    assert kernel.blocks[0].end.kind == "barrier"


def test_unknown_instructions_are_named():
    with pytest.raises(UnknownPtxError, match=r"wgmma\.fence"):
        run("wgmma.fence.sync.aligned;")
    with pytest.raises(UnknownPtxError, match=r"add\.rz\.f32"):
        run("add.rz.f32 %r3, %r1, %r2;")


# -- what launches do ------------------------------------------------------------------------------------------


def test_each_thread_writes_its_own():
    data, problems = run("st.global.b32 [ %rd3 + 0 ], { %r1 };")
    assert data.tolist() == list(range(64))
    assert problems == []


def test_loops_and_diverging_threads():
    """Each thread adds itself up as often as its number says."""
    data, problems = run("""
    mov.u32 %r3, 0;
    mov.u32 %r4, 0;
$again:
    setp.ge.u32 %p2, %r4, %r1;
    @%p2 bra $done;
    add.s32 %r3, %r3, %r1;
    add.s32 %r4, %r4, 1;
    bra.uni $again;
$done:
    st.global.b32 [ %rd3 + 0 ], { %r3 };""")
    assert data.tolist() == [i * i for i in range(64)]
    assert problems == []


def test_shuffles_and_reductions_of_a_warp():
    data, _ = run("""
    shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;
    redux.sync.add.s32 %r4, %r1, 0xffffffff;
    mad.lo.s32 %r5, %r3, 10000, %r4;
    st.global.b32 [ %rd3 + 0 ], { %r5 };""")
    assert data.tolist() == [(i ^ 1) * 10000 + (496 if i < 32 else 1520) for i in range(64)]


def test_a_shuffle_by_index_stays_within_its_segment():
    data, _ = run("""
    shfl.sync.idx.b32 %r3, %r1, 2, 0x181f, -1;
    st.global.b32 [ %rd3 + 0 ], { %r3 };""")
    assert data.tolist() == [i // 8 * 8 + 2 for i in range(64)]


def test_four_bytes_from_a_place_on_and_sums_of_halves():
    data, _ = run("""
    prmt.b32.f4e %r3, 0x33221100, 0x77665544, %r1;
    add.s16x2 %r4, %r3, 0x00010001;
    st.global.b32 [ %rd3 + 0 ], { %r4 };""")
    shown = [0x33221100, 0x44332211, 0x55443322, 0x66554433]
    assert [each & 0xFFFFFFFF for each in data.tolist()] == [shown[i % 4] + 0x00010001 for i in range(64)]


def test_the_least_of_three_passes_nan_on_or_leaves_it_out():
    """sm_100, and Triton 3.9.0 for it: thread 0 has -0 beside 0, thread 1 NaN."""
    data, _ = run("""
    setp.eq.s32 %p2, %r1, 1;
    selp.b32 %r3, 0x7fc00000, 0x80000000, %p2;
    min.NaN.f32 %r4, 0f00000000, %r3, 0f40400000;
    max.f32 %r5, %r3, 0fBF800000, 0fC0400000;
    selp.b32 %r6, %r4, %r5, %p1;
    setp.eq.s32 %p3, %r1, 1;
    selp.b32 %r6, %r4, %r6, %p3;
    st.global.b32 [ %rd3 + 0 ], { %r6 };
    setp.gt.s32 %p2, %r1, 31;
    @%p2 st.global.b32 [ %rd3 + 0 ], { %r5 };""")
    assert (data[0], data[40]) == (0x80000000, 0x80000000)
    assert np.isnan(data.view(np.float32)[1])
    data, _ = run("max.f32 %r5, 0f7FC00000, 0fBF800000, 0fC0400000;\n st.global.b32 [ %rd3 + 0 ], { %r5 };")
    assert (data.view(np.float32) == -1).all()


def test_more_operands_than_are_known_are_an_unknown_instruction():
    with pytest.raises(UnknownPtxError, match=r"kernel: max\.s32 %r4, %r1, %r2, %r3"):
        run("max.s32 %r4, %r1, %r2, %r3;")
    with pytest.raises(UnknownPtxError, match=r"kernel: shl\.b32 %r4, %r1"):
        run("shl.b32 %r4, %r1;")


def test_the_emulator_imports_nothing_of_this_project():
    for path in sorted((ROOT / "tests" / "ptx").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            known = {"numpy", "torch", "triton", *sys.stdlib_module_names}
            assert {name.split(".")[0] for name in names} <= known, path


def test_reductions_of_float32_pass_nan_on_or_leave_it_out():
    """sm_100: warp 0 has the numbers 0 to 31, the second warp NaN in one lane."""
    data, _ = run("""
    cvt.rn.f32.u32 %r3, %r1;
    setp.eq.s32 %p2, %r1, 40;
    selp.b32 %r3, 0x7fc00000, %r3, %p2;
    redux.sync.max.NaN.f32 %r4, %r3, 0xffffffff;
    redux.sync.min.f32 %r5, %r3, 0xffffffff;
    selp.b32 %r6, %r4, %r5, %p1;
    setp.eq.s32 %p3, %r1, 32;
    selp.b32 %r6, %r4, %r6, %p3;
    st.global.b32 [ %rd3 + 0 ], { %r6 };""")
    found = data.view(np.float32)
    assert (found[0], found[1], found[33]) == (31, 0, 32)
    assert np.isnan(found[32])


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("add.rn.f32x2 %rd6, %rd4, %rd5", (1.5 + 3, -2 + 0.25)),
        ("sub.f32x2 %rd6, %rd4, %rd5", (1.5 - 3, -2 - 0.25)),
        ("mul.f32x2 %rd6, %rd4, %rd5", (1.5 * 3, -2 * 0.25)),
        ("fma.rn.f32x2 %rd6, %rd4, %rd5, %rd4", (1.5 * 3 + 1.5, -2 * 0.25 - 2)),
    ],
)
def test_pairs_of_float32_are_reckoned_apart(instruction, expected):
    """.f32x2 of sm_100: the first of a vector is the lower half."""
    numbers = [f"0f{bits(value):08X}" for value in (1.5, -2.0, 3.0, 0.25)]
    data, _ = run(f"""
    mov.b32 %r3, {numbers[0]};
    mov.b32 %r4, {numbers[1]};
    mov.b32 %r5, {numbers[2]};
    mov.b32 %r6, {numbers[3]};
    mov.b64 %rd4, {{%r3, %r4}};
    mov.b64 %rd5, {{%r5, %r6}};
    {instruction};
    mov.b64 {{%r7, %r8}}, %rd6;
    @%p1 st.global.v2.b32 [ %rd1 + 0 ], {{ %r7, %r8 }};""")
    assert tuple(data.view(np.float32)[:2]) == expected


def test_sums_of_a_half_and_a_float32():
    """.f32.bf16 of sm_100: 1.5 as bfloat16 less 0.25."""
    data, _ = run(f"""
    mov.b16 %rs1, 0x3FC0;
    mov.b32 %r3, 0f{bits(0.25):08X};
    sub.rn.f32.bf16 %r4, %rs1, %r3;
    st.global.b32 [ %rd3 + 0 ], {{ %r4 }};""")
    assert data.view(np.float32)[5] == 1.25


STAGED = """
    shl.b32 %r3, %r1, 2;
    st.shared.b32 [%r3], %r1;
    {barrier}
    sub.s32 %r4, 252, %r3;
    ld.shared.b32 %r5, [%r4];
    st.global.b32 [ %rd3 + 0 ], {{ %r5 }};"""


def test_shared_memory_needs_a_barrier():
    data, problems = run(STAGED.format(barrier="bar.sync 0;"))
    assert data.tolist() == list(reversed(range(64)))
    assert problems == []
    _, problems = run(STAGED.format(barrier=""))
    assert problems == ["race: shared memory read before a barrier after another thread's write"]


MATRICES = """
    shl.b32 %r3, %r1, 4;
    st.shared.v4.b32 [%r3], {{%r1, %r1, %r1, %r1}};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.{number}{how}.shared.b16 {{{registers}}}, [%r3];
    st.global.b32 [ %rd3 + 0 ], {{ %r4 }};"""


@pytest.mark.parametrize(("number", "registers"), [("x1", "%r4"), ("x2", "%r5, %r4"), ("x4", "%r5, %r6, %r7, %r4")])
def test_matrices_are_loaded_row_by_row(number, registers):
    """Row r holds r in its words (that is r and 0 in its halves): lane l gets row l // 4 of the last matrix."""
    last = {"x1": 0, "x2": 8, "x4": 24}[number]
    data, problems = run(MATRICES.format(number=number, how="", registers=registers), threads=32)
    assert data[:32].tolist() == [last + lane // 4 for lane in range(32)]
    assert problems == []
    data, _ = run(MATRICES.format(number=number, how=".trans", registers=registers), threads=32)
    columns = [[last + 2 * (lane % 4) + (last + 2 * (lane % 4) + 1) * 2**16, 0][lane // 4 % 2] for lane in range(32)]
    assert data[:32].tolist() == columns


def test_matrices_are_stored_row_by_row():
    data, problems = run(
        """
    and.b32 %r4, %r1, 7;
    shl.b32 %r3, %r4, 4;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r1};
    bar.sync 0;
    shl.b32 %r5, %r1, 2;
    ld.shared.b32 %r6, [%r5];
    st.global.b32 [ %rd3 + 0 ], { %r6 };""",
        threads=32,
    )
    assert data[:32].tolist() == list(range(32))
    assert problems == []


# -- what it notices -------------------------------------------------------------------------------------------

BESIDE = "st.global.b32 [ %rd3 + 4 ], { %r1 };"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BESIDE, "access outside of any allocation, 0 bytes past an allocation of 256"),
        ("st.global.b32 [ %rd3 + 2 ], { %r1 };", "misaligned access of 4 bytes"),
        ("@%p1 st.global.v2.b32 [ %rd3 + 4 ], { %r1, %r1 };", "misaligned access of 8 bytes"),
        ("ld.shared.b32 %r3, [0];", "read of shared memory that nobody has written"),
        ("ld.shared.b32 %r3, [4096];", "misaligned access to shared memory, or one outside of its 512 bytes"),
        ("st.global.b32 [ %rd1 + 0 ], { %r1 };", "race: different values written by two threads in one instruction"),
        ("mov.u32 %r3, 5; st.global.b32 [ %rd1 + 0 ], { %r3 };", SAME_VALUE),
        ("ld.global.b32 %r3, [ %rd1 + 0 ]; @%p1 st.global.b32 [ %rd1 + 0 ], { %r3 };",
         "race: write of what another thread has read, unordered"),
        ("@%p1 st.global.b32 [ %rd1 + 0 ], { %r1 }; ld.global.b32 %r3, [ %rd1 + 0 ];",
         "race: read of what another thread wrote, unordered"),
        ("@%p1 bra $out; bar.sync 0; $out:", "barrier that some threads of the block never reach"),
    ],
)  # fmt: skip
def test_faults_are_reported(body, said):
    _, problems = run(body.replace("; ", ";\n").replace("$out:", "\n$out:\n"))
    assert problems == [said]


def test_memory_that_nobody_has_written():
    body = "ld.global.b32 %r3, [ %rd3 + 0 ];"
    assert run(body, junk=True)[1] == ["read of global memory that nobody has written"]
    assert run("st.global.b32 [ %rd3 + 0 ], { %r1 };" + body, junk=True)[1] == []


def test_blocks_race_where_nothing_orders_them():
    assert run("@%p1 st.global.b32 [ %rd1 + 0 ], { %r2 };", grid=2)[1] == [
        "race: different values written by two threads in one instruction"
    ]
    assert run("@%p1 st.global.b32 [ %rd1 + 0 ], { %r2 };", grid=2, wave=1)[1] == [
        "race: different values written by two threads, unordered"
    ]


MESSAGE = """
    setp.eq.b32 %p2, %r2, 0;
    @%p2 bra $writer;
$wait:
    ld.global.gpu.{acquire}.b32 %r3, [ %rd1 + 0 ];
    setp.eq.b32 %p3, %r3, 0;
    @%p3 bra $wait;
    {barrier}
    ld.global.b32 %r4, [ %rd3 + 128 ];
    add.s32 %r4, %r4, 1;
    st.global.b32 [ %rd3 + 256 ], {{ %r4 }};
    bra.uni $end;
$writer:
    st.global.b32 [ %rd3 + 128 ], {{ %r1 }};
    {barrier}
    mov.u32 %r5, 1;
    @%p1 atom.global.gpu.{release}.exch.b32 %r6, [ %rd1 + 0 ], %r5;
$end:"""


def message(acquire="acquire", release="release", barrier="bar.sync 0;", order="random", seed=0):
    body = MESSAGE.format(acquire=acquire, release=release, barrier=barrier)
    return run(body, numbers=128, threads=32, grid=2, schedule=SCHEDULES[order](seed), most_steps=20_000)


@pytest.mark.parametrize("order", SCHEDULES)
def test_a_release_that_is_acquired_orders_blocks(order):
    data, problems = message(order=order)
    assert data[64:96].tolist() == [i + 1 for i in range(32)]
    assert problems == []


@pytest.mark.parametrize(
    "weakened", [{"acquire": "relaxed"}, {"release": "relaxed"}, {"barrier": ""}], ids=lambda how: str(how)
)
def test_a_message_without_its_order_is_a_race(weakened):
    assert "race: read of what another thread wrote, unordered" in message(**weakened)[1]


def test_one_threads_release_orders_its_own_writes_without_a_barrier():
    body = MESSAGE.format(acquire="acquire", release="release", barrier="")
    first = body.replace("st.global.b32 [ %rd3 + 128 ]", "@%p1 st.global.b32 [ %rd3 + 128 ]")
    first = first.replace("ld.global.b32 %r4", "@%p1 ld.global.b32 %r4")
    schedule = SCHEDULES["random"](0)
    assert run(first, numbers=128, threads=32, grid=2, schedule=schedule, most_steps=20_000)[1] == []


def test_a_launch_that_does_not_end_is_stopped():
    with pytest.raises(EmulationError, match="not at an end after 100 steps"):
        run("$on:\n bra.uni $on;", most_steps=100)
