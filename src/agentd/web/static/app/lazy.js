/** Screens that the inbox does not wait for: they are loaded when they are shown first. */

import { html, signal } from "./lib.js";
import { Empty } from "./parts.js";

/**
 * Return a component that is loaded when it is first shown. Without a network it is the service worker that has it.
 *
 * @param {() => Promise<any>} load returns the component
 */
export function lazy(load) {
  const component = signal(/** @type {any} */ (null));
  const error = signal("");
  let isLoading = false;
  const begin = async () => {
    if (isLoading) return;
    isLoading = true;
    error.value = "";
    try {
      component.value = await load();
    } catch {
      error.value = "This part of the page could not be loaded.";
    }
    isLoading = false;
  };
  /** @param {{ [name: string]: any }} props */
  return (props) => {
    if (component.value) return html`<${component.value} ...${props} />`;
    if (!error.value) void begin();
    return html`<${Empty} title=${error.value || "Loading…"}>${error.value && html`<button type="button" onClick=${begin}>Try again</button>`}<//>`;
  };
}

export const Refused = lazy(() => import("./signin.js").then((module) => module.Refused));
export const LinkEnded = lazy(() => import("./signin.js").then((module) => module.LinkEnded));
export const SessionScreen = lazy(() => import("./session.js").then((module) => module.SessionScreen));
export const Details = lazy(() => import("./details.js").then((module) => module.Details));
export const More = lazy(() => import("./more.js").then((module) => module.More));
export const Status = lazy(() => import("./more.js").then((module) => module.Status));
export const Audit = lazy(() => import("./more.js").then((module) => module.Audit));
export const Devices = lazy(() => import("./devices.js").then((module) => module.Devices));
export const NewSession = lazy(() => import("./newsession.js").then((module) => module.NewSession));
export const RunScreen = lazy(() => import("./run.js").then((module) => module.RunScreen));
export const SessionNotices = lazy(() => import("./notices.js").then((module) => module.SessionNotices));
export const OtherAnswers = lazy(() => import("./answers.js").then((module) => module.OtherAnswers));
export const Handover = lazy(() => import("./handover.js").then((module) => module.Handover));
