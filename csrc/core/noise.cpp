#include "core/noise.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/elementary.h"
#include "core/memory.h"
#include "core/thread_pool.h"

namespace diffq_fast {
namespace {

constexpr int64_t kElementsPerCall = 8;
constexpr int64_t kCallsPerBlock = kNoiseBlock / kElementsPerCall;

// The words of Philox calls first_call ... + calls - 1, four each.
void make_words(PhiloxKey key, uint32_t stream, uint64_t first_call, int64_t calls, uint32_t* words) {
    const uint32_t low = static_cast<uint32_t>(first_call);
    const uint32_t high = static_cast<uint32_t>(first_call >> 32);
    for (int64_t i = 0; i < calls; ++i) {
        const uint32_t c0 = low + static_cast<uint32_t>(i);
        const uint32_t c1 = high + (c0 < low ? 1 : 0);
        const PhiloxWords made = philox4x32_10({c0, c1, stream, 0}, key);
        words[4 * i] = made.w0;
        words[4 * i + 1] = made.w1;
        words[4 * i + 2] = made.w2;
        words[4 * i + 3] = made.w3;
    }
}

// One word holds the draws of two elements, the even one in its low half.
void uniform_from_words(const uint32_t* words, int64_t count, float* z) {
    for (int64_t i = 0; i < count; ++i) {
        const float even = static_cast<float>(static_cast<int32_t>(words[i] & 0xFFFF));
        const float odd = static_cast<float>(static_cast<int32_t>(words[i] >> 16));
        z[2 * i] = (even + 0.5f) * 0x1p-16f - 0.5f;
        z[2 * i + 1] = (odd + 0.5f) * 0x1p-16f - 0.5f;
    }
}

void gaussian_from_words(const uint32_t* words, int64_t count, float* z) {
    for (int64_t i = 0; i < count; ++i) {
        const float fraction =
            (static_cast<float>(static_cast<int32_t>(words[i] & 0xFFFF)) + 0.5f) * 0x1p-16f;
        const float radius = std::sqrt(-0.5f * log_float(fraction));  // half of sqrt(-2 ln u)
        const CosineSine direction = cosine_sine_of_turn(words[i] >> 16);
        z[2 * i] = radius * direction.cosine;
        z[2 * i + 1] = radius * direction.sine;
    }
}

// Noise of whole Philox calls.
void noise_of_calls(PhiloxKey key, uint32_t stream, uint64_t first_call, int64_t calls, NoiseKind kind,
                    float* z) {
    uint32_t words[4 * kCallsPerBlock];
    make_words(key, stream, first_call, calls, words);
    if (kind == NoiseKind::uniform) {
        uniform_from_words(words, 4 * calls, z);
    } else {
        gaussian_from_words(words, 4 * calls, z);
    }
}

}  // namespace

void noise_block(PhiloxKey key, uint32_t stream, int64_t first, int64_t count, NoiseKind kind, float* z) {
    const int64_t skipped = first % kElementsPerCall;
    uint64_t call = static_cast<uint64_t>(first / kElementsPerCall);
    if (skipped == 0 && count % kElementsPerCall == 0) {
        noise_of_calls(key, stream, call, count / kElementsPerCall, kind, z);
        return;
    }
    float padded[kNoiseBlock];
    for (int64_t done = 0, skip = skipped; done < count; skip = 0) {
        const int64_t wanted = std::min(count - done, kNoiseBlock - skip);
        const int64_t calls = (skip + wanted + kElementsPerCall - 1) / kElementsPerCall;
        noise_of_calls(key, stream, call, calls, kind, padded);
        std::memcpy(z + done, padded + skip, static_cast<size_t>(wanted) * sizeof(float));
        done += wanted;
        call += static_cast<uint64_t>(calls);
    }
}

void fill_noise(PhiloxKey key, uint32_t stream, int64_t first, int64_t count, NoiseKind kind, float* z,
                int threads) {
    constexpr int64_t kTask = 16 * kNoiseBlock;
    expect_writes(z, count * int64_t{sizeof(float)});
    parallel_for((count + kTask - 1) / kTask, threads, [&](int64_t task) {
        const int64_t end = std::min(count, (task + 1) * kTask);
        for (int64_t i = task * kTask; i < end; i += kNoiseBlock) {
            noise_block(key, stream, first + i, std::min(kNoiseBlock, end - i), kind, z + i);
        }
    });
}

}  // namespace diffq_fast
