// What pages do better with a script: copying, dropping files, progress, live rows. Everything works without it.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const say = (text) => { $("said").textContent = text; };

  function copyByHand(text) { // where the page is not served over https, browsers have no clipboard for it
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }

  async function copy(button) {
    const text = button.dataset.copy;
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      done = copyByHand(text);
      button.focus();
    }
    if (!done) return;
    const label = button.textContent;
    button.textContent = document.body.dataset.copied;
    button.classList.add("done");
    say(document.body.dataset.copied);
    setTimeout(() => { button.textContent = label; button.classList.remove("done"); }, 1600);
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }

  const form = $("ask");
  if (form) ask(form);
  for (const row of document.querySelectorAll("[data-state]")) watch(row);

  function ask(form) {
    const doing = $("doing"), failed = $("failed"), go = $("go"), stop = $("stop"), files = $("logs");
    let running = null;

    const busy = (is) => {
      doing.hidden = !is;
      stop.hidden = !is;
      go.disabled = is;
      form.setAttribute("aria-busy", String(is));
    };
    const fail = (text) => {
      busy(false);
      failed.textContent = text;
      failed.hidden = false;
    };
    const receive = (name, data) => {
      if (name === "doing") $("doing-text").textContent = data.text;
      else if (name === "failed") fail(data.text);
      else if (name === "done") {
        $("doing-text").textContent = data.text;
        location.assign(data.address);
        return true;
      }
      return name === "failed";
    };

    stop.addEventListener("click", () => { if (running) running.abort(); });
    window.addEventListener("pageshow", () => busy(false));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      failed.hidden = true;
      $("doing-text").textContent = "";
      busy(true);
      running = new AbortController();
      try {
        const answer = await fetch(form.action, {
          method: "POST", body: new FormData(form), headers: { Accept: "text/event-stream" }, signal: running.signal,
        });
        if (!answer.ok) { fail((await answer.text()).slice(0, 2000)); return; }
        if (!(await readEvents(answer.body, receive))) fail(document.body.dataset.lost);
      } catch (error) {
        if (error.name === "AbortError") busy(false);
        else fail(document.body.dataset.lost);
      }
    });

    if (!files) return;
    const show = () => {
      const list = $("chosen");
      list.replaceChildren(...[...files.files].map((file) => {
        const item = document.createElement("li");
        item.textContent = `${file.name} (${file.size.toLocaleString()} B)`;
        return item;
      }));
    };
    files.addEventListener("change", show);
    let depth = 0;
    const holdsFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    document.addEventListener("dragenter", (event) => {
      if (holdsFiles(event)) { depth += 1; document.body.classList.add("over"); }
    });
    document.addEventListener("dragleave", (event) => {
      if (holdsFiles(event) && --depth <= 0) { depth = 0; document.body.classList.remove("over"); }
    });
    document.addEventListener("dragover", (event) => { if (holdsFiles(event)) event.preventDefault(); });
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      depth = 0;
      document.body.classList.remove("over");
      const all = new DataTransfer();
      for (const file of [...files.files, ...event.dataTransfer.files]) all.items.add(file);
      files.files = all.files;
      show();
    });
    $("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  // Server-sent events over a POST: EventSource can only GET. True when an event ended the stream as it should.
  async function readEvents(body, receive) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", ended = false;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return ended;
      rest += value;
      const events = rest.split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const name = /^event: (.*)$/m.exec(event), data = /^data: (.*)$/m.exec(event);
        if (name && data && receive(name[1], JSON.parse(data[1]))) ended = true;
      }
    }
  }

  async function watch(row) {
    const line = row.querySelector(".state"), dot = row.querySelector(".dot");
    try {
      const answer = await fetch(row.dataset.state, { headers: { Accept: "application/json" } });
      if (!answer.ok) return;
      const state = await answer.json();
      dot.className = `dot ${state.tone}`;
      line.className = `state ${state.tone}`;
      line.append(state.text);
      for (const figure of state.figures) {
        const part = document.createElement("span"), number = document.createElement("b");
        number.textContent = figure.shown;
        part.append(`${figure.label} `, number);
        line.append(part);
      }
      line.hidden = false;
    } catch { /* the row says what it said before */ }
  }
})();
