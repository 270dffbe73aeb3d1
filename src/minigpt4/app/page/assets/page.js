"use strict";
(() => {
  const dark = choice => document.body.classList.toggle("dark", choice);
  const stored = () => { try { return localStorage.getItem("minigpt4-theme"); } catch { return null; } };
  const keep = value => { try { localStorage.setItem("minigpt4-theme", value); } catch { /* private mode */ } };
  const question = () => [...document.querySelectorAll("#composer textarea, #duel textarea")].find(e => e.offsetParent);

  window.minigpt4 = {
    room: name => [...document.querySelectorAll("#rooms [role=tab]")].find(tab => tab.textContent.trim() === name)?.click(),
    download: file => {
      if (!file) return;
      const [name, kind, text] = file, link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], {type: kind}));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
  };

  document.addEventListener("click", event => {
    if (event.target.closest("#theme")) keep(dark() ? "dark" : "light");
    // Gradio copies the Markdown that we made of an answer; people mean what they see.
    const bar = event.target.closest("#chat [aria-label='Copy message']")?.closest("[class*=message-buttons]");
    const said = bar?.previousElementSibling?.querySelector("[data-testid=bot], [data-testid=user]");
    if (said) navigator.clipboard.writeText(said.innerText.trim());
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") document.querySelector("#composer .stop-button")?.click();
    const typing = event.target.closest("input, textarea, select, [contenteditable=true]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      question()?.focus();
      event.preventDefault();
    }
  });
  // When the page is built: the look that was chosen here before (Gradio has set the system's), and the pen in hand.
  const built = (selector, then) => {
    const look = () => { const found = document.querySelector(selector); if (found) then(found); return found; };
    const watch = new MutationObserver(() => look() && watch.disconnect());
    look() || watch.observe(document.body, {childList: true, subtree: true});
  };
  const start = () => {
    built("#composer", () => stored() && dark(stored() === "dark"));
    const takePen = setInterval(() => {  // the sheet is shown some time before it takes a click
      if (document.querySelector("#sketch [aria-label='Brush Size']")) clearInterval(takePen);
      else document.querySelector("#sketch [aria-label=Brush]")?.click();
    }, 300);
    built("#chat .wrapper", talk => {  // a new message, and one that grows, is seen, unless its reader has scrolled up
      let rows = 0, kept = 0;
      new MutationObserver(() => {
        const box = talk.querySelector(".bubble-wrap"), count = talk.querySelectorAll(".message-row").length;
        if (box && (count !== rows || kept - box.scrollTop - box.clientHeight < 80)) box.scrollTop = box.scrollHeight;
        rows = count;
        kept = box?.scrollHeight ?? 0;
      }).observe(talk, {childList: true, subtree: true, characterData: true});
    });
    built(".overflow-menu > button", () => {
      document.querySelectorAll(".overflow-menu > button").forEach(more => { more.ariaLabel = "More"; });
    });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();  // Gradio puts this into the page after it is there
})();
