// Pixels as a model's input: the shorter side resized as Pillow does it (to the bit), the center cropped, normalised.
import { shown } from "./checks.mjs";

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x, a = -0.5) => {
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
};
const ONE = 2 ** 22; // Pillow's weights are integers

/** An image ({data: RGBA, width, height}, such as ImageData) as Float32Array [3, size, size]. */
export function pixelsOf(image, preprocessing) {
  const { data, width, height } = image ?? {};
  if (!(data instanceof Uint8ClampedArray || data instanceof Uint8Array)) {
    throw new TypeError(`image: required {data, width, height} with bytes as data, got ${shown(image)}`);
  }
  if (!(width >= 1 && height >= 1) || data.length !== 4 * width * height) {
    throw new RangeError(`image: required 4 bytes for each of ${width}x${height} pixels, got ${data.length}`);
  }
  const filter = FILTERS[preprocessing.interpolation];
  if (!filter) throw new RangeError(`interpolation: required one of ${Object.keys(FILTERS)}, got ${preprocessing.interpolation}`);
  const size = preprocessing.input_size, shorter = Math.floor(size / preprocessing.crop_pct), least = Math.min(width, height);
  const [toWidth, toHeight] = [width, height].map((side) => Math.max(shorter, halfToEven((side * shorter) / least)));
  const across = resized(data, width, height, toWidth, filter);
  const resizedImage = transposed(resized(transposed(across, toWidth, height), height, toWidth, toHeight, filter), toHeight, toWidth);
  return normalised(resizedImage, toWidth, toHeight, size, preprocessing);
}

function halfToEven(x) {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 ? down + 1 : down;
}

/** Rows of RGBA with another width. */
function resized(data, width, height, to, { support, weight }) {
  if (to === width) return data;
  const out = new Uint8ClampedArray(4 * to * height), scale = width / to, wide = Math.max(scale, 1), reach = support * wide;
  for (let x = 0; x < to; ++x) {
    const center = (x + 0.5) * scale, start = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(width, Math.trunc(center + reach + 0.5));
    const weights = Array.from({ length: end - start }, (_, n) => weight((start + n - center + 0.5) / wide));
    const total = weights.reduce((a, b) => a + b, 0);
    const steps = weights.map((w) => Math.trunc((w / total) * ONE + (w < 0 ? -0.5 : 0.5)));
    for (let y = 0; y < height; ++y) {
      for (let c = 0; c < 4; ++c) {
        let sum = ONE / 2;
        for (let n = 0; n < steps.length; ++n) sum += steps[n] * data[4 * (y * width + start + n) + c];
        out[4 * (y * to + x) + c] = Math.floor(sum / ONE);
      }
    }
  }
  return out;
}

function transposed(data, width, height) {
  const pixels = new Uint32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength));
  const out = new Uint32Array(pixels.length);
  for (let y = 0; y < height; ++y) for (let x = 0; x < width; ++x) out[x * height + y] = pixels[y * width + x];
  return new Uint8ClampedArray(out.buffer);
}

function normalised(data, width, height, size, { mean, std }) {
  const left = (width - size) >> 1, top = (height - size) >> 1, out = new Float32Array(3 * size * size);
  const as32 = Math.fround;
  for (let c = 0; c < 3; ++c) {
    for (let y = 0; y < size; ++y) {
      for (let x = 0; x < size; ++x) {
        const value = as32(data[4 * ((top + y) * width + left + x) + c] / 255);
        out[(c * size + y) * size + x] = as32(value - as32(mean[c])) / as32(std[c]);
      }
    }
  }
  return out;
}
