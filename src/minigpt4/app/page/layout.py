"""What is on the page, and how it looks; what happens there is in `page.py`."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt4.app.page.render import hint, model_answer
from minigpt4.app.page.session import DRAFTS, MAX_FILE, MAX_IMAGES, MAX_QUESTION
from minigpt4.documents import read_yaml
from minigpt4.images import MAX_PIXELS

ASSETS = Path(__file__).with_name("assets")
_PAGE = read_yaml(ASSETS / "page.yaml")
#: Examples for models of the drawn world and of photographs: an image's file, what its card says, and the question.
DRAWN, PHOTOS = (tuple(map(tuple, _PAGE[world])) for world in ("drawn", "photos"))
DRAFT_QUESTION = next(question for file, _, question in DRAWN if file == "website.png")
NO_IMAGE = "Show an image first: drop, paste or add one, or draw it"
LOOKED_AT: str = _PAGE["looked_at"]
_HEADER = """<header><h1>MiniGPT-4</h1><p>Frozen eyes, a frozen language model, and one linear layer between them.
Ask about an image.</p><button id="theme" type="button">Dark or light</button></header>"""
#: Filled in by `page.js`: what is attached and typed, of what is allowed, and what was wrong with an upload.
_LIMITS = (
    f'<p class="quiet" data-images="{MAX_IMAGES}" data-characters="{MAX_QUESTION}">Up to {MAX_IMAGES} images ('
    f"{MAX_FILE // 10**6} MB, {MAX_PIXELS // 10**6} megapixels each), {MAX_QUESTION:,} characters</p>"
)
#: The signs of a draft and what they mean, from top to bottom; `signs.js` draws one where there is room.
_SIGNS = (ASSETS / "signs.html").read_text(encoding="utf-8").replace("\n", "")


class Layout:
    """The page's controls, for the models called `names`. `blocks` is Gradio's app.

    The settings start as the demo of the paper has them, but for what `decoding` (of a model's record) suggests.
    """

    def __init__(self, names: list[str], examples: Sequence[tuple[str, str, str]], decoding: dict[str, Any]) -> None:
        self.names, self.shown_examples = names, examples
        self.compared = [name for name in names if name != DRAFTS]
        suggested = decoding | ({} if decoding.get("do_sample", True) else {"temperature": 0})
        self.start = []
        kept = ("temperature", "top_p", "repetition_penalty")  # by a record
        for key, (least, most, _, value, *_) in zip_longest(kept, _PAGE["settings"]):
            found = suggested.get(key)
            self.start.append(found if isinstance(found, (int, float)) and least <= found <= most else value)
        with gr.Blocks(title="MiniGPT-4", analytics_enabled=False) as self.blocks:
            gr.HTML(_HEADER)
            with gr.Tabs(elem_id="rooms"):
                with gr.Tab("Chat"), gr.Row(elem_id="chat-room"):
                    with gr.Column(scale=6, min_width=320, elem_id="talk"):
                        self._talk()
                    with gr.Column(scale=5, min_width=320, elem_id="side"):
                        self._side()
                if len(names) > 1:
                    with gr.Tab("Side by side"):
                        self._comparison()

    def _talk(self) -> None:
        names = self.names
        self.model = gr.Radio(
            names, value=names[0], label="Answers come from", info="Another one starts a new conversation.",
            visible=len(names) > 1, elem_id="model",
        )  # fmt: skip
        self.chatbot = gr.Chatbot(
            label="Conversation", show_label=False, elem_id="chat", height=None, max_height=None, min_height=90,
            allow_file_downloads=False, group_consecutive_messages=False,  # else images bar editing
            editable="user", buttons=["copy", "copy_all"], latex_delimiters=[], allow_tags=False, layout="bubble",
            placeholder="### What shall we look at?\nShow an image below, draw one, or start with an example.",
        )  # fmt: skip
        with gr.Group(elem_id="examples") as self.examples:
            self.cards = [gr.Button(title, icon=str(ASSETS / file), elem_classes="card", size="sm")
                          for file, title, _ in self.shown_examples]  # fmt: skip
        with gr.Column(elem_id="dock"):  # stays in view as the page scrolls
            self.status = gr.HTML(elem_id="status")
            self.composer = gr.MultimodalTextbox(
                label="Your question", show_label=False, placeholder="Ask something, or add images.",
                file_types=["image"], file_count="multiple", sources=["upload"], elem_id="composer", max_lines=8,
                max_plain_text_length=10**6,  # else Gradio makes a file of a long text
                autofocus=True, html_attributes=gr.InputHTMLAttributes(autocorrect="on", spellcheck=True),
            )  # fmt: skip
            with gr.Row(elem_id="actions"):
                self.again = gr.Button("New chat", size="sm")
                self.beside = gr.Button("Ask all models", size="sm", visible=len(names) > 1)
                gr.HTML('<button type="button">My chats</button>', elem_id="my-chats")
                gr.HTML('<a href="#side">Tools</a>', elem_id="to-tools")
                gr.HTML(_LIMITS, elem_id="limits")
        keys = "Enter sends, Shift+Enter starts a line, / goes to the question, Esc stops an answer."
        gr.HTML(hint(f"{keys} The pencil at your question edits it and asks again."), elem_classes="keys")

    def _side(self) -> None:
        with gr.Tabs(elem_id="tools") as self.tools:
            with gr.Tab("Draw", id="draw"):
                self.sketch = gr.ImageEditor(
                    label="Draft of a website", show_label=False, type="pil", sources=(), transforms=(), layers=False,
                    canvas_size=(480, 480), fixed_canvas=True, height=540, elem_id="sketch", buttons=[],
                    # Half the width: that of the pens that drew the pocket world's drafts, on a sheet of 480.
                    brush=gr.Brush(default_size=3, colors=["#1c2c6e", "#222228", "#484a54"], color_mode="fixed"),
                    eraser=gr.Eraser(default_size=24),
                )  # fmt: skip
                gr.HTML(_SIGNS, elem_id="signs")
                self.sheet_status = gr.HTML()
                with gr.Row():
                    self.make = gr.Button("Make it a website", variant="primary", size="sm")
                    self.attach = gr.Button("Put it into my question", size="sm")
            with gr.Tab("Camera", id="camera"):
                self.camera = gr.Image(label="Camera", sources=["webcam"], type="pil", format="png", height=360,
                                       elem_id="camera", buttons=[])  # fmt: skip
                gr.HTML('<p id="camera-note" class="quiet">The photo goes into your question, and is sent with it.</p>')
            with gr.Tab("Website", id="website"):
                self.site = gr.HTML(hint("When an answer is a web page, it appears here."), elem_id="site")
                self.source = gr.Code(label="Source", language="html", interactive=False, visible=False, max_lines=16)
                self.save_site = gr.Button("Download the page", size="sm", visible=False)
            with gr.Tab("Looked at", id="looked"):
                self.heat = gr.HTML(hint(LOOKED_AT), elem_id="heat")
                self.word = gr.Radio([], label="A word of the last answer", elem_id="words", visible=False)
                self.query = gr.Number(
                    None, label="Or a query token", precision=0, minimum=1, visible=False, elem_id="query",
                    info="The Q-Former gives the image as so many tokens; each asks its own question of it.",
                )  # fmt: skip
            with gr.Tab("Settings", id="settings"):
                self.sliders = [
                    gr.Slider(least, most, value, step=step, label=name, info=told)
                    for value, (least, most, step, _, name, told) in zip(self.start, _PAGE["settings"], strict=True)
                ]
                self.system = gr.Textbox(
                    label="System prompt", lines=2, max_lines=6, elem_id="system", max_length=MAX_QUESTION,
                    info="Told to the model before the conversation, from the next new chat on. Empty: its own.",
                )  # fmt: skip
                self.defaults = gr.Button("Back to the start", size="sm")
            with gr.Tab("Keep", id="keep"):
                gr.HTML(hint("The conversation as a file. The HTML file holds its images and websites too."))
                with gr.Row():
                    kinds = {"md": "Markdown", "json": "JSON", "html": "HTML to share"}
                    self.keep = {ending: gr.Button(name, size="sm") for ending, name in kinds.items()}
                self.keep_status = gr.HTML()
        self.file = gr.JSON(visible=False)
        self.kept = gr.HTML(elem_id="kept")  # for `chats.js`, which keeps conversations and brings them back
        self.brought = gr.MultimodalTextbox(visible=False, file_count="multiple", file_types=["image"])
        self.reopen = gr.Button("Open a chat", elem_id="open-chat")

    def _comparison(self) -> None:
        told = "The same image and question for all models."
        gr.HTML(hint(f"{told} {_PAGE['beside']}" if "BLIP-2 baseline" in self.names else told))
        self.duel = gr.MultimodalTextbox(
            label="A question for all", show_label=False, placeholder="Images, and a question for all models.",
            file_types=["image"], file_count="multiple", sources=["upload"], elem_id="duel",
        )  # fmt: skip
        gr.HTML(_LIMITS, elem_id="duel-limits")
        self.duel_status = gr.HTML()
        self.duel_images = gr.HTML()
        with gr.Row(elem_id="columns"):
            self.columns = [gr.HTML(model_answer(name, ""), elem_classes="model-answer") for name in self.compared]


def theme() -> Any:
    """The page's colours and type: ink on warm paper, and the reader's own fonts, so that nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "Menlo", "Consolas", "monospace")
    base = gr.themes.Base(primary_hue="teal", neutral_hue="stone", radius_size="lg", font=fonts, font_mono=mono)
    return base.set(**_PAGE["colours"])
