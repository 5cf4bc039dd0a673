// Keeps the page's files, so that it works without a network. VERSION and FILES are filled in when the page
// is built: a new version has other ones, and takes the place of the old one when no tab shows it any more.

// A site may have other pages, with caches of their own.
const OURS = "aweigh-";
const VERSION = `${OURS}@VERSION@`;
const FILES = ["@FILES@"];

self.addEventListener("install", (event) => {
  // Not what the browser has kept of an earlier version.
  const fresh = FILES.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(fresh)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(caches.keys().then((names) =>
    Promise.all(names.filter((name) => name.startsWith(OURS) && name !== VERSION)
      .map((name) => caches.delete(name)))));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(caches.open(VERSION)
    .then((cache) => cache.match(event.request, { ignoreSearch: true }))
    .then((kept) => kept ?? fetch(event.request)));
});
