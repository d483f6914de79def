// Whole blocks of 32 lanes <-> words, see core/pack/words.h: vectors hold kLanes lanes of one row.

// Row kRow of a lane starts in word kRow * kWidth / 32, and runs over into the next one where that is not
// enough.
template <int kWidth, int kRow>
DIFFQ_INLINE void pack_row(const uint32_t* levels, uint32_t* words, Uint& word) {
    constexpr uint32_t kMask = (uint32_t{1} << kWidth) - 1;
    constexpr int kWord = kRow * kWidth / kWordBits, kShift = kRow * kWidth % kWordBits;
    const Uint level = load(levels + kRow * kBlockLanes) & kMask;
    word = kShift == 0 ? level : word | level << kShift;
    if constexpr (kShift + kWidth >= kWordBits) {
        store(word, words + kWord * kBlockLanes);
        word = kShift + kWidth > kWordBits ? level >> (kWordBits - kShift) % kWordBits : Uint{};
    }
}

template <int kWidth, int... kRow>
static void pack_width(const uint32_t* levels, uint32_t* words, Indices<kRow...>) {
    for (int lane = 0; lane < kBlockLanes; lane += kLanes) {
        Uint word = {};
        (pack_row<kWidth, kRow>(levels + lane, words + lane, word), ...);
    }
}

template <int kWidth, int kRow>
DIFFQ_INLINE void unpack_row(const uint32_t* words, uint32_t* levels) {
    constexpr uint32_t kMask = (uint32_t{1} << kWidth) - 1;
    constexpr int kWord = kRow * kWidth / kWordBits, kShift = kRow * kWidth % kWordBits;
    Uint level = load(words + kWord * kBlockLanes) >> kShift;
    if constexpr (kShift + kWidth > kWordBits)
        level |= load(words + (kWord + 1) * kBlockLanes) << (kWordBits - kShift);
    store(level & kMask, levels + kRow * kBlockLanes);
}

template <int kWidth, int... kRow>
static void unpack_width(const uint32_t* words, uint32_t* levels, Indices<kRow...>) {
    for (int lane = 0; lane < kBlockLanes; lane += kLanes)
        (unpack_row<kWidth, kRow>(words + lane, levels + lane), ...);
}

template <int kWidth>
static void pack_whole(const uint32_t* levels, uint32_t* words) {
    pack_width<kWidth>(levels, words, Count<kBlockRows>());
}

template <int kWidth>
static void unpack_whole(const uint32_t* words, uint32_t* levels) {
    unpack_width<kWidth>(words, levels, Count<kBlockRows>());
}

using BlockBody = void (*)(const uint32_t*, uint32_t*);

struct BlockTable {
    BlockBody bodies[kMaxWidth];
};

template <int... kWidthLess1>
constexpr BlockTable pack_table(Indices<kWidthLess1...>) {
    return {{pack_whole<kWidthLess1 + 1>...}};
}

template <int... kWidthLess1>
constexpr BlockTable unpack_table(Indices<kWidthLess1...>) {
    return {{unpack_whole<kWidthLess1 + 1>...}};
}

static constexpr BlockTable kPack = pack_table(Count<kMaxWidth>()),
                            kUnpack = unpack_table(Count<kMaxWidth>());

static void pack_words(int width, const uint32_t* levels, int64_t lanes, uint32_t* words) {
    if (lanes != kBlockLanes) return scalar_kernels()->pack_words(width, levels, lanes, words);
    kPack.bodies[width - 1](levels, words);
}

static void unpack_words(int width, const uint32_t* words, int64_t lanes, uint32_t* levels) {
    if (lanes != kBlockLanes) return scalar_kernels()->unpack_words(width, words, lanes, levels);
    kUnpack.bodies[width - 1](words, levels);
}
