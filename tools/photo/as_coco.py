"""Flickr8k's parquet files in COCO's format, for the suites of `minigpt4 eval` that read captions.

python tools/photo/as_coco.py --flickr8k DIR --split test --out runs/photo/test
minigpt4 eval coverage photo --data runs/photo/test/captions.json --images runs/photo/test/images
minigpt4 eval hallucination photo --captions runs/photo/test/captions.json --images runs/photo/test/images
minigpt4 eval reliability photo --data runs/photo/test/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from minigpt4.files import write_atomically
from pocket.reproduce.photographs import flickr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--out", type=Path, required=True, help="a directory for captions.json and images")
    arguments = parser.parse_args()
    photos = sorted(flickr(arguments.flickr8k, arguments.split), key=lambda photo: photo.name)
    (arguments.out / "images").mkdir(parents=True, exist_ok=True)
    for photo in photos:
        write_atomically(arguments.out / "images" / photo.name, photo.image)
    said = [(photo.name, caption) for photo in photos for caption in photo.captions]
    captions = {
        "images": [{"id": photo.name, "file_name": photo.name} for photo in photos],
        "annotations": [{"id": n, "image_id": name, "caption": caption} for n, (name, caption) in enumerate(said)],
    }
    write_atomically(arguments.out / "captions.json", json.dumps(captions).encode())


if __name__ == "__main__":
    main()
