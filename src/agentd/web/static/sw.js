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

/** Milliseconds that a page has to answer. One that hangs shows nothing. */
const ANSWER_MS = 500;

/**
 * Return whether a page in front of the user shows what a notice is about.
 *
 * @param {{ [name: string]: string }} data of the notice
 */
async function isSeen({ session_id, request_id }) {
  const windows = await self.clients.matchAll({ type: "window" });
  const answers = windows
    .filter(({ focused }) => focused)
    .map(
      (client) =>
        new Promise((resolve) => {
          const { port1, port2 } = new MessageChannel();
          port1.onmessage = (event) => resolve(event.data === true);
          client.postMessage({ type: "is-shown", session_id, request_id }, [port2]);
          setTimeout(() => resolve(false), ANSWER_MS);
        }),
    );
  return (await Promise.all(answers)).includes(true);
}

self.addEventListener("push", (event) => event.waitUntil(receive(event.data.json())));

/** @param {{ type: string, data: { [name: string]: string } }} message */
async function receive({ type, data }) {
  const tag = data.request_id ?? data.run_id ?? data.notice_id;
  if (type === "notice.withdrawn") {
    for (const shown of await self.registration.getNotifications({ tag })) shown.close();
    return;
  }
  if (type === "notice.test" || !(await isSeen(data)))
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
  const open = async () => {
    const target = new URL(screenOf(data), SCOPE).href;
    const [known] = await self.clients.matchAll({ type: "window" });
    await (known ? known.focus().then((client) => client.navigate(target)) : self.clients.openWindow(target));
  };
  event.waitUntil(Promise.allSettled([open(), data.notice_id && report(data.notice_id, "clicked")]));
});
