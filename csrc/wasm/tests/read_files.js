// Reads the files that stdin names, one a line, and prints what comes of each as a line of JSON: for
// tests/wasm/test_agreement.py. Values are given as the SHA-256 of their bits, with one NaN for all.
//   node read_files.js PACKAGE MOST_ELEMENTS
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, mostElements] = [process.argv[2], Number(process.argv[3])];
const { PackedFile, PackedFileError, stream } = await import(pathToFileURL(`${folder}/index.js`));

let memory = null;
const instantiate = WebAssembly.instantiate;
WebAssembly.instantiate = async (...given) => {
  const instance = await instantiate(...given);
  memory = instance.exports.memory;
  return instance;
};

function digest(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length).slice();
  for (let i = 0; i < bits.length; ++i) if ((bits[i] & 0x7fffffff) > 0x7f800000) bits[i] = 0x7fc00000;
  return createHash("sha256").update(bits).digest("hex");
}

// Any other error ends the program.
async function given(read) {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof PackedFileError) || error.message.includes("unreachable")) throw error;
    return { refused: error.message, status: error.status };
  }
}

async function entryOf(file, name) {
  const info = file.info(name);
  const entry = { ...info, values: null };
  if (info.count > mostElements) return entry;
  const float = info.packed || ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"].includes(info.storedDtype);
  const read = () => (float ? digest(file.read(name).values) : [...file.data(name)]);
  return { ...entry, values: await given(read) };
}

async function whole(bytes) {
  const file = await given(() => PackedFile.from(bytes));
  if (file.refused !== undefined) return file;
  const entries = [];
  for (const name of file.names) entries.push(await entryOf(file, name));
  return { metadata: file.metadata, entries };
}

// The same from pieces of some odd size, of what is small: names and digests in the order of the file.
async function inPieces(bytes) {
  async function* pieces() {
    const size = 1 + (bytes.length % 97);
    for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
  }
  return given(async () => {
    const found = {};
    for await (const { name, values, data } of stream(pieces())) found[name] = values ? digest(values) : [...data];
    return found;
  });
}

for await (const path of createInterface({ input: process.stdin })) {
  const bytes = new Uint8Array(await readFile(path));
  const found = await whole(bytes);
  const pages = memory.buffer.byteLength;
  const large = (found.entries ?? []).some(({ count }) => count > mostElements);
  found.pieces = bytes.length < 65536 && !large ? await inPieces(bytes) : null;
  console.log(JSON.stringify({ ...found, memory: pages }));
}
