// What measure_wasm.py asks of JavaScript: millions of weights a second for one file, as JSON.
//   node measure_wasm.js PACKAGE FILE SECONDS
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, path, seconds] = process.argv.slice(2);
const { PackedFile } = await import(pathToFileURL(`${folder}/index.js`));

async function medianOf(run) {
  const times = [];
  for (let total = 0; total < 1000 * seconds || times.length < 6; total += times.at(-1)) {
    const begin = performance.now();
    await run();
    times.push(performance.now() - begin);
  }
  return times.slice(1).sort((a, b) => a - b)[Math.floor((times.length - 1) / 2)];
}

const bytes = readFileSync(path);
const file = await PackedFile.from(bytes);
const name = file.names.find((each) => file.info(each).packed);
const matrix = file.matrix(name);
const vector = Float32Array.from({ length: matrix.columns }, (_, i) => Math.sin(i));
const rate = async (run) => file.info(name).count / 1000 / (await medianOf(run));
console.log(
  JSON.stringify({
    open: await rate(async () => (await PackedFile.from(bytes)).close()),
    read: await rate(() => file.read(name)),
    product: await rate(() => matrix.multiply(vector)),
  }),
);
