/**
 * The service worker: it keeps the page's files, so that the page opens without a network. The daemon puts
 * the version and the list of the files before this text. Calls of the API never pass through here.
 */

/* global VERSION, FILES -- see above */

const CACHE = `agentd-${VERSION}`;
const SCOPE = new URL("./", self.location.href);

/** @param {string} name */
const address = (name) => new URL(name === "index.html" ? "./" : name === "manifest.webmanifest" ? name : `web/${name}`, SCOPE).href;

self.addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(CACHE);
      await cache.addAll(FILES.map((name) => new Request(address(name), { cache: "no-cache" })));
      await self.skipWaiting();
    })(),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys()) if (name !== CACHE && name.startsWith("agentd-")) await caches.delete(name);
      await self.clients.claim();
    })(),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || !request.url.startsWith(SCOPE.href)) return;
  const path = request.url.slice(SCOPE.href.length).split(/[?#]/, 1)[0];
  const alone = /^r\/([A-Za-z0-9_]+)$/.exec(path);
  if (request.mode === "navigate" && alone) event.respondWith(Response.redirect(new URL(`#/r/${alone[1]}`, SCOPE).href, 302));
  else if (path === "" || path === "manifest.webmanifest" || path.startsWith("web/"))
    event.respondWith(
      caches.open(CACHE).then(async (cache) => (await cache.match(address(path === "" ? "index.html" : path.replace(/^web\//, "")))) ?? fetch(request)),
    );
});
