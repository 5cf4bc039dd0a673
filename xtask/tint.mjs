// node tint.mjs PACKAGE FOLDER: compiles each WGSL file of FOLDER with Tint, through the npm package webgpu
// in the folder PACKAGE, on its device without hardware. `cargo xtask tint` runs it.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [, , library, folder] = process.argv;
const { create, globals } = await import(pathToFileURL(path.join(library, 'index.js')));
Object.assign(globalThis, globals);
// Without a name it would be collected, and its device crash.
globalThis.gpu = create(['backend=null']);
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ['shader-f16', 'subgroups'] });

const names = fs.readdirSync(folder).filter((name) => name.endsWith('.wgsl')).sort();
let failed = 0;
for (const name of names) {
  const code = fs.readFileSync(path.join(folder, name), 'utf8');
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code });
  device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
  const error = await device.popErrorScope();
  if (error) {
    failed++;
    console.log(`FAILED ${name}\n  ${error.message.trim().replaceAll('\n', '\n  ')}`);
  }
}
console.log(`${names.length} kernels, ${failed} failed`);
// Its threads would keep node running.
process.exit(failed ? 1 : 0);
