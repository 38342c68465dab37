// What callers hand over, checked: "argument: required what, got value".

const ARRAYS = { float32: Float32Array, float64: Float64Array };

/** A value in few words. */
export function shown(value) {
  if (typeof value === "string") return JSON.stringify(value.slice(0, 60));
  if (value === null || typeof value !== "object") return String(value).slice(0, 60);
  return value.constructor?.name ?? "an object";
}

/** The images and their number; a TypeError or RangeError if the model takes none such. */
export function inputOf(images, manifest, batch) {
  const { shape, dtype } = manifest.input, Wanted = ARRAYS[dtype];
  if (!(images instanceof Wanted)) throw new TypeError(`images: required a ${Wanted.name}, got ${shown(images)}`);
  const sample = shape.slice(1).reduce((a, b) => a * b, 1), only = batch ?? shape[0];
  const samples = images.length / sample;
  if (!Number.isInteger(samples) || samples < 1 || (only !== null && samples !== only)) {
    const many = only === null ? "a multiple of " : only === 1 ? "" : `${only} times `;
    throw new RangeError(`images: required ${many}${sample} numbers (${shape.slice(1).join("x")}), got ${images.length}`);
  }
  const most = manifest.code.largest_batch;
  if (samples > most) throw new RangeError(`images: required at most ${most} at once, got ${samples}`);
  return { images, batch: samples };
}
