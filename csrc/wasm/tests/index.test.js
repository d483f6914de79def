import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { relative } from "node:path";
import test from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = new URL("../../../", import.meta.url);
const folder = process.env.DIFFQ_FAST_WASM ?? fileURLToPath(new URL("build/wasm", root));
const { PackedFile, PackedFileError, initialize, stream } = await import(pathToFileURL(`${folder}/index.js`));

const data = (name) => new Uint8Array(readFileSync(new URL(`tests/data/${name}.safetensors`, root)));
const documented = data("packed_v1_documented");
const kinds = data("packed_v1_kinds");
const coded = data("packed_v2_coded");
const dataStart = (bytes) => 8 + Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));

const refused = (status, words) => (error) => {
  assert.ok(error instanceof PackedFileError, String(error));
  assert.equal(error.status, status);
  assert.match(error.message, words);
  return true;
};

async function collected(source, options) {
  const found = [];
  for await (const each of stream(source, options)) found.push(each);
  return found;
}

function* pieces(bytes, size) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

// Serves bytes as `serve` writes them to a response.
async function served(serve, use) {
  const server = createServer(serve);
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  try {
    await use(`http://127.0.0.1:${server.address().port}/network.safetensors`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

test("the documented example has the documented values", async () => {
  const file = await PackedFile.from(documented);
  assert.deepEqual(file.names, ["w", "b", "v"]);
  assert.equal(file.byteLength, documented.length);
  assert.deepEqual(file.metadata, {
    format: "diffq_fast",
    version: "1",
    quantizer: { class: "DiffQuantizer", arguments: { group_size: 4 } },
  });
  const { shape, values } = file.read("w");
  assert.deepEqual(shape, [2, 3]);
  assert.deepEqual(values, new Float32Array([0, 1, 2, 3, 0.42857146, 3]));
  assert.deepEqual(file.read("v").values, values);
  assert.deepEqual(file.read("b").values, new Float32Array([0.25]));
});

test("an entry is described as the file has it", async () => {
  const file = await PackedFile.from(documented);
  assert.deepEqual(file.info("w"), {
    name: "w",
    tiedTo: null,
    dtype: "F32",
    storedDtype: null,
    shape: [2, 3],
    count: 6,
    storedBytes: 30,
    groupSize: 4,
    packed: true,
    coded: false,
    leastBits: 2,
    mostBits: 3,
  });
  assert.equal(file.info("v").tiedTo, "w");
  assert.equal(file.info("b").storedDtype, "F16");
  assert.equal(file.has("b") && !file.has("c"), true);
  assert.throws(() => file.info("c"), refused("not-found", /memory: no entry "c"/));
});

test("bytes may lie anywhere in a buffer, and are copied", async () => {
  const shifted = new Uint8Array(documented.length + 3);
  shifted.set(documented, 3);
  const file = await PackedFile.from(shifted.subarray(3));
  shifted.fill(0);
  assert.equal(file.read("w").values[3], 3);
  assert.equal((await PackedFile.from(documented.slice().buffer)).read("b").values[0], 0.25);
  await assert.rejects(PackedFile.from([1, 2]), TypeError);
});

test("plain bytes are given as they lie in the file, weights are not", async () => {
  const file = await PackedFile.from(documented);
  assert.deepEqual(file.data("b"), new Uint8Array([0x00, 0x34]));
  assert.throws(() => file.data("w"), refused("unsupported", /packed weight/));
  const mixed = await PackedFile.from(kinds);
  const whole = mixed.names.find((name) => mixed.info(name).storedDtype === "I64");
  assert.throws(() => mixed.read(whole), refused("unsupported", /I64/));
});

test("a damaged file is refused by name, and others are read afterwards", async () => {
  const damaged = documented.slice();
  damaged[0x290] ^= 1;
  await assert.rejects(
    PackedFile.from(damaged, { name: "bad.safetensors" }),
    refused("bad-file", /^bad\.safetensors: w\.words: checksum [0-9a-f]{8} stored, [0-9a-f]{8} found/),
  );
  const lazy = await PackedFile.from(damaged, { lazy: true });
  assert.equal(lazy.read("b").values[0], 0.25);
  assert.throws(() => lazy.read("w"), refused("bad-file", /w\.words: checksum/));
  assert.throws(() => lazy.verify(), refused("bad-file", /w\.words: checksum/));
  assert.equal((await PackedFile.from(documented)).read("b").values[0], 0.25);
});

test("every length but the right one is refused", async () => {
  for (let length = 0; length < documented.length; ++length)
    await assert.rejects(PackedFile.from(documented.subarray(0, length)), refused("bad-file", /memory: header: /));
  const longer = new Uint8Array(documented.length + 1);
  longer.set(documented);
  await assert.rejects(PackedFile.from(longer), refused("bad-file", /need 32 bytes of data, the file has 33/));
});

test("a stream gives what the file gives, however it is cut", async () => {
  for (const bytes of [documented, kinds, coded]) {
    const file = await PackedFile.from(bytes);
    for (const size of [1, 7, 64, 1000, bytes.length]) {
      if (size === 1 && bytes !== documented) continue;
      const found = await collected(pieces(bytes, size));
      assert.deepEqual(found.map(({ name }) => name).sort(), file.names.sort());
      for (const { name, shape, info, values, data: plain } of found) {
        assert.deepEqual(info, file.info(name));
        assert.deepEqual(shape, info.shape);
        if (values === null) assert.deepEqual(plain, file.data(name));
        else assert.deepEqual(new Uint8Array(values.buffer), new Uint8Array(file.read(name).values.buffer));
      }
    }
  }
});

test("an entry is given as soon as its bytes are there, and not before", async () => {
  const start = dataStart(documented);
  let sent = 0;
  async function* source() {
    for (const byte of documented) {
      sent += 1;
      yield new Uint8Array([byte]);
    }
  }
  const when = {};
  for await (const { name } of stream(source())) when[name] = sent;
  // b is byte 28 and 29 of the data, the widths of w the last two.
  assert.deepEqual(when, { b: start + 30, w: start + 32, v: start + 32 });
});

test("over HTTP, the first entries are there while the others are not sent yet", async () => {
  let finish;
  const body = (request, response) => {
    response.writeHead(200, { "content-length": documented.length });
    response.write(documented.subarray(0, documented.length - 2));
    finish = () => response.end(documented.subarray(documented.length - 2));
  };
  await served(body, async (url) => {
    const names = [];
    const progress = [];
    for await (const { name } of stream(url, { onProgress: (state) => progress.push(state) })) {
      names.push(name);
      if (name === "b") finish(); // the end is not sent before
    }
    assert.deepEqual(names, ["b", "w", "v"]);
    assert.deepEqual(progress.at(-1), { received: documented.length, total: documented.length });
  });
});

test("a file is fetched, with its progress", async () => {
  await served((request, response) => response.end(coded), async (url) => {
    const progress = [];
    const file = await PackedFile.fetch(url, { onProgress: ({ received, total }) => progress.push([received, total]) });
    assert.equal(file.byteLength, coded.length);
    assert.deepEqual(progress.at(-1), [coded.length, coded.length]);
    assert.equal((await PackedFile.fetch(await fetch(url))).names.length, file.names.length);
    assert.equal((await PackedFile.fetch((await fetch(url)).body)).names.length, file.names.length);
  });
});

test("in Node, addresses may be files, and are relative to the working folder", async () => {
  const address = new URL("tests/data/packed_v1_documented.safetensors", root);
  for (const source of [address, String(address), relative(process.cwd(), fileURLToPath(address))])
    assert.equal((await PackedFile.fetch(source)).byteLength, documented.length);
  await assert.rejects(PackedFile.fetch("no-such-file"), refused("cannot-open", /^file:.*no-such-file: ENOENT/));
});

test("what a server does wrong is an error with its address", async () => {
  const missing = (request, response) => response.writeHead(404).end();
  await served(missing, (url) => assert.rejects(PackedFile.fetch(url), refused("cannot-open", /safetensors: HTTP 404/)));
  const page = (request, response) => response.end("<!doctype html><title>Not here</title>");
  await served(page, (url) => assert.rejects(PackedFile.fetch(url), refused("bad-file", /http.*: header: /)));
  const short = (request, response) => response.end(documented.subarray(0, documented.length - 1));
  await served(short, (url) => assert.rejects(collected(url), refused("bad-file", /truncated/)));
  const cut = (request, response) => {
    response.writeHead(200, { "content-length": documented.length });
    response.write(documented.subarray(0, 100), () => response.destroy());
  };
  await served(cut, (url) => assert.rejects(PackedFile.fetch(url)));
});

test("a stream without an end is refused once it is longer than its header says", async () => {
  let sent = 0;
  function* endless() {
    yield documented;
    for (; sent < 1000; ++sent) yield new Uint8Array(1 << 16);
  }
  await assert.rejects(collected(endless()), refused("bad-file", /need 32 bytes of data, the file has/));
  assert.equal(sent, 0);
});

test("a header that promises gigabytes takes no memory before they come", async () => {
  const huge = new Uint8Array(64).fill(0x20);
  new DataView(huge.buffer).setBigUint64(0, 90_000_000n, true);
  huge[8] = 0x7b;
  const instances = [];
  const instantiate = WebAssembly.instantiate;
  WebAssembly.instantiate = async (...given) => {
    const instance = await instantiate(...given);
    instances.push(instance);
    return instance;
  };
  try {
    await assert.rejects(collected(pieces(huge, 8)), refused("bad-file", /its length says 90000000 bytes/));
    assert.ok(instances[0].exports.memory.buffer.byteLength <= 2 << 20);
  } finally {
    WebAssembly.instantiate = instantiate;
  }
});

test("who stops listening ends the download", async () => {
  let cancelled = false;
  const source = new ReadableStream({
    pull: (controller) => controller.enqueue(documented.subarray(0, documented.length - 1)),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const { name } of stream(source)) {
    assert.equal(name, "b");
    break;
  }
  assert.ok(cancelled);
  await served((request, response) => response.write(documented.subarray(0, 9)), async (url) => {
    const controller = new AbortController();
    const options = { signal: controller.signal, onProgress: () => controller.abort() };
    await assert.rejects(PackedFile.fetch(url, options), { name: "AbortError" });
  });
});

test("a stream of other things than bytes is refused", async () => {
  await assert.rejects(collected(["text"]), TypeError);
});

test("products are those of the matrix, and rows are its rows", async () => {
  let matrices = 0;
  for (const bytes of [documented, kinds, coded, data("packed_v1_even_and_scaled"), data("packed_v2_short_ranges")]) {
    const file = await PackedFile.from(bytes);
    for (const name of file.names) {
      const info = file.info(name);
      if (!info.packed || info.shape.length < 2 || info.count === 0) continue;
      matrices += 1;
      const { values } = file.read(name);
      const matrix = file.matrix(name);
      const { rows, columns } = matrix;
      assert.equal(rows * columns, info.count);
      assert.ok(matrix.byteLength > 0);
      for (const count of [1, 2, 3, 4, 7]) {
        const vectors = Float32Array.from({ length: count * columns }, (_, i) => Math.sin(i + 1));
        const results = matrix.multiply(vectors);
        assert.equal(results.length, count * rows);
        for (const [place, result] of results.entries()) {
          const [v, r] = [Math.floor(place / rows), place % rows];
          let [sum, size] = [0, 1];
          for (let c = 0; c < columns; ++c) {
            const product = values[r * columns + c] * vectors[v * columns + c];
            [sum, size] = [sum + product, size + Math.abs(product)];
          }
          const rounding = info.dtype === "F32" ? 1e-5 : 1e-2; // the weight is not rounded to its type in a product
          assert.ok(Math.abs(result - sum) <= rounding * size, `${name}: ${result}, expected ${sum}`);
        }
      }
      const order = Array.from({ length: rows }, (_, r) => rows - 1 - r);
      const looked = matrix.readRows(order);
      for (const [place, r] of order.entries()) {
        const found = looked.slice(place * columns, (place + 1) * columns);
        assert.deepEqual(found, values.slice(r * columns, (r + 1) * columns), name);
      }
      assert.throws(() => matrix.readRows([rows]), refused("bad-argument", /out of bounds/));
      const odd = new Float32Array(2 * columns - 1);
      if (columns > 2) assert.throws(() => matrix.multiply(odd), refused("bad-argument", /whole vectors/));
      assert.throws(() => matrix.multiply([...odd.subarray(0, columns)]), refused("bad-argument", /Float32Array/));
    }
  }
  assert.ok(matrices >= 15, `${matrices} matrices`);
});

test("a matrix does not need its file", async () => {
  const file = await PackedFile.from(documented);
  const matrix = file.matrix("w");
  file.close();
  assert.deepEqual(matrix.multiply(new Float32Array([1, 0, 0])), new Float32Array([0, 3]));
  matrix.close();
  assert.throws(() => matrix.multiply(new Float32Array(3)), refused("bad-argument", /closed/));
});

test("a closed file is closed", async () => {
  const file = await PackedFile.from(documented);
  file.close();
  file.close();
  assert.throws(() => file.read("w"), refused("bad-argument", /closed/));
  assert.equal(file.info("w").count, 6);
});

test("files do not know of one another", async () => {
  const files = await Promise.all(Array.from({ length: 20 }, (_, i) => PackedFile.from(i % 2 ? documented : coded)));
  files[0].close();
  for (const [i, file] of files.entries()) if (i % 2) assert.equal(file.read("w").values[3], 3);
});

test("the module may be given", async () => {
  const bytes = readFileSync(`${folder}/diffq_fast.wasm`);
  await assert.rejects(initialize(new Uint8Array(8)), WebAssembly.CompileError);
  assert.equal((await PackedFile.from(documented)).names.length, 3); // found by itself again
  await initialize(bytes);
  await initialize(await WebAssembly.compile(bytes));
  assert.equal((await PackedFile.from(documented)).names.length, 3);
});
