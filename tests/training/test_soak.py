"""The account of the soak finds what is wrong: a gap, a row too often, a count that does not fit, growing memory."""

import argparse
import json
import re
from pathlib import Path

import pytest
import soak

from albef_hf.data import InvalidSampleError, Shards, SkipReason, load_image, valid_captions

OPTIONS = argparse.Namespace(rows=40, processes=1)
BROKEN = {3: "image_broken", 20: "shard_damaged"}


def lines_of_a_run(steps: int = 10) -> list[dict]:
    """Two batches an epoch, of 32 of 40 rows; broken ones are replaced by the first."""
    lines = []
    for step in range(1, steps + 1):
        rows = range(16 * ((step - 1) % 2), 16 * ((step - 1) % 2) + 16)
        tried = [[row, 0] if row in BROKEN else [row] for row in rows]
        times = {"alive": soak.WARM_UP + 10.0 * step, "megabytes": 500.0 + step % 2, "workers_megabytes": 80.0}
        lines.append({"life": 1, "step": step, "epoch": (step - 1) // 2, "tried": tried, **times})
    return lines


@pytest.fixture
def faults(tmp_path):
    """The faults of a journal and of the last counts in the log."""

    def find(lines: list[dict], **counts: int) -> list[str]:
        write(tmp_path / "journal_0.jsonl", lines)
        last = {"pairs": 160, "image_broken": 5, "shard_damaged": 5} | counts
        (tmp_path / "run").mkdir(exist_ok=True)
        counted = {issue.name.lower(): 0 for issue in SkipReason} | last
        write(tmp_path / "run" / "log.jsonl", [{"step": 5} | counted, {"step": 10} | counted])
        return soak.account(OPTIONS, tmp_path, BROKEN)

    return find


def write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_history_as_it_should_be_has_no_fault(faults):
    lines = lines_of_a_run()
    assert faults(lines) == []
    assert faults(lines[:7] + lines[4:]) == []  # after a kill three steps were done again, and alike


def test_every_fault_is_found(faults):
    lines = lines_of_a_run()
    assert "the history has gaps" in faults(lines[:4] + lines[5:])
    other = json.loads(json.dumps(lines))
    other[2]["tried"][0] = [39]
    assert faults(lines[:4] + other[2:3] + lines[4:]) == ["step 3 has read other rows when it was done again"]
    other[2]["tried"][0] = [5]
    assert any("epoch 1: 31 rows of 32, 2 times at most" in fault for fault in faults(other))
    other[2]["tried"][0] = [0, 1]
    assert any("rows [0, 1] were tried for one sample" in fault for fault in faults(other))
    assert any("the log counts" in fault for fault in faults(lines, image_broken=6))
    assert any("the log counts" in fault for fault in faults(lines, pairs=159))


@pytest.mark.parametrize(("growth", "is_fault"), [(0, False), (50, False), (300, True)])
def test_growing_memory_is_found_whatever_the_level_of_each_process(tmp_path, monkeypatch, growth, is_fault):
    """Two lives of 300 seconds each, one 50 MB above the other; `growth` is in MB an hour."""
    said, found, lines = [], [], lines_of_a_run(60)
    monkeypatch.setattr(soak, "say", said.append)
    for line in lines:
        line["megabytes"] += line["alive"] / 3600 * growth + 50 * (line["step"] > 30)
        line["life"] = 1 + (line["step"] > 30)
    write(tmp_path / "journal_0.jsonl", lines)
    soak.memory([tmp_path / "journal_0.jsonl"], found)
    assert bool(found) == is_fault and said[0].count("\n") == 3
    slope, error = (float(word) for word in re.findall(r"[-+]?\d+\.\d", said[1]))
    assert abs(slope - growth) < 3 * error + 0.1


def test_short_lives_tell_nothing_of_the_memory(tmp_path, capsys):
    found = []
    write(tmp_path / "journal_0.jsonl", lines_of_a_run(5))
    soak.memory([tmp_path / "journal_0.jsonl"], found)
    assert not found and "no process has lived long enough" in capsys.readouterr().out


def test_the_shards_are_broken_as_they_say(tmp_path):
    broken = soak.make_shards(tmp_path / "shards", 120, 0.1)
    assert len(broken) == 12 and len(set(broken.values())) == 4
    rows, found = Shards([tmp_path / "shards"]), {}
    for number in range(120):
        try:
            valid_captions(rows[number]["caption"])
            load_image(rows[number]["image"])
        except InvalidSampleError as error:
            found[number] = error.reason.name.lower()
    assert found == broken


def test_it_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["soak.py", "--help"])
    with pytest.raises(SystemExit):
        soak.main()
    assert "python benchmarks/soak.py --minutes 60" in capsys.readouterr().out
