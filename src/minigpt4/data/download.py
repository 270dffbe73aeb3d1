"""Download of BLIP's two caption lists, for stage 1, by img2dataset, which reads them as parquet alone."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from minigpt4.data.formats import json_records
from minigpt4.data.mixture import tell
from minigpt4.errors import UserError
from minigpt4.files import new_directory

ROWS = 1_000_000  # of a list in one parquet file
#: The lists that the paper's stage 1 took its pairs from, with BLIP's captions, and what to do with them.
LISTS = Path(__file__).with_name("lists.txt").read_text(encoding="utf-8").rstrip()


def download(
    captions: Path,
    out: Path,
    *,
    processes: int = 8,
    threads: int = 64,
    image_size: int = 256,
    timeout: int = 10,
    limit: int | None = None,
) -> Counter[str]:
    """Fetch the images of a JSON list of `url` and `caption` into tar shards; returns counts. Raises UserError."""
    command = shutil.which("img2dataset") or shutil.which("img2dataset", path=str(Path(sys.executable).parent))
    if command is None:
        raise UserError("img2dataset is not installed; pip install 'minigpt4-vlm[data]'")
    rows = out / "list"
    if not rows.is_dir():
        _write_rows(captions, rows, limit)
    arguments = {
        "url_list": rows, "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": out, "output_format": "webdataset", "number_sample_per_shard": 10_000,
        "image_size": image_size, "resize_mode": "keep_ratio", "resize_only_if_bigger": True,
        "processes_count": processes, "thread_count": threads, "timeout": timeout, "enable_wandb": False,
    }  # fmt: skip
    done = subprocess.run([command, *(f"--{name}={value}" for name, value in arguments.items())], check=False)
    counts = _outcomes(out)
    if done.returncode or not counts:
        so_far = f"(see above); so far: {tell(counts) or 'nothing'}"
        raise UserError(f"img2dataset failed with code {done.returncode} {so_far}; the same command continues")
    return counts


def _write_rows(captions: Path, rows: Path, limit: int | None) -> None:
    """Write the list as parquet files of a million rows, which img2dataset reads one by one."""
    with new_directory(rows, marker="00000.parquet") as directory:
        entries = islice(read_list(captions), limit)
        pieces = iter(lambda: list(islice(entries, ROWS)), [])
        for number, piece in enumerate(pieces):
            urls, texts = zip(*piece, strict=True)
            table = pyarrow.table({"url": pyarrow.array(urls), "caption": pyarrow.array(texts)})
            pyarrow.parquet.write_table(table, directory / f"{number:05d}.parquet")
        if not any(directory.iterdir()):
            raise UserError(f"{captions}: holds no pair of url and caption")


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """(url, caption) of each object in a JSON array, or on lines of their own, however large. Raises UserError."""
    try:
        for entry in json_records(path):
            if isinstance(entry, dict) and isinstance(entry.get("url"), str):
                yield entry["url"], str(entry.get("caption") or "").encode("utf-8", "replace").decode()
    except UserError as error:
        raise UserError(f"{error}; `minigpt4 data download` says where the lists are") from None


def _outcomes(out: Path) -> Counter[str]:
    """Counts of downloaded and failed images, from the statistics that img2dataset writes beside its shards."""
    counts: Counter[str] = Counter()
    for path in sorted(out.glob("*_stats.json")):
        stats = json.loads(path.read_bytes())
        counts["pairs"] += stats["successes"]
        for status, count in stats["status_dict"].items():
            if status != "success":
                counts[" ".join(status.split())[:60]] += count
    return counts
