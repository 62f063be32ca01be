"""A disk that runs full in mid-run: said in words, nothing half-written, and gone on with once there is room."""

import json
import subprocess
import sys

import pytest

from tests.engine.test_resume import FEDAVG, assert_same_run

ALLOWED = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0

SCRIPT = """
set -u
mount -t tmpfs -o size=96k none "$1" || exit 99
"$2" -m engine run $3 --out "$1/run" >"$4/first.out" 2>&1
echo $? >"$4/first.code"
find "$1" -name '*.part' >"$4/parts"
mount -o remount,size=64m "$1" || exit 99
"$2" -m engine resume "$1/run" >"$4/second.out" 2>&1
echo $? >"$4/second.code"
cp -r "$1/run" "$4/run"
"""


@pytest.mark.skipif(not ALLOWED, reason="this machine lets nobody mount a small disk of their own (unshare -rm)")
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    preset, overrides = FEDAVG
    asked = " ".join([preset, *(f"--set {one}" for one in (*overrides, "checkpoint.every=1"))])
    script = ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(disk), sys.executable, asked, str(kept)]
    ended = subprocess.run(script, capture_output=True, text=True)
    assert ended.returncode != 99, ended.stderr
    said = (kept / "first.out").read_text()
    assert (kept / "first.code").read_text() == "1\n", said
    assert "there is no room left" in said
    assert "tessera resume" in said
    assert "Traceback" not in said
    assert (kept / "parts").read_text() == ""
    assert (kept / "second.code").read_text() == "0\n", (kept / "second.out").read_text()
    subprocess.run(
        [sys.executable, "-m", "engine", "run", *asked.split(), "--out", str(tmp_path / "whole")], check=True
    )
    assert_same_run(kept / "run", tmp_path / "whole")
    assert json.loads((kept / "run" / "result.json").read_text())["rounds"] == 3
