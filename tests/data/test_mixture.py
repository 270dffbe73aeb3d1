from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from formats import FORMATS, picture, tars, text
from minigpt4.data.mixture import PairStream, Source, check_sources, count_pairs
from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError
from minigpt4.images import open_image


def number(pair: Pair) -> int:
    return int(pair.text.rpartition(" ")[2])


def opened(pair: Pair) -> int:
    open_image(pair.image)
    return number(pair)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """The pairs 0 to 52 in every format."""
    directory = tmp_path_factory.mktemp("formats")
    return {name: Source(write(directory / name, range(53))) for name, write in FORMATS.items()}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_ranks_and_workers_see_every_pair_once_a_pass(
    sources: dict[str, Source], kind: str, world_size: int, workers: int
) -> None:
    shares = [
        list(
            PairStream(
                [sources[kind]], stage=1, seed=1, shuffle_buffer=8, rank=rank, world_size=world_size, workers=workers,
                repeat=False,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip
    pairs = [pair for share in shares for pair in share]
    assert sorted(map(number, pairs)) == list(range(53))
    assert all(pair.image == picture(number(pair)) and pair.text == text(number(pair)) for pair in pairs)
    assert max(map(len, shares)) - min(map(len, shares)) <= 9  # no more than one pair of each shard


@pytest.mark.parametrize("kind", FORMATS)
def test_every_pass_has_all_pairs_in_another_order(sources: dict[str, Source], kind: str) -> None:
    stream = iter(PairStream([sources[kind]], stage=1, seed=1, shuffle_buffer=53))
    first, second = ([number(pair) for pair in islice(stream, 53)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(53))
    assert len({tuple(range(53)), tuple(first), tuple(second)}) == 3


def test_without_a_buffer_pairs_keep_their_order(sources: dict[str, Source]) -> None:
    for source in sources.values():
        if source.path != sources["folder"].path:  # in the order of its subdirectories
            stream = PairStream([source], stage=1, seed=1, shuffle_buffer=0, repeat=False)
            assert [number(pair) for pair in stream] == list(range(53)), source


def test_sources_are_drawn_by_weight_and_a_small_one_is_repeated(tmp_path: Path) -> None:
    mixture = [
        Source(tars(tmp_path / "laion", range(100), 10), weight=115),
        Source(FORMATS["jsonl"](tmp_path / "cc_sbu", range(1000, 1030)), weight=14),
    ]
    drawn = [number(pair) for pair in islice(PairStream(mixture, stage=1, seed=2, shuffle_buffer=50), 4000)]
    from_second = Counter(n for n in drawn if n >= 1000)
    assert abs(from_second.total() / 4000 - 14 / 129) < 0.015  # three standard deviations
    assert len(from_second) == 30
    assert max(from_second.values()) - min(from_second.values()) <= 2  # whole passes, nothing favoured
    once = PairStream(mixture, stage=1, seed=2, shuffle_buffer=50, repeat=False)
    assert sorted(map(number, once)) == [*range(100), *range(1000, 1030)]


def test_the_order_follows_from_the_seed(sources: dict[str, Source]) -> None:
    def order(seed: int) -> list[int]:
        stream = PairStream([sources["tars"], sources["csv"]], stage=1, seed=seed, shuffle_buffer=20)
        return [number(pair) for pair in islice(stream, 80)]

    assert order(3) == order(3) != order(4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_to_the_pair(sources: dict[str, Source], tmp_path: Path, workers: int) -> None:
    whole_file = Path(sources["jsonl"].path)
    lines = whole_file.read_text().replace("pictures/", f"{whole_file.parent}/pictures/").splitlines(True)
    broken = tmp_path / "broken.jsonl"  # some lines are skipped on the way
    broken.write_text("".join("{oops\n" + line if i % 9 == 0 else line for i, line in enumerate(lines)))
    mixture = [sources["tars"], Source(str(broken), weight=2), sources["hub"]]

    def make() -> PairStream:
        return PairStream(
            mixture, stage=1, seed=5, shuffle_buffer=40, workers=workers, prepare=opened, max_skipped_share=0.5
        )

    whole = make()
    undisturbed = list(islice(whole, 400))
    for stop in (0, 1, 15, 16, 17, 63, 160, 333):
        stream = make()
        assert list(islice(stream, stop)) == undisturbed[:stop]
        state = json.loads(json.dumps(stream.state_dict()))
        resumed = make()
        resumed.load_state_dict(state)
        assert list(islice(resumed, 400 - stop)) == undisturbed[stop:], stop
        assert resumed.state_dict() == whole.state_dict()
        assert resumed.skipped == whole.skipped != {}


def test_a_stream_goes_on_where_its_last_iterator_stood(sources: dict[str, Source]) -> None:
    stream = PairStream([sources["tars"]], stage=1, seed=5, shuffle_buffer=10, repeat=False)
    seen = [number(pair) for pair in islice(stream, 20)]
    assert sorted(seen + [number(pair) for pair in stream]) == list(range(53))


def test_a_resume_with_other_settings_is_refused(sources: dict[str, Source]) -> None:
    state = PairStream([sources["tars"]], stage=1, seed=5).state_dict()
    for settings, named in (({"seed": 6}, "seed"), ({"seed": 5, "workers": 2, "world_size": 3}, "world_size, workers")):
        with pytest.raises(UserError, match=f"cannot be resumed with another {named}:"):
            PairStream([sources["tars"]], stage=1, **settings).load_state_dict(state)  # type: ignore[arg-type]


def write_rows(path: Path, captions: list[object]) -> str:
    for i in range(len(captions)):
        (path.parent / f"{i}.png").write_bytes(picture(i) if i % 50 else b"not an image")
    path.write_text("".join(json.dumps({"image": f"{i}.png", "caption": c}) + "\n" for i, c in enumerate(captions)))
    return str(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_skipped_is_counted_by_cause(tmp_path: Path, workers: int) -> None:
    captions: list[object] = [text(i) for i in range(200)]
    captions[10:15] = ["", None, 3, [["a"]], "  "]
    source = Source(write_rows(tmp_path / "pairs.jsonl", captions))
    (tmp_path / "77.png").unlink()
    stream = PairStream([source], stage=1, seed=1, workers=workers, repeat=False, prepare=opened)
    assert len(list(stream)) == 190
    assert stream.skipped == {"no caption": 5, "no image": 1, "unreadable image": 4}


def test_too_many_skipped_ones_end_the_run(tmp_path: Path) -> None:
    source = Source(write_rows(tmp_path / "pairs.jsonl", [text(i) if i % 4 else None for i in range(60)]))
    allowed = PairStream([source], stage=1, seed=1, repeat=False, max_skipped_share=0.25)
    assert len(list(allowed)) == 45
    with pytest.raises(UserError, match=r"pairs\.jsonl: 15 of 60 pairs cannot be used \(no caption 15\)"):
        list(PairStream([source], stage=1, seed=1, repeat=False, max_skipped_share=0.2))
    with pytest.raises(UserError, match="cannot be used"):  # an endless stream finds out too
        list(islice(PairStream([source], stage=1, seed=1, max_skipped_share=0.2), 3000))
    bad_pictures = Source(write_rows(tmp_path / "pairs.jsonl", [text(i) for i in range(60)]))
    for i in range(1, 60, 3):
        (tmp_path / f"{i}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="unreadable image"):
        list(PairStream([bad_pictures], stage=1, seed=1, workers=1, repeat=False, prepare=opened))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_a_usable_pair_does_not_run_for_ever(tmp_path: Path, workers: int) -> None:
    source = Source(write_rows(tmp_path / "pairs.jsonl", [None] * 3))
    with pytest.raises(UserError, match="finds no usable pair"):
        next(iter(PairStream([source], stage=1, seed=1, workers=workers, max_skipped_share=1.0)))


def test_a_shard_that_vanishes_is_one_line(tmp_path: Path) -> None:
    source = Source(tars(tmp_path / "tars", range(60), 10))
    stream = iter(PairStream([source], stage=1, seed=1, shuffle_buffer=2, workers=2))
    next(stream)
    for shard in (tmp_path / "tars").iterdir():
        shard.unlink()
    with pytest.raises(UserError, match=r"0000\d\.tar"):
        list(islice(stream, 200))


def test_sources_are_checked_before_any_work(sources: dict[str, Source], tmp_path: Path) -> None:
    check_sources(list(sources.values()), stage=1)
    for bad, message in (
        ([], "no source is named"),
        ([sources["tars"], Source(str(tmp_path / "{00000..00003}.tar"))], r"4 of 4 shards are missing: .*00000\.tar"),
        ([Source(str(tmp_path / "*.tar"))], "matches no file"),
        ([Source(sources["tars"].path, weight=0)], "weight 0"),
    ):
        with pytest.raises(UserError, match=message):
            check_sources(bad, stage=1)


def test_counts(sources: dict[str, Source]) -> None:
    known = [source for kind, source in sources.items() if kind not in ("tars", "hub")]
    assert count_pairs(known) == 53 * len(known)
    assert count_pairs([*known, sources["tars"]]) is None
    for shard in Path(sources["tars"].path).glob("*.tar"):  # as img2dataset leaves them
        shard.with_name(f"{shard.stem}_stats.json").write_text(json.dumps({"count": 9, "successes": 7}))
    assert count_pairs([sources["tars"]]) == 7 * 8


SLOW_READER = """
import os, sys, time
from minigpt4.data.mixture import PairStream, Source
stream = iter(PairStream([Source(sys.argv[1])], stage=1, seed=1, shuffle_buffer=10, workers=2))
next(stream)
print("reading", flush=True)
for _ in stream:
    time.sleep(0.01)
"""


def test_an_interrupted_run_is_not_cut_short_by_its_readers(sources: dict[str, Source]) -> None:
    """Ctrl-C reaches the whole group; only the first process speaks, and none stays behind."""
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW_READER, sources["tars"].path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "reading\n"
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=120)
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors
    deadline = time.time() + 20
    while time.time() < deadline:
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a reader outlived its run")
