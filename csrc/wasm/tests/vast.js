// A weight of more elements than 32 bits count, and then a file like any other: for tests/wasm/test_agreement.py.
//   node vast.js VAST DOCUMENTED
import { readFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";

const { PackedFile } = await import(pathToFileURL(`${process.env.DIFFQ_FAST_WASM}/index.js`));
const [vast, documented] = process.argv.slice(2);

function status(call) {
  try {
    call();
    return "none";
  } catch (error) {
    return error.status;
  }
}

const file = await PackedFile.from(await readFile(vast));
console.log(status(() => file.read("w"))); // its values: refused before anything is asked of the module
console.log(status(() => file.matrix("w"))); // its levels: inside
console.log(status(() => file.matrix("w"))); // the instance is gone
const other = await PackedFile.from(await readFile(documented));
console.log(other.read("b").values[0]);
