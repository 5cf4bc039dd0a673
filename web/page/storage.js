// Open files without names in the browser's storage (the origin private file system): what the library's disk
// is made of. Only one worker can have them open.

const FOLDER = "aweigh";
/// Files to open at a time, and the fewest that are to be spare.
const MORE = 64;
/// How long a worker that has just ended may hold them.
const PATIENCE = 3000;

export class Slots {
  #folder;
  #handles = [];
  #growing = null;

  /// Opens what is there. `null` if the browser keeps no files for this page.
  static async open() {
    const slots = new Slots();
    try {
      const root = await navigator.storage.getDirectory();
      slots.#folder = await root.getDirectoryHandle(FOLDER, { create: true });
      if (!("createSyncAccessHandle" in FileSystemFileHandle.prototype)) return null;
    } catch {
      return null;
    }
    let there = 0;
    for await (const name of slots.#folder.keys()) there = Math.max(there, Number(name) + 1);
    // The first one alone: if another tab has it, it has all.
    await slots.#add(1);
    await slots.#add(Math.max(there, MORE) - 1);
    return slots;
  }

  async #add(count) {
    const first = this.#handles.length;
    const one = async (i) => {
      const file = await this.#folder.getFileHandle(String(first + i), { create: true });
      const until = performance.now() + PATIENCE;
      for (;;) {
        try {
          return await file.createSyncAccessHandle();
        } catch (error) {
          if (error.name !== "NoModificationAllowedError") throw error;
          if (performance.now() > until) {
            throw new Error("Aweigh is open in another tab of this browser: use that one, or close it and "
              + "reload this page.");
          }
          await new Promise((resolve) => { setTimeout(resolve, 100); });
        }
      }
    };
    const all = await Promise.allSettled(Array.from({ length: count }, (_, i) => one(i)));
    const failed = all.findIndex(({ status }) => status === "rejected");
    const opened = failed < 0 ? all : all.slice(0, failed);
    this.#handles.push(...opened.map(({ value }) => value));
    if (failed < 0) return;
    // Those behind a gap cannot be used, and would be in the way next time.
    for (const { value } of all.slice(failed)) value?.close();
    throw all[failed].reason;
  }

  /// Opens more if fewer than `MORE` are spare. Once at a time.
  async grow(spare) {
    if (spare >= MORE) return;
    this.#growing ??= this.#add(MORE).finally(() => { this.#growing = null; });
    await this.#growing;
  }

  // What the library calls.
  count() { return this.#handles.length; }
  read(slot, at, bytes) { return this.#handles[slot].read(bytes, { at }); }
  write(slot, at, bytes) { return this.#handles[slot].write(bytes, { at }); }
  size(slot) { return this.#handles[slot].getSize(); }
  resize(slot, size) { this.#handles[slot].truncate(size); }
  flush(slot) { this.#handles[slot].flush(); }
}
