/** What is asked of the run, and the dialogs that it takes. */

import { element } from "./format.js";
import { control, Refusal, setToken, token } from "./stream.js";

const $ = (id) => document.getElementById(id);
const BY_BUTTON = "asked for on the dashboard";

export function toast(text, isBad) {
  const made = element("p", { text, class: isBad ? "bad" : undefined });
  $("toasts").append(made);
  setTimeout(() => made.remove(), isBad ? 12_000 : 6_000);
}

/** `{onToken, onAccepted}`: called when a token was given, and when a command was accepted. */
export class Controls {
  #afterToken;

  constructor({ onToken, onAccepted }) {
    Object.assign(this, { onToken, onAccepted });
    const on = (id, event, action) => $(id).addEventListener(event, action);
    // Prevented: once the dialog is closed, Enter would go on to the button that has opened it.
    const onEnter = (id, action) => on(id, "keydown", (event) => event.key === "Enter" && (event.preventDefault(), action()));
    on("save", "click", () => this.ask("save", BY_BUTTON));
    on("evaluate", "click", () => this.ask("evaluate", BY_BUTTON));
    on("pause", "click", () => this.ask($("pause").textContent.toLowerCase(), BY_BUTTON));
    on("stop", "click", () => this.#confirmStop());
    on("stop-no", "click", () => $("stop-dialog").close());
    on("stop-yes", "click", () => ($("stop-dialog").close(), this.ask("stop", $("stop-reason").value.trim() || BY_BUTTON)));
    onEnter("stop-reason", () => $("stop-yes").click());
    on("key", "click", () => this.askForToken("It is kept in this tab only. It stands in the file that the run was given as token_file."));
    on("token-no", "click", () => $("token-dialog").close());
    on("token-yes", "click", () => this.#useToken());
    onEnter("token", () => this.#useToken());
  }

  show({ isAllowed, isOver, isPaused, needsToken }) {
    $("controls").hidden = !isAllowed;
    for (const id of ["save", "evaluate", "pause", "stop"]) $(id).disabled = isOver;
    $("pause").textContent = isPaused ? "Resume" : "Pause";
    $("key").hidden = !isAllowed && !needsToken;
    $("key").classList.toggle("given", Boolean(token()));
  }

  async ask(command, reason) {
    if (!token()) return this.askForToken("Control needs the token.", () => this.ask(command, reason));
    try {
      await control(command, reason);
      toast(`${command}: accepted; it takes effect at the next decision point`);
      this.onAccepted();
    } catch (error) {
      if (error.status === 401) return this.askForToken(error.message, () => this.ask(command, reason));
      toast(`${command}: ${error instanceof Refusal ? error.message : "the server does not answer"}`, true);
    }
  }

  askForToken(why, then) {
    if ($("token-dialog").open) return;
    this.#afterToken = then;
    $("token-why").textContent = why;
    $("token").value = "";
    $("token-dialog").showModal();
    $("token").focus();
  }
  #useToken() {
    setToken($("token").value.trim());
    $("token-dialog").close();
    const then = this.#afterToken;
    this.#afterToken = undefined;
    this.onToken();
    then?.();
  }
  #confirmStop() {
    $("stop-reason").value = "";
    $("stop-dialog").showModal();
    $("stop-reason").focus();
  }
}
