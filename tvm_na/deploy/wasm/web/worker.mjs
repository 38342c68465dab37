// A thread: an instance of the module in the same memory, with a stack of its own, that takes part in loops for good.

async function work({ module, memory, stack }) {
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  exports.na_work();
}

if (typeof self !== "undefined" && "onmessage" in self) self.onmessage = (event) => work(event.data);
else (await import("node:worker_threads")).parentPort.once("message", work);
