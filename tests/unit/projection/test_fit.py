"""Training learns what a linear map cannot, goes on bit-equal after a stop, and retrieval is what its names say."""

import json

import numpy as np
import pytest
import torch

from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Projection
from ucotron_ray.projection import fit, model, pairs, retrieval
from ucotron_ray.projection.descriptions import Description
from ucotron_ray.projection.job import FitJob

SETTINGS = config.load().recipe.projection.model_dump() | {
    "hidden_dim": 64,
    "batch_size": 64,
    "epochs": 6,
    "learning_rate": 3e-3,
    "noise": 0.05,
    "patience": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """600 pairs on a curved surface of few dimensions, in a narrow cone as CLIP's vectors are."""
    directory = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(5)
    hidden = random.standard_normal((600, 6)).astype(np.float32)
    clip = retrieval.unit(hidden @ random.standard_normal((6, 512)).astype(np.float32) * 0.1 + 1)
    minilm = retrieval.unit(np.abs(hidden @ random.standard_normal((6, 384)).astype(np.float32)) - 1)
    pairs.write_shard(pairs.shard_path(directory, 0), [Description(f"number {i}") for i in range(600)], clip, minilm)
    return directory


def job(data, directory, **changes) -> FitJob:
    directory.mkdir(parents=True, exist_ok=True)
    return FitJob(str(data), str(directory), SETTINGS | changes, {"clip": "a", "text": "b"}, 1)


def weights(directory) -> dict[str, torch.Tensor]:
    return model.load(directory)[0].state_dict()


def quiet(metrics) -> None:
    pass


def test_the_layer_learns_what_a_linear_map_cannot(data, tmp_path):
    reported = []
    figures = fit.fit(job(data, tmp_path, epochs=25), reported.append)
    layer, layer_config = model.load(tmp_path)
    loaded = pairs.load(data)
    parts = pairs.split(loaded.keys, seed=SETTINGS["seed"], val=0.1, test=0.1)
    x, y = loaded.clip[parts["val"]], loaded.minilm[parts["val"]]
    with torch.inference_mode():
        loss = retrieval.cosine_loss(layer(torch.from_numpy(x)).numpy(), y)
    # What is saved is the best epoch, for vectors as they come: whitening is inside of the first layer.
    assert loss == pytest.approx(figures["best_val_loss"], abs=1e-5)
    assert figures["best_val_loss"] == min(entry["val_loss"] for entry in reported)
    linear = retrieval.cosine_loss(retrieval.linear_map(loaded, parts)(x), y)
    assert loss < 0.6 * linear
    assert layer_config.split == {"seed": 42, "val": 0.1, "test": 0.1}
    assert layer_config.encoders == {"clip": "a", "text": "b"}
    record = json.loads((tmp_path / fit.RECORD).read_text())
    assert record["counts"] == pairs.counts(parts)


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_stopped_training_goes_on_bit_equal(data, tmp_path, stop_after):
    straight = fit.fit(job(data, tmp_path / "straight"), quiet)

    class Killed(Exception):
        pass

    def kill(metrics) -> None:
        if metrics["epoch"] == stop_after:
            raise Killed

    with pytest.raises(Killed):
        fit.fit(job(data, tmp_path / "resumed"), kill)
    torch.manual_seed(99)
    epochs = []
    resumed = fit.fit(job(data, tmp_path / "resumed"), lambda metrics: epochs.append(metrics["epoch"]))
    assert epochs == list(range(stop_after + 1, 7))
    differ = [key for key in straight if straight[key] != resumed[key] and key != "seconds_training"]
    assert not differ
    ours, theirs = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_best_layer_so_far_lies_there_when_an_epoch_is_told(data, tmp_path):
    """A sweep may end its trial there and keep its layer."""
    whole = fit.fit(job(data, tmp_path / "whole", epochs=3), quiet)

    class Ended(BaseException):
        pass

    def end(metrics) -> None:
        if metrics["epoch"] == 3:
            raise Ended

    with pytest.raises(Ended):
        fit.fit(job(data, tmp_path / "ended", epochs=3), end)
    assert whole["best_epoch"] == 3
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "ended")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _share(rank: int, world: int, training: FitJob, meeting: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    fit.fit(training, quiet)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_same_layer_as_one(data, tmp_path):
    plain = {"dropout": 0.0, "noise": 0.0}
    one = fit.fit(job(data, tmp_path / "one", **plain), quiet)
    torch.multiprocessing.spawn(_share, (2, job(data, tmp_path / "two", **plain), str(tmp_path / "meeting")), nprocs=2)
    two = json.loads((tmp_path / "two" / fit.RECORD).read_text())
    assert two["step"] == one["steps"]
    assert two["best_loss"] == pytest.approx(one["best_val_loss"], abs=1e-5)
    # The same loss over all rows, not over one worker's share.
    assert two["history"][-1]["train_loss"] == pytest.approx(one["train_loss_last"], abs=1e-5)


def test_a_torn_checkpoint_is_passed_over(data, tmp_path):
    expected = fit.fit(job(data, tmp_path / "straight", epochs=2), quiet)
    (tmp_path / "torn").mkdir()
    whole = (tmp_path / "straight" / fit.CHECKPOINT).read_bytes()
    (tmp_path / "torn" / fit.CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    figures = fit.fit(job(data, tmp_path / "torn", epochs=2), quiet)
    assert figures["best_val_loss"] == expected["best_val_loss"]


def test_training_stops_when_validation_does_not_get_better(data, tmp_path):
    figures = fit.fit(job(data, tmp_path, epochs=50, learning_rate=1.0, lr_scheduler="constant", patience=2), quiet)
    assert figures["epochs"] == figures["best_epoch"] + 2 < 50


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = Projection.model_validate(SETTINGS | {"learning_rate": 1.0, "warmup_ratio": 0.1})
    rates = [fit.learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    constant = settings.model_copy(update={"lr_scheduler": "constant"})
    assert {fit.learning_rate(step, 100, constant) for step in range(100)} == {1.0}


def test_whitening_evens_strong_directions_out_and_leaves_weak_ones_weak():
    random = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(512, 512, generator=random))[0]
    deviations = torch.tensor([8.0, 4.0, 2.0] + [0.01] * 509)
    x = torch.randn(4000, 512, generator=random) * deviations @ rotation + 7
    mean, whitening = fit.whitened(x, 0.0)
    made = (x - mean) @ whitening @ rotation.T
    assert float(made.mean(0).abs().max()) < 1e-4
    assert made.std(0)[:3].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.05)
    assert float(made.std(0)[3:].max()) < 0.05
    # Noise in training makes every direction one in which vectors differ.
    noisy = (x + torch.randn(4000, 512, generator=random) * 100 / 512**0.5 - mean) @ fit.whitened(x, 100.0)[1]
    assert float(noisy.std(0).max()) < 1.1
    assert torch.isfinite(fit.whitened(torch.zeros(100, 512), 0.0)[1]).all()


def test_noise_has_its_length_and_leaves_unit_vectors():
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(2000, 512), dim=-1)
    moved = fit._noisy(x, 0.5)
    assert torch.allclose(moved.norm(dim=-1), torch.ones(2000), atol=1e-5)
    # Nearly at a right angle to x, as any random vector of 512 dimensions: cos = 1 / sqrt(1 + 0.5²).
    assert float((x * moved).sum(-1).mean()) == pytest.approx(1 / 1.25**0.5, abs=5e-3)
    assert fit._noisy(x, 0.0) is x


def test_too_few_pairs_and_an_uneven_batch_are_said(data, tmp_path):
    with pytest.raises(InputError, match="no pairs to train on"):
        fit.fit(job(tmp_path / "nothing", tmp_path / "a"), quiet)
    few = pairs.Pairs(["one", "two"], np.ones((2, 512), np.float32), np.ones((2, 384), np.float32))
    with pytest.raises(InputError, match="too few pairs to score"):
        retrieval.evaluate(few, lambda rows: rows, {"seed": 1, "val": 0.1, "test": 0.1}, 0.1)


def test_ranks_count_those_that_are_as_similar_as_before():
    targets = retrieval.unit(np.random.default_rng(0).standard_normal((1300, 8)).astype(np.float32))
    assert retrieval.ranks(targets, targets).tolist() == [1] * 1300
    assert retrieval.ranking(retrieval.ranks(targets, targets))["mrr"] == 1.0
    # All queries alike: no order, so no rank but the last.
    assert set(retrieval.ranks(targets, np.ones((1300, 8), np.float32)).tolist()) == {1300}
    queries = targets.copy()
    queries[3] = targets[7]
    assert retrieval.ranks(queries, targets)[3] == (targets @ targets[7] >= targets[3] @ targets[7]).sum()
    assert retrieval.scores(targets, targets)["cosine_loss"] == pytest.approx(0, abs=1e-6)


def test_chance_is_what_random_vectors_reach():
    random = np.random.default_rng(1)
    found = [
        retrieval.ranking(retrieval.ranks(*(random.standard_normal((40, 64)).astype(np.float32) for _ in range(2))))
        for _ in range(200)
    ]
    expected = retrieval.chance(40)
    for key, value in expected.items():
        assert np.mean([entry[key] for entry in found]) == pytest.approx(value, abs=0.007), key


def test_the_linear_map_finds_a_linear_relation():
    random = np.random.default_rng(2)
    clip = retrieval.unit(random.standard_normal((900, 512)).astype(np.float32))
    minilm = retrieval.unit(clip @ random.standard_normal((512, 384)).astype(np.float32) + 3)
    data = pairs.Pairs([str(i) for i in range(900)], clip, minilm)
    parts = pairs.split(data.keys, seed=0, val=0.1, test=0.1)
    projected = retrieval.linear_map(data, parts)(clip[parts["test"]])
    assert retrieval.cosine_loss(projected, minilm[parts["test"]]) < 0.01
