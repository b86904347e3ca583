"""Which benchmarks there are, with the arguments and the time limit that each has on a CPU and on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "gpu"]
RESULT_SUFFIX: dict[Device, str] = {"cpu": "cpu", "gpu": "cuda"}


@dataclass(frozen=True)
class Benchmark:
    """One module of this folder.

    Args:
        name: of the module; its results are `<name>_cpu.json` and `<name>_cuda.json`.
        rows: the rows of the table of speed that it measures; none for what has no peer.
        cpu: its arguments on a CPU, where the whole list takes 9 to 12 minutes; None: not there.
        gpu: its arguments on a GPU; None: not there.
        gpu_minutes: after which it is ended on a GPU; on a CPU after `CPU_MINUTES`.
    """

    name: str
    rows: tuple[str, ...]
    cpu: tuple[str, ...] | None
    gpu: tuple[str, ...] | None
    gpu_minutes: int = 15

    def arguments(self, device: Device) -> tuple[str, ...] | None:
        """What it is called with, None where it does not run on that device."""
        return self.cpu if device == "cpu" else self.gpu

    def result(self, device: Device) -> str:
        """The name of its result."""
        return f"{self.name}_{RESULT_SUFFIX[device]}.json"


CPU_MINUTES = 6
"""For each benchmark: several times what it takes on two idle cores."""

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "think",
            ("adaptive_encode", "embed_after_think"),
            cpu=("--rows", "8", "--rounds", "2"),
            gpu=(),
        ),
        Benchmark("decode", ("decode",), cpu=("--rows", "8", "--rounds", "2"), gpu=(), gpu_minutes=25),
        Benchmark("vision", ("vision",), cpu=("--rounds", "2"), gpu=()),
        Benchmark("sft_step", ("sft_step",), cpu=("--rounds", "1"), gpu=(), gpu_minutes=25),
        Benchmark("train_step", ("train_mfu",), cpu=None, gpu=(), gpu_minutes=25),
        Benchmark("grpo_step", ("grpo_step",), cpu=("--prompts", "4", "--tokens", "32"), gpu=()),
        Benchmark("loader", ("loader",), cpu=("--rounds", "2"), gpu=()),
        Benchmark("suite", ("suite",), cpu=("--rounds", "2"), gpu=None),
        Benchmark("latency", ("latency",), cpu=("--queries", "16", "--rounds", "1"), gpu=()),
        Benchmark("growth", (), cpu=("--rounds", "1"), gpu=None),
        Benchmark("fsdp2_stages", (), cpu=None, gpu=(), gpu_minutes=25),
    )
}
