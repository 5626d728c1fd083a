"""A frozen primary's states on disk: the same training as with the primary beside it, and exact resumption."""

import jax
import numpy as np
import pytest
from drafter_heads import SIZES
from flax import nnx

from launch.compose import compose
from launch.models import build_models
from tandem.architecture import DecoderConfig
from tandem.data.iterator import first_windows
from tandem.data.packing import most_frequent
from tandem.errors import EnvironmentFailure, Interrupted
from tandem.model.bound import Bound
from tandem.model.copying import SHARED_NAMES, take_layers
from tandem.model.decoder import Decoder
from tandem.model.heads import HeadModule
from tandem.model.tandem import Tandem
from tandem.training.objective import Vocabulary, decoder_loss, head_loss, held_part, holding, tandem_loss
from tandem.training.recording import Recording, record

pytestmark = pytest.mark.usefixtures("quick_compilation")

PRIMARY = DecoderConfig(num_layers=4, d_model=32, num_heads=4, num_kv_heads=2, d_ff=48, vocab_size=64)


@pytest.fixture(scope="module")
def primary():
    return Bound(*nnx.split(Decoder(PRIMARY, rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def windows():
    return np.random.default_rng(0).integers(0, 64, (11, 17)).astype(np.int32)


def tandem_of(primary, layers=(0, 3), layer_map=(0, 3)):
    config, taken = take_layers(primary, layers)
    model = Tandem(PRIMARY, config, layer_map, rngs=nnx.Rngs(1))
    nnx.update(model.secondary, taken.weights)
    return nnx.split(model)


def test_what_is_recorded_trains_as_the_primary_beside_it(primary, windows, tmp_path):
    record(tmp_path, primary, windows, [0, 3, 4], batch_size=4)
    batch = Recording([tmp_path], 3, 0, [0, 3, 4])(2)
    assert set(batch["states"]) == {3, 4}
    graph, weights = tandem_of(primary)
    vocabulary = Vocabulary.most_frequent(windows, 20, 64)
    for loss in (
        tandem_loss(graph, primary[0], distil_weight=0.5, gammas=[2, 3]),
        tandem_loss(graph, primary[0], distil_weight=0.5, vocabulary=vocabulary),
        tandem_loss(graph, primary[0]),
    ):
        value = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (one, _), slope = value(weights, primary[1], batch, jax.random.key(0))
        (other, _), live = value(weights, primary[1], batch["tokens"], jax.random.key(0))
        np.testing.assert_allclose(one, other, rtol=2e-3)  # states are kept in bfloat16
        leaves = zip(jax.tree.leaves(slope), jax.tree.leaves(live), strict=True)
        assert all(np.linalg.norm(a - b) <= 0.05 * np.linalg.norm(b) + 1e-4 for a, b in leaves)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "eagle")) for kind in SIZES])
def test_a_head_learns_from_what_is_recorded_too(kind, primary, windows, tmp_path):
    head = nnx.split(HeadModule(SIZES[kind], PRIMARY, rngs=nnx.Rngs(2)))
    reads = (*SIZES[kind].reads(PRIMARY), PRIMARY.num_layers)
    record(tmp_path, primary, windows, reads, batch_size=4)
    batch = Recording([tmp_path], 3, 0, reads)(0)
    vocabulary = Vocabulary.most_frequent(windows, 20, 64)
    loss = head_loss(head[0], primary[0], distil_weight=0.5, vocabulary=vocabulary)
    by_loss = jax.jit(loss)
    one, other = (by_loss(head[1], primary[1], of, jax.random.key(0))[0] for of in (batch, batch["tokens"]))
    np.testing.assert_allclose(one, other, rtol=2e-3)
    by_whole_loss = jax.jit(head_loss(head[0], primary[0], distil_weight=0.5))
    everything = by_whole_loss(head[1], primary[1], batch, jax.random.key(0))[0]
    assert abs(one - everything) > 0.05


def test_windows_begin_where_documents_of_their_length_do(windows):
    text = np.arange(4 * 16)  # four documents of 16
    np.testing.assert_array_equal(first_windows(text, 99, 16)[:, 0], [0, 16, 32])
    np.testing.assert_array_equal(first_windows(text, 2, 16), [np.arange(17), np.arange(16, 33)])


def test_every_epoch_visits_every_window_once(primary, windows, tmp_path):
    record(tmp_path, primary, windows, [4], batch_size=4)
    read = Recording([tmp_path], 11, 3, [4])
    first, second = (read(step)["tokens"] for step in (0, 1))
    assert sorted(map(tuple, first)) == sorted(map(tuple, second)) == sorted(map(tuple, windows))
    assert not np.array_equal(first, second)


def test_a_recording_that_was_stopped_goes_on(primary, windows, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    record(whole, primary, windows, [2, 4], batch_size=2)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise Interrupted(f"{done} of {total} windows")

    with pytest.raises(Interrupted, match="4 of 11 windows"):
        record(parts, primary, windows, [2, 4], batch_size=2, progress=stop)
    record(parts, primary, windows, [2, 4], batch_size=2)
    for name in ("states.2.bin", "states.4.bin"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_a_recording_without_a_state_is_refused(primary, windows, tmp_path):
    record(tmp_path, primary, windows, [4])
    with pytest.raises(EnvironmentFailure, match="no states after layer 2, 3 beside it; remove"):
        Recording([tmp_path], 2, 0, [2, 3, 4])
    (tmp_path / "states.4.bin").unlink()
    with pytest.raises(EnvironmentFailure, match="its states cannot be read"):
        Recording([tmp_path], 2, 0, [4])


def test_states_that_lie_in_two_folders_are_as_if_they_were_in_one(primary, windows, tmp_path):
    for name, reads in (("whole", [1, 3, 4]), ("last", [4]), ("own", [1, 3])):
        record(tmp_path / name, primary, windows, reads)
    whole = Recording([tmp_path / "whole"], 3, 0, [0, 1, 4])(1)
    parts = Recording([tmp_path / "last", tmp_path / "own"], 3, 0, [0, 1, 4])(1)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_a_control_hangs_on_nothing_that_only_its_tandem_reads():
    words = ["scale=tiny", "use_shipped=false", "train.recorded_tokens=4096"]
    made = [build_models(compose([*words, f"model.layer_map={layers}"])) for layers in ("[1,2]", "[2,2]")]
    names = {name: {models[name].step.fingerprint for models in made} for name in made[0]}
    assert [name for name, found in names.items() if len(found) > 1] == ["tandem_ce", "tandem_distil"]


def test_what_is_held_gets_no_gradient_and_the_loss_is_the_same(primary, windows):
    config, (graph, weights) = take_layers(primary, [0, 3])
    assert config.num_layers == 2
    trained, held = held_part(weights, SHARED_NAMES)
    assert len(jax.tree.leaves(held)) == 1
    loss = holding(decoder_loss(graph))
    (value, _), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        trained, {"held": held, "rest": None}, windows, jax.random.key(0)
    )
    whole, _ = jax.jit(decoder_loss(graph))(weights, None, windows, jax.random.key(0))
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    assert jax.tree.structure(slope) == jax.tree.structure(trained)


def test_all_layers_of_the_primary_are_the_primary(primary, windows):
    _, taken = take_layers(primary, range(4))
    np.testing.assert_array_equal(nnx.merge(*taken)(windows), nnx.merge(*primary)(windows))


def test_a_vocabulary_is_the_most_frequent_tokens_and_the_loss_a_law_over_them(primary, windows):
    tokens = np.array([5, 5, 5, 2, 2, 9, 1])
    np.testing.assert_array_equal(most_frequent(tokens, 3, 12), [1, 2, 5])
    vocabulary = Vocabulary.most_frequent(windows, 20, 64)
    graph, weights = primary
    value, _ = decoder_loss(graph, vocabulary=vocabulary)(weights, None, windows, jax.random.key(0))
    logits = np.asarray(nnx.merge(graph, weights)(windows[:, :-1]))[..., np.asarray(vocabulary.kept)]
    law = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    place = {int(token): index for index, token in enumerate(vocabulary.kept)}
    own = [-law[b, t, place[target]] for (b, t), target in np.ndenumerate(windows[:, 1:]) if target in place]
    np.testing.assert_allclose(value, np.mean(own), rtol=1e-5)
