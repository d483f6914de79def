// Classifies handwritten digits with the network of examples/mnist.py, from its packed file alone.
//
//   classify network.safetensors digits.float32 [logits.float32]
//
// Prints a label for each picture as one string of digits. digits.float32: pictures of 28 x 28 float32 from 0
// to 1, one after the other; logits.float32 is written: 10 for each. check.py makes all that is needed.
#include <diffq_fast.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Floats = std::vector<float>;

constexpr size_t kSide = 28, kPixels = kSide * kSide;
constexpr float kNormEpsilon = 1e-5f;

class Model {
  public:
    explicit Model(const char* path) {
        diffq_fast_error error;
        if (diffq_fast_open_path(path, nullptr, &file_, &error) != DIFFQ_FAST_OK)
            throw std::runtime_error(error.message);
    }
    ~Model() { diffq_fast_close(file_); }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    // A tensor as float32, whether it is packed or not.
    Floats read(const std::string& name) const {
        diffq_fast_error error;
        diffq_fast_tensor tensor;
        const size_t index = find(name);
        check(diffq_fast_describe(file_, index, &tensor, &error), error);
        Floats values(static_cast<size_t>(tensor.count));
        check(diffq_fast_read_float32(file_, index, values.data(), values.size(), &error), error);
        return values;
    }

    // A weight that stays packed.
    diffq_fast_matrix* matrix(const std::string& name) const {
        diffq_fast_error error;
        diffq_fast_matrix* made = nullptr;
        check(diffq_fast_matrix_open(file_, find(name), &made, &error), error);
        return made;
    }

  private:
    size_t find(const std::string& name) const {
        diffq_fast_error error;
        size_t index = 0;
        check(diffq_fast_find(file_, name.c_str(), &index, &error), error);
        return index;
    }

    static void check(diffq_fast_status status, const diffq_fast_error& error) {
        if (status != DIFFQ_FAST_OK) throw std::runtime_error(error.message);
    }

    diffq_fast_file* file_ = nullptr;
};

// Pictures of `channels` channels, each side x side.
struct Maps {
    size_t channels, side;
    Floats values;
};

// A convolution of 3 x 3 with a border of zeros, its batch norm, ReLU, and the largest of each 2 x 2.
class Block {
  public:
    Block(const Model& model, const std::string& number) : weight_(model.read("conv" + number + ".weight")) {
        const std::string norm = "norm" + number + ".";
        const Floats gain = model.read(norm + "weight"), bias = model.read(norm + "bias");
        const Floats mean = model.read(norm + "running_mean"), variance = model.read(norm + "running_var");
        for (size_t i = 0; i < gain.size(); ++i) {
            scale_.push_back(gain[i] / std::sqrt(variance[i] + kNormEpsilon));
            offset_.push_back(bias[i] - mean[i] * scale_[i]);
        }
    }

    Maps forward(const Maps& input) const {
        Maps output{scale_.size(), input.side / 2, {}};
        for (size_t channel = 0; channel < output.channels; ++channel) {
            const Floats sums = convolve(input, weight_.data() + channel * input.channels * 9);
            for (size_t y = 0; y < output.side; ++y) {
                for (size_t x = 0; x < output.side; ++x) {
                    float most = 0.0f;  // ReLU
                    for (size_t i = 0; i < 4; ++i) {
                        const float sum = sums[(2 * y + i / 2) * input.side + 2 * x + i % 2];
                        most = std::max(most, sum * scale_[channel] + offset_[channel]);
                    }
                    output.values.push_back(most);
                }
            }
        }
        return output;
    }

  private:
    // One tap of the kernel after the other: what it adds to all places at once.
    static Floats convolve(const Maps& input, const float* weight) {
        const size_t side = input.side;
        Floats sums(side * side, 0.0f);
        for (size_t tap = 0; tap < 9 * input.channels; ++tap) {
            const size_t down = tap % 9 / 3, across = tap % 3;  // 1 is the middle
            const float* const from = input.values.data() + tap / 9 * side * side;
            for (size_t y = down == 0 ? 1 : 0; y < side - (down == 2 ? 1 : 0); ++y) {
                const float* const row = from + (y + down - 1) * side;
                for (size_t x = across == 0 ? 1 : 0; x < side - (across == 2 ? 1 : 0); ++x)
                    sums[y * side + x] += weight[tap] * row[x + across - 1];
            }
        }
        return sums;
    }

    Floats weight_, scale_, offset_;
};

// A matrix that stays packed, and its bias.
class Linear {
  public:
    Linear(const Model& model, const std::string& name)
        : weight_(model.matrix(name + ".weight")), bias_(model.read(name + ".bias")) {}
    ~Linear() { diffq_fast_matrix_close(weight_); }
    Linear(const Linear&) = delete;
    Linear& operator=(const Linear&) = delete;

    Floats forward(const Floats& input) const {
        Floats output(diffq_fast_matrix_rows(weight_));
        diffq_fast_error error;
        if (diffq_fast_matrix_multiply(weight_, input.data(), 1, output.data(), &error) != DIFFQ_FAST_OK)
            throw std::runtime_error(error.message);
        for (size_t i = 0; i < output.size(); ++i) output[i] += bias_[i];
        return output;
    }

  private:
    diffq_fast_matrix* weight_;
    Floats bias_;
};

class Network {
  public:
    explicit Network(const Model& model)
        : blocks_{{model, "1"}, {model, "2"}, {model, "3"}}, hidden_(model, "hidden"), out_(model, "out") {}

    Floats forward(const float* picture) const {
        Maps maps{1, kSide, Floats(picture, picture + kPixels)};
        for (const Block& block : blocks_) maps = block.forward(maps);
        Floats hidden = hidden_.forward(maps.values);
        for (float& value : hidden) value = std::max(value, 0.0f);
        return out_.forward(hidden);
    }

  private:
    const Block blocks_[3];
    const Linear hidden_, out_;
};

Floats read_floats(const char* path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error(std::string("cannot open ") + path);
    Floats values(static_cast<size_t>(file.tellg()) / sizeof(float));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof(float)));
    if (!file) throw std::runtime_error(std::string("cannot read ") + path);
    return values;
}

}  // namespace

int main(int count, char** arguments) {
    if (count < 3) {
        std::fprintf(stderr, "usage: classify network.safetensors digits.float32 [logits.float32]\n");
        return 2;
    }
    try {
        const Model model(arguments[1]);
        const Network network(model);
        const Floats pictures = read_floats(arguments[2]);
        Floats all;
        std::string labels;
        for (size_t place = 0; place + kPixels <= pictures.size(); place += kPixels) {
            const Floats logits = network.forward(pictures.data() + place);
            labels +=
                static_cast<char>('0' + (std::max_element(logits.begin(), logits.end()) - logits.begin()));
            all.insert(all.end(), logits.begin(), logits.end());
        }
        std::printf("%s\n", labels.c_str());
        if (count > 3) {
            std::ofstream file(arguments[3], std::ios::binary);
            file.write(reinterpret_cast<const char*>(all.data()),
                       static_cast<std::streamsize>(all.size() * sizeof(float)));
            if (!file) throw std::runtime_error(std::string("cannot write ") + arguments[3]);
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "classify: %s\n", error.what());
        return 1;
    }
}
