"""What is on the page, and how it looks; what happens there is in `page.py`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from minigpt4.app.page.render import hint, model_answer

ASSETS = Path(str(resources.files("minigpt4.app.page"))) / "assets"

#: One example for each ability: its picture's name, what its card says, and the question.
EXAMPLES = (
    ("describe", "Describe it", "Describe this image in detail."),
    ("website", "Draft to website", "Write the HTML for this website."),
    ("funny", "What is funny?", "Why is this funny?"),
    ("recipe", "A recipe", "How do I cook this?"),
    ("advertise", "An advertisement", "Write an advertisement for this product."),
    ("poem", "A poem", "Write a short poem about this image."),
    ("story", "A story", "Tell me a story about this picture."),
    ("diagnose", "What is wrong?", "What is wrong here, and why?"),
)
DRAFT_QUESTION = EXAMPLES[1][2]
LOOKED_AT = (
    "After an answer, choose one of its words to see which part of the picture it came from: which image tokens swayed "
    "the language model as it chose the word, and where the Q-Former took those from. It is a hint, no proof."
)
#: The decoding of the paper's demo: temperature, top-p, repetition penalty, beams, longest answer.
PAPER = (1.0, 0.9, 1.05, 1, 300)
_HEADER = """<header><h1>MiniGPT-4</h1><p>Frozen eyes, a frozen language model, and one linear layer between them.
Ask about a picture.</p><button id="theme" type="button">Dark or light</button></header>"""


class Layout:
    """The page's controls, for the models called `names`. `blocks` is Gradio's app."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
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
            label="Conversation", show_label=False, elem_id="chat", height=None, max_height="62vh", min_height=90,
            allow_file_downloads=False, group_consecutive_messages=False,  # else pictures bar editing
            editable="user", buttons=["copy", "copy_all"], latex_delimiters=[], allow_tags=False, layout="bubble",
            placeholder="### What shall we look at?\nShow a picture below, draw one, or start with an example.",
        )  # fmt: skip
        with gr.Group(elem_id="examples") as self.examples:
            self.cards = [
                gr.Button(title, icon=str(ASSETS / f"{name}.png"), elem_classes="card", size="sm")
                for name, title, _ in EXAMPLES
            ]
        self.composer = gr.MultimodalTextbox(
            label="Your question", show_label=False, placeholder="Ask something. Drop, paste or add pictures.",
            file_types=["image"], file_count="multiple", sources=["upload"], elem_id="composer", max_lines=8,
            max_plain_text_length=8000, autofocus=True,
            html_attributes=gr.InputHTMLAttributes(autocorrect="on", spellcheck=True),
        )  # fmt: skip
        self.status = gr.HTML(elem_id="status")
        with gr.Row(elem_id="actions"):
            self.again = gr.Button("New chat", size="sm")
            self.beside = gr.Button("Ask all models", size="sm", visible=len(names) > 1)
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
                with gr.Row():
                    self.make = gr.Button("Make it a website", variant="primary", size="sm")
                    self.attach = gr.Button("Put it into my question", size="sm")
            with gr.Tab("Camera", id="camera"):
                self.camera = gr.Image(
                    label="Camera", sources=["webcam"], type="pil", format="png", height=360, elem_id="camera",
                    buttons=[],
                )  # fmt: skip
                gr.HTML(hint("The picture goes into your question. It is sent when you send that."))
            with gr.Tab("Website", id="website"):
                self.site = gr.HTML(hint("When an answer is a web page, it appears here."), elem_id="site")
                self.source = gr.Code(label="Source", language="html", interactive=False, visible=False, max_lines=16)
                self.save_site = gr.Button("Download the page", size="sm", visible=False)
            with gr.Tab("Looked at", id="looked"):
                self.heat = gr.HTML(hint(LOOKED_AT), elem_id="heat")
                self.word = gr.Radio([], label="A word of the last answer", elem_id="words", visible=False)
                self.query = gr.Number(
                    None, label="Or a query token", precision=0, minimum=1, visible=False, elem_id="query",
                    info="The Q-Former gives the picture as so many tokens; each asks its own question of it.",
                )  # fmt: skip
            with gr.Tab("Settings", id="settings"):
                self._settings()
            with gr.Tab("Keep", id="keep"):
                gr.HTML(hint("The conversation as a file. The HTML file holds its pictures and websites too."))
                with gr.Row():
                    kinds = {"md": "Markdown", "json": "JSON", "html": "HTML to share"}
                    self.keep = {ending: gr.Button(name, size="sm") for ending, name in kinds.items()}
        self.file = gr.JSON(visible=False)

    def _settings(self) -> None:
        temperature, top_p, penalty, beams, length = PAPER
        self.sliders: list[Any] = [
            gr.Slider(0, 2, temperature, step=0.05, label="Temperature",
                      info="How daring the choice of words is. 0 always takes the likeliest word."),
            gr.Slider(0.05, 1, top_p, step=0.05, label="Top-p",
                      info="Only the likeliest words that together have this probability are drawn from."),
            gr.Slider(1, 2, penalty, step=0.05, label="Repetition penalty",
                      info="Above 1, words that the answer has used already become less likely."),
            gr.Slider(1, 8, beams, step=1, label="Beams",
                      info="Above 1, so many answers are followed at once and the best is shown when it is complete; "
                      "nothing is drawn by chance."),
            gr.Slider(8, 1000, length, step=1, label="Longest answer", info="In tokens; a word has one or two."),
        ]  # fmt: skip
        self.defaults = gr.Button("Back to the paper's", size="sm")

    def _comparison(self) -> None:
        point = (
            " Stage 1 and stage 2 have the same eyes and the same strong language model; the BLIP-2 baseline has the "
            "same eyes and a weak one. They see alike; what they can do with it is the paper's point."
        )
        told = "The same picture and question for all models."
        gr.HTML(hint(told + point if "BLIP-2 baseline" in self.names else told))
        self.duel = gr.MultimodalTextbox(
            label="A question for all", show_label=False, placeholder="Pictures, and a question for all models.",
            file_types=["image"], file_count="multiple", sources=["upload"], elem_id="duel",
        )  # fmt: skip
        self.duel_status = gr.HTML()
        self.duel_images = gr.HTML()
        with gr.Row(elem_id="columns"):
            self.columns = [gr.HTML(model_answer(name, ""), elem_classes="model-answer") for name in self.names]


def theme() -> Any:
    """The page's colours and type: ink on warm paper, and the reader's own fonts, so that nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal, neutral_hue=gr.themes.colors.stone, radius_size="lg", text_size="md",
        font=fonts, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"),
    ).set(
        body_background_fill="#faf8f4", body_background_fill_dark="#141311",
        background_fill_primary="#ffffff", background_fill_primary_dark="#1c1a18",
        background_fill_secondary="#f4f0e8", background_fill_secondary_dark="#24211e",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        color_accent_soft="*primary_50", color_accent_soft_dark="*primary_900",
        color_accent="*primary_700", block_border_width="1px", block_shadow="none",
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600", input_placeholder_color="*neutral_500",
    )  # fmt: skip
