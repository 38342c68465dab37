// The plan, call by call: tensors for a batch in the memory, and their descriptors (DLPack's, of 32 bits).

const TENSOR = 40, ANY = 16, CPU = 1, POINTER_TO_TENSOR = 7;
const CODES = { float32: [2, 32], float64: [2, 64], float16: [2, 16], bfloat16: [4, 16], int8: [0, 8] };
export const ARRAYS = { float32: Float32Array, float64: Float64Array };

const count = (shape) => shape.reduce((a, b) => a * b, 1);

export class Program {
  #plan;
  #machine;
  #weights;
  #functions;
  #prepared = null;

  constructor(plan, machine, weights) {
    this.#plan = plan;
    this.#machine = machine;
    this.#weights = weights;
    this.#functions = plan.functions.map((name) => machine.function(name));
  }

  /** The outputs for images; after(number of a call, its tensors) is called while those are in the memory. */
  run({ images, batch }, after) {
    const { tensors, calls } = this.#prepare(batch);
    this.#view(tensors[0]).set(images);
    calls.forEach(([call, given, used], number) => {
      call(given, used.length);
      after(number, (n) => ({ data: this.#view(tensors[used[n]]), shape: tensors[used[n]].shape }));
    });
    return this.#plan.outputs.map((n) => ({ data: this.#view(tensors[n]).slice(), shape: tensors[n].shape }));
  }

  #view({ address, shape, dtype }) {
    return this.#machine.view(ARRAYS[dtype], address, count(shape));
  }

  #prepare(batch) {
    if (this.#prepared?.batch === batch) return this.#prepared;
    this.#prepared?.blocks.forEach((block) => this.#machine.free(block));
    this.#prepared = null;
    const blocks = [], alloc = (bytes) => (blocks.push(this.#machine.alloc(bytes)), blocks.at(-1));
    try {
      return (this.#prepared = { batch, blocks, ...this.#placed(batch, alloc) });
    } catch (error) {
      blocks.forEach((block) => this.#machine.free(block));
      throw error;
    }
  }

  #placed(batch, alloc) {
    const plan = this.#plan, arena = alloc(batch * plan.arena), tensors = [];
    for (const { shape, dtype, weight, offset } of plan.tensors) {
      const sizes = shape.map((n) => n ?? batch), bytes = (count(sizes) * CODES[dtype][1]) / 8;
      let address;
      if (weight !== undefined) address = this.#weights[weight];
      else if (offset !== undefined) address = arena + batch * offset;
      else address = tensors[0]?.address ?? alloc(bytes);
      tensors.push({ address, shape: sizes, dtype });
    }
    const about = this.#describe(tensors, alloc);
    const given = alloc(plan.calls.reduce((sum, call) => sum + ANY * (call.length - 1), 0));
    let at = given;
    const calls = plan.calls.map(([name, ...used]) => {
      const start = at;
      for (const n of used) {
        this.#machine.view(Int32Array, at, 4).set([POINTER_TO_TENSOR, 0, about + n * TENSOR, 0]);
        at += ANY;
      }
      return [this.#functions[name], start, used];
    });
    return { tensors, calls };
  }

  #describe(tensors, alloc) {
    const size = tensors.reduce((sum, { shape }) => sum + TENSOR + 8 * shape.length, 0), about = alloc(size);
    const words = this.#machine.view(Int32Array, about, size / 4);
    let shapes = (tensors.length * TENSOR) / 4;
    tensors.forEach(({ address, shape, dtype }, n) => {
      const [code, bits] = CODES[dtype], kind = code | (bits << 8) | (1 << 16);
      words.set([address, CPU, 0, shape.length, kind, about + 4 * shapes, 0, 0, 0, 0], (n * TENSOR) / 4);
      for (const length of shape) words.set([length, 0], (shapes += 2) - 2);
    });
    return about;
  }
}
