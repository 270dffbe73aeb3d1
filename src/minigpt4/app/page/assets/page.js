"use strict";
(() => {
  const dark = choice => document.body.classList.toggle("dark", choice);
  const stored = () => { try { return localStorage.getItem("minigpt4-theme"); } catch { return null; } };
  const keep = value => { try { localStorage.setItem("minigpt4-theme", value); } catch { /* private mode */ } };
  const question = () => [...document.querySelectorAll("#composer textarea, #duel textarea")].find(e => e.offsetParent);

  const built = (selector, then) => {
    const watch = new MutationObserver(() => look());
    const look = () => {
      const found = document.querySelector(selector);
      if (!found) return watch.observe(document.body, {childList: true, subtree: true});
      watch.disconnect();
      then(found);
    };
    look();
  };

  const takePen = (then = () => {}) => {
    const patience = setInterval(() => {  // the sheet is shown some time before it takes a click
      if (!document.querySelector("#sketch [aria-label='Brush Size']")) return document.querySelector("#sketch [aria-label=Brush]")?.click();
      clearInterval(patience);
      then();
    }, 300);
  };

  window.minigpt4 = {
    built, takePen,
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
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) document.querySelector("#composer .stop-button")?.click();
    const typing = event.target.closest("input, textarea, select, [contenteditable=true]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      question()?.focus();
      event.preventDefault();
    }
  });
  // A new message, and one that grows, is in view above the question, unless its reader has scrolled up.
  const follow = chat => {
    let rows = 0, following = true, last = scrollY;
    const hidden = () => chat.getBoundingClientRect().bottom - document.querySelector("#dock").getBoundingClientRect().top;
    const note = () => {
      if (scrollY < last - 2 || hidden() < 80) following = hidden() < 80;
      last = scrollY;
    };
    addEventListener("scroll", note, {passive: true});
    const look = () => {
      note();  // the event of a scroll comes a frame after it
      const count = chat.querySelectorAll(".message-row").length;
      if (count > rows) following = true;
      rows = count;
      if (rows && following && hidden() > 0) scrollBy({top: hidden(), behavior: "instant"});
      last = scrollY;
    };
    new MutationObserver(look).observe(chat, {childList: true, subtree: true, characterData: true});
    for (const box of [chat, document.querySelector("#dock")]) new ResizeObserver(look).observe(box);
  };
  // What is attached and typed in a question's field, of what is allowed; and what became of an upload.
  const limits = (line, composer) => {
    const allowed = line.textContent, most = {images: +line.dataset.images, characters: +line.dataset.characters};
    const number = n => n.toLocaleString("en");
    let uploading = null, refused = "";
    const tell = () => {
      const has = {images: composer.querySelectorAll(".thumbnail-item").length,
        characters: composer.querySelector("textarea")?.value.length ?? 0};
      const over = Object.keys(most).filter(kind => has[kind] > most[kind]);
      const counts = Object.keys(most).filter(kind => has[kind]).map(kind => `${number(has[kind])} of ${number(most[kind])} ${kind}`);
      const wrong = [refused, ...over.map(kind => `${number(has[kind])} ${kind}; at most ${number(most[kind])} can be sent`)];
      const text = uploading || wrong.filter(Boolean).join(". ") || counts.join(" · ") || allowed;
      if (line.textContent !== text) line.textContent = text;
      const bad = !uploading && (refused || over.length);
      line.className = bad ? "problem" : "quiet";
      bad ? line.setAttribute("role", "alert") : line.removeAttribute("role");
    };
    const fetching = window.fetch;
    window.fetch = async (...asked) => {
      const upload = String(asked[0]?.url ?? asked[0]).includes("/gradio_api/upload");
      if (!upload || !composer.offsetParent) return fetching(...asked);
      refused = "";
      const slow = setTimeout(() => { uploading = "The image is being read \u2026"; tell(); }, 400);
      try {
        const answer = await fetching(...asked);
        if (!answer.ok) refused = await answer.clone().json().then(told => told.join("; "), () => "This could not be sent");
        return answer;
      } catch (error) {
        refused = "The page cannot be reached; is it still running?";
        throw error;
      } finally { clearTimeout(slow); uploading = null; tell(); }
    };
    composer.addEventListener("input", () => { refused = ""; tell(); });
    new MutationObserver(tell).observe(composer, {childList: true, subtree: true});
  };
  const camera = note => {
    const tell = why => { note.textContent = why; note.className = "problem"; note.setAttribute("role", "alert"); };
    const devices = navigator.mediaDevices;
    if (!devices) { tell("Browsers lend the camera only to pages on this machine or with https."); return; }
    const ask = devices.getUserMedia.bind(devices);
    devices.getUserMedia = wanted => ask(wanted).catch(error => {
      const known = {NotFoundError: "No camera was found.", NotAllowedError: "The browser did not allow the camera.",
        NotReadableError: "The camera is used by another program."};
      tell(known[error.name] ?? `The camera does not work (${error.name}).`);
      return new Promise(() => {});  // Gradio would leave the error unhandled
    });
  };
  // When the page is built: the look that was chosen here before (Gradio has set the system's), and the pen in hand.
  const start = () => {
    built("#composer", () => stored() && dark(stored() === "dark"));
    takePen();
    built("#side", side => new ResizeObserver(() => side.style.setProperty("--tools", `${side.offsetHeight}px`)).observe(side));
    built("#dock", () => built("#chat", follow));
    for (const [limit, field] of [["#limits", "#composer"], ["#duel-limits", "#duel"]]) {
      built(`${limit} p`, line => built(`${field} textarea`, text => limits(line, text.closest(field))));
    }
    built("#camera-note", camera);
    built(".overflow-menu > button", () => {
      document.querySelectorAll(".overflow-menu > button").forEach(more => { more.ariaLabel = "More"; });
    });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();  // Gradio puts this into the page after it is there
})();
