// Runs Aweigh. {id, name, args} comes in, and {id, stop} to give a call up; {id, told}, {id, result} or
// {id, error} goes out.

import init, {
  Arrival, ask, mount, open, remove_model, selftest, spare, subgroups_are_asked_for,
} from "./aweigh_web.js";
import { Slots } from "./storage.js";

const NONE = "WebGPU works here, but there is no GPU that it may use. Update the GPU's driver or the "
  + "browser; on Linux, WebGPU may have to be switched on in the browser's settings. The program itself runs "
  + "on more GPUs, and without one.";

const SUBGROUPS = "subgroups";

let loading = null;
/// WebAssembly's memory, which only grows.
let memory = null;

/// The library, loaded once.
async function library() {
  loading ??= init();
  ({ memory } = await loading.catch((error) => { loading = null; throw error; }));
  const adapter = await navigator.gpu.requestAdapter();
  if (adapter?.features.has(SUBGROUPS)) subgroups_are_asked_for();
}

let slots = null;
/// Calls that were given up.
const stopped = new Set();

/// Keeps files spare: the library cannot open any itself. If the browser opens none, writing fails when none
/// is left, and says so.
async function grow() {
  await slots?.grow(spare()).catch((error) => console.warn(`no more files can be opened: ${error.message}`));
}

/// wgpu cannot ask a browser for subgroups: it is done here, for every device that is opened.
const { requestDevice } = globalThis.GPUAdapter?.prototype ?? {};
if (requestDevice) {
  GPUAdapter.prototype.requestDevice = function withSubgroups(wanted = {}) {
    const own = wanted.requiredFeatures ?? [];
    const requiredFeatures = this.features.has(SUBGROUPS) ? [...own, SUBGROUPS] : own;
    return requestDevice.call(this, { ...wanted, requiredFeatures });
  };
}

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

/// Copies files, {name, stream} each, to the model `name`: a folder, or the one file. `told` gets the bytes
/// so far. Returns the model's path.
async function copy(name, isFolder, files, told) {
  await grow();
  const arrival = new Arrival(name, isFolder);
  try {
    let done = 0;
    for await (const { name, stream } of files) {
      arrival.begin(name);
      const reader = stream.getReader();
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        arrival.write(piece.value);
        done += piece.value.length;
        told(done);
      }
    }
  } catch (error) {
    arrival.free();
    throw error;
  }
  return arrival.keep();
}

const encoder = new TextEncoder();

/// What can be called; `told` gets what a call tells before it ends.
const calls = {
  gpu: () => gpu(),
  async selftest({ told }, quick) {
    const name = await gpu();
    await library();
    const found = await selftest(quick, JSON.stringify(machine()), name, (text) => told(JSON.parse(text)));
    return JSON.parse(found);
  },
  async open() {
    await gpu();
    await library();
    slots = await Slots.open();
    if (slots) mount(slots);
    open();
    setInterval(grow, 1000);
    return slots !== null;
  },
  async add({ told }, folder, files) {
    const all = files.reduce((sum, file) => sum + file.size, 0);
    if (files.some((file) => file.size >= 2 ** 32)) {
      throw new Error("A tab can use files of up to 4 GiB: take the program for this model.");
    }
    const streams = files.map((file) => ({ name: file.name, stream: file.stream() }));
    return copy(folder || files[0].name, folder !== "", streams, (done) => told({ done, all }));
  },
  async fetch({ told }, url) {
    const address = new URL(url, location.href);
    if (address.origin !== location.origin) {
      throw new Error("This page asks no other site: save the file, and drop it here.");
    }
    const response = await fetch(address, { mode: "same-origin" });
    if (!response.ok) throw new Error(`${address.pathname}: the site answers with ${response.status}.`);
    const all = Number(response.headers.get("content-length"));
    const name = decodeURIComponent(address.pathname.split("/").at(-1));
    return copy(name, false, [{ name, stream: response.body }], (done) => told({ done, all }));
  },
  remove: (_, name) => remove_model(name),
  async ask({ id, told }, { method, path, project, body }) {
    const bytes = typeof body === "string" ? encoder.encode(body) : new Uint8Array(body ?? 0);
    const answer = await ask(method, path, project, bytes);
    const head = { status: answer.status, headers: JSON.parse(answer.headers) };
    told({ head, memory: memory.buffer.byteLength });
    try {
      while (!stopped.has(id)) {
        const piece = await answer.next();
        if (!piece) break;
        told({ piece }, [piece.buffer]);
      }
    } finally {
      answer.free();
      grow();
    }
  },
};

onmessage = async ({ data: { id, name, args, stop } }) => {
  if (stop) {
    stopped.add(id);
    return;
  }
  try {
    const told = (value, given = []) => postMessage({ id, told: value }, given);
    postMessage({ id, result: await calls[name]({ id, told }, ...args) });
  } catch (error) {
    postMessage({ id, error: error?.message ?? String(error) });
  }
  stopped.delete(id);
};
