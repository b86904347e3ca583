"""The resolved configuration as plain dataclasses: no Hydra, no OmegaConf, so a GPU box without them can start a run.

`conf/` composes these; `validation.settings_from_dict` checks a dictionary against them, all problems at once.
Section numbers refer to docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelSettings:
    """The frozen backbone."""

    name: str = "nano"
    path: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = "auto"
    quantization: Literal["none", "nf4"] = "none"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_frames: int = 8


@dataclass
class LoraSettings:
    r: int = 16
    alpha: int = 32


@dataclass
class AdapterSettings:
    """The two LoRA adapters and the learnable queries (section 2)."""

    arrangement: Literal["dual", "shared"] = "dual"
    prefix: Literal["reasoning", "none", "embedding"] = "reasoning"
    reasoning: LoraSettings = field(default_factory=lambda: LoraSettings(16, 32))
    embedding: LoraSettings = field(default_factory=lambda: LoraSettings(32, 64))
    dropout: float = 0.0
    num_queries: int = 8
    query_std: float = 0.5
    """Of the queries' normal initialisation: .02 on real backbones; nano's contrastive plateau is far shorter at .5."""
    query_attention: Literal["causal", "bidirectional"] = "causal"
    pooling: Literal["mean", "last"] = "mean"
    init_from: str | None = None


@dataclass
class InterfaceSettings:
    """What the embedder sees of the reasoner, and how activations are kept."""

    name: Literal["kv_detached", "kv_joint", "reencode"] = "kv_detached"
    activation_checkpointing: bool = False
    compile_layers: bool = False


@dataclass
class GateSettings:
    """The routing gate (section 5)."""

    hidden: int = 512
    threshold: float = 0.5
    price: float = 0.5
    label: Literal["hard", "soft"] = "hard"
    label_temperature: float = 0.05
    soft_scale: float = 0.25
    num_negatives: int = 1023
    calibration: Literal["fixed", "quality_tolerance", "token_budget", "conformal_quality", "conformal_budget"] = (
        "fixed"
    )
    quality_tolerance: float = 0.01
    token_budget: float = 0.5
    delta: float | None = None
    """None: the conformal calibrations bound expectations; else with probability 1 - delta over calibration splits."""


@dataclass
class SourceSettings:
    """One corpus of a mixture, or one subset of it."""

    source: str = "mmeb_train"
    subset: str | None = None
    """None: all of them."""
    split: str | None = None
    """None: the corpus's usual one."""
    weight: float | None = None
    cap: int | None = None


@dataclass
class DataSettings:
    """Where pairs come from and how they are batched."""

    source: str = "nano"
    sources: list[SourceSettings] = field(default_factory=list)
    annotations_root: str | None = None
    media_root: str | None = None
    media_roots: list[str] = field(default_factory=list)
    num_frames: int = 8
    hard_negatives: int = 1
    hard_negatives_path: str | None = None
    seed: int = 0
    train_pairs: int = 24_000
    rl_pairs: int = 2_000
    gate_pairs: int = 2_000
    calibration_pairs: int = 500
    val_pairs: int = 500
    test_pairs: int = 4_000
    think_sides: Literal["query", "candidate", "both"] = "query"
    max_cot_tokens: int = 384
    max_new_tokens: int = 64
    rows_per_source_global: int = 64
    num_workers: int = 0


@dataclass
class SFTSettings:
    """Stage 1: dual-LoRA supervised fine-tuning (section 4)."""

    name: Literal["sft"] = "sft"
    schedule: Literal["joint", "two_phase"] = "joint"
    batch_size: int = 128
    chunk_size: int = 128
    max_steps: int = 600
    embedding_steps: int = 400
    """Steps of the second phase (two_phase only)."""
    stored_pairs: int = 6_000
    """Pairs whose caches the second phase keeps in memory (two_phase only)."""
    embedding_batch_size: int = 256
    embedding_learning_rate: float | None = None
    learning_rate: float = 2e-3
    query_learning_rate: float = 1e-2
    weight_decay: float = 0.01
    warmup_ratio: float = 0.03
    clip_norm: float = 1.0
    temperature: float = 0.05
    margin_mask: float | None = None
    cot_weight: float = 1.0
    cross_query_generative: float = 1.0
    cross_candidate_generative: float = 0.0
    distill_weight: float = 0.0
    cut_cot_share: float = 0.0
    """Share of the CoTs of which pass E reads a random prefix; more than 0 for early exit."""
    matryoshka_dims: list[int] = field(default_factory=list)
    conflict_every_steps: int = 0


@dataclass
class GateStageSettings:
    """Stage 2: routing-gate training (section 5)."""

    name: Literal["gate"] = "gate"
    batch_size: int = 256
    max_epochs: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    patience: int = 5
    decode_batch_size: int = 500


@dataclass
class RLSettings:
    """Stage 3: embedding-guided RL (section 6)."""

    name: Literal["rl"] = "rl"
    prompts_per_step: int = 32
    completions_per_prompt: int = 8
    max_steps: int = 60
    updates_per_rollout: int = 2
    min_live_groups: int = 1
    """A rollout with fewer groups whose rewards differ changes no weight."""
    chunk_size: int = 256
    learning_rate: float = 3e-4
    clip_norm: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.04
    rollout_engine: Literal["builtin", "vllm"] = "builtin"
    sampling_temperature: float = 1.0
    format_weight: float = 0.1
    rank_weight: float = 0.5
    gap_weight: float = 0.5
    advantage_scale: Literal["group_std", "none"] = "group_std"
    reward_combination: Literal["sum", "product"] = "sum"
    reward_temperature: float = 0.05
    reward_reader: Literal["policy", "reference"] = "policy"
    pool_size: int = 1024
    pool_refresh_steps: int = 25


@dataclass
class TrainerSettings:
    """Lightning's trainer, the strategy, and the cadence of validation, logging and checkpoints."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "single", "ddp", "fsdp2"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true"] = "auto"
    val_every_steps: int = 100
    log_every_steps: int = 10
    checkpoint_every_steps: int = 100
    deterministic: bool = True
    profile_steps: int = 0
    resume: str | None = None


@dataclass
class LoggerSettings:
    """metrics.jsonl is always written; this is what comes on top of it."""

    name: Literal["none", "wandb", "tensorboard", "csv"] = "none"
    project: str = "twn_lightning"
    group: str | None = None
    mode: Literal["online", "offline", "disabled"] = "offline"


@dataclass
class TaskSettings:
    """What `twn evaluate` measures, and by which rules; what is None is the protocol's own."""

    suite: Literal["nano", "mmeb_v2", "mmeb_nano"] = "nano"
    names: list[str] = field(default_factory=list)
    """Tasks, meta-tasks or modalities of the suite, or `all`."""
    annotations_root: str | None = None
    media_root: str | None = None
    protocol: Literal["vlm2vec", "qwen3", "nano"] = "vlm2vec"
    version: Literal["2.0.0", "2.0.1", "2.1"] | None = None
    num_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    ndcg_pairing: Literal["correct", "compat"] | None = None
    ties: Literal["pessimistic", "optimistic", "first"] | None = None
    query_mode: Literal["discriminative", "generative", "adaptive"] | None = None
    candidate_mode: Literal["discriminative", "generative", "adaptive"] | None = None
    strict_counts: bool = True
    on_error: Literal["raise", "skip"] = "raise"
    cache: Literal["only-missing", "always", "never", "only-cache"] = "only-missing"
    cache_root: str = "outputs/embedding_cache"
    encoder: Literal["twn", "vlm2vec", "qwen3vl_embedding", "ume_r1"] = "twn"


@dataclass
class EvaluationSettings:
    """How `twn evaluate` encodes, and the routers it compares."""

    batch_size: int = 500
    routers: list[str] = field(
        default_factory=lambda: ["never", "always", "adaptive", "random", "margin", "query_length", "oracle"]
    )
    bootstrap_samples: int = 1000
    exit_tolerance: float | None = None
    """Leave a CoT once its embedding moves by less; None: never."""


@dataclass
class PathSettings:
    output_root: str = "outputs"
    run_dir: str | None = None


@dataclass
class Settings:
    """One run, resolved."""

    name: str = "run"
    seed: int = 0
    stage: SFTSettings | GateStageSettings | RLSettings = field(default_factory=SFTSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    adapters: AdapterSettings = field(default_factory=AdapterSettings)
    interface: InterfaceSettings = field(default_factory=InterfaceSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    data: DataSettings = field(default_factory=DataSettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    paths: PathSettings = field(default_factory=PathSettings)
