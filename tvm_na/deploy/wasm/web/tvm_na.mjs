// A compiled model in a browser or in node: load(folder), model.run(images), model.attention(image, pixel).
// Written by tvm_na; needs nothing but WebAssembly with SIMD.
import { attentionOf, lastOfEachMap } from "./attention.mjs";
import { fetchFiles } from "./files.mjs";
import { Machine, createMachine } from "./machine.mjs";
import { inputOf, shown } from "./checks.mjs";
import { Program } from "./program.mjs";
import { weightsOf } from "./weights.mjs";

export { pixelsOf } from "./image.mjs";

const PLAN_FORMAT = "tvm_na plan", PLAN_VERSION = 1;

/** A loaded model; see tvm_na.d.ts. */
export class Model {
  #machine;
  #plan;
  #program;

  constructor(manifest, plan, machine, weights) {
    this.manifest = manifest;
    this.#plan = plan;
    this.#machine = machine;
    this.#program = new Program(plan, machine, weights);
  }

  get threads() {
    return this.#machine.threads;
  }

  get bytes() {
    return this.#machine.bytes;
  }

  run(images) {
    const outputs = this.#run(images, () => {});
    return this.manifest.returns_list ? outputs : outputs[0];
  }

  attention(image, pixel) {
    const [, , height, width] = this.manifest.input.shape;
    const inside = (value, size) => Number.isInteger(value) && value >= 0 && value < size;
    if (this.manifest.input.shape.length !== 4) throw new RangeError("attention: required a model of images, got none");
    if (typeof pixel !== "object" || pixel === null) throw new TypeError(`pixel: required {row, column}, got ${shown(pixel)}`);
    if (!inside(pixel.row, height) || !inside(pixel.column, width)) {
      throw new RangeError(`pixel: required a row and column inside of ${height}x${width}, got ${pixel.row}, ${pixel.column}`);
    }
    const wanted = lastOfEachMap(this.#plan.attentions), found = [];
    this.#run(image, (call, tensors) => {
      const about = wanted.get(call);
      if (about) found.push(attentionOf(about, tensors, [pixel.row, pixel.column], [height, width]));
    }, 1);
    return found;
  }

  close() {
    this.#machine.close();
    this.#program = null;
  }

  #run(images, after, batch) {
    if (this.#program === null) throw new Error("model: required one that is not closed, got a closed one");
    return this.#program.run(inputOf(images, this.manifest, batch), after);
  }
}

/** The model in a folder (a URL, in node also a path; by default this file's); every file is verified first. */
export async function load(source = new URL(".", import.meta.url), options = {}) {
  if (typeof options !== "object" || options === null) throw new TypeError(`options: required an object, got ${shown(options)}`);
  const { threads, module } = await Machine.threadsFor(options.threads ?? "auto");
  const { manifest, files } = await fetchFiles(source, [module, "plan.json", "weights.safetensors"], options.onProgress);
  const plan = planOf(files["plan.json"]);
  const machine = await createMachine(files[module], plan.pages[module], threads, options.maximumBytes);
  try {
    return new Model(manifest, plan, machine, weightsOf(files["weights.safetensors"], plan, machine));
  } catch (error) {
    machine.close();
    throw error;
  }
}

function planOf(bytes) {
  let plan;
  try {
    plan = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new Error(`plan.json: required JSON, got a damaged file: ${error.message}`);
  }
  if (plan?.format !== PLAN_FORMAT || plan.version !== PLAN_VERSION) {
    throw new Error(`plan.json: required the format ${PLAN_FORMAT} ${PLAN_VERSION}, got ${plan?.format} ${plan?.version}`);
  }
  return plan;
}
