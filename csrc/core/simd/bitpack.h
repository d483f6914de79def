// Whole blocks of 32 lanes <-> words, see core/pack/bitpack.h: vectors hold kLanes lanes of one row.

// Row kRow of a lane starts in word kRow * kWidth / 32, and runs over into the next one where that is not
// enough.
template <int kWidth, int kRow>
DIFFQ_WORD void pack_row(const uint32_t* levels, uint32_t* words, Word& word) {
    constexpr uint32_t kMask = (uint32_t{1} << kWidth) - 1;
    constexpr int kWord = kRow * kWidth / 32, kShift = kRow * kWidth % 32;
    const Word level = load(levels + kRow * 32) & kMask;
    word = kShift == 0 ? level : word | level << kShift;
    if constexpr (kShift + kWidth >= 32) {
        store(word, words + kWord * 32);
        word = kShift + kWidth > 32 ? level >> (32 - kShift) % 32 : Word{};
    }
}

template <int kWidth, int... kRow>
static void pack_width(const uint32_t* levels, uint32_t* words, Indices<kRow...>) {
    for (int lane = 0; lane < 32; lane += kLanes) {
        Word word = {};
        (pack_row<kWidth, kRow>(levels + lane, words + lane, word), ...);
    }
}

template <int kWidth, int kRow>
DIFFQ_WORD void unpack_row(const uint32_t* words, uint32_t* levels) {
    constexpr uint32_t kMask = (uint32_t{1} << kWidth) - 1;
    constexpr int kWord = kRow * kWidth / 32, kShift = kRow * kWidth % 32;
    Word level = load(words + kWord * 32) >> kShift;
    if constexpr (kShift + kWidth > 32) level |= load(words + (kWord + 1) * 32) << (32 - kShift);
    store(level & kMask, levels + kRow * 32);
}

template <int kWidth, int... kRow>
static void unpack_width(const uint32_t* words, uint32_t* levels, Indices<kRow...>) {
    for (int lane = 0; lane < 32; lane += kLanes)
        (unpack_row<kWidth, kRow>(words + lane, levels + lane), ...);
}

template <int kWidth>
static void pack_whole(const uint32_t* levels, uint32_t* words) {
    pack_width<kWidth>(levels, words, Count<32>());
}

template <int kWidth>
static void unpack_whole(const uint32_t* words, uint32_t* levels) {
    unpack_width<kWidth>(words, levels, Count<32>());
}

using BlockBody = void (*)(const uint32_t*, uint32_t*);

struct BlockTable {
    BlockBody bodies[16];
};

template <int... kWidthLess1>
constexpr BlockTable pack_table(Indices<kWidthLess1...>) {
    return {{pack_whole<kWidthLess1 + 1>...}};
}

template <int... kWidthLess1>
constexpr BlockTable unpack_table(Indices<kWidthLess1...>) {
    return {{unpack_whole<kWidthLess1 + 1>...}};
}

static constexpr BlockTable kPack = pack_table(Count<16>()), kUnpack = unpack_table(Count<16>());

static void pack(int width, const uint32_t* levels, int64_t lanes, uint32_t* words) {
    if (lanes != 32) return scalar_kernels()->pack(width, levels, lanes, words);
    kPack.bodies[width - 1](levels, words);
}

static void unpack(int width, const uint32_t* words, int64_t lanes, uint32_t* levels) {
    if (lanes != 32) return scalar_kernels()->unpack(width, words, lanes, levels);
    kUnpack.bodies[width - 1](words, levels);
}
