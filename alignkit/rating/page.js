// Sends every answer when it is given, one after the other, until the server says that it is kept; and the keys.
// Without this script the form still works: all answers of a page go with its button.
"use strict";
const form = document.querySelector("form.sheet");
const kept = document.getElementById("kept");
const groups = [...form.querySelectorAll("fieldset")];
const radios = (group) => [...group.querySelectorAll("input[type=radio]")];
const answered = (group) => radios(group).some((radio) => radio.checked);
const pause = (seconds) => new Promise((resume) => setTimeout(resume, 1000 * seconds));

let unsent = false; // answers that were given after the last send began
let sending = null; // the send under way
let leaving = false;

function say(words, kind = "") {
  kept.textContent = words;
  kept.className = kind;
}

// The whole page goes each time: the server keeps what differs, so a send that is repeated does no harm.
async function send() {
  for (let attempt = 0; unsent; ) {
    unsent = false;
    let answer = null;
    try {
      answer = await fetch("/answers", { method: "POST", body: new URLSearchParams(new FormData(form)) });
    } catch {
      answer = null; // no server there
    }
    if (answer && answer.ok) {
      attempt = 0;
      document.getElementById("done").textContent = (await answer.json()).done;
      say("kept");
      continue;
    }
    const words = answer ? await answer.text() : "The server does not answer.";
    if (answer && answer.status < 500) {
      say(`Not kept! ${words}`, "trouble"); // nor would it be the next time
    } else {
      unsent = true;
      say(`Not kept yet! ${words} Trying again; please leave this page open.`, "trouble");
      await pause(Math.min(0.5 * 2 ** attempt++, 5));
    }
  }
}

function keep() {
  unsent = true;
  sending ??= send().finally(() => (sending = null));
  return sending;
}

async function leave(go) {
  if (leaving) return;
  leaving = true;
  if (groups.some(answered)) await keep();
  unsent = false;
  go();
}

form.addEventListener("change", (event) => {
  event.target.closest("fieldset").classList.remove("missing");
  keep();
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const missing = groups.filter((group) => !answered(group));
  for (const group of groups) group.classList.toggle("missing", missing.includes(group));
  if (missing.length) {
    say(`Please answer ${missing.map((group) => group.querySelector("legend b").textContent).join(", ")}, or choose Later.`, "missing");
    focus(missing[0]);
    return;
  }
  leave(() => form.submit());
});

for (const link of document.querySelectorAll("a")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    leave(() => location.assign(link.href));
  });
}

addEventListener("beforeunload", (event) => {
  if (unsent || (sending && !leaving)) event.preventDefault();
});
// Back from the browser's history: what is kept counts, not what the page showed when it was left.
addEventListener("pageshow", (event) => event.persisted && location.reload());

function focus(group, options) {
  (radios(group).find((radio) => radio.checked) ?? radios(group)[0]).focus(options);
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key >= "1" && event.key <= form.dataset.points) {
    const group = document.activeElement.closest("fieldset") ?? groups.find((one) => !answered(one)) ?? groups[0];
    const radio = radios(group)[Number(event.key) - 1];
    radio.checked = true;
    radio.dispatchEvent(new Event("change", { bubbles: true }));
    const next = groups[groups.indexOf(group) + 1];
    if (next) focus(next);
    else document.getElementById("next").focus();
    event.preventDefault();
  } else if (event.key === "Backspace") {
    document.getElementById("previous")?.click();
    event.preventDefault();
  } else if (event.key === "Enter" && document.activeElement === document.body) {
    form.requestSubmit();
  }
});

// without scrolling: the conversation is read first
focus(groups.find((group) => !answered(group)) ?? groups[0], { preventScroll: true });
