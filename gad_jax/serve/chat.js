"use strict";
// A conversation with the student over /v1. Text of the model only ever becomes textContent.
const $ = (id) => document.getElementById(id);
const turns = $("turns"), form = $("form"), box = $("message");
let conversation = [];
let model = "";
let answering = null; // the AbortController of the answer that is streamed

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function failure(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

async function findModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) $("settings").open = true;
  if (!response.ok) throw new Error(await failure(response));
  model = (await response.json()).data[0].id;
  $("model").textContent = model;
  document.title = `Chat with ${model}`;
}

function add(parent, tag, name, text = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  parent.append(element);
  return element;
}

function follow(change) { // keeps the end in view, unless the reader has scrolled up
  const atEnd = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 60;
  change();
  if (atEnd) turns.scrollTop = turns.scrollHeight;
}

function showTurn(role, text = "") {
  $("empty").hidden = true;
  const turn = add(turns, "section", `turn ${role}`);
  turn.setAttribute("aria-label", role === "user" ? "You" : "Student");
  if (text) add(turn, "div", "text", text);
  turns.scrollTop = turns.scrollHeight;
  return turn;
}

function showError(message) {
  follow(() => add(turns, "p", "error", message).setAttribute("role", "alert"));
}

function body() {
  const asked = { model, messages: [...conversation], stream: true };
  const system = $("system").value.trim();
  if (system) asked.messages.unshift({ role: "system", content: system });
  for (const name of ["temperature", "top_p", "max_tokens"]) {
    if ($(name).value !== "") asked[name] = Number($(name).value);
  }
  return JSON.stringify(asked);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function thoughtsOf(turn) {
  const details = document.createElement("details");
  add(details, "summary", "note", "Thoughts");
  turn.prepend(details);
  return add(details, "div", "text thoughts");
}

async function answer(turn, said) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), body: body(), signal: answering.signal,
  });
  if (response.status === 401) $("settings").open = true;
  if (!response.ok) throw new Error(await failure(response));
  let thoughts = null;
  for await (const event of events(response)) {
    for (const choice of event.choices) {
      const { content, reasoning_content: thought } = choice.delta;
      follow(() => {
        if (thought) {
          thoughts ??= thoughtsOf(turn);
          thoughts.append(thought);
        }
        if (content) {
          said.text += content;
          said.element.append(content);
        }
        if (choice.finish_reason === "length") add(turn, "p", "note", "Cut at the limit of tokens.");
      });
    }
  }
}

function busy(on) {
  $("send").hidden = on;
  $("stop").hidden = !on;
}

async function send() {
  const text = box.value;
  if (answering || !text.trim()) return;
  const mine = answering = new AbortController();
  const length = conversation.length;
  const asked = showTurn("user", text);
  const turn = showTurn("assistant");
  turn.classList.add("busy");
  const said = { text: "", element: add(turn, "div", "text") };
  conversation.push({ role: "user", content: text });
  box.value = "";
  resize();
  busy(true);
  let problem = "";
  try {
    if (!model) await findModel();
    await answer(turn, said);
  } catch (error) {
    problem = mine.signal.aborted ? "stopped" : error.message;
  }
  if (answering !== mine) return; // a new chat has begun
  answering = null;
  busy(false);
  turn.classList.remove("busy");
  if (problem && problem !== "stopped") showError(problem);
  if (problem === "stopped") add(turn, "p", "note", "Stopped.");
  if (said.text || !problem) {
    conversation.push({ role: "assistant", content: said.text });
  } else { // nothing was answered: the message comes back, to be sent again
    conversation.length = length;
    asked.remove();
    turn.remove();
    if (!box.value) box.value = text;
    resize();
  }
  box.focus();
}

function begin() {
  answering?.abort();
  answering = null;
  conversation = [];
  busy(false);
  for (const element of [...turns.children]) if (element.id !== "empty") element.remove();
  $("empty").hidden = false;
  box.focus();
}

function resize() {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
box.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
box.addEventListener("input", resize);
$("stop").addEventListener("click", () => answering?.abort());
$("new").addEventListener("click", begin);
findModel().catch((error) => {
  if (!$("settings").open) showError(error.message);
});
