// The page: loads the network while it arrives, lets a person draw, and shows what the network makes of it.
import { stream } from "./diffq-fast/index.js";
import { NEEDED, Network, SIDE, label, softmax } from "./network.js";
import { prepare } from "./pixels.js";

const element = (id) => document.getElementById(id);
const pad = element("pad");
const pen = pad.getContext("2d", { willReadFrequently: true });
const kilobytes = (bytes) => `${(bytes / 1000).toFixed(1)} kB`;
const PEN = 28;

let network = null;
let samples = null;
let drawn = false;

/* The bars of the ten digits. */

const bars = Array.from({ length: 10 }, (_, digit) => {
  const item = document.createElement("li");
  item.innerHTML = '<span></span><span class="track"><span></span></span><span></span>';
  item.children[0].textContent = digit;
  element("bars").append(item);
  return item;
});

function showShares(shares, best) {
  for (const [digit, item] of bars.entries()) {
    const share = shares === null ? 0 : shares[digit];
    item.classList.toggle("best", digit === best);
    item.querySelector(".track span").style.width = `${100 * share}%`;
    item.lastElementChild.textContent = shares === null ? "" : `${(100 * share).toFixed(1)} %`;
  }
}

function showSeen(pixels) {
  const canvas = element("seen");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, SIDE, SIDE);
  if (pixels === null) return;
  const [red, green, blue] = getComputedStyle(canvas).color.match(/[\d.]+/g).map(Number);
  const image = context.createImageData(SIDE, SIDE);
  for (const [i, ink] of pixels.entries()) image.data.set([red, green, blue, 255 * ink], 4 * i);
  context.putImageData(image, 0, 0);
}

function classify() {
  if (network === null) return;
  const { data } = pen.getImageData(0, 0, pad.width, pad.height);
  const ink = Float32Array.from({ length: pad.width * pad.height }, (_, i) => data[4 * i + 3] / 255);
  const pixels = prepare(ink, pad.width, pad.height);
  showSeen(pixels);
  if (pixels === null) return;
  const start = performance.now();
  const logits = network.logits(pixels);
  const time = performance.now() - start;
  const best = label(logits);
  element("digit").textContent = best;
  element("time").textContent = `${time.toFixed(1)} ms in plain JavaScript`;
  showShares(softmax(logits), best);
}

/* Drawing. */

function place(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * pad.width, ((event.clientY - box.top) / box.height) * pad.height];
}

let last = null;

function draw(event) {
  if (last === null) return;
  const to = place(event);
  pen.strokeStyle = getComputedStyle(pad).color;
  [pen.lineWidth, pen.lineCap, pen.lineJoin] = [PEN, "round", "round"];
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(to[0], to[1] + 0.01); // a point is a line too
  pen.stroke();
  last = to;
}

function wipe() {
  pen.clearRect(0, 0, pad.width, pad.height);
  element("hint").hidden = true;
  drawn = false;
}

pad.addEventListener("pointerdown", (event) => {
  if (!drawn) wipe();
  drawn = true;
  if (event.isTrusted) pad.setPointerCapture(event.pointerId);
  last = place(event);
  draw(event);
});
pad.addEventListener("pointermove", draw);
for (const name of ["pointerup", "pointercancel"]) {
  pad.addEventListener(name, () => {
    if (last === null) return;
    last = null;
    classify();
  });
}

element("clear").addEventListener("click", () => {
  wipe();
  element("hint").hidden = false;
  element("digit").textContent = "–";
  element("time").innerHTML = "&nbsp;";
  showShares(null, -1);
  showSeen(null);
});

/* A digit that the network was not trained on, for those who cannot draw. */

element("sample").addEventListener("click", async () => {
  samples ??= new Uint8Array(await (await fetch("samples.bytes")).arrayBuffer());
  const count = samples.length / SIDE ** 2;
  const chosen = samples.subarray(SIDE ** 2 * Math.floor(Math.random() * count)).subarray(0, SIDE ** 2);
  const small = new OffscreenCanvas(SIDE, SIDE);
  const image = new ImageData(SIDE, SIDE);
  const [red, green, blue] = getComputedStyle(pad).color.match(/[\d.]+/g).map(Number);
  for (const [i, ink] of chosen.entries()) image.data.set([red, green, blue, ink], 4 * i);
  small.getContext("2d").putImageData(image, 0, 0);
  wipe();
  pen.drawImage(small, 0, 0, pad.width, pad.height);
  classify();
});

/* Loading. */

function showWeight({ name, shape, info }) {
  if (!info.packed) return;
  const row = document.createElement("tr");
  const bits = info.leastBits === info.mostBits ? info.leastBits : `${info.leastBits} to ${info.mostBits}`;
  const share = `${((100 * info.storedBytes) / (4 * info.count)).toFixed(0)} %`;
  const cells = [name, shape.join(" × "), info.mostBits === 0 ? "coded" : bits, info.storedBytes.toLocaleString("en"), share];
  for (const [i, text] of cells.entries()) {
    const cell = document.createElement(i === 0 ? "th" : "td");
    if (i === 0) cell.scope = "row";
    cell.textContent = text;
    row.append(cell);
  }
  element("weights").append(row);
}

function showReader() {
  const reader = performance.getEntriesByType("resource").find((entry) => entry.name.endsWith("diffq_fast.wasm"));
  if (reader === undefined) return;
  element("reader").textContent = `The reader itself, once for all files: ${kilobytes(reader.decodedBodySize)} of WebAssembly.`;
}

async function load() {
  const tensors = new Map();
  let floatBytes = 0;
  let received = 0;
  const onProgress = (state) => {
    received = state.received;
    element("packed-bytes").textContent = kilobytes(received);
    element("ratio").textContent = `Loading: ${Math.round((100 * received) / state.total)} %`;
  };
  for await (const tensor of stream("network.safetensors", { onProgress })) {
    tensors.set(tensor.name, tensor.values);
    floatBytes += tensor.values === null ? tensor.data.length : 4 * tensor.values.length;
    showWeight(tensor);
  }
  const missing = NEEDED.filter((name) => !tensors.get(name));
  if (missing.length > 0) throw new Error(`network.safetensors: without ${missing.join(", ")}`);
  element("ratio").textContent = `${(floatBytes / received).toFixed(1)} times smaller than in float32`;
  element("float-bytes").textContent = kilobytes(floatBytes);
  element("float-bar").style.width = "100%";
  element("packed-bar").style.width = `${(100 * received) / floatBytes}%`;
  showReader();
  network = new Network(tensors);
  if (drawn) classify();
}

showShares(null, -1);
load().then(
  () => document.documentElement.setAttribute("data-ready", "yes"),
  (error) => {
    element("ratio").textContent = error.message;
    element("ratio").classList.add("failed");
    document.documentElement.setAttribute("data-ready", "failed");
  },
);
