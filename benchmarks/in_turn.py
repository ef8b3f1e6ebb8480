"""Is a change faster? Two checkouts serve side by side on core 0 and are asked in turn, a slice of a third of a second each.

    python -m benchmarks.in_turn ../before . --server "inference, envoy" --workload tabular --in-flight 64

For a machine whose speed changes by the second: neighbouring slices share it, runs of minutes do not. The order of the two turns
(ABBA); the figures are medians of the pairs' ratios, with what 95 % of resampled pairs say. The one that is not asked stands still,
so what the caches keep from one request to the next is its own; what they keep over a slice is not.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil

from benchmarks.serving import servers
from benchmarks.serving.loading import LOAD_CORE, Loader
from benchmarks.serving.models import MODELS
from benchmarks.serving.report import WORKLOADS
from benchmarks.serving.servers import OURS, TEST_CORE, Server, all_servers


def main() -> None:
    """Print a line for each number in flight."""
    arguments = _arguments()
    psutil.Process().cpu_affinity([LOAD_CORE])
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="il-")))
        pair: list[Server] = []
        for at, (checkout, variables) in enumerate(
            zip(arguments.checkouts, (arguments.first, arguments.second), strict=True)
        ):
            place = folder / str(at)
            place.mkdir()
            for model in MODELS:
                model.write(place)
            servers.ROOT = checkout.resolve()
            os.environ.update(one.split("=", 1) for one in variables)
            started, _ = opened.enter_context(all_servers(place, [arguments.server], arguments.cores))
            pair.append(started[arguments.server])
        loader, ask = Loader(folder), WORKLOADS[arguments.workload].ask(arguments.server)
        assert ask is not None
        for in_flight in arguments.in_flight:
            found = np.array(
                [
                    [_slice(loader, pair[one], ask, in_flight, arguments.slice_s) for one in order]
                    for order in [(0, 1), (1, 0)] * (arguments.pairs // 2)
                ]
            )
            found[1::2] = found[1::2, ::-1]
            print(_line(in_flight, found[1:]), flush=True)


def _slice(loader: Loader, server: Server, ask, in_flight: int, seconds: float) -> tuple[float, float, float]:
    before = server.cpu_s()
    cell = loader.run(server.port, ask, in_flight, seconds)
    return (server.cpu_s() - before) / cell.ok_count * 1e6, cell.per_second, cell.percentile_ms(99)


def _line(in_flight: int, found: np.ndarray) -> str:
    picks = np.random.default_rng(0).integers(0, len(found), (2000, len(found)))
    parts = [f"{in_flight:4} in flight, {len(found)} pairs"]
    for at, name in enumerate(("us of processor time", "requests/s", "p99 ms")):
        first, second = found[:, 0, at], found[:, 1, at]
        ratio = second / first
        low, high = np.quantile(np.median(ratio[picks], axis=1), (0.025, 0.975))
        parts.append(
            f"{name} {np.median(first):,.1f} -> {np.median(second):,.1f} ({np.median(ratio) - 1:+.1%}, {low - 1:+.1%} to {high - 1:+.1%})"
        )
    return "; ".join(parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs=2, type=Path)
    parser.add_argument("--first", nargs="*", default=[], help="NAME=value for the first one's environment")
    parser.add_argument("--second", nargs="*", default=[], help="the same for the second one")
    parser.add_argument("--server", default=OURS[2], choices=OURS)
    parser.add_argument("--workload", default="tabular", choices=WORKLOADS)
    parser.add_argument("--in-flight", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument(
        "--cores", default=str(TEST_CORE), help="cores under test, as taskset takes them; the load has 1"
    )
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--slice-s", type=float, default=0.3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
