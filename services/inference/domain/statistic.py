"""What a version has done since it was loaded: the counts of Triton's statistics extension."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often, and how long in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count one more."""
        self.count += count
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class BatchStatistic:
    """Executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class VersionStatistic:
    """Counts of one version. Requests count once, rows in `inference_count`, runs of the model in `execution_count`."""

    execution_count: int = 0
    inference_count: int = 0
    last_inference_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistic] = field(default_factory=dict)

    def batch_ran(self, rows: int, requests: int, input_s: float, infer_s: float) -> None:
        """Count one execution; each of its requests has spent the whole of it."""
        self.execution_count += 1
        self.inference_count += rows
        self.compute_input.add(input_s * requests, requests)
        self.compute_infer.add(infer_s * requests, requests)
        statistic = self.batches.get(rows)
        if statistic is None:
            statistic = self.batches[rows] = BatchStatistic()
        statistic.compute_input.add(input_s)
        statistic.compute_infer.add(infer_s)

    def batch_answered(self, rows: int, requests: int, output_s: float) -> None:
        """Count the time of splitting one batch's answer."""
        self.compute_output.add(output_s * requests, requests)
        self.batches[rows].compute_output.add(output_s)

    def answered(self, requests: int, total_s: float, queue_s: float) -> None:
        """Count requests that were answered; seconds of all of them together."""
        self.success.add(total_s, requests)
        self.queue.add(queue_s, requests)
        self.last_inference_ms = time.time_ns() // 1_000_000

    def failed(self, total_s: float, requests: int) -> None:
        """Count requests that were not, each after so many seconds."""
        self.fail.add(total_s * requests, requests)
