// The page: an image is dropped, its classes are shown, and what the pixel attends to that is clicked on.
import { load, pixelsOf } from "./tvm_na.mjs";

const at = (id) => document.getElementById(id), TOP = 5;
let model = null, input = null;

async function start() {
  model = await load(new URL("./", document.baseURI), { onProgress: ({ loaded, total }) => { at("progress").value = loaded / total; } });
  const { model: about, preprocessing, target } = model.manifest;
  at("progress").hidden = true;
  at("title").textContent = about.name;
  const threads = model.threads === 1 ? "1 thread" : `${model.threads} threads`;
  at("about").textContent = `${about.parameters.toLocaleString("en")} parameters, ${target.name}, ${threads}, in this page`;
  at("random").hidden = about.weights !== null;
  if (preprocessing === null) throw new Error("preprocessing: required a manifest that has one, got none");
  at("state").textContent = "";
}

async function classify(file) {
  try {
    await ready;
    at("state").textContent = "…";
    const image = await decoded(file), { preprocessing } = model.manifest;
    input = pixelsOf(image, preprocessing);
    show(input, preprocessing);
    await painted();
    const begin = performance.now(), { data } = model.run(input);
    at("state").textContent = `${(performance.now() - begin).toFixed(0)} ms`;
    showClasses(data);
    at("result").hidden = false;
    const middle = preprocessing.input_size >> 1;
    attend({ row: middle, column: middle });
  } catch (error) {
    at("state").textContent = error.message;
  }
}

async function decoded(file) {
  const bitmap = await createImageBitmap(file), canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

/** The input as an image. */
function show(pixels, { input_size: size, mean, std }) {
  const canvas = at("seen"), image = new ImageData(size, size), area = size * size;
  for (let i = 0; i < area; ++i) {
    for (let c = 0; c < 3; ++c) image.data[4 * i + c] = 255 * (pixels[c * area + i] * std[c] + mean[c]);
    image.data[4 * i + 3] = 255;
  }
  canvas.width = canvas.height = size;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function showClasses(logits) {
  const largest = Math.max(...logits), weights = Array.from(logits, (x) => Math.exp(x - largest));
  const total = weights.reduce((a, b) => a + b, 0), best = weights.map((w, i) => [w / total, i]).sort(([a], [b]) => b - a);
  at("classes").replaceChildren(...best.slice(0, TOP).map(([probability, index]) => {
    const row = document.createElement("tr"), bar = document.createElement("meter");
    bar.value = probability;
    for (const cell of [`class ${index}`, bar, `${(100 * probability).toFixed(2)}%`]) row.insertCell().append(cell);
    return row;
  }));
}

function attend(pixel) {
  const maps = model.attention(input, pixel);
  at("maps").replaceChildren(...maps.map((map) => drawn(map, pixel)));
  at("explained").textContent = "What the crossed pixel attends to in the last layer of each map size, fine to coarse. " +
    "Click on the image for another pixel.";
}

/** The image in gray, the attention in orange relative to its largest weight, a cross on the query. */
function drawn({ height, width, weights }, { row, column }) {
  const seen = at("seen"), canvas = document.createElement("canvas"), size = seen.width, largest = Math.max(...weights);
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1)";
  context.drawImage(seen, 0, 0);
  context.filter = "none";
  weights.forEach((weight, cell) => {
    context.fillStyle = `rgba(255, 96, 0, ${(0.8 * weight) / largest})`;
    context.fillRect(((cell % width) * size) / width, (Math.floor(cell / width) * size) / height, size / width, size / height);
  });
  context.strokeStyle = "#00e5ff";
  context.beginPath();
  for (const [x, y] of [[4, 0], [0, 4]]) {
    context.moveTo(column - x, row - y);
    context.lineTo(column + x, row + y);
  }
  context.stroke();
  return canvas;
}

at("seen").addEventListener("click", (event) => {
  const box = at("seen").getBoundingClientRect(), size = at("seen").width;
  const pixel = (position, length) => Math.min(size - 1, Math.max(0, Math.floor((position / length) * size)));
  attend({ row: pixel(event.clientY - box.top, box.height), column: pixel(event.clientX - box.left, box.width) });
});
at("file").addEventListener("change", () => at("file").files[0] && classify(at("file").files[0]));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", over);
    if (name === "drop" && event.dataTransfer.files[0]) classify(event.dataTransfer.files[0]);
  });
}
const ready = start();
ready.catch((error) => { at("state").textContent = error.message; });
