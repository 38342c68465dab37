// The page's script with a pretended document: what it loads, shows and draws for an image that is chosen. (Not a browser.)
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = process.argv[2], [width, height] = [50, 40];
const ids = [...readFileSync(`${folder}/index.html`, "utf-8").matchAll(/\bid="(\w+)"/g)].map((found) => found[1]);

class Element {
  constructor() {
    Object.assign(this, { hidden: false, children: [], listeners: {}, classList: { toggle() {} }, width: 0, height: 0, cells: 0 });
  }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  replaceChildren(...children) { this.children = children; }
  insertCell() { return { append: (...parts) => this.children.push(...parts) }; }
  getBoundingClientRect() { return { left: 10, top: 20, width: 256, height: 256 }; }
  getContext() {
    const owner = this, nothing = () => {};
    return {
      drawImage: nothing, beginPath: nothing, moveTo: nothing, lineTo: nothing, stroke: nothing,
      putImageData: (image) => { owner.image = image; },
      fillRect: () => { ++owner.cells; },
      getImageData: () => ({ data: Uint8ClampedArray.from({ length: 4 * width * height }, (_, i) => (i * 7) % 256), width, height }),
    };
  }
}

const elements = Object.fromEntries(ids.map((id) => [id, new Element()]));
globalThis.document = {
  baseURI: pathToFileURL(`${folder}/index.html`).href,
  getElementById: (id) => elements[id] ?? (() => { throw new Error(`no element ${id}`); })(),
  createElement: () => new Element(),
};
globalThis.ImageData = class { constructor(w, h) { this.data = new Uint8ClampedArray(4 * w * h); } };
globalThis.OffscreenCanvas = class extends Element {};
globalThis.createImageBitmap = async () => ({ width, height });
globalThis.requestAnimationFrame = (call) => setTimeout(call);

await import(pathToFileURL(`${folder}/page.mjs`).href);
const until = async (condition) => {
  for (let i = 0; !condition(); ++i) {
    if (i > 1000) throw new Error(`not in 10 s; state: ${elements.state.textContent}`);
    await new Promise((done) => setTimeout(done, 10));
  }
};
await until(() => elements.progress.hidden);
elements.file.files = [{}];
elements.file.listeners.change();
await until(() => elements.maps.children.length);
const before = elements.maps.children;
elements.seen.listeners.click({ clientX: 10 + 255, clientY: 20 + 255 });
const { title, about, random, state, classes, maps, explained, seen } = elements;
console.log(JSON.stringify({
  title: title.textContent, about: about.textContent, random: random.hidden, state: state.textContent,
  rows: classes.children.map((row) => row.children.map((cell) => cell.value ?? cell)), explained: explained.textContent,
  drawn: maps.children.map((canvas) => canvas.cells), again: maps.children !== before, pixels: Array.from(seen.image.data.slice(0, 8)),
}));
process.exit(0);
