/** Packed files of diffq_fast: opened, verified and decoded, whole or while they arrive. */

/** What is wrong with a file, or with a call. */
export class PackedFileError extends Error {
  readonly name: "PackedFileError";
  readonly status: Status;
}

export type Status =
  /** Of a call: an index or a length that does not fit, or something that is closed. */
  | "bad-argument"
  /** The server or the system does not give the file. */
  | "cannot-open"
  /** Damaged, truncated, hostile, or of another format or version. */
  | "bad-file"
  | "out-of-memory"
  /** No entry of that name. */
  | "not-found"
  /** An entry that cannot be given in the form that is asked for. */
  | "unsupported"
  /** A mistake of this library, or a file that had an error after which it cannot be read any more. */
  | "internal";

export type DType =
  | "BOOL"
  | "U8"
  | "I8"
  | "F8_E4M3"
  | "F8_E5M2"
  | "U16"
  | "I16"
  | "F16"
  | "BF16"
  | "U32"
  | "I32"
  | "F32"
  | "U64"
  | "I64"
  | "F64"
  | "C64";

/** One entry of the state dict. */
export interface TensorInfo {
  readonly name: string;
  /** The entry that this one is the same tensor as, or null. */
  readonly tiedTo: string | null;
  /** Of the tensor in the model; F32, F16 or BF16 for a packed one. */
  readonly dtype: DType;
  /** Of a plain tensor's data in the file; null for a packed one. */
  readonly storedDtype: DType | null;
  readonly shape: readonly number[];
  /** Elements. */
  readonly count: number;
  /** Of its data in the file. */
  readonly storedBytes: number;
  /** Of a packed one: elements that share a width; 0: all. */
  readonly groupSize: number;
  /** A quantised weight, or a plain tensor. */
  readonly packed: boolean;
  /** Whether its levels are entropy coded. */
  readonly coded: boolean;
  /** Widths of a packed one's groups; 0 for plain ones, and for those with steps, whose levels have no width. */
  readonly leastBits: number;
  readonly mostBits: number;
}

export interface Metadata {
  readonly format: "diffq_fast";
  readonly version: "1" | "2";
  /** What made the file, with its arguments. */
  readonly quantizer: { readonly class: string; readonly arguments: Readonly<Record<string, unknown>> };
}

export interface Tensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** In row-major order, yours to keep. */
  readonly values: Float32Array;
}

export interface Progress {
  /** Bytes that have arrived. */
  readonly received: number;
  /** Bytes of the file: as its header has it, and before that as the server says; null where nobody has said it yet. */
  readonly total: number | null;
}

/** Where a file comes from: an address (in Node of a `file:` too), a response, or its bytes piece by piece. */
export type Source =
  | string
  | URL
  | Request
  | Response
  | ReadableStream<Uint8Array>
  | AsyncIterable<Uint8Array>
  | Iterable<Uint8Array>;

/** What else there is, such as `signal`, `headers` or `cache`, goes to the platform's own fetch(). */
export interface FetchOptions extends RequestInit {
  onProgress?: (progress: Progress) => void;
}

/**
 * Loads the WebAssembly module, which otherwise happens when the first file is opened.
 * @param source where `diffq_fast.wasm` is, if not beside `index.js`; or its bytes, or the module.
 */
export function initialize(
  source?: string | URL | BufferSource | WebAssembly.Module | Promise<string | URL | BufferSource | WebAssembly.Module>,
): Promise<void>;

/** A packed file in memory. Its own memory is given back when it is closed, or not reachable any more. */
export class PackedFile {
  private constructor();

  /**
   * Opens a file's bytes, which are copied.
   * @param options.lazy verify the data of an entry when it is first read, not all now
   * @param options.name what messages call the file
   * @throws PackedFileError
   */
  static from(bytes: BufferSource, options?: { lazy?: boolean; name?: string }): Promise<PackedFile>;

  /** Loads and opens a file. @throws PackedFileError, and what fetch() throws */
  static fetch(source: Source, options?: FetchOptions & { lazy?: boolean }): Promise<PackedFile>;

  /** Packed weights, plain tensors, and further names of these, in this order. */
  readonly names: string[];
  readonly metadata: Metadata;
  /** Of the file. */
  readonly byteLength: number;

  has(name: string): boolean;
  info(name: string): TensorInfo;

  /** A tensor as float32: a packed weight bit for bit as Python's loader gives it, or a plain one of floats. */
  read(name: string): Tensor;

  /** A plain tensor's bytes as they lie in the file, of its stored dtype, little-endian. */
  data(name: string): Uint8Array;

  /** A packed weight of two dimensions or more that stays packed. It does not need the file any more. */
  matrix(name: string): PackedMatrix;

  /** Verifies all of a file that was opened lazily. */
  verify(): void;

  /** Nothing can be read any more; what it gave, and matrices, stay. */
  close(): void;
}

/** The rows are the first dimension, the columns all others. */
export interface PackedMatrix {
  readonly rows: number;
  readonly columns: number;
  /** What it keeps in memory. */
  readonly byteLength: number;

  /** Products with `[count][columns]` values, as `[count][rows]`; of the weight before it is rounded to F16 or BF16. */
  multiply(vectors: Float32Array): Float32Array;

  /** `[indices][columns]`, bit for bit those of `PackedFile.read`. */
  readRows(indices: Iterable<number>): Float32Array;

  close(): void;
}

/** An entry that has arrived. */
export interface Arrived {
  readonly name: string;
  readonly shape: readonly number[];
  readonly info: TensorInfo;
  /** As `PackedFile.read` gives it; null for a plain tensor of something else than floats. */
  readonly values: Float32Array | null;
  /** As `PackedFile.data` gives it, where `values` is null. */
  readonly data: Uint8Array | null;
}

/**
 * The entries of a file while it arrives, each as soon as all of its bytes are there and verified. Whether the file is
 * whole shows at the end only: an error may come behind entries that were given.
 * @throws PackedFileError, and what fetch() throws
 */
export function stream(source: Source, options?: FetchOptions): AsyncGenerator<Arrived, void, undefined>;
