// Packed files of diffq_fast in browsers and in Node: the core's own reader, as WebAssembly. See README.md.
//
// Each file has an instance of the module, with memory of its own that goes when the file does. Nothing in a file is
// believed, and what is wrong with one is a PackedFileError.

const STATUSES = [
  "ok",
  "bad-argument",
  "cannot-open",
  "bad-file",
  "out-of-memory",
  "not-found",
  "unsupported",
  "internal",
];
const FLOATS = new Set(["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]);
// Of csrc/include/diffq_fast.h in 32 bits; csrc/wasm/exports.cpp checks them.
const ERROR_BYTES = 1028;
const MESSAGE = 4;
const TENSOR_BYTES = 72;
const SCRATCH_BYTES = 2048; // an error, and behind it what a call answers
const ANSWER = 1032;
const MOST_BYTES = 2 ** 31 - 2 ** 16; // of one block

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** What is wrong with a file, or with a call. */
export class PackedFileError extends Error {
  constructor(message, status) {
    super(message);
    this.name = "PackedFileError";
    this.status = status;
  }
}

const isNode = typeof process !== "undefined" && process.versions?.node !== undefined;
// Bundlers for browsers must not look for it.
const nodeModule = (name) => import(/* webpackIgnore: true */ /* @vite-ignore */ `node:${name}`);

let compiled = null;

async function compile(source) {
  const given = await source;
  if (given instanceof WebAssembly.Module) return given;
  if (given instanceof ArrayBuffer || ArrayBuffer.isView(given)) return WebAssembly.compile(given);
  const url = new URL(given, import.meta.url);
  if (isNode && url.protocol === "file:") return WebAssembly.compile(await (await nodeModule("fs/promises")).readFile(url));
  const response = await fetch(url);
  if (!response.ok) throw new PackedFileError(`${url}: HTTP ${response.status} ${response.statusText}`, "cannot-open");
  return WebAssembly.compile(await response.arrayBuffer());
}

/**
 * Loads the WebAssembly module, which otherwise happens when the first file is opened.
 * `source`: where diffq_fast.wasm is, if not beside this file; or its bytes, or a WebAssembly.Module.
 */
export async function initialize(source = new URL("./diffq_fast.wasm", import.meta.url)) {
  const loading = compile(source);
  compiled = loading;
  loading.catch(() => {
    if (compiled === loading) compiled = null; // the next call tries again
  });
  await loading;
}

const outOfMemory = Symbol("out of memory");

/** An instance of the module, with the one file that it reads. */
class Core {
  #exports;
  #scratch;
  #file;
  #source;
  #broken = false;

  static async start(source) {
    if (compiled === null) initialize().catch(() => {});
    const refused = () => 8; // WASI's "bad file descriptor": nothing is written anywhere
    const instance = await WebAssembly.instantiate(await compiled, {
      env: {
        out_of_memory() {
          throw outOfMemory;
        },
      },
      wasi_snapshot_preview1: { fd_close: refused, fd_seek: refused, fd_write: refused },
    });
    return new Core(instance.exports, source);
  }

  constructor(exports, source) {
    this.#exports = exports;
    this.#source = source;
    this.#run("_initialize");
    this.#scratch = this.block(SCRATCH_BYTES);
    const text = new TextEncoder().encode(source.replaceAll("\0", " "));
    const place = this.block(text.length + 1);
    this.bytes(place, text.length + 1).set([...text, 0]);
    this.#file = this.#run("diffq_fast_wasm_open", place);
    this.free(place);
  }

  get file() {
    return this.#file;
  }

  // Where a call puts what it answers.
  get answer() {
    return this.#scratch + ANSWER;
  }

  error(problem, status) {
    return new PackedFileError(`${this.#source}: ${problem}`, status);
  }

  // Calls a function of the module as it is. One that does not return leaves its memory in no state that is known.
  #run(name, ...given) {
    if (this.#broken) throw this.error("cannot be read any more, after an error", "internal");
    try {
      return this.#exports[name](...given);
    } catch (problem) {
      this.#broken = true;
      if (problem === outOfMemory) throw this.error("out of memory", "out-of-memory");
      throw this.error(`the reader failed (${problem.message}); a mistake of this library`, "internal");
    }
  }

  // A number that is an address or a size.
  number(name, ...given) {
    return this.#run(name, ...given) >>> 0;
  }

  float(name, ...given) {
    return this.#run(name, ...given);
  }

  // A function whose last argument is where an error goes; returns what it returns.
  #checked(failed, name, given) {
    const result = this.#run(name, ...given, this.#scratch);
    if (!failed(result)) return result >>> 0;
    const status = this.view().getInt32(this.#scratch, true);
    const message = this.text(this.#scratch + MESSAGE);
    throw new PackedFileError(message.slice(message.indexOf(": ") + 2), STATUSES[status] ?? "internal");
  }

  check(name, ...given) {
    this.#checked((status) => status !== 0, name, given);
  }

  place(name, ...given) {
    return this.#checked((place) => place === 0, name, given);
  }

  view() {
    return new DataView(this.#exports.memory.buffer);
  }

  bytes(place, count) {
    return new Uint8Array(this.#exports.memory.buffer, place, count);
  }

  floats(place, count) {
    return new Float32Array(this.#exports.memory.buffer, place, count);
  }

  text(place) {
    const memory = new Uint8Array(this.#exports.memory.buffer);
    return utf8.decode(memory.subarray(place, memory.indexOf(0, place)));
  }

  // Memory of the module; 0 bytes have an address too.
  block(bytes) {
    const place = bytes > MOST_BYTES ? 0 : this.number("malloc", Math.max(bytes, 8));
    if (place === 0) throw this.error(`out of memory: ${bytes} bytes are wanted at once`, "out-of-memory");
    return place;
  }

  free(place) {
    if (!this.#broken) this.#run("free", place);
  }

  // use(address) of so many bytes.
  withBlock(bytes, use) {
    const place = this.block(bytes);
    try {
      return use(place);
    } finally {
      this.free(place);
    }
  }

  // More of the file. What is not Uint8Array is refused: its length would say something else.
  add(chunk) {
    if (!(chunk instanceof Uint8Array)) throw new TypeError("expected a stream of Uint8Array");
    if (chunk.length === 0) return;
    const place = this.place("diffq_fast_wasm_room", chunk.length);
    this.bytes(place, chunk.length).set(chunk);
    this.check("diffq_fast_wasm_take", chunk.length, 0);
  }

  end() {
    this.check("diffq_fast_wasm_take", 0, 1);
  }

  hasHeader() {
    return this.number("diffq_fast_wasm_has_header") === 1;
  }
}

/** What an entry is; its widths are read here, so it must have arrived. */
function describe(core, index) {
  core.check("diffq_fast_wasm_prepare", index);
  core.check("diffq_fast_describe", core.file, index, core.answer);
  const memory = core.view();
  const at = core.answer;
  const integer = (place) => memory.getInt32(at + place, true);
  const size = (place) => memory.getUint32(at + place, true);
  const long = (place) => Number(memory.getBigInt64(at + place, true));
  const text = (place) => (size(place) === 0 ? null : core.text(size(place)));
  const shape = Array.from({ length: size(24) }, (_, i) => Number(memory.getBigInt64(size(20) + 8 * i, true)));
  return {
    name: utf8.decode(core.bytes(size(0), size(4))),
    tiedTo: null,
    dtype: text(12),
    storedDtype: text(16),
    shape,
    count: long(32),
    storedBytes: long(40),
    groupSize: long(48),
    packed: integer(56) === 1,
    coded: integer(60) === 1,
    leastBits: integer(64),
    mostBits: integer(68),
  };
}

function nameOf(core, index) {
  core.check("diffq_fast_describe", core.file, index, core.answer);
  const memory = core.view();
  return utf8.decode(core.bytes(memory.getUint32(core.answer, true), memory.getUint32(core.answer + 4, true)));
}

function infoOf(core, index) {
  const info = describe(core, index);
  const tied = core.number("diffq_fast_wasm_tied_to", index);
  if (tied !== index) info.tiedTo = nameOf(core, tied);
  return Object.freeze({ ...info, shape: Object.freeze(info.shape) });
}

function readFloats(core, index, count) {
  return core.withBlock(4 * count, (place) => {
    core.check("diffq_fast_read_float32", core.file, index, place, count);
    return core.floats(place, count).slice();
  });
}

function plainData(core, index) {
  core.check("diffq_fast_plain_data", core.file, index, core.answer, core.answer + 4);
  const memory = core.view();
  const [place, count] = [memory.getUint32(core.answer, true), memory.getUint32(core.answer + 4, true)];
  return core.bytes(place, count).slice();
}

const isFloat = (info) => info.packed || FLOATS.has(info.storedDtype);

// What addresses are relative to: the page, or the working folder.
async function base() {
  if (globalThis.location !== undefined || !isNode) return globalThis.location?.href;
  return (await nodeModule("url")).pathToFileURL(`${process.cwd()}/`);
}

/** The parts of what a file is read from, its name, and how long it is, where that is told. */
async function opened(source, init) {
  if (source instanceof URL || typeof source === "string" || (typeof Request !== "undefined" && source instanceof Request)) {
    const place = new URL(source instanceof Request ? source.url : source, await base());
    if (isNode && place.protocol === "file:") {
      const { open } = await nodeModule("fs/promises");
      let file;
      try {
        file = await open(place);
      } catch (problem) {
        throw new PackedFileError(`${place}: ${problem.message}`, "cannot-open");
      }
      return { chunks: file.createReadStream(), name: String(place), length: (await file.stat()).size };
    }
    return opened(await fetch(source instanceof Request ? source : place, init), init);
  }
  if (typeof Response !== "undefined" && source instanceof Response) {
    const name = source.url || "response";
    if (!source.ok) throw new PackedFileError(`${name}: HTTP ${source.status} ${source.statusText}`, "cannot-open");
    const coded = source.headers.get("content-encoding");
    const length = Number(source.headers.get("content-length"));
    return { chunks: source.body ?? [], name, length: !coded && length > 0 ? length : null };
  }
  return { chunks: source, name: "stream", length: null };
}

/** Each chunk of a ReadableStream, or of anything that can be iterated. */
async function* each(chunks) {
  if (typeof chunks?.getReader !== "function") {
    yield* chunks;
    return;
  }
  const reader = chunks.getReader();
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      ended = done;
      if (done) return;
      yield value;
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => {});
  }
}

/** Feeds a core with all that arrives; yields it after each piece, and at the end once more. */
async function* arriving(source, { onProgress, ...init }) {
  const { chunks, name, length } = await opened(source, init);
  const core = await Core.start(name);
  let received = 0;
  for await (const chunk of each(chunks)) {
    core.add(chunk);
    received += chunk.length;
    onProgress?.({ received, total: core.hasHeader() ? core.float("diffq_fast_wasm_length") : length });
    yield { core, received, ended: false };
  }
  core.end();
  yield { core, received, ended: true };
}

/** A packed file that has arrived. */
export class PackedFile {
  #core;
  #infos;
  #numbers;
  #metadata;
  #byteLength;

  /** Not to be called: use from() or fetch(). */
  constructor(core, byteLength, lazy) {
    this.#core = core;
    this.#byteLength = byteLength;
    const count = core.number("diffq_fast_count", core.file);
    this.#infos = Array.from({ length: count }, (_, index) => infoOf(core, index));
    this.#numbers = new Map(this.#infos.map((info, index) => [info.name, index]));
    this.#metadata = Object.freeze({
      format: "diffq_fast",
      version: core.text(core.number("diffq_fast_wasm_version_of_file")),
      quantizer: JSON.parse(core.text(core.number("diffq_fast_wasm_quantizer"))),
    });
    if (!lazy) this.verify();
  }

  static async from(bytes, { lazy = false, name = "memory" } = {}) {
    const given = bytes instanceof ArrayBuffer || ArrayBuffer.isView(bytes);
    if (!given) throw new TypeError("PackedFile.from: expected an ArrayBuffer or a view of one");
    const chunk = ArrayBuffer.isView(bytes)
      ? new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      : new Uint8Array(bytes);
    const core = await Core.start(name);
    core.add(chunk);
    core.end();
    return new PackedFile(core, chunk.length, lazy);
  }

  static async fetch(source, { lazy = false, ...options } = {}) {
    let last;
    for await (const state of arriving(source, options)) last = state;
    return new PackedFile(last.core, last.received, lazy);
  }

  #open() {
    if (this.#core === null) throw new PackedFileError("the file is closed", "bad-argument");
    return this.#core;
  }

  #number(name) {
    const number = this.#numbers.get(name);
    if (number === undefined) throw this.#open().error(`no entry ${JSON.stringify(name)}`, "not-found");
    return number;
  }

  get names() {
    return this.#infos.map((info) => info.name);
  }

  get metadata() {
    return this.#metadata;
  }

  get byteLength() {
    return this.#byteLength;
  }

  has(name) {
    return this.#numbers.has(name);
  }

  info(name) {
    return this.#infos[this.#number(name)];
  }

  read(name) {
    const number = this.#number(name);
    const info = this.#infos[number];
    const core = this.#open();
    return { name, shape: info.shape, values: readFloats(core, number, info.count) };
  }

  data(name) {
    return plainData(this.#open(), this.#number(name));
  }

  matrix(name) {
    return new PackedMatrix(this.#open(), this.#number(name));
  }

  verify() {
    const core = this.#open();
    core.check("diffq_fast_validate", core.file);
  }

  close() {
    this.#core?.float("diffq_fast_wasm_close");
    this.#core = null;
  }
}

/** A weight that stays packed. */
class PackedMatrix {
  #core;
  #handle;
  #rows;
  #columns;
  #byteLength;

  constructor(core, number) {
    core.check("diffq_fast_matrix_open", core.file, number, core.answer);
    this.#core = core;
    this.#handle = core.view().getUint32(core.answer, true);
    this.#rows = core.number("diffq_fast_matrix_rows", this.#handle);
    this.#columns = core.number("diffq_fast_matrix_columns", this.#handle);
    this.#byteLength = core.number("diffq_fast_matrix_bytes", this.#handle);
  }

  get rows() {
    return this.#rows;
  }

  get columns() {
    return this.#columns;
  }

  get byteLength() {
    return this.#byteLength;
  }

  #open() {
    if (this.#core === null) throw new PackedFileError("the matrix is closed", "bad-argument");
    return this.#core;
  }

  multiply(vectors) {
    const core = this.#open();
    const count = vectors.length / this.#columns;
    if (!(vectors instanceof Float32Array) || !Number.isInteger(count)) {
      const problem = `multiply: expected a Float32Array of whole vectors of ${this.#columns}, got ${vectors.length} values`;
      throw core.error(problem, "bad-argument");
    }
    return core.withBlock(vectors.byteLength, (from) =>
      core.withBlock(4 * count * this.#rows, (to) => {
        core.floats(from, vectors.length).set(vectors);
        core.check("diffq_fast_matrix_multiply", this.#handle, from, count, to);
        return core.floats(to, count * this.#rows).slice();
      }),
    );
  }

  readRows(indices) {
    const core = this.#open();
    const numbers = BigInt64Array.from(indices, BigInt);
    const size = numbers.length * this.#columns;
    return core.withBlock(numbers.byteLength, (from) =>
      core.withBlock(4 * size, (to) => {
        core.bytes(from, numbers.byteLength).set(new Uint8Array(numbers.buffer));
        core.check("diffq_fast_matrix_read_rows", this.#handle, from, numbers.length, to);
        return core.floats(to, size).slice();
      }),
    );
  }

  close() {
    this.#core?.float("diffq_fast_matrix_close", this.#handle);
    this.#core = null;
  }
}

/** Entries of a file as they arrive, each as soon as all of its bytes are there. */
export async function* stream(source, options = {}) {
  let waiting = null;
  for await (const { core, received } of arriving(source, options)) {
    if (waiting === null && core.hasHeader()) {
      const count = core.number("diffq_fast_count", core.file);
      waiting = Array.from({ length: count }, (_, index) => ({ index, end: core.float("diffq_fast_wasm_end_of", index) }));
      waiting.sort((a, b) => b.end - a.end || b.index - a.index);
    }
    while (waiting?.length > 0 && waiting.at(-1).end <= received) {
      const { index } = waiting.pop();
      const info = infoOf(core, index);
      const float = isFloat(info);
      yield {
        name: info.name,
        shape: info.shape,
        info,
        values: float ? readFloats(core, index, info.count) : null,
        data: float ? null : plainData(core, index),
      };
    }
  }
}
