// The files of an artifact: fetched from a server or read from a disk, and verified by the manifest.
import { sha256 } from "./sha256.mjs";
import { shown } from "./checks.mjs";

const FORMAT = "tvm_na artifact", VERSION = 2, MANIFEST = "manifest.json";
const isNode = typeof process !== "undefined" && !!process.versions?.node;

/** The manifest, and the files of these names as bytes; onProgress({file, loaded, total}) hears of all bytes. */
export async function fetchFiles(source, names, onProgress = () => {}) {
  if (typeof onProgress !== "function") throw new TypeError(`onProgress: required a function, got ${shown(onProgress)}`);
  const folder = await folderOf(source);
  const manifest = manifestOf(await bytesOf(folder, MANIFEST, () => {}));
  const total = names.reduce((sum, name) => sum + (manifest.files[name]?.bytes ?? 0), 0), files = {};
  let before = 0;
  for (const name of names) {
    const wanted = manifest.files[name];
    if (!wanted) throw new Error(`${name}: required a file that the manifest names, got none`);
    files[name] = await bytesOf(folder, name, (loaded) => onProgress({ file: name, loaded: before + loaded, total }));
    await verify(name, files[name], wanted);
    before += wanted.bytes;
  }
  return { manifest, files };
}

async function folderOf(source) {
  if (!(source instanceof URL) && typeof source !== "string") {
    throw new TypeError(`source: required a URL${isNode ? " or a path" : ""}, got ${shown(source)}`);
  }
  let url;
  if (source instanceof URL || /^[a-z]+:\/\//i.test(source)) url = new URL(source);
  else if (isNode) url = (await import("node:url")).pathToFileURL(source);
  else url = new URL(source, document.baseURI);
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

async function bytesOf(folder, name, onLoaded) {
  const url = new URL(name, folder);
  if (url.protocol === "file:" && isNode) {
    const { readFile } = await import("node:fs/promises");
    try {
      const bytes = new Uint8Array(await readFile(url));
      onLoaded(bytes.length);
      return bytes;
    } catch (error) {
      throw new Error(`${name}: required a file in ${folder}, got ${error.code ?? error.message}`);
    }
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${name}: required a file at ${url}, got ${response.status} ${response.statusText}`);
  const parts = [], reader = response.body.getReader();
  let loaded = 0;
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    parts.push(value);
    onLoaded(loaded += value.length);
  }
  const bytes = new Uint8Array(loaded);
  parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0);
  return bytes;
}

function manifestOf(bytes) {
  let manifest;
  try {
    manifest = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new Error(`${MANIFEST}: required JSON, got a damaged file: ${error.message}`);
  }
  const { format, format_version: version, kind } = manifest ?? {};
  if (format !== FORMAT || version !== VERSION || kind !== "wasm") {
    throw new Error(`${MANIFEST}: required the format ${FORMAT} ${VERSION} wasm, got ${format} ${version} ${kind}`);
  }
  return manifest;
}

async function verify(name, bytes, wanted) {
  if (bytes.length !== wanted.bytes) throw new Error(`${name}: required ${wanted.bytes} bytes, got ${bytes.length}`);
  const digest = await sha256(bytes);
  if (digest !== wanted.sha256) throw new Error(`${name}: required the SHA-256 ${wanted.sha256}, got ${digest}`);
}
