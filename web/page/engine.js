// The worker that runs Aweigh, as an object with functions.

export class Worker {
  #worker;
  #waiting = new Map();
  #next = 0;

  constructor() { this.#start(); }

  #start() {
    this.#worker = new globalThis.Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data: { id, told, result, error } }) => {
      const call = this.#waiting.get(id);
      if (told !== undefined) return call?.told(told);
      this.#waiting.delete(id);
      if (error === undefined) call?.resolve(result);
      else call?.reject(new Error(error));
    };
    this.#worker.onerror = (event) => {
      const lost = new Error(`the worker has failed: ${event.message ?? "it could not be loaded"}`);
      for (const call of this.#waiting.values()) call.reject(lost);
      this.#waiting.clear();
      this.#worker.terminate();
      this.#start();
    };
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
      this.#worker.postMessage({ id, name, args });
    });
  }
}
