// The functions of this namespace as one table.

// clang-format off
static constexpr Kernels kKernels = {
    kName,
    make_noise, make_steps, sum_bits, make_bit_gradients,
    add_noise, finish_writes, multiply_noise, sum_groups, sum, dot, make_logit_gradients,
    find_range,
    floats_from_halves, halves_from_floats,
    quantize, dequantize,
    find_widths,
    pack_words, unpack_words,
    decode_rows,
    round_block, multiply_row, kVectorsOfRow, unpack_row,
    unpack_bytes, interleave_rows, multiply_panel, kPanelForm, multiply_floats,
    pack_planes, unpack_planes,
};
// clang-format on
