// Runs the library. Messages: {id, name, args} comes in; {id, told}, {id, result} or {id, error} goes out.

import init, { selftest } from "./aweigh_web.js";

const NONE = "WebGPU works here, but there is no GPU that it may use. Update the GPU's driver or the "
  + "browser; on Linux, WebGPU may have to be switched on in the browser's settings. The program itself runs "
  + "on more GPUs, and without one.";

let loading = null;

/// The GPU as the browser describes it.
async function gpu() {
  if (!navigator.gpu) {
    throw new Error(isSecureContext
      ? "This browser has no WebGPU. Take a current Chrome, Edge, Safari or Firefox, or the program itself."
      : "Browsers offer WebGPU only to pages over https and of this machine (localhost).");
  }
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error(NONE);
  const { vendor, architecture, device, description } = adapter.info;
  return [vendor, architecture, device, description].filter((part) => part).join(" ") || "a GPU";
}

/// What the browser tells of the machine.
function machine() {
  return { processor: "not told by the browser", cores: navigator.hardwareConcurrency ?? 0,
    instruction_sets: [], system: navigator.userAgent };
}

/// What can be called; `told` gets what a call tells before it ends.
const calls = {
  gpu: () => gpu(),
  async selftest(told, quick) {
    const name = await gpu();
    loading ??= init();
    await loading.catch((error) => { loading = null; throw error; });
    const found = await selftest(quick, JSON.stringify(machine()), name, (text) => told(JSON.parse(text)));
    return JSON.parse(found);
  },
};

onmessage = async ({ data: { id, name, args } }) => {
  try {
    const told = (value) => postMessage({ id, told: value });
    postMessage({ id, result: await calls[name](told, ...args) });
  } catch (error) {
    postMessage({ id, error: error?.message ?? String(error) });
  }
};
