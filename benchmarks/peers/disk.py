"""How long a record takes to reach the disk: `write` and `fsync`, one after the other.

It takes a folder, the record's bytes and how many. It prints p50 and p99, ms, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path


def measured(folder: Path, size: int, count: int) -> list[float]:
    """The time of each record, ms, sorted."""
    record, times = b"x" * (size - 1) + b"\n", []
    file = os.open(folder / "disk.bin", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            start = time.perf_counter()
            os.write(file, record)
            os.fsync(file)
            times.append((time.perf_counter() - start) * 1e3)
    finally:
        os.close(file)
        (folder / "disk.bin").unlink()
    return sorted(times)


if __name__ == "__main__":
    took = measured(Path(sys.argv[1]), int(sys.argv[2]), count := int(sys.argv[3]))
    print(json.dumps({"p50_ms": took[count // 2], "p99_ms": took[count * 99 // 100]}))
