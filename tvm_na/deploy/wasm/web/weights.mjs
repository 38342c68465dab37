// Weights from a safetensors file into the memory, widened to what the kernels read.

const ITEM = { F64: 8, F32: 4, F16: 2, BF16: 2, I8: 1 };
const SAME = { float64: "F64", float32: "F32", float16: "F16", bfloat16: "BF16", int8: "I8" };

const wrong = (got) => new Error(`weights.safetensors: required a safetensors file with the weights of the plan, got ${got}`);

/** The address of every weight by its name. */
export function weightsOf(bytes, plan, machine) {
  const { header, start } = headerOf(bytes), addresses = {};
  for (const { weight: name, shape, dtype } of plan.tensors) {
    if (name === undefined || name in addresses) continue;
    if (!(name in header)) throw wrong(`no ${name}`);
    const { dtype: stored, data_offsets: [from, to] } = header[name], count = shape.reduce((a, b) => a * b, 1);
    if (to - from !== count * ITEM[stored] || start + to > bytes.length) throw wrong(`${to - from} bytes of ${name}`);
    const content = bytes.subarray(start + from, start + to);
    addresses[name] = machine.alloc(count * ITEM[SAME[dtype]]);
    if (stored === SAME[dtype]) machine.view(Uint8Array, addresses[name], content.length).set(content);
    else if (stored === "F16" && dtype === "float32") widen(content, machine.view(Uint32Array, addresses[name], count));
    else throw wrong(`${stored} in place of ${SAME[dtype]} for ${name}`);
  }
  return addresses;
}

function headerOf(bytes) {
  try {
    const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    return { header, start: 8 + length };
  } catch (error) {
    throw wrong(error.message);
  }
}

/** float16 as the bits of float32. */
export function widen(content, out) {
  const halves = new DataView(content.buffer, content.byteOffset, content.byteLength), number = new Float32Array(1);
  const bits = new Uint32Array(number.buffer);
  for (let i = 0; i < out.length; ++i) {
    const half = halves.getUint16(2 * i, true), exponent = (half >> 10) & 31, rest = half & 1023;
    let magnitude;
    if (exponent === 31) magnitude = 0x7f800000 | (rest << 13);
    else if (exponent) magnitude = ((exponent + 112) << 23) | (rest << 13);
    else {
      number[0] = rest * 2 ** -24; // subnormal, or 0
      magnitude = bits[0];
    }
    out[i] = (((half & 0x8000) << 16) | magnitude) >>> 0;
  }
}
