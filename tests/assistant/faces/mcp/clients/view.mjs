// A host of the view: a page that puts it into a sandboxed frame and speaks the handshake of MCP Apps with it.
// PLAYWRIGHT and CHROMIUM are paths. On standard input {view, results, theme, screenshots}; prints what was seen.
import { readFileSync } from "node:fs";
const { chromium } = (await import(process.env.PLAYWRIGHT)).default;

const task = JSON.parse(readFileSync(0, "utf8"));
const csp = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";
const framed = task.view.replace("<meta charset", `<meta http-equiv="Content-Security-Policy" content="${csp}"><meta charset`);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const seen = [];
try {
  for (const [place, { result, reply }] of task.results.entries()) {
    const page = await browser.newPage({ viewport: { width: 760, height: 1000 }, colorScheme: task.theme });
    const requests = [], errors = [], dialogs = [];
    page.on("request", (sent) => { if (!sent.url().startsWith("about:") && !sent.url().startsWith("data:")) requests.push(sent.url()); });
    page.on("console", (line) => { if (line.type() === "error") errors.push(line.text()); });
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("dialog", (dialog) => { dialogs.push(dialog.message()); dialog.dismiss(); });
    await page.setContent("<style>body{margin:0}iframe{border:0;width:100%;height:980px}</style><iframe sandbox='allow-scripts'></iframe>");
    await page.evaluate(({ framed, result, reply, theme }) => {
      const frame = document.querySelector("iframe");
      window.got = [];
      window.addEventListener("message", ({ data, source }) => {
        if (source !== frame.contentWindow) return;
        window.got.push(data);
        const answer = (body) => source.postMessage({ jsonrpc: "2.0", id: data.id, result: body }, "*");
        if (data.method === "ui/initialize") {
          if (!data.params.appInfo || !data.params.protocolVersion) throw new Error("bad ui/initialize");
          answer({ protocolVersion: "2026-01-26", hostInfo: { name: "test", version: "1" }, hostContext: { theme },
            hostCapabilities: { serverTools: {}, updateModelContext: { text: {} } } });
        } else if (data.method === "ui/notifications/initialized") {
          source.postMessage({ jsonrpc: "2.0", method: "ui/notifications/tool-result", params: result }, "*");
        } else if (data.method === "tools/call") answer(reply);
        else if (data.id !== undefined) answer({});
      });
      frame.srcdoc = framed;
    }, { framed, result, reply, theme: task.theme });
    await page.waitForFunction(() => window.got.some((message) => message.method === "ui/notifications/size-changed"), null, { timeout: 15000 });
    const frame = page.frames()[1];
    if (task.screenshots) await page.screenshot({ path: `${task.screenshots}/${task.theme}-${place}.png` });
    const first = await frame.evaluate(() => ({
      text: document.body.innerText, tags: [...new Set([...document.querySelectorAll("main *")].map((node) => node.tagName.toLowerCase()))],
      wide: document.documentElement.scrollWidth > document.documentElement.clientWidth,
      buttons: [...document.querySelectorAll("main button:enabled")].map((button) => button.textContent),
      background: getComputedStyle(document.body).backgroundColor,
      reached: (() => { try { return Boolean(window.parent.document); } catch { return false; } })(),
      network: null,
    }));
    first.network = await frame.evaluate(() => fetch("http://127.0.0.1:9/").then(() => "answered", (error) => String(error)));
    if (reply) {
      await frame.locator("main li button").first().click();
      await page.waitForFunction(() => window.got.filter((message) => message.method === "ui/notifications/size-changed").length > 1, null, { timeout: 15000 });
      first.after = await frame.evaluate(() => document.body.innerText);
    }
    const sent = await page.evaluate(() => window.got);
    seen.push({ ...first, requests, errors, dialogs, sent });
    await page.close();
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(seen));
