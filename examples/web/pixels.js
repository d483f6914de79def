// From a drawing to what the network was trained on: as in MNIST, the ink fits 20 x 20 and its centre of mass is the
// middle of 28 x 28.

const SIDE = 28;
const INK = 20;

// The smallest box with all ink; null where there is none.
function boxOf(ink, width, height) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      if (ink[y * width + x] < 0.1) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x + 1)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y + 1)];
    }
  }
  return right > left ? { left, top, right, bottom } : null;
}

// The mean of ink over a rectangle whose edges may cut pixels.
function mean(ink, width, height, left, top, right, bottom) {
  let sum = 0;
  for (let y = Math.max(0, Math.floor(top)); y < Math.min(height, bottom); ++y) {
    const tall = Math.min(y + 1, bottom) - Math.max(y, top);
    for (let x = Math.max(0, Math.floor(left)); x < Math.min(width, right); ++x)
      sum += ink[y * width + x] * tall * (Math.min(x + 1, right) - Math.max(x, left));
  }
  return sum / ((right - left) * (bottom - top));
}

function centreOf(ink, width, height) {
  let [sum, across, down] = [0, 0, 0];
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      const weight = ink[y * width + x];
      [sum, across, down] = [sum + weight, across + weight * (x + 0.5), down + weight * (y + 0.5)];
    }
  }
  return [across / sum, down / sum];
}

/** ink: [height][width] from 0 to 1. Returns 28 x 28, or null where nothing is drawn. */
export function prepare(ink, width, height) {
  const box = boxOf(ink, width, height);
  if (box === null) return null;
  const step = Math.max(box.right - box.left, box.bottom - box.top) / INK; // of the drawing for a pixel of the result
  const [across, down] = centreOf(ink, width, height);
  const pixels = new Float32Array(SIDE * SIDE);
  for (let y = 0; y < SIDE; ++y) {
    for (let x = 0; x < SIDE; ++x) {
      const [left, top] = [across + (x - SIDE / 2) * step, down + (y - SIDE / 2) * step];
      pixels[y * SIDE + x] = mean(ink, width, height, left, top, left + step, top + step);
    }
  }
  return pixels;
}
