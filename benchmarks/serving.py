"""Load on the endpoint over loopback: latency and rows a second at 1, 8 and 64 clients, and a stop under load.

    OMP_NUM_THREADS=1 python benchmarks/serving.py [--seconds 5] [--kernel-rows 4096] [--model FOLDER]

Server and clients share the machine, so on few cores the clients take a good part of what is measured: the CPU time of the
server itself is shown beside it. Last, 8 clients are asking when the server gets SIGTERM: every request must have been answered,
or never begun.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from speed import table

import tabdiff
from onnx_export import export
from tabdiff.serve.bodies import ARROW, arrow_of, cells_of, json_of


def server_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request over an open connection and read the whole answer; its status. No client library: one costs more than the server."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(line for line in head.splitlines() if line.startswith("content-length:"))
    await reader.readexactly(int(length.partition(":")[2]))
    return int(head.split()[1])


async def load(
    port: int,
    clients: int,
    body: bytes,
    kind: str,
    duration: float,
    stop: subprocess.Popen[bytes] | None = None,
) -> tuple[list[float], list[str]]:
    """Latencies of answered requests, and what became of the others. `stop` is signalled once 20 are answered."""
    taken: list[float] = []
    lost: list[str] = []
    head = f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
    end = time.perf_counter() + duration

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                status = await ask(reader, writer, request)
            except asyncio.IncompleteReadError as error:
                lost.append("answer cut short" if error.partial else "closed, no answer begun")
                break
            except OSError:
                lost.append("closed, no answer begun")
                break
            if status != 200:
                lost.append(str(status))
                break
            taken.append(time.perf_counter() - started)
            if stop is not None and len(taken) == 20:
                stop.send_signal(signal.SIGTERM)
        writer.close()

    await asyncio.gather(*(client(*connection) for connection in opened))
    return taken, lost


def fitted(path: Path, kernel_rows: int) -> Path:
    options = {"train": {"steps": 100}, "score": {"kernel_rows": kernel_rows}}
    tabdiff.fit(table(10_000, 0), tabdiff.FitConfig.model_validate(options)).save(path)
    export(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--kernel-rows", type=int, default=4096)
    parser.add_argument("--model", type=Path, help="an exported model, instead of one of benchmarks/speed.py's table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.model or fitted(Path(folder) / "model", given.kernel_rows)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        call = [sys.executable, "-c", "from tabdiff.cli import main; main()", "serve", str(path), "--port", str(port)]
        process = subprocess.Popen(call, stderr=subprocess.DEVNULL)
        try:
            while True:
                try:
                    httpx.get(f"{url}/healthz").raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            rows_to_score = tabdiff.load(path).sample(100)
            one, hundred = rows_to_score.head(1), rows_to_score
            bodies = {
                "1 row, JSON": (json_of({"rows": cells_of(one)}), "application/json", 1),
                "1 row, Arrow": (arrow_of(one), ARROW, 1),
                "100 rows, Arrow": (arrow_of(hundred), ARROW, 100),
            }
            print(
                f"{'body':18} {'clients':>8} {'p50 ms':>8} {'p99 ms':>8} {'rows/s':>9} {'rows per server CPU-s':>22} {'lost':>5}"
            )
            for name, (body, kind, rows) in bodies.items():
                asyncio.run(load(port, 1, body, kind, 0.5))
                for clients in (1, 8, 64):
                    cpu, started = server_seconds(process.pid), time.perf_counter()
                    taken, lost = asyncio.run(load(port, clients, body, kind, given.seconds))
                    wall, cpu = time.perf_counter() - started, server_seconds(process.pid) - cpu
                    p50, p99 = np.quantile(taken, [0.5, 0.99]) * 1e3
                    count = rows * len(taken)
                    print(
                        f"{name:18} {clients:8} {p50:8.1f} {p99:8.1f} {count / wall:9,.0f} {count / max(cpu, 1e-9):22,.0f} {len(lost):5}",
                        flush=True,
                    )

            taken, lost = asyncio.run(load(port, 8, *bodies["100 rows, Arrow"][:2], 60, process))
            print(
                f"SIGTERM under load: {len(taken)} answered; not answered: {dict(Counter(lost))}; exit {process.wait(60)}"
            )
        finally:
            process.kill()


if __name__ == "__main__":
    main()
