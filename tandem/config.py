"""The schema: what an experiment is, as plain dataclasses with no framework behind them.

Hydra composes these from `conf/`; everything below `launch/run.py` sees only the dataclasses. Enums are string
enums and nothing is frozen because OmegaConf 2.3 accepts neither `Literal` nor frozen dataclasses as a schema.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tandem.architecture import DecoderConfig


class Job(StrEnum):
    """What `launch/run.py` does with the experiment."""

    run = "run"
    generate = "generate"
    speed = "speed"
    sweep_status = "sweep_status"
    sweep_logs = "sweep_logs"
    sweep_cancel = "sweep_cancel"
    sweep_resume = "sweep_resume"
    evaluate = "evaluate"
    tune = "tune"
    compile = "compile"
    doctor = "doctor"
    export = "export"
    report = "report"
    board = "board"
    gc = "gc"
    sync = "sync"
    compare = "compare"
    repeat = "repeat"


class Recipe(StrEnum):
    """How far the pair is trained: the stand-ins only, then stage 1 (cross entropy), then stage 2 (distillation)."""

    pretrain = "pretrain"
    ce = "ce"
    distil = "distil"


class Source(StrEnum):
    """Where the weights of a side of the pair come from: a stand-in of the scale as the package ships it, pretrained
    where it ships none with these settings; a stand-in pretrained in any case; an open checkpoint, by its format; or
    some of the primary's layers with its embedding."""

    shipped = "shipped"
    pretrain = "pretrain"
    huggingface = "huggingface"
    gguf = "gguf"
    llama2c = "llama2c"
    from_primary = "from_primary"


class PrimaryMode(StrEnum):
    """What happens to the primary while the tandem is trained (paper section 2, configurations a, b and c)."""

    frozen = "frozen"
    joint_secondary = "joint_secondary"
    joint_both = "joint_both"


class ProjectionInit(StrEnum):
    """How FF_Tandem starts: at random as in the paper; as the ridge solution on a few batches; as the identity on the
    first of its states, for a secondary as wide as the primary; auto is the identity for a secondary of the primary's
    own layers, and the ridge solution for others."""

    auto = "auto"
    random = "random"
    least_squares = "least_squares"
    identity = "identity"


class Divergence(StrEnum):
    """How stage 2 measures how far a drafter is from the primary: Kullback-Leibler, or total variation, which is the
    share of drafts that are rejected."""

    kl = "kl"
    tv = "tv"


class Optimizer(StrEnum):
    adamw = "adamw"
    muon = "muon"


class Corpus(StrEnum):
    stdlib = "stdlib"
    text = "text"
    tfds = "tfds"
    sampled = "sampled"


class Stages(StrEnum):
    """Whose models are measured: those after each stage of training, or after the last alone."""

    all = "all"
    last = "last"


class ChatMode(StrEnum):
    """Whether prompts go through the checkpoint's chat template: where it has one, always, never."""

    auto = "auto"
    on = "on"
    off = "off"


class Measure(StrEnum):
    """What is measured: agreement (paper table 1), speed with SPEED (tables 2, 5, 8), the tandem alone (table 3)."""

    agreement = "agreement"
    speed = "speed"
    standalone = "standalone"


class DType(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Verification(StrEnum):
    """How drafts are accepted under sampling: each by itself, or the block as a whole."""

    token = "token"
    block = "block"


class StopRule(StrEnum):
    """When a block's drafting stops: after γ drafts; by the paper's router; by the router's probability that all so far
    and the next are accepted; by the drafter's own probability; or, for analysis, by what will be accepted."""

    fixed = "fixed"
    router = "router"
    survival = "survival"
    confidence = "confidence"
    oracle = "oracle"


class DeviceKind(StrEnum):
    """What a platform's devices are; `any` takes what JAX finds."""

    any = "any"
    cpu = "cpu"
    gpu = "gpu"
    tpu = "tpu"


class TrackingMode(StrEnum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class OptimizerConfig:
    """One training run's optimisation; `steps` are optimizer steps of `batch_size` sequences of `seq_len` tokens."""

    steps: int = 100
    batch_size: int = 8
    seq_len: int = 128
    optimizer: Optimizer = Optimizer.adamw
    learning_rate: float = 3e-3
    projection_rate: float = 1.0  # multiplies the rate of FF_Tandem within its row's
    warmup_steps: int = 20
    final_rate: float = 0.1  # of the peak, at the end of the cosine
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    accumulate: int = 1  # micro-batches per step
    remat: bool = False
    scan_layers: bool = False  # one loop over layers, not a program that grows with them: slower to run on a CPU


@dataclass
class FurtherConfig(OptimizerConfig):
    """What `train` starts from at a scale, for the keys of the same names."""

    gamma: list[int] = field(default_factory=lambda: [2])
    primary_dtype: DType = DType.auto
    dtype: DType = DType.float32
    stored_dtype: DType = DType.float32
    vocabulary: int | None = None
    recorded_tokens: int | None = None


# What multiplies the further training's learning rate for a row of the tables, 1 where it is not named: a comparison at
# one rate would be one of whom that rate suits. Rows are those of ROWS and heads, which have one for both stages.
Rates = dict[str, float]
ROWS = ("secondary_ce", "secondary_distil", "tandem_ce", "tandem_distil")


@dataclass
class ScaleConfig:
    """Sizes and pretraining of the stand-ins; none of them is a PaLM 2 model."""

    name: str = "tiny"
    models: dict[str, DecoderConfig] = field(default_factory=dict)
    pretrain: dict[str, OptimizerConfig] = field(default_factory=dict)
    # The further training of a pair at this scale; `train` starts from it.
    further: FurtherConfig = field(default_factory=FurtherConfig)
    rates: Rates = field(default_factory=dict)
    distil_steps: int = 100  # of stage 2
    # Use the weights in the package, where it ships some made by exactly this configuration.
    shipped: bool = False


@dataclass
class SideConfig:
    """One model of a pair: its name in the tables, and where its weights come from."""

    name: str = ""
    source: Source = Source.shipped
    # huggingface, gguf, llama2c: a directory or a file, or the name of a model, installed or on a hub (docs/models.md).
    path: str | None = None
    revision: str | None = None  # of a hub's name: a branch, a tag or a commit; null: main
    tokenizer: str | None = None  # a directory or a file; null: the checkpoint's own
    dtype: DType = DType.float32  # of a checkpoint's weights in memory
    layers: list[int] | None = None  # from_primary: which of the primary's, from 0
    decoder: DecoderConfig | None = None  # what the checkpoint is; null: what its file says


@dataclass
class PairConfig:
    """The models of a pair. `middle` stands between the two, for comparison."""

    name: str = "tandem_bison_gecko"
    primary: SideConfig = field(default_factory=lambda: SideConfig("bison"))
    secondary: SideConfig = field(default_factory=lambda: SideConfig("gecko"))
    middle: SideConfig | None = field(default_factory=lambda: SideConfig("otter"))
    # For each secondary layer, the primary layer (1 … L_L) whose output it reads. Null: evenly spaced. Twice as many
    # entries, or more, fuse several: after one for each secondary layer, a second for each, where 0 is the embedding.
    layer_map: list[int] | None = None
    download: bool = False  # models that are named as on a hub and are not in its cache


@dataclass
class TrainConfig(OptimizerConfig):
    """Tandem training; all rows and stages use the same optimisation, which starts from `scale.further`, but for their
    rates. Stage 1 has `steps`, stage 2 `distil_steps`."""

    name: str = "distil"
    distil_steps: int = 100
    rates: Rates = field(default_factory=dict)
    recipe: Recipe = Recipe.distil
    primary: PrimaryMode = PrimaryMode.frozen
    # The type of a frozen primary's products, as of teacher or as read by the tandem; see decode.dtype.
    primary_dtype: DType = DType.auto
    # The type of the trained models' products; their weights and the optimizer's state are float32.
    dtype: DType = DType.float32
    # The type that trained weights are kept in, once a stage has ended.
    stored_dtype: DType = DType.float32
    # How many tokens, the most frequent of the training text, the loss of decoders and tandems counts; null: all.
    vocabulary: int | None = None
    # Of how many tokens a frozen primary's states are kept on disk, to be read again and again; null: it reads along.
    recorded_tokens: int | None = None
    # Training block lengths; one is drawn per sequence.
    gamma: list[int] = field(default_factory=lambda: [2])
    projection_init: ProjectionInit = ProjectionInit.auto
    # In the tandem's loss the k-th position of a block, from 0, counts position_decay^k.
    position_decay: float = 1.0
    # λ: weight of distillation against cross entropy in stage 2 (paper: 0.5), its divergence, and KL's temperature.
    distil_weight: float = 0.5
    divergence: Divergence = Divergence.kl
    temperature: float = 1.0


@dataclass
class DataConfig:
    """The corpus; documents are split into training and held-out by name."""

    name: str | None = "stdlib"  # tfds: the dataset, "name/config:version"
    corpus: Corpus = Corpus.stdlib
    path: str | None = None  # text: a file or a folder (plain, .gz, .xz)
    separator: str = "<|endoftext|>"  # text: the line between documents
    dataset: str | None = None  # tfds: follows `name`
    data_dir: str | None = None  # tfds: where prepared datasets are
    text_feature: str = "text"  # tfds
    # sampled: what the primary writes after each of these beginnings, by kinds in equal parts; control tokens by name.
    openings: dict[str, list[str]] = field(default_factory=dict)
    temperatures: list[float] = field(default_factory=list)  # sampled: in equal parts
    documents: int = 0  # sampled
    document_tokens: int = 0  # sampled: of each document, the opening with it
    heldout_fraction: float = 0.1
    # For speed, a file or several: lm1b, reddit, cnn_dailymail of tasks.data_dir, or paths (JSON lines with `prompt` or
    # `turns`; .txt, .tsv, .csv); null: cut from the held-out text.
    prompts: list[str] | None = None
    # Whether prompts that are whole questions, of files and of job=generate, go through the primary's chat template.
    chat: ChatMode = ChatMode.auto


@dataclass
class DrafterConfig:
    """The drafters that SPEED is measured with."""

    name: str = "paper"
    # Files of tandem/decoding/drafters by the names that they register, or NAME@CHECKPOINT: pretrain, ce (stage 1),
    # distil (stage 2), or last, after the last stage that there is. Without one, independent is as pretrained, and all
    # that the recipe trains is at its last.
    drafters: list[str] = field(default_factory=lambda: ["independent", "independent@last", "tandem"])
    # How many drafts of a block heads are trained for; medusa can make no more.
    depth: int = 5
    ngram: int = 3  # the longest that prompt_lookup searches for
    # How many tokens, the most frequent of the training text, models draft; null: all. The output is the same.
    vocabulary: int | None = None


@dataclass
class DecodeConfig:
    """How text is generated."""

    name: str = "greedy"
    # The type of products with weights: float32, bfloat16, or auto, which is bfloat16 where the processor has it. On
    # a CPU those of one position are float32 in any case.
    dtype: DType = DType.auto
    prompt_tokens: int = 64  # of prompts that are cut from the held-out text
    max_new_tokens: int = 128
    # The most positions that a prompt and its response may take.
    cache_tokens: int = 4096
    # The law tokens are drawn from; temperature 0 is greedy, top_k 0 and top_p 1 cut nothing.
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    verification: Verification = Verification.token
    stop: StopRule = StopRule.fixed
    # What `gamma` and `tau` start from: drafts of a block, with a rule the most of them; the rule's threshold.
    gamma: int = 3
    tau: float | None = None
    num_samples: int = 1  # responses to each prompt, which share its prefill
    batch_size: int = 1  # prompts decoded together
    exact: bool = False  # compare with autoregressive passes as wide as verification: equal then bit for bit


@dataclass
class MbppConfig:
    """MBPP's programs, which a model wrote; nothing runs them unless `execute`."""

    execute: bool = False  # in the sandbox, tasks/sandbox.py
    samples: int = 1  # programs for a question: 1 is greedy, more are drawn, for pass@k
    temperature: float = 0.8
    timeout: float = 3.0  # seconds for a program


@dataclass
class EvalConfig:
    """What is measured, on held-out text."""

    name: str = "paper"
    measures: list[Measure] = field(default_factory=lambda: list(Measure))
    stages: Stages = Stages.all  # of training, whose models are measured
    gammas: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    sequences: int = 64  # of the training seq_len
    prompts: int = 32
    standalone_gammas: list[int] = field(default_factory=lambda: [3])
    repeats: int = 3  # timed repetitions after one warm-up
    # Stopping rules to compare with the best fixed block length, on the prompts of speed. The longest block that
    # routers learn from, and that this and job=tune try where `decode` has no rule, whose `gamma` is that.
    stops: list[StopRule] = field(default_factory=list)
    gamma_max: int = 8
    job: Job = Job.run  # what `job` starts from
    # Of job=evaluate: suites of downstream tasks or single ones (docs/tasks.md), exemplars in a prompt, and how many
    # examples of a task, from its first (null: all).
    tasks: list[str] = field(default_factory=list)
    shots: int = 1
    limit: int | None = None
    seed: int = 0  # of exemplars, drawn programs and intervals
    max_length: int = 1024  # tokens of prompt and answer; a longer prompt loses exemplars, then its front
    batch_size: int = 16
    mbpp: MbppConfig = field(default_factory=MbppConfig)


@dataclass
class TasksConfig:
    """Where downstream tasks find their data (docs/tasks.md has the layout)."""

    data_dir: str | None = None  # prepared TensorFlow datasets and raw files; null: $TFDS_DATA_DIR or TFDS's default
    download: bool = False  # what is missing, into that directory


@dataclass
class PlatformConfig:
    """The devices of one job, as a mesh: `data` × `fsdp` × `tensor` of them.

    `data` and `fsdp` divide the batch, `fsdp` the weights and the optimizer's state too, `tensor` heads, MLP and
    vocabulary. No result means another thing on another platform, so none of this is part of a step's meaning.
    """

    name: str = "local"
    device: DeviceKind = DeviceKind.any
    chips: int = 1
    hosts: int = 1  # processes; with more than one, each has its own part of the chips
    chips_per_host: int = 1
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    topology: str | None = None  # what compiling ahead of time is told, such as v5e:4x4
    # Of one chip, for rooflines: bytes of memory, operations a second in bfloat16, bytes a second from memory and to
    # other chips over all links, one way. Null: not known.
    memory_bytes: float | None = None
    peak_flops: float | None = None
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    start_timeout_s: int = 300  # until all hosts have come together
    host_timeout_s: int = 100  # after which a silent host counts as dead and ends the job


@dataclass
class TrackingConfig:
    """Weights & Biases, a mirror of `metrics.jsonl` and `results.json`."""

    name: str = "offline"
    mode: TrackingMode = TrackingMode.offline
    project: str = "tandem"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    checkpoints: bool = False  # what was trained as artifacts too, by reference to its files


@dataclass
class Experiment:
    """All that a run is. `gamma` is the block length of decoding, with a stopping rule the longest, and `tau` the
    threshold of that rule, null where it has none or finds it by tuning (paper section 3)."""

    model: PairConfig = field(default_factory=PairConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    drafter: DrafterConfig = field(default_factory=DrafterConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    platform: PlatformConfig = field(default_factory=PlatformConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    job: Job = Job.run
    prompt: str | None = None  # of job=generate
    name: str | None = None
    seed: int = 0
    gamma: int = 3
    tau: float | None = None
    runs_dir: str = "runs"
    use_shipped: bool = True
    dry_run: bool = False
    sweep: str | None = None  # of job=report, sweep_status and the like
    publish: bool = False  # of job=report
    runs: list[str] | None = None  # of job=compare, repeat and report
