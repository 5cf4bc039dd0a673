// The page of `aweigh app`, which answers it over HTTP.

import { start } from "./page.js";

start({
  ask: (path, request) => fetch(path, request),
  silent: () => "Aweigh does not answer: is the program still running?",
  link: (path, name) => ({ href: path, download: name }),
  local: true,
});
