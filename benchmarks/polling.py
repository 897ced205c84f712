"""How long a dashboard waits for a job's status while that job runs, beside the same route when all is idle.

`python benchmarks/polling.py [--quick]` starts Bitmill on a data folder of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import httpx
from running import MODEL, running_bitmill


def measure(url: str, path: str, count: int) -> list[float]:
    """Milliseconds of `count` requests, one after another, on one connection."""
    milliseconds = []
    with httpx.Client(base_url=url) as client:
        for _ in range(count):
            started = time.perf_counter()
            assert client.get(path).status_code == 200
            milliseconds.append((time.perf_counter() - started) * 1000)
            time.sleep(0.01)
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 requests each instead of 500")
    count = 100 if parser.parse_args().quick else 500
    with running_bitmill() as bitmill:
        client = bitmill.client
        job = client.submit(MODEL, {"type": "gguf", "quantization": "Q4_K_M"})
        path = f"/v1/quantization/jobs/{job['id']}"
        while client.job(job["id"])["status"] == "queued":
            time.sleep(0.05)
        busy = measure(bitmill.url, path, count)
        assert client.job(job["id"])["status"] == "running", "the job ended before the measurement"
        client.cancel(job["id"])
        while client.job(job["id"])["status"] == "running":
            time.sleep(0.1)
        idle = measure(bitmill.url, path, count)
    rows = []
    for name, values in (("while the job runs", busy), ("idle", idle)):
        ordered = sorted(values)
        rows.append(
            {
                "case": name,
                "median_milliseconds": statistics.median(ordered),
                "p95_milliseconds": ordered[int(len(ordered) * 0.95)],
                "ratio_to_idle": statistics.median(ordered) / statistics.median(idle),
            }
        )
        print("{case:20} median {median_milliseconds:6.2f} ms   p95 {p95_milliseconds:6.2f} ms".format(**rows[-1]))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
