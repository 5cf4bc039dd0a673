// The worker that runs Aweigh, as an object with functions.

export class Worker {
  #worker = null;
  #waiting = new Map();
  #next = 0;

  /// The worker. It is started for the first call, and for the first one after it has failed.
  #running() {
    if (this.#worker) return this.#worker;
    const worker = new globalThis.Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker = worker;
    worker.onmessage = ({ data: { id, told, result, error } }) => {
      const call = this.#waiting.get(id);
      if (told !== undefined) return call?.told(told);
      this.#waiting.delete(id);
      if (error === undefined) call?.resolve(result);
      else call?.reject(new Error(error));
    };
    worker.onerror = (event) => {
      const lost = new Error(`the worker has failed: ${event.message ?? "it could not be loaded"}`);
      for (const call of this.#waiting.values()) call.reject(lost);
      this.#waiting.clear();
      worker.terminate();
      this.#worker = null;
    };
    return worker;
  }

  /// The GPU's name. Fails with a sentence on what would help if there is none.
  gpu() { return this.#call("gpu", []); }

  /// Runs all checks; `told` gets {row, all} after each. Returns {verdict, report}.
  selftest(quick, told) { return this.#call("selftest", [quick], told); }

  #call(name, args, told = () => {}) {
    const id = this.#next;
    this.#next += 1;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { told, resolve, reject });
      this.#running().postMessage({ id, name, args });
    });
  }
}
