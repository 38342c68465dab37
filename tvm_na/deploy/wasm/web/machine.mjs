// An instance of the kernels' module with its memory, and threads that take part in its loops.
import { shown } from "./checks.mjs";

const PAGE = 65536, MOST_PAGES = 65536, MOST_SHARED_PAGES = 16384, STACK = 1 << 18;
const ALONE = "model.wasm", SHARED = "model-threads.wasm";
const isNode = typeof process !== "undefined" && !!process.versions?.node;

export class Machine {
  #exports;
  #memory;
  #workers;
  #text = new TextDecoder();

  constructor(exports, memory, workers = []) {
    this.#exports = exports;
    this.#memory = memory;
    this.#workers = workers;
    this.#exports.na_start();
    this.returned = this.alloc(16);
  }

  /** How many threads are wanted and can be had, and the module for them. */
  static async threadsFor(wanted) {
    const cores = isNode ? (await import("node:os")).availableParallelism() : (globalThis.navigator?.hardwareConcurrency ?? 1);
    const canShare = isNode || globalThis.crossOriginIsolated === true;
    if (wanted === "auto") wanted = canShare ? cores : 1;
    if (!Number.isInteger(wanted)) throw new TypeError(`threads: required an integer or "auto", got ${shown(wanted)}`);
    if (wanted < 1 || wanted > 64) throw new RangeError(`threads: required 1 to 64, got ${wanted}`);
    if (wanted > 1 && !canShare) {
      throw new RangeError(`threads: required 1 on a page that is not cross-origin isolated, got ${wanted}`);
    }
    return { threads: wanted, module: wanted > 1 ? SHARED : ALONE };
  }

  get threads() {
    return 1 + this.#workers.length;
  }

  get bytes() {
    return this.#memory.buffer.byteLength;
  }

  /** The address of so many bytes, a multiple of 64; an Error if the memory cannot grow by them. */
  alloc(bytes) {
    const address = bytes < 2 ** 32 ? this.#exports.na_alloc(bytes) >>> 0 : 0;
    if (!address) {
      this.#exports.na_refused();
      throw this.#tooLittle(bytes);
    }
    return address;
  }

  free(address) {
    this.#exports.na_free(address);
  }

  /** Numbers in the memory, until that grows, which alloc and call may do. */
  view(Kind, address, length) {
    return new Kind(this.#memory.buffer, address, length);
  }

  /** A function of a name that TVM knows: call(arguments, count). */
  function(name) {
    const code = this.#exports[`__tvm_ffi_${name}`];
    if (!code) throw new Error(`model.wasm: required the function ${name} that the plan names, got none`);
    return (given, count) => {
      if (code(0, given, count, this.returned)) throw this.#failed(name);
    };
  }

  async start(threads, module) {
    let failure = null;
    for (let n = 1; n < threads; ++n) {
      const stack = this.alloc(STACK) + STACK;
      this.#workers.push(await startWorker({ module, memory: this.#memory, stack }, (error) => { failure = error; }));
    }
    for (const end = Date.now() + 10000; this.#exports.na_workers() < threads - 1; ) {
      if (failure) throw new Error(`threads: required ${threads} that start, got ${failure.message}`);
      if (Date.now() > end) throw new Error(`threads: required ${threads} that start within 10 s, got ${1 + this.#exports.na_workers()}`);
      await new Promise((done) => setTimeout(done, 1));
    }
  }

  close() {
    for (const worker of this.#workers.splice(0)) worker.terminate();
  }

  #failed(name) {
    const refused = this.#exports.na_refused() >>> 0;
    if (refused) return this.#tooLittle(refused);
    const bytes = new Uint8Array(this.#memory.buffer, this.#exports.na_error() >>> 0, 512).slice();
    return new Error(`${name}: ${this.#text.decode(bytes.subarray(0, bytes.indexOf(0)))}`);
  }

  #tooLittle(bytes) {
    return new Error(`memory: required ${bytes} bytes more than the ${this.bytes} that there are, got none`);
  }
}

/** The machine of a module's bytes, whose memory has `pages` at first and `maximumBytes` at most. */
export async function createMachine(bytes, pages, threads, maximumBytes) {
  const shared = threads > 1, most = shared ? MOST_SHARED_PAGES : MOST_PAGES;
  if (maximumBytes !== undefined && !(Number.isInteger(maximumBytes) && maximumBytes >= pages * PAGE)) {
    const Kind = typeof maximumBytes === "number" ? RangeError : TypeError;
    throw new Kind(`maximumBytes: required an integer >= ${pages * PAGE}, got ${shown(maximumBytes)}`);
  }
  const maximum = Math.min(most, Math.floor((maximumBytes ?? most * PAGE) / PAGE));
  const memory = new WebAssembly.Memory({ initial: pages, maximum, shared });
  const module = await WebAssembly.compile(bytes);
  const instance = await WebAssembly.instantiate(module, { env: { memory } });
  const machine = new Machine(instance.exports, memory);
  await machine.start(threads, module);
  return machine;
}

async function startWorker(message, onError) {
  const url = new URL("./worker.mjs", import.meta.url);
  if (!isNode) {
    const worker = new Worker(url, { type: "module" });
    worker.onerror = onError;
    worker.postMessage(message);
    return worker;
  }
  const { Worker: NodeWorker } = await import("node:worker_threads");
  const worker = new NodeWorker(url, { execArgv: [] });
  worker.on("error", onError);
  worker.unref(); // the process may end
  worker.postMessage(message);
  return worker;
}
