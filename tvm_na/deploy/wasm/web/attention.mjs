// What a query attends to: which neighbors it has, and their weights, from the query and key that a kernel was given.

/** The positions of the neighbors of position i, and for each the index of its bias. */
export function neighbors(i, length, kernel, stride, dilation, causal) {
  const first = i % dilation, at = Math.floor(i / dilation), size = Math.ceil((length - first) / dilation);
  const group = Math.floor(at / stride) * stride;
  let start, end;
  if (causal) {
    const leader = Math.min(group + stride - 1, size - 1);
    [start, end] = [Math.max(leader - kernel + 1, 0), at + 1];
  } else {
    const leader = Math.min(group + Math.floor(stride / 2), size - 1);
    start = Math.min(Math.max(leader - Math.floor(kernel / 2), 0), size - kernel);
    end = start + kernel;
  }
  return Array.from({ length: end - start }, (_, n) => [first + dilation * (start + n), start + n - at + kernel - 1]);
}

/** Of attentions over maps (two axes) the last one of every size, by the number of its call. */
export function lastOfEachMap(attentions) {
  const last = new Map();
  for (const about of attentions) if (about.spatial.length === 2) last.set(about.spatial.join("x"), about);
  return new Map([...last.values()].map((about) => [about.call, about]));
}

/** Weights over the map for the query that holds a pixel, averaged over the heads; of sum 1. */
export function attentionOf(about, tensors, pixel, image) {
  const { spatial, kernel_size: kernel, stride, dilation, is_causal: causal } = about;
  const query = tensors(0), key = tensors(1), [factor] = tensors(3).data, bias = about.bias ? tensors(4) : null;
  const position = pixel.map((p, a) => Math.floor((p * sizeOf(spatial[a], kernel[a] * dilation[a], image[a])) / image[a]));
  const axes = position.map((i, a) => neighbors(i, spatial[a], kernel[a], stride[a], dilation[a], causal[a]));
  const [, height, width, heads, channels] = query.shape, group = heads / key.shape[3], map = new Float32Array(height * width);
  for (let head = 0; head < heads; ++head) {
    const scores = [], at = ((position[0] * width + position[1]) * heads + head) * channels;
    for (const [row, inBias] of axes[0]) {
      for (const [column, inRow] of axes[1]) {
        const to = ((row * width + column) * key.shape[3] + Math.floor(head / group)) * channels;
        let sum = 0;
        for (let c = 0; c < channels; ++c) sum += query.data[at + c] * key.data[to + c];
        sum *= factor;
        if (bias) sum += bias.data[(head * bias.shape[1] + inBias) * bias.shape[2] + inRow];
        scores.push([row * width + column, sum]);
      }
    }
    const largest = Math.max(...scores.map(([, score]) => score));
    const weights = scores.map(([, score]) => Math.exp(score - largest)), total = weights.reduce((a, b) => a + b, 0);
    scores.forEach(([cell], n) => { map[cell] += weights[n] / total / heads; });
  }
  return { height, width, weights: map, row: position[0], column: position[1] };
}

/** Of a map that may have been padded to its window, the part that is the image: this halved until it fits. */
function sizeOf(length, window, image) {
  if (length > window) return length;
  let size = image;
  while (size > length) size = Math.ceil(size / 2);
  return size;
}
