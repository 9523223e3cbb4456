"""How long a host waits for the server: spawn → tools/list over stdio, against an empty MCPServer on the same SDK.

    python tests/benchmarks/bench_startup.py [--rounds N]

Both are measured in turns, and what counts is the median of each turn's ratio, which a busy machine disturbs least:
ARCHITECTURE.md, "Targets", asks for at most 1.10.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = "from mcp.server.mcpserver import MCPServer; MCPServer('empty').run()"
COMMANDS = {
    "empty": [sys.executable, "-c", EMPTY],
    "snapshot-mcp": [sys.executable, "-m", "snapshot_mcp"],
}
BAR = 1.10
MESSAGES = [
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
]


def start_seconds(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Seconds from spawn to the answer to tools/list, and from there, after stdin is closed, to the process's end."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.writelines(json.dumps(message) + "\n" for message in MESSAGES)
    process.stdin.flush()
    for line in process.stdout:
        if json.loads(line).get("id") == 2:
            break
    listed = time.perf_counter()
    process.stdin.close()
    process.stdout.close()
    process.wait(10)
    return listed - began, time.perf_counter() - listed


def measure(rounds: int) -> dict[str, float]:
    """Medians in milliseconds, and the ratio."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "config.toml"
        config.touch()
        environ = {**os.environ, "SNAPSHOT_MCP_HOME": home, "SNAPSHOT_MCP_CONFIG": str(config)}
        for number in range(rounds + 1):
            for name, command in COMMANDS.items():
                seconds = start_seconds(command, environ)
                if number:  # the first round fills the caches
                    found[name].append(seconds)
    result: dict[str, float] = {}
    for name, pairs in found.items():
        result[f"{name} start ms"] = round(statistics.median(start for start, _ in pairs) * 1000, 1)
        result[f"{name} end ms"] = round(statistics.median(end for _, end in pairs) * 1000, 1)
    turns = zip(found["snapshot-mcp"], found["empty"], strict=True)
    result["ratio"] = round(statistics.median(ours[0] / empty[0] for ours, empty in turns), 3)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    result = measure(parser.parse_args().rounds)
    print(json.dumps(result, indent=2))
    print(f"{'reached' if result['ratio'] <= BAR else 'MISSED'}: at most {BAR}")
    return 0 if result["ratio"] <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
