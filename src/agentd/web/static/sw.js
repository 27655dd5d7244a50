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

// --- notices ------------------------------------------------------------------------------------

/** The page puts the headers here with which the worker reports that a notice was shown. */
const CREDENTIALS = "credentials-of-agentd";

/** @param {string} notice @param {"shown" | "clicked"} state */
async function report(notice, state) {
  const kept = await (await caches.open(CREDENTIALS)).match(new URL("credentials", SCOPE));
  const headers = { "Content-Type": "application/json", ...(kept ? await kept.json() : {}) };
  const body = JSON.stringify({ notice_id: notice, state });
  // Without a network there is nobody to tell; the daemon then notifies the next device.
  await fetch(new URL("push/receipts", SCOPE), { method: "POST", headers, body }).catch(() => {});
}

/** @param {{ [name: string]: string }} data of a notice */
const screenOf = (data) => (data.request_id ? `#/r/${data.request_id}` : data.session_id ? `#/s/${data.session_id}` : "#/inbox");

self.addEventListener("push", (event) => event.waitUntil(receive(event.data.json())));

/** @param {{ type: string, data: { [name: string]: string } }} message */
async function receive({ type, data }) {
  const tag = data.request_id ?? data.run_id ?? data.notice_id;
  if (type === "notice.withdrawn") {
    for (const shown of await self.registration.getNotifications({ tag })) shown.close();
    return;
  }
  const windows = await self.clients.matchAll({ type: "window" });
  // Who looks at the inbox or at this session in front of the screen sees it there.
  const isSeen = windows.some(({ focused, url }) => focused && (url.includes(data.session_id ?? "#none") || /#\/(inbox|r\/)|\/$/.test(url)));
  if (!isSeen || type === "notice.test")
    await self.registration.showNotification(data.title, {
      body: data.text ?? data.session_title ?? "",
      tag,
      renotify: true,
      requireInteraction: type === "notice.request",
      icon: new URL("web/icon-192.png", SCOPE).href,
      data,
    });
  if (data.notice_id) await report(data.notice_id, "shown");
}

self.addEventListener("notificationclick", (event) => {
  const { data } = event.notification;
  event.notification.close();
  event.waitUntil(
    (async () => {
      const target = new URL(screenOf(data), SCOPE).href;
      const [open] = await self.clients.matchAll({ type: "window" });
      await (open ? open.focus().then((client) => client.navigate(target)) : self.clients.openWindow(target));
      if (data.notice_id) await report(data.notice_id, "clicked");
    })(),
  );
});
