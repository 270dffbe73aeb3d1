"""Stage 1's pictures from the web: BLIP's two caption lists, fetched by img2dataset into tar shards.

img2dataset is an optional dependency and does all the fetching, in a process of its own: it goes on with the shards
that are missing when it is started again. What is done here is to hand it the lists in a form that it can take piece by
piece (they are one JSON array of many gigabytes) and the settings that make what the paper trained on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minigpt4.data.formats import json_records
from minigpt4.data.mixture import tell
from minigpt4.errors import UserError
from minigpt4.files import new_directory

_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/datasets"
ROWS = 1_000_000  # of a list in one parquet file


@dataclass(frozen=True)
class CaptionList:
    """One of the lists that the paper's stage 1 took its pairs from: pictures' addresses with BLIP's captions."""

    about: str
    url: str
    pairs: str


LISTS = {
    "cc_sbu": CaptionList(
        "Conceptual Captions 3M and 12M, SBU", f"{_BLIP}/ccs_synthetic_filtered_large.json", "1256 shards of 10,000"
    ),
    "laion": CaptionList("LAION", f"{_BLIP}/laion_synthetic_filtered_large.json", "10,489 shards of 10,000"),
}


def where() -> str:
    """Where the lists are and what to do with them, for people."""
    lines = [f"{name}: {entry.about} ({entry.pairs})\n  {entry.url}" for name, entry in LISTS.items()]
    lines.append("Fetch a list, then: minigpt4 data download FILE --out data/cc_sbu (both together: about 2.3 TB)")
    return "\n".join(lines)


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
    """Fetch the pictures of a caption list into tar shards in `out`; returns counts by outcome over all shards there.

    Args:
        captions: a JSON array, or JSON lines, of objects with `url` and `caption`.
        out: directory of the shards; what an earlier call has finished is kept.
        processes, threads: of img2dataset; a thread holds one connection.
        image_size: the shorter side in pixels that larger pictures are reduced to; their shape stays.
        timeout: seconds that one picture may take.
        limit: pairs from the start of the list; all by default.
    Raises:
        UserError: img2dataset is not installed or failed, or the list cannot be read.
    """
    command = shutil.which("img2dataset") or shutil.which("img2dataset", path=str(Path(sys.executable).parent))
    if command is None:
        raise UserError("img2dataset is not installed; pip install 'minigpt4[data]'")
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
        raise UserError(
            f"img2dataset ended with code {done.returncode}, as it says above; so far: {tell(counts) or 'nothing'}"
            "; the same command goes on from there"
        )
    return counts


def _write_rows(captions: Path, rows: Path, limit: int | None) -> None:
    """The list as parquet files of a million rows, which img2dataset reads one by one."""
    import pyarrow
    import pyarrow.parquet

    with new_directory(rows, marker="00000.parquet") as directory:
        entries = islice(read_list(captions), limit)
        for number in range(sys.maxsize):
            piece = list(islice(entries, ROWS))
            if not piece:
                break
            columns = {"url": [url for url, _ in piece], "caption": [caption for _, caption in piece]}
            pyarrow.parquet.write_table(pyarrow.table(columns), directory / f"{number:05d}.parquet")
        if not number:
            raise UserError(f"{captions}: holds no pair of url and caption")


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """(url, caption) of each object in a JSON array, or on lines of their own, however large; others are passed over.

    Raises UserError if the file is missing or is not JSON.
    """
    try:
        for entry in json_records(path):
            if isinstance(entry, dict) and isinstance(entry.get("url"), str):
                yield entry["url"], str(entry.get("caption") or "")
    except UserError as error:
        raise UserError(f"{error}; `minigpt4 data download` says where the lists are") from None


def _outcomes(out: Path) -> Counter[str]:
    """What became of the pictures, from the statistics that img2dataset leaves beside its shards."""
    counts: Counter[str] = Counter()
    for path in sorted(out.glob("*_stats.json")):
        stats = json.loads(path.read_bytes())
        counts["pairs"] += stats["successes"]
        for status, count in stats["status_dict"].items():
            if status != "success":
                counts[" ".join(status.split())[:60]] += count
    return counts
