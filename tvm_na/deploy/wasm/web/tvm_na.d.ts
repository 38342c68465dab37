/** A model compiled by tvm_na, in a browser or in node. */

/** Numbers and their shape; the first axis is the batch. */
export interface Output {
  data: Float32Array | Float64Array;
  shape: number[];
}

/** What a query attends to in the last layer of one map size, averaged over the heads. */
export interface Attention {
  height: number;
  width: number;
  /** [height, width]: zero outside of the neighborhood, of sum 1. */
  weights: Float32Array;
  /** The query. */
  row: number;
  column: number;
}

export interface Preprocessing {
  input_size: number;
  crop_pct: number;
  interpolation: string;
  mean: number[];
  std: number[];
}

/** manifest.json: what is known of the artifact. */
export interface Manifest {
  model: { name: string; parameters: number; weights: string | null };
  /** Sizes; null is the batch. */
  input: { shape: (number | null)[]; dtype: "float32" | "float64" };
  outputs: { shape: (number | null)[]; dtype: string }[];
  returns_list: boolean;
  preprocessing: Preprocessing | null;
  check: { relative_error: number; budget: number };
  [more: string]: unknown;
}

export interface Options {
  /** Default "auto": all cores in node and on a page that is cross-origin isolated, elsewhere 1. */
  threads?: number | "auto";
  /** What the memory may grow to. */
  maximumBytes?: number;
  /** Bytes of all files so far, and in sum. */
  onProgress?: (progress: { file: string; loaded: number; total: number }) => void;
}

export class Model {
  readonly manifest: Manifest;
  readonly threads: number;
  /** Of its memory. */
  readonly bytes: number;
  /**
   * The output, or a list of them, for images [batch, ...] in a row: a Float32Array, for a model in float64 a
   * Float64Array. Throws a TypeError or RangeError for others, an Error where the memory cannot grow.
   */
  run(images: Float32Array | Float64Array): Output | Output[];
  /** The attention of the query that holds a pixel of the input, for one image; one for each size of map, fine to coarse. */
  attention(image: Float32Array | Float64Array, pixel: { row: number; column: number }): Attention[];
  /** End its threads; it cannot be used afterwards. */
  close(): void;
}

/**
 * The model in a folder: a URL, in node also a path; by default the one that this module is in. Every file is compared
 * with the manifest first. Throws an Error that names the file which is missing or damaged.
 */
export function load(source?: string | URL, options?: Options): Promise<Model>;

/** An image (RGBA, such as ImageData) as an input [3, size, size]: resized as Pillow does it, cropped, normalised. */
export function pixelsOf(
  image: { data: Uint8ClampedArray | Uint8Array; width: number; height: number },
  preprocessing: Preprocessing,
): Float32Array;
