"""The three stages on one rank of FSDP2, with random weights in a true shape: do they run, how fast, in what memory.

    python -m experiments.benchmarks.fsdp2_stages                  # Qwen3-VL-4B shape on a GPU, else a small model
    python -m experiments.benchmarks.fsdp2_stages --stages sft rl

Each stage takes a few steps in a process of its own, through Lightning, with validation and export. Its pairs are the
offline world's, their images enlarged to 256 visual tokens. Writes fsdp2_stages_<device>.json beside this file, or
in the folder OUT.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything

from experiments.benchmarks.pairs import write_result
from experiments.benchmarks.random_qwen3vl import MERGE, PATCH, SIZES, random_model
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.callbacks.throughput import Throughput
from twn_lightning.run import RunFolder
from twn_lightning.settings import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    GateStageSettings,
    LoraSettings,
    PathSettings,
    RLSettings,
    Settings,
    SFTSettings,
    TrainerSettings,
)
from twn_lightning.stages import build_stage, build_trainer, fit
from twn_lightning.strategy import leave_processes

STEPS = 6


def stage_settings(stage: str, rows: int) -> SFTSettings | GateStageSettings | RLSettings:
    """A few steps of a stage, `rows` of them at once."""
    if stage == "sft":
        return SFTSettings(batch_size=4 * rows, chunk_size=rows, max_steps=STEPS, learning_rate=1e-4)
    if stage == "gate":
        return GateStageSettings(batch_size=rows, max_epochs=STEPS, decode_batch_size=4 * rows)
    return RLSettings(
        prompts_per_step=rows // 2,
        completions_per_prompt=8,
        max_steps=STEPS,
        chunk_size=rows,
        learning_rate=1e-5,
        pool_size=4 * rows,
        min_live_groups=0,
    )


def run_settings(stage: str, rows: int, cot_tokens: int, folder: Path) -> Settings:
    """A run of one stage on one rank of FSDP2."""
    pairs = 4 * rows
    return Settings(
        name=f"fsdp2_{stage}",
        stage=stage_settings(stage, rows),
        adapters=AdapterSettings(
            reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), num_queries=16, query_std=0.02
        ),
        data=DataSettings(
            train_pairs=STEPS * 4 * rows,
            rl_pairs=STEPS * rows,
            gate_pairs=pairs,
            calibration_pairs=pairs,
            val_pairs=rows,
            test_pairs=rows,
            max_new_tokens=cot_tokens,
            max_cot_tokens=10_000,  # the byte-level tokenizer makes long CoTs
            rows_per_source_global=rows,
        ),
        trainer=TrainerSettings(
            strategy="fsdp2",
            val_every_steps=STEPS,
            log_every_steps=1,
            checkpoint_every_steps=STEPS,
            deterministic=False,
        ),
        evaluation=EvaluationSettings(batch_size=rows),
        paths=PathSettings(run_dir=str(folder)),
    )


def run_stage(
    stage: str, size: str, rows: int, cot_tokens: int, folder: Path, compiled: bool = False
) -> dict[str, Any]:
    """Build the backbone, fit the stage, and read what it logged."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    settings = run_settings(stage, rows, cot_tokens, folder)
    settings.interface.compile_layers = compiled
    seed_everything(settings.seed, verbose=False)
    model, processor = random_model(size, device, torch.bfloat16 if cuda else torch.float32)
    model.set_attn_implementation("sdpa")
    pack_vision_attention(model.model.visual)
    project_patches_linearly(model.model.visual)
    area = (16 if cuda else 4) ** 2 * (PATCH * MERGE) ** 2  # 256 visual tokens, 16 on a CPU
    processor = PromptProcessor(
        processor.tokenizer, replace(processor.patches, min_pixels=area, max_pixels=area), settings.data.num_frames
    )
    backbone = DualLoRABackbone(model, processor, settings.adapters, settings.interface, size).to(device)
    run_folder = RunFolder(folder)
    run_folder.create(settings)
    fitted = build_stage(settings, backbone, run_folder)
    began = time.perf_counter()
    fit(build_trainer(settings, run_folder, [Throughput(1)]), fitted)
    seconds = time.perf_counter() - began
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "throughput/seconds_per_step" in line][1:]  # the first step warms up
    peaks = [line["throughput/peak_memory_gb"] for line in logged if cuda]
    peaks += [torch.cuda.max_memory_allocated() / 1e9] if cuda else []
    leave_processes()
    return {
        "seconds_with_validation": round(seconds, 2),
        "seconds_per_step": sorted(line["throughput/seconds_per_step"] for line in logged)[len(logged) // 2],
        "rows_per_second": sorted(line["throughput/rows_per_second"] for line in logged)[len(logged) // 2],
        "peak_memory_gb": max(peaks, default=None),
        "last_line": lines[-1],
        "exported": sorted(path.name for path in (folder / "adapters").iterdir()),
    }


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["sft", "rl", "gate"], choices=["sft", "rl", "gate"])
    parser.add_argument("--size", default="qwen3vl_4b" if cuda else "midsize", choices=list(SIZES))
    parser.add_argument("--rows", type=int, default=8 if cuda else 2, help="rows of one forward pass")
    parser.add_argument("--cot-tokens", type=int, default=128 if cuda else 8, help="cap of generated CoTs")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers")
    parser.add_argument("--out", help="folder of the result")
    parser.add_argument("--worker", nargs=2, metavar=("STAGE", "FOLDER"), help="one stage here, its result in FOLDER")
    args = parser.parse_args()
    if args.worker:
        stage, folder = args.worker[0], Path(args.worker[1])
        found = run_stage(stage, args.size, args.rows, args.cot_tokens, folder / stage, args.compile)
        (folder / f"{stage}.json").write_text(json.dumps(found))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        shared = [f"--size={args.size}", f"--rows={args.rows}", f"--cot-tokens={args.cot_tokens}"]
        shared += ["--compile"] if args.compile else []
        for stage in args.stages:
            command = [sys.executable, "-m", "experiments.benchmarks.fsdp2_stages", *shared, "--worker", stage, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            path = Path(folder, f"{stage}.json")
            found = json.loads(path.read_text()) if path.exists() else {"error": done.stderr[-3000:]}
            results[stage] = found
            print(stage, json.dumps(found, indent=2) if "error" not in found else found["error"], flush=True)
    settings = {
        "model": args.size,
        "rows": args.rows,
        "cot_tokens": args.cot_tokens,
        "steps": STEPS,
        "compiled": args.compile,
    }
    device = "cuda" if cuda else "cpu"
    write_result(f"fsdp2_stages_{device}", {**settings, "stages": results}, args.out)


if __name__ == "__main__":
    main()
