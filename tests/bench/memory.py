"""Does an ingest need more memory for ten times the records? Each run is a process of its own.

The demo's pictures are fed once and ten times over, under keys of their own, so every record is embedded.
Peak memory is the operating system's figure for the ingest's process (ru_maxrss).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flows.demo import fetch_stamps
from flows.settings import load_settings
from storage.records import Record
from storage.source import read_source

TIMES = (1, 10)


def write_manifest(stamps: Path, times: int) -> Path:
    """Write the stamps `times` over beside their folder, each copy with keys of its own."""
    manifest = stamps.parent / f"stamps-{times}-times.jsonl"
    records = [row for row in read_source(stamps) if isinstance(row, Record)]
    with manifest.open("w") as file:
        for copy in range(times):
            for record in records:
                texts = [{"text": text.text, "lang": text.lang} for text in record.texts]
                row = {"key": f"{copy}/{record.key}", "image": f"stamps/{record.key}", "texts": texts}
                file.write(json.dumps(row) + "\n")
    return manifest


def ingest(manifest: Path, home: str) -> tuple[int, float, float]:
    """Return records embedded, seconds, and the peak memory of the process in MiB."""
    env = os.environ | {"SIGHTLINE_HOME": home}
    command = [sys.executable, "-m", "flows.cli", "ingest", str(manifest), "--json"]
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the ingest of {manifest} ended with {process.returncode}")
    return json.loads(output)["embedded"], time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    stamps = fetch_stamps(load_settings().home / "demo").resolve()
    print(f"{'records':>8} {'seconds':>8} {'ms each':>8} {'peak MiB':>9}")
    peaks = []
    for times in TIMES:
        home = tempfile.mkdtemp(prefix="sightline-bench-")
        manifest = write_manifest(stamps, times)
        try:
            records, seconds, peak = ingest(manifest, home)
        finally:
            manifest.unlink()
            subprocess.run(
                [sys.executable, "-m", "flows.cli", "stop"],
                env=os.environ | {"SIGHTLINE_HOME": home},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            shutil.rmtree(home)
        peaks.append(peak)
        print(f"{records:>8,} {seconds:>8.1f} {1000 * seconds / records:>8.1f} {peak:>9,.0f}")
    print(f"ten times the records take {peaks[1] / peaks[0]:.2f} times the memory")


if __name__ == "__main__":
    main()
