#include "core/file/packed_file.h"

#include <algorithm>

#include "core/file/crc32.h"
#include "core/file/weight_values.h"

namespace diffq_fast {
namespace {

constexpr char kDamaged[] = "the file is damaged";
constexpr std::string_view kParts[] = {".words", ".coded", ".range", ".widths"};

}  // namespace

bool PackedFile::read(Failure& failure) {
    if (!read_header(true, failure)) return false;
    for (Weight& weight : layout_->weights) {
        if (!read_widths(weight, failure)) return false;
    }
    return true;
}

bool PackedFile::read_header(bool whole, Failure& failure) {
    if (!read_container(header_, hooks_, container_, failure)) return false;
    if (whole && !check_length(container_, file_.size, failure)) return false;
    if (container_.data_bytes > kMostDataBytes)
        return failure.bad_file("header", "the tensors need %lld bytes of data; damaged or hostile",
                                static_cast<Number>(container_.data_bytes));
    layout_.emplace(hooks_, container_.metadata.layout.size());
    if (!check_quantizer(hooks_, container_.metadata, failure)) return false;
    if (!read_layout(hooks_, container_, *layout_, failure)) return false;
    const auto count = layout_->weights.size() + layout_->plain.size();
    verified_.emplace(hooks_, static_cast<int64_t>(count));
    for (size_t i = 0; i < count; ++i) new (verified_->data() + i) std::atomic<bool>(false);
    return true;
}

bool PackedFile::read_widths_of(int64_t number, Failure& failure) {
    const Weight* const found = entry(number).weight;
    if (found == nullptr) return true;
    Weight& weight = layout_->weights[static_cast<size_t>(found - layout_->weights.data())];
    const auto& counts = weight.level_counts;
    const bool done = std::any_of(counts.begin(), counts.end(), [](int64_t count) { return count != 0; });
    return done || read_widths(weight, failure);
}

int64_t PackedFile::end_of(int64_t number) const {
    const Entry found = entry(number);
    if (found.plain != nullptr) return container_.data_start + tensor(found.plain->tensor).end;
    int64_t end = 0;
    for (const std::string_view ending : kParts) {
        const int64_t part = container_.find(found.weight->name, ending);
        if (part >= 0) end = std::max(end, tensor(part).end);
    }
    return container_.data_start + end;
}

// Counts the levels of each width, and compares the words with them.
bool PackedFile::read_widths(Weight& weight, Failure& failure) const {
    const bool stored = weight.widths != kNone;
    if (stored && !verify_tensor(weight.widths, failure)) return false;
    const int64_t count = weight.shape.count, size = weight.group_size > 0 ? weight.group_size : count;
    int last = 0;
    const char* const problem = for_each_run(weight.coding, stored ? data(weight.widths) : Bytes{nullptr, 0},
                                             weight.groups, [&](int width, int64_t groups) {
                                                 weight.level_counts[static_cast<size_t>(width)] +=
                                                     groups * size;
                                                 last = width;
                                             });
    if (problem != nullptr)
        return failure.bad_file(stored ? tensor(weight.widths).name : weight.name, "%s; %s", problem,
                                kDamaged);
    if (count > 0) weight.level_counts[static_cast<size_t>(last)] -= weight.groups * size - count;
    if (weight.coded) return true;  // the streams say themselves how long they are
    int64_t words = 0;
    for (int width = 1; width <= kMaxWidth; ++width)
        words += stream_words(weight.level_counts[static_cast<size_t>(width)], width);
    const TensorEntry& entry = tensor(weight.levels);
    return entry.bytes() == 4 * words ||
           failure.bad_file(entry.name, "expected %lld packed bytes for %lld levels, found %lld; %s",
                            static_cast<Number>(4 * words), static_cast<Number>(count),
                            static_cast<Number>(entry.bytes()), kDamaged);
}

bool PackedFile::verify_tensor(int64_t number, Failure& failure) const {
    const TensorEntry& entry = tensor(number);
    if (container_.data_start + entry.end > file_.size)
        return failure.fail(Status::bad_argument, "not all of it has arrived");
    const Bytes bytes = data(number);
    const uint32_t found = crc32(bytes.data, static_cast<size_t>(bytes.size));
    if (found != entry.checksum)
        return failure.bad_file(entry.name, "checksum %08x stored, %08x found in %lld bytes; %s",
                                static_cast<unsigned>(entry.checksum), static_cast<unsigned>(found),
                                static_cast<Number>(bytes.size), kDamaged);
    const auto is_boolean = [](uint8_t byte) { return byte <= 1; };
    return entry.type != ItemType::boolean || std::all_of(bytes.data, bytes.data + bytes.size, is_boolean) ||
           failure.bad_file(entry.name, "expected bytes 0 or 1 for BOOL; %s", kDamaged);
}

bool PackedFile::verify(const Weight& weight, Failure& failure) const {
    std::atomic<bool>& done = verified(&weight - layout_->weights.data());
    if (done.load(std::memory_order_relaxed)) return true;
    if (!verify_values(weight, failure)) return false;
    done.store(true, std::memory_order_relaxed);
    return true;
}

bool PackedFile::verify_values(const Weight& weight, Failure& failure) const {
    // Tensors of the weight's names that it does not use are verified as well.
    for (const std::string_view ending : {".words", ".coded", ".range"}) {
        const int64_t number = container_.find(weight.name, ending);
        const bool part = ending != ".coded" || container_.metadata.version == "2";
        if (number >= 0 && part && !verify_tensor(number, failure)) return false;
    }
    const char* problem = problem_of_ranges(*this, weight);
    if (problem != nullptr)
        return failure.bad_file(tensor(weight.range).name, "%s; damaged or hostile", problem);
    problem = weight.coded ? problem_of_streams(*this, weight) : nullptr;
    return problem == nullptr || failure.bad_file(tensor(weight.levels).name, "%s; %s", problem, kDamaged);
}

bool PackedFile::verify(const Plain& plain, Failure& failure) const {
    const auto weights = static_cast<int64_t>(layout_->weights.size());
    std::atomic<bool>& done = verified(weights + (&plain - layout_->plain.data()));
    if (done.load(std::memory_order_relaxed)) return true;
    if (!verify_tensor(plain.tensor, failure)) return false;
    done.store(true, std::memory_order_relaxed);
    return true;
}

bool PackedFile::verify_all(Failure& failure) const {
    for (const Weight& weight : layout_->weights) {
        if (!verify(weight, failure)) return false;
    }
    for (const Plain& plain : layout_->plain) {
        if (!verify(plain, failure)) return false;
    }
    return true;
}

Entry PackedFile::entry(int64_t number) const {
    const auto weights = static_cast<int64_t>(layout_->weights.size());
    const auto stored = weights + static_cast<int64_t>(layout_->plain.size());
    if (number >= stored) number = layout_->ties[static_cast<size_t>(number - stored)].entry;
    if (number < weights) return {&layout_->weights[static_cast<size_t>(number)], nullptr};
    return {nullptr, &layout_->plain[static_cast<size_t>(number - weights)]};
}

std::string_view PackedFile::name(int64_t number) const {
    const auto weights = static_cast<int64_t>(layout_->weights.size());
    const auto stored = weights + static_cast<int64_t>(layout_->plain.size());
    if (number < weights) return layout_->weights[static_cast<size_t>(number)].name;
    if (number < stored) return tensor(layout_->plain[static_cast<size_t>(number - weights)].tensor).name;
    return layout_->ties[static_cast<size_t>(number - stored)].alias;
}

}  // namespace diffq_fast
