// Drives the pages in a real Chromium, as a person would, and prints one JSON report. Told what to do on standard input:
// {chromium, modules, address, token, log, lang, width, height, scheme, script, shots, axe, paste, drop}
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const given = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(given.modules + "/");
const { chromium } = require("playwright-core");

const report = { console: [], foreign: [], axe: {}, seen: {} };
const browser = await chromium.launch({
  executablePath: given.chromium,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"],
});
try {
  const context = await browser.newContext({
    viewport: { width: given.width, height: given.height },
    colorScheme: given.scheme,
    locale: given.lang === "zh" ? "zh-CN" : "en-US",
    javaScriptEnabled: given.script,
    bypassCSP: given.axe,
    hasTouch: given.width < 600,
    reducedMotion: "reduce",
    permissions: given.script ? ["clipboard-read", "clipboard-write"] : [],
  });
  context.setDefaultTimeout(20000);
  const page = await context.newPage();
  page.on("console", (message) => { if (!/missing$/.test(report.at || "") && ["error", "warning"].includes(message.type())) report.console.push(message.text()); });
  page.on("pageerror", (error) => report.console.push(String(error)));
  context.on("request", (request) => { if (!request.url().startsWith(given.address + "/") && !request.url().startsWith("data:")) report.foreign.push(request.url()); });

  const look = async (name) => {
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth).catch(() => 0);
    if (wide > 0) report.console.push(`${name} is ${wide} px wider than the window`);
    if (given.shots) await page.screenshot({ path: `${given.shots}-${name}.png`, fullPage: true });
    if (!given.axe) return;
    await page.evaluate(readFileSync(require.resolve("axe-core/axe.min.js"), "utf8"));
    const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    report.axe[name] = found.violations.map((v) => ({ id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.slice(0, 4).map((n) => n.html.slice(0, 200) + " | " + n.failureSummary.slice(0, 200)) }));
  };

  await page.goto(given.address + "/incidents");
  report.seen.login = page.url();
  await look("login");
  await page.fill("#token", given.token);
  await page.press("#token", "Enter");
  await page.waitForURL((url) => url.pathname === "/incidents");
  await page.goto(given.address + "/");
  await look("ask");

  if (given.drop && given.script) {
    const transfer = await page.evaluateHandle((text) => {
      const made = new DataTransfer();
      made.items.add(new File([text], "server.log", { type: "text/plain" }));
      return made;
    }, given.log);
    await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
    report.seen.chosen = await page.textContent("#chosen");
  } else {
    await page.fill("#text", given.log);
  }
  await page.focus("#go");
  await page.keyboard.press("Enter");
  await page.waitForURL(/\/incidents\/[0-9a-f]{20}/, { timeout: 60000 });
  report.seen.title = await page.textContent("h1");
  report.seen.language = await page.getAttribute("html", "lang");
  report.seen.command = await page.textContent(".fix .command code");
  await look("incident");

  const buttons = page.locator(".fix button.copy");
  report.seen.buttons = await buttons.evaluateAll((all) => all.filter((b) => !b.hidden).length).catch(() => 0);
  if (given.script) {
    await buttons.first().click();
    await page.waitForFunction(() => document.getElementById("said").textContent !== "");
    report.seen.said = await page.textContent("#said");
    report.seen.copied = await page.evaluate(() => navigator.clipboard.readText());
  }
  const incident = page.url();
  await page.click("details.context summary");
  report.seen.quoted = await page.locator(".log .quoted").count();
  await page.click('button[name="helped"][value="yes"]');
  await page.waitForURL(/thanks=1/);
  report.seen.thanks = await page.textContent("#feedback .notice");
  await page.goto(incident);
  await page.click("a.language");
  report.seen.otherTitle = await page.textContent("h1");
  await page.click("a.language");

  await page.goto(given.address + "/");
  await page.fill("#text", given.lang === "zh" ? "服务启动后卡住不动" : "the server hangs");
  await page.click("#go");
  await page.waitForURL(/\/incidents\/[0-9a-f]{20}/, { timeout: 60000 });
  await look("question");
  const asking = page.url();
  const check = page.locator('form[action$="/checks"] button').last();
  report.seen.checks = await check.count();
  await check.click();
  await page.waitForLoadState();
  if (!page.url().includes("/jobs/")) {
    await look("agree");
    await page.click("button.primary");
  }
  await page.waitForURL(/\/jobs\//);
  await page.waitForSelector('form[action$="/stop"]', { state: "detached", timeout: 60000 });
  await look("check");
  await page.goto(asking);
  const choice = page.locator('.questions button[name="value"]').first();
  report.seen.question = await choice.count();
  await choice.click();
  await page.waitForLoadState();
  report.seen.answered = await page.textContent("h1");

  for (const [name, path] of given.pages) {
    report.at = name; // the page that is missing on purpose is reported by the browser as an error
    await page.goto(given.address + path);
    if (name === "fleet" && given.script) await page.waitForTimeout(500);
    await look(name);
  }
  report.seen.focus = [];
  await page.goto(given.address + "/");
  for (let step = 0; step < 4; step += 1) {
    await page.keyboard.press("Tab");
    report.seen.focus.push(await page.evaluate(() => document.activeElement.getAttribute("href") || document.activeElement.id).catch(() => ""));
  }
} catch (error) {
  report.failed = String(error.stack || error);
} finally {
  await browser.close();
}
console.log(JSON.stringify(report));
