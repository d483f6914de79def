// The network of examples/mnist.py in plain JavaScript: three convolutions with batch norm, ReLU and pooling, two
// linear layers.

export const SIDE = 28;
const CLASSES = 10;
const BLOCKS = ["1", "2", "3"];
const NORM_EPSILON = 1e-5;

/** The names of the state dict that the network needs. */
export const NEEDED = [
  ...BLOCKS.flatMap((number) => [
    `conv${number}.weight`,
    ...["weight", "bias", "running_mean", "running_var"].map((part) => `norm${number}.${part}`),
  ]),
  ...["hidden", "out"].flatMap((layer) => [`${layer}.weight`, `${layer}.bias`]),
];

// What one tap of a 3 x 3 kernel adds to all places of a picture; there are zeros around it.
function addTap(sums, picture, side, tap, weight) {
  const down = Math.floor(tap / 3) - 1;
  const across = (tap % 3) - 1;
  const [left, right] = [Math.max(0, -across), side - Math.max(0, across)];
  for (let y = Math.max(0, -down); y < side - Math.max(0, down); ++y) {
    const [to, from] = [y * side, (y + down) * side + across];
    for (let x = left; x < right; ++x) sums[to + x] += weight * picture[from + x];
  }
}

class Block {
  constructor(tensors, number) {
    const values = (part) => tensors.get(`norm${number}.${part}`);
    this.weight = tensors.get(`conv${number}.weight`);
    this.scale = values("weight").map((gain, i) => gain / Math.sqrt(values("running_var")[i] + NORM_EPSILON));
    this.offset = values("bias").map((bias, i) => bias - values("running_mean")[i] * this.scale[i]);
  }

  // maps: [channels][side][side] -> [this.scale.length][half of side][half of side]
  forward(maps, side) {
    const [inputs, outputs, half] = [maps.length / side ** 2, this.scale.length, Math.floor(side / 2)];
    const result = new Float32Array(outputs * half * half);
    const sums = new Float32Array(side * side);
    for (let channel = 0; channel < outputs; ++channel) {
      sums.fill(0);
      for (let input = 0; input < inputs; ++input) {
        const picture = maps.subarray(input * side * side, (input + 1) * side * side);
        for (let tap = 0; tap < 9; ++tap)
          addTap(sums, picture, side, tap, this.weight[(channel * inputs + input) * 9 + tap]);
      }
      for (let y = 0; y < half; ++y) {
        for (let x = 0; x < half; ++x) {
          let most = 0; // ReLU
          for (const place of [0, 1, side, side + 1]) {
            const sum = sums[2 * y * side + 2 * x + place];
            most = Math.max(most, sum * this.scale[channel] + this.offset[channel]);
          }
          result[(channel * half + y) * half + x] = most;
        }
      }
    }
    return result;
  }
}

function linear(weight, bias, input) {
  return bias.map((start, row) => {
    let sum = start;
    for (let i = 0; i < input.length; ++i) sum += weight[row * input.length + i] * input[i];
    return sum;
  });
}

export class Network {
  /** tensors: a Map from each name that is needed to its values, Float32Array. */
  constructor(tensors) {
    this.tensors = tensors;
    this.blocks = BLOCKS.map((number) => new Block(tensors, number));
  }

  /** pixels: 28 x 28 from 0 (paper) to 1 (ink). Returns ten logits. */
  logits(pixels) {
    let [maps, side] = [pixels, SIDE];
    for (const block of this.blocks) {
      maps = block.forward(maps, side);
      side = Math.floor(side / 2);
    }
    const of = (name) => this.tensors.get(name);
    const hidden = linear(of("hidden.weight"), of("hidden.bias"), maps).map((value) => Math.max(value, 0));
    return linear(of("out.weight"), of("out.bias"), hidden);
  }
}

export function softmax(logits) {
  const most = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

export const label = (logits) => logits.indexOf(Math.max(...logits.subarray(0, CLASSES)));
