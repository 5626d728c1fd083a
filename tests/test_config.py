"""Configuration: every preset is valid, and everything wrong is said at once."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.compose import CONF, compose, compose_all, expand, for_hydra, groups, to_yaml
from launch.experiment import build
from launch.identity import configuration_hash
from launch.keys import known_keys
from tandem.config import Experiment, Measure, OptimizerConfig, Recipe
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.pair import resolve_layer_map
from tandem.validate import validate

# What an option needs beside itself.
NEEDS = {"data=text": [f"data.path={CONF}"], "data=tfds": ["data.name=lm1b:1.1.0"]}
# Batches and heads that so many devices can divide.
NEEDS["scale=smollm2"] = ["model=tandem_smollm2"]  # which has no stand-ins
CHECKPOINT = Path(__file__).parent / "fixtures/families/llama"
NEEDS["data=sampled"] = ["model=tandem_smollm2"]  # stand-ins write nothing before they are trained
NEEDS["model=tandem_pair"] = [f"model.primary.path={CHECKPOINT}", f"model.secondary.path={CHECKPOINT}"]
NEEDS |= {f"platform=v5e_{chips}": ["scale=pod"] for chips in (16, 64, 256)}
OPTIONS = [f"{group}={option}" for group, options in groups().items() for option in options]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigurationError) as refused:
        compose(overrides)
    assert refused.value.exit_code == 2
    return refused.value.problems


@pytest.mark.parametrize("option", OPTIONS)
def test_every_preset_is_valid(option):
    experiment = compose([option, *NEEDS.get(option, [])])
    group, _, name = option.partition("=")
    if group not in ("experiment", "data"):
        assert getattr(experiment, group).name == name


@pytest.mark.parametrize(("model", "scale"), list(itertools.product(groups()["model"], groups()["scale"])))
def test_presets_go_together(model, scale):
    words = [f"model={model}", f"scale={scale}", *NEEDS.get(f"model={model}", [])]
    if scale == "smollm2" and model in ("tandem_bison_gecko", "tandem_otter_gecko"):
        assert "is not a model of scale=smollm2" in problems(*words)[0]
        return
    experiment = compose(words)
    assert experiment.train.steps == experiment.scale.further.steps


@pytest.mark.slow
def test_files_of_conf_open_with_a_command_that_works():
    for path in CONF.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 50, path
        command = next(line for line in text.splitlines() if "uv run " in line and "launch/run.py" in line)
        assert path.name.startswith("_") or command in text.splitlines()[:2], path
        words = command.partition("launch/run.py")[2].split()
        words = [f"data.path={CONF}" if word.startswith("data.path=") else word for word in words]
        stated = path.name != "tandem_pair.yaml"  # a pair that says what its checkpoints are needs none of them here
        words = [word.replace("DIRECTORY", str(CHECKPOINT)) for word in words if not (stated and "DIRECTORY" in word)]
        compose_all(expand([word for word in words if word != "-m" and not word.startswith("data.data_dir")]))


def test_recorded_states_are_of_a_frozen_primary_and_read_by_one_host():
    said = problems("train=joint_both", "train.recorded_tokens=9999")
    assert said == ["train.recorded_tokens=9999 is of a frozen primary, and train.primary=joint_both trains it"]
    hosts = ("platform.hosts=2", "platform.chips=2", "platform.data=2")
    assert problems("train.recorded_tokens=9999", *hosts) == [
        "train.recorded_tokens=9999 is read by one host, not by several"
    ]


def test_defaults():
    experiment = compose([])
    assert (experiment.model.primary.name, experiment.model.secondary.name) == ("bison", "gecko")
    assert experiment.scale.shipped
    assert (experiment.gamma, experiment.tau, experiment.train.gamma) == (3, None, [2])
    assert experiment.train.recipe is Recipe.distil
    assert experiment.drafter.drafters == ["independent", "independent@last", "tandem"]


def test_only_laptop_ships_weights():
    scales = groups()["scale"]
    shipped = [scale for scale in scales if compose([f"scale={scale}", *NEEDS.get(f"scale={scale}", [])]).scale.shipped]
    assert shipped == ["laptop"]


def test_training_follows_the_scale_unless_overridden():
    experiment = compose(["scale=tiny", "train.steps=7", "scale.further.batch_size=4"])
    assert experiment.train.steps == 7
    assert experiment.train.batch_size == 4
    assert experiment.train.learning_rate == experiment.scale.further.learning_rate
    assert isinstance(experiment.train, OptimizerConfig)


def test_rates_of_training_are_the_scales_unless_overridden():
    experiment = compose(["train.rates.medusa=7", "scale.rates.eagle=5"])
    assert experiment.train.rates == {**experiment.scale.rates, "medusa": 7.0}
    assert experiment.train.rates["eagle"] == 5.0


def test_one_value_is_a_list_of_one():
    assert compose(["train.gamma=4"]).train.gamma == [4]
    assert compose(["train.gamma=[1,4]"]).train.gamma == [1, 4]
    assert compose(["drafter.drafters=tandem"]).drafter.drafters == ["tandem"]


def test_keys_may_be_given_with_a_plus():
    assert compose(["+train.temperature=2", "++gamma=3", "+experiment=debug"]).train.temperature == 2.0


def test_the_command_line_wins_over_an_experiment():
    experiment = compose(["experiment=paper/table2", "train=ce", "gamma=3"])
    assert experiment.train.recipe is Recipe.ce
    assert experiment.gamma == 3
    assert experiment.eval.measures == [Measure.speed]


def test_yaml_of_an_experiment_reads_back():
    experiment = compose(["experiment=debug", "train.gamma=[1,2]"])
    merged = OmegaConf.merge(OmegaConf.structured(Experiment), OmegaConf.create(to_yaml(experiment)))
    assert OmegaConf.to_object(merged) == experiment


def test_hash_follows_meaning():
    base = configuration_hash(compose([]))
    for same in ("name=x", "runs_dir=/elsewhere", "tracking=disabled", "dry_run=true"):
        assert configuration_hash(compose([same])) == base
    for other in ("seed=1", "gamma=4", "train=ce", "train.steps=7", "eval=quick"):
        assert configuration_hash(compose([other])) != base


UNKNOWN = [
    ("gama=3", "unknown key gama; did you mean gamma?"),
    ("+gama=3", "unknown key gama; did you mean gamma?"),
    ("++train.gama=3", "unknown key train.gama; did you mean train.gamma?"),
    ("modle=tandem_bison_gecko", "unknown key modle; did you mean model?"),
    ("learning_rate=1", "unknown key learning_rate; did you mean train.learning_rate?"),
    ("train.optimizer.steps=20", "unknown key train.optimizer.steps; did you mean train.steps?"),
    ("+scale.models.bisn.d_model=8", "unknown key scale.models.bisn.d_model; did you mean scale.models.bison.d_model?"),
    (
        "scale.models.bison={d_modl: 8}",
        "unknown key scale.models.bison.d_modl; did you mean scale.models.bison.d_model?",
    ),
    ("train.rates.medsa=2", "unknown key train.rates.medsa; did you mean train.rates.medusa?"),
    ("+foo.bar=1", "unknown key foo.bar; --help lists the keys"),
]


@pytest.mark.parametrize(("word", "message"), UNKNOWN)
def test_unknown_key(word, message):
    assert problems(word) == [message]


UNFIT = [
    ("train=distill", "train=distill is not an option of train (ce, distil, .*); did you mean distil?"),
    ("+train=distill", "train=distill is not an option of train (ce, distil, .*); did you mean distil?"),
    ("train=_further", "train=_further is not an option"),
    ("experiment=paper/tabel2", "did you mean paper/table2?"),
    ("train@other=ce", "without @"),
    ("~gamma", "cannot be deleted"),
    ("gamma", "cannot read 'gamma': write key=value"),
    ("gamma=1,2", "add -m"),
    ("gamma=abc", "gamma=abc must be a whole number"),
    ("gamma=2.5", "gamma=2.5 must be a whole number"),
    ("gamma=null", "gamma=null must be a whole number"),
    ("train.gamma=[1,x]", "train.gamma=[1, 'x'] must be a whole number or a list of such"),
    ("tau=high", "tau=high must be a number"),
    ("dry_run=3x", "dry_run=3x must be true or false"),
    ("train.primary=frozn", "one of frozen, joint_secondary, joint_both; did you mean frozen?"),
    ("drafter.drafters=tandm", "drafter.drafters='tandm' is no drafter that registers; did you mean tandem?"),
    ("drafter.drafters=tandem@pretrain", "names a checkpoint that there is not: tandem has last, ce, distil"),
    ("drafter.drafters=prompt_lookup@ce", "names a checkpoint that there is not: prompt_lookup is not trained"),
    ("train.rates.medusa=fast", "train.rates.medusa=fast must be a number"),
    ("train.rates.medusa=0", "train.rates.medusa=0.0 must be above 0"),
    ("train.rates={medsa: 2}", "train.rates.medsa is no row that is trained; did you mean medusa?"),
    ("scale.models.bison=3", "scale.models.bison=3 must be a group of keys"),
    (f"train.steps={2**63}", f"train.steps={2**63} has a number of more than 64 bits"),
    (f"eval.gammas=[1,{10**400}]", "has a number of more than 64 bits"),
    (f"train.rates.medusa={2**64}", "has a number of more than 64 bits"),
    ("scale.pretrain={0:{steps:1}}", "scale.pretrain.0 must be a name"),
    ("scale.further.batch_size={0:${train}}", "scale.further.batch_size={0:${train}}.*values that refer to each other"),
    (f"eval.gammas=[{','.join(['1'] * 1001)}]", "1,001 values, and a word of the command line at most 1,000"),
    (f"gamma={10**400}", "has a number that is too long"),
    (f"hydra.launcher.memory_gb={10**400}", "has a number that is too long"),
    ("train.rates=null", "train.rates=None must be a group of keys"),
    ("train.steps=${nothing}", "train.steps: Interpolation key 'nothing' not found"),
    ("gamma=-1", "gamma=-1 must be at least 0"),
    ("tau=1.5", "tau=1.5 must be from 0.0 to 1.0"),
    ("decode.temperature=-1", "decode.temperature=-1.0 must be at least 0"),
    ("decode.temperature=inf", "decode.temperature=inf must be at least 0 and finite"),
    ("decode.temperature=nan", "decode.temperature=nan must be at least 0 and finite"),
    ("decode.top_p=0", "decode.top_p=0.0 must be above 0 and at most 1"),
    ("decode.num_samples=0", "decode.num_samples=0 must be at least 1"),
    ("decode.cache_tokens=100", "decode.cache_tokens=100 must hold decode.prompt_tokens=64"),
    ("job=generate", "job=generate needs a prompt that is not empty"),
    ("data.prompts=absent.jsonl", "data.prompts='absent.jsonl' is not a file"),
    ("data.prompts=lm1", "data.prompts='lm1' is not a file; did you mean lm1b?"),
    ("data.prompts=[lm1b]", "data.prompts='lm1b' needs tasks.data_dir, a directory with lm1b/lm1b_heldout_sample.txt"),
    ("data.prompts=[]", "data.prompts=[] must name one or more files"),
    ("tau=nan", "tau=nan must be from 0.0 to 1.0"),
    ("seed=-1", "seed=-1 must be from 0"),
    ("name=a/b", "name='a/b' must be usable as the name of a directory"),
    ("name=store", "name='store' must be usable as the name of a directory beside the store"),
    ("train.gamma=0", "train.gamma=[0] must be one or more block lengths of at least 1"),
    ("train.gamma=[]", "train.gamma=[] must be one or more"),
    ("train.steps=0", "train.steps=0 must be at least 1"),
    ("train.seq_len=1", "train.seq_len=1 must be at least 2"),
    ("train.learning_rate=0", "train.learning_rate=0.0 must be above 0"),
    ("train.learning_rate=inf", "train.learning_rate=inf must be above 0"),
    ("train.accumulate=3", "train.accumulate=3 must divide batch_size=8"),
    ("train.distil_weight=1.1", "train.distil_weight=1.1 must be from 0.0 to 1.0"),
    ("train.position_decay=0", "train.position_decay=0.0 must be above 0"),
    ("train.divergence=tvd", "did you mean tv?"),
    ("scale.pretrain.bison.batch_size=0", "scale.pretrain.bison.batch_size=0 must be at least 1"),
    ("scale.models.bison.num_heads=7", "scale.models.bison.num_heads=7 must divide d_model=384"),
    ("scale.models.gecko.num_heads=96", "an even number"),
    ("scale.models.bison.num_kv_heads=4", "num_kv_heads=4 must divide num_heads=6"),
    ("scale.models.bison.d_model=0", "scale.models.bison.d_model=0 must be at least 1"),
    ("scale.models.gecko.vocab_size=512", "must share one vocabulary, but bison has 4096, gecko has 512"),
    ("model.primary=bisn", "model.primary is a group of keys: set one of them, as model.primary.name"),
    ("model.primary.name=bisn", "model.primary.name='bisn' is not a model of scale=laptop; did you mean bison?"),
    ("model.secondary.name=bison", "model.secondary.name='bison' must differ from model.primary.name"),
    ("model.secondary.source=huggingface", "model.secondary.path must name a directory with config.json"),
    ("model.secondary.path=x", "model.secondary.path='x' is not read by model.secondary.source=shipped"),
    ("model.secondary.layers=[0]", "model.secondary.layers=[0] is not read by model.secondary.source=shipped"),
    (
        "model.secondary.source=from_primary",
        "model.secondary.layers=None must list which layers of the primary to take",
    ),
    ("model.primary.source=from_primary", "is for the other models of the pair"),
    ("train.projection_init=identity", "needs models of one width (d_model), but bison has 384 and gecko 96"),
    ("train.recorded_tokens=9", "train.recorded_tokens=9 must be at least 256"),
    ("train.vocabulary=1", "train.vocabulary=1 must be at least 2"),
    ("drafter.vocabulary=0", "drafter.vocabulary=0 must be at least 2"),
    ("scale.models.bison.family=lama", "scale.models.bison.family='lama' is not one of gemma2, gemma3, llama, mistral"),
    ("scale.models.bison.window=0", "scale.models.bison.window=0 must be at least 1"),
    ("scale.models.bison.rope_factor=0", "scale.models.bison.rope_factor=0.0 must be above 0"),
    ("scale.models.bison.rotary_fraction=0.3", "scale.models.bison.rotary_fraction=0.3 must turn an even number"),
    ("scale.models.bison.head_size=7", "scale.models.bison.head_size=7 makes heads of 7 dimensions"),
    ("model.layer_map=[1]", "model.layer_map=[1] has 1 entries and must have 2"),
    ("model.layer_map=[1,7]", "model.layer_map[1]=7 must be from 1 to 5"),
    ("model.layer_map=[0,2]", "model.layer_map[0]=0 must be from 1 to 5"),
    ("model.layer_map=[2,3,0]", "model.layer_map=[2, 3, 0] has 3 entries and must have 2"),
    ("model.layer_map=[2,3,0,9]", "model.layer_map[3]=9 must be from 0 to 5"),
    ("data=text", "data=text needs data.path"),
    ("data=tfds", "data=tfds needs data.name"),
    ("data.heldout_fraction=1", "data.heldout_fraction=1.0 must be above 0 and below 1"),
    ("eval.gammas=[2,0]", "eval.gammas=[2, 0] must be one or more block lengths of at least 1"),
    ("eval.prompts=0", "eval.prompts=0 must be at least 1"),
    ("eval.measures=[]", "must name at least one of agreement, speed, standalone"),
    ("eval.measures=[speed,speed]", "names something twice"),
    ("drafter.drafters=[]", "must name at least one of eagle, eagle3, independent, kv, medusa"),
    ("decode.prompt_tokens=1", "decode.prompt_tokens=1 must be at least 2"),
]


@pytest.mark.parametrize(("word", "message"), UNFIT)
def test_bad_value(word, message):
    before, _, after = message.partition(".*")
    said = problems(word)
    assert [problem for problem in said if before in problem and after in problem] == said[:1]


def test_missing_data_path_and_the_nearest_one(tmp_path):
    (tmp_path / "books").mkdir()
    (problem,) = problems("data=text", f"data.path={tmp_path}/boks")
    assert problem == f"data.path='{tmp_path}/boks' does not exist; did you mean {tmp_path}/books?"


def test_everything_wrong_is_said_at_once():
    said = problems("train=distill", "gama=1", "gamma=-1", "tau=2", "train.steps=x", "model.layer_map=[1]")
    assert len(said) == 6


def test_message_lists_the_problems():
    assert str(ConfigurationError(["a"])) == "configuration refused: a"
    assert str(ConfigurationError(["a", "b"])).splitlines()[1:] == ["  - a", "  - b"]


def test_a_glob_is_expanded_to_the_options_that_it_names():
    assert expand(["scale=glob([l*,t*])", "seed=1"]) == [["scale=laptop", "seed=1"], ["scale=tiny", "seed=1"]]
    words = ["train=glob(*,exclude=[c*,d*,l*,m*,p*,s*])"]
    assert expand(words) == [["train=joint_both"], ["train=joint_secondary"]]
    assert for_hydra(words) == ["train=joint_both,joint_secondary"], "and not _further"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scale=glob(x*)", "names none of gpu, laptop, pod, smollm2, tiny"),
        ("gamma=glob(*)", "glob is of a group's options: data, decode, drafter"),
        ("=glob(?)", "glob is of a group's options"),
    ],
)
def test_a_glob_that_names_nothing_is_refused(word, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        expand([word])


def test_a_multirun_is_expanded_in_order():
    jobs = expand(["train=ce,distil", "seed=1", "gamma=2,4"])
    assert jobs[:2] == [["train=ce", "seed=1", "gamma=2"], ["train=ce", "seed=1", "gamma=4"]]
    assert len(jobs) == 4


def with_layers(primary: int, secondary: int) -> Experiment:
    return compose([f"scale.models.bison.num_layers={primary}", f"scale.models.gecko.num_layers={secondary}"])


@pytest.mark.parametrize(
    ("primary", "secondary", "expected"),
    [
        (6, 3, [2, 3, 5]),
        (6, 6, [1, 2, 3, 3, 4, 5]),
        (5, 2, [2, 3]),
        (2, 4, [1, 1, 1, 2]),
        (7, 1, [4]),
        (1, 3, [1, 1, 1]),
    ],
)
def test_default_layer_map_is_evenly_spaced_with_two_more_states_beside_each(primary, secondary, expected):
    experiment = with_layers(primary, secondary)
    assert resolve_layer_map(experiment) == [
        *expected,
        *[0] * secondary,
        *[max(1, primary - 1)] * secondary,
    ]


def test_default_layer_map_is_always_valid():
    experiment = compose([])
    for primary, secondary in itertools.product(range(1, 9), range(1, 9)):
        experiment.scale.models["bison"].num_layers = primary
        experiment.scale.models["gecko"].num_layers = secondary
        experiment.model.layer_map = None
        experiment.model.layer_map = resolve_layer_map(experiment)
        assert validate(experiment) == []


def test_configured_layer_map_is_used():
    experiment = compose(["model.layer_map=[1,4]"])
    assert resolve_layer_map(experiment) == [1, 4]


def test_every_field_of_the_schema_can_be_set():
    known = known_keys(dataclasses.asdict(compose(["scale=tiny"])))
    for key in ("gamma", "train.steps", "train.clip_norm", "scale.models.otter.rope_theta", "tracking.tags"):
        assert key in known


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compose(["experiment=debug"])
    problems("gamma=-1")
    assert list(Path(tmp_path).iterdir()) == []


def test_a_prompt_that_is_no_text_is_refused():
    """A byte of Latin-1 comes in as half of a surrogate pair."""
    with pytest.raises(ConfigurationError, match="prompt holds bytes that are not UTF-8") as refused:
        compose(["job=generate", "prompt=caf\udce9"])
    assert str(refused.value).isascii()


def test_a_prompt_is_taken_as_it_stands():
    text = "a = {1: '${x}'}, [\n"
    assert compose(["job=generate", f"prompt={text}"]).prompt == text
    answers = [compose(["job=generate", f"prompt={each}"]) for each in (text, "another")]
    assert configuration_hash(answers[0]) == configuration_hash(answers[1])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("name=" + "a" * 300, "name='aaa.*' has a name of 300 bytes, and files have names of at most 255"),
        ("runs_dir=" + "b/" * 2100, "runs_dir='b/b.*' is a path of 4200 bytes, and may have at most 4095"),
        ("tracking.tags=[ok,'']", r"tracking\.tags\[1\]='' must have 1 to 64 characters, and has 0"),
        ("tracking.tags=[" + "t" * 65 + "]", r"tracking\.tags\[0\]='ttt.*must have 1 to 64 characters, and has 65"),
        ("tracking.project=a/b", "tracking.project='a/b' must be without /"),
        ("model.name=" + "m" * 65, "model.name='mmm.*must have 1 to 64 characters, and has 65"),
        ("train.name=a/b", "train.name='a/b' must be usable in the name of a directory"),
        ("data.prompts=[~nobody-here/a.txt]", r"data.prompts\[0\]='~nobody-here/a.txt' begins with ~nobody-here"),
        ("name=caf\udce9", r"'name=caf\\udce9' holds bytes that are not UTF-8"),
    ],
)
def test_what_no_disk_or_tracker_takes_is_refused_before_anything_is_written(word, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        compose(["experiment=debug", word])
    assert len(str(refused.value)) < 500


def test_a_tilde_needs_no_quotes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("texts", "a.txt", "b~1 c.txt"):
        (tmp_path / name).write_text("one\n")
    found = compose(["data=text", "data.path=~/texts", "data.prompts=[~/a.txt,~/b~1 c.txt]", "runs_dir=~"])
    assert (found.data.path, found.data.prompts, found.runs_dir) == ("~/texts", ["~/a.txt", "~/b~1 c.txt"], "~")
    assert compose(["data=text", "data.path='~/texts'"]).data.path == "~/texts"
    assert expand(["data.path=~/texts,~/a.txt"]) == [["data.path='~/texts'"], ["data.path='~/a.txt'"]]
    with pytest.raises(ConfigurationError, match="a key cannot be deleted"):
        compose(["~seed"])


def test_a_prompt_is_one_point_of_a_grid_whatever_it_holds():
    words = ["prompt=one, two(", "seed=0,1"]
    assert expand(words) == [["prompt=one, two(", "seed=0"], ["prompt=one, two(", "seed=1"]]
    assert for_hydra(words) == ["++seed=0,1"]


def test_a_launcher_has_one_value_of_an_option():
    with pytest.raises(ConfigurationError, match=r"needs quotes: 'hydra.launcher.store=\"gs://bucket/a,b\"'"):
        expand(["seed=0,1", "hydra.launcher.store=gs://bucket/a,b"])


def test_prompt_files_are_checked_before_a_tokenizer_is_there(tmp_path):
    (tmp_path / "text.txt").write_text("one\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": 42}\n')
    words = ["job=speed", "experiment=debug", "data=text", f"data.path={tmp_path}/text.txt"]
    with pytest.raises(EnvironmentFailure, match=r"prompts\.jsonl:2: needs a `prompt`"):
        build(compose([*words, f"data.prompts={tmp_path}/prompts.jsonl"]))
