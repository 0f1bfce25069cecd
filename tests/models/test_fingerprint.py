"""A fingerprint that is not hashed anew in every call: each change that it must see, and those that it may miss."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import build, make_pairs, model_of

import workbench as wb
from workbench.models import fingerprint
from workbench.models.fingerprint import model_fingerprint, one_fingerprint
from workbench.models.model import every_module


def weight_of(model: Any) -> torch.nn.Parameter:
    """A matrix with many elements that are not sampled."""
    return max(model.parameters(), key=torch.numel)


def unsampled(weight: torch.Tensor) -> int:
    """The place of an element that is not looked at again."""
    return int(np.setdiff1d(np.arange(weight.numel()), fingerprint._sampled(weight.numel()).numpy())[0])


def _train(model: Any, *, everywhere: bool = False, **options: Any) -> None:
    """One step whose gradient is nonzero in a single element that is not sampled, or everywhere."""
    weight = weight_of(model)
    weight.grad = torch.full_like(weight, float(everywhere))
    weight.grad.view(-1)[unsampled(weight)] = 1.0
    torch.optim.SGD([weight], lr=0.1, **options).step()


def _write(model: Any) -> torch.Tensor:
    return weight_of(model).view(-1)[unsampled(weight_of(model)) :][:1]


def _no_grad(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return torch.no_grad()(change)


def _loaded(model: Any, **options: Any) -> None:
    module = model.original_model
    state = {name: value.clone() for name, value in module.state_dict().items()}
    for value in state.values():
        if value.numel() == weight_of(model).numel():
            value.view(-1)[unsampled(value)] += 1
    module.load_state_dict(state, **options)


def _swapped(model: Any) -> None:
    """Two parameters of equal shape change places, without a write."""
    first, second = (block.mlp.original_component.c_fc for block in model.blocks)
    first.weight, second.weight = second.weight, first.weight


SEEN: dict[str, Callable[[Any], Any]] = {
    "add_": _no_grad(lambda model: _write(model).add_(1)),
    "index": _no_grad(lambda model: weight_of(model).view(-1).__setitem__(unsampled(weight_of(model)), 7.0)),
    "copy_": _no_grad(lambda model: weight_of(model).copy_(weight_of(model) * 1.5)),
    "detach": lambda model: weight_of(model).detach().view(-1)[unsampled(weight_of(model)) :][:1].add_(1),
    "init": lambda model: torch.nn.init.normal_(weight_of(model)),
    "SGD, one by one": lambda model: _train(model, foreach=False),
    "SGD, all at once": lambda model: _train(model, foreach=True),
    "SGD, fused, all of it": lambda model: _train(model, fused=True, everywhere=True),
    "load_state_dict": _loaded,
    "load_state_dict, assigned": lambda model: _loaded(model, assign=True),
    "another precision and back": lambda model: model.to(torch.bfloat16).to(torch.float32),
    ".data, replaced": lambda model: setattr(weight_of(model), "data", _other(weight_of(model))),
    ".data, all of it": lambda model: weight_of(model).data.mul_(0.5),
    "numpy, all of it": lambda model: np.multiply(*[weight_of(model).detach().numpy()] * 2, weight_of(model).detach().numpy()),
    "swapped": _swapped,
    "a setting": lambda model: setattr(model.original_model.config, "layer_norm_epsilon", 1e-3),
}  # fmt: skip


def _other(weight: torch.Tensor) -> torch.Tensor:
    other = weight.detach().clone()
    other.view(-1)[unsampled(other)] += 1
    return other


@pytest.mark.parametrize("change", SEEN)
def test_every_change_that_torch_counts_and_every_large_one_is_seen(change):
    model = build("gpt2")
    before = model_fingerprint(model)
    assert model_fingerprint(model) == before
    SEEN[change](model)
    after = model_fingerprint(model)
    assert after != before
    # What was not hashed in full is the full hash all the same.
    assert after == model_fingerprint(model, full=True) == model_fingerprint(model)


MISSED: dict[str, Callable[[Any], Any]] = {
    ".data": lambda model: weight_of(model).data.view(-1)[unsampled(weight_of(model)) :][:1].add_(1),
    "SGD, fused": lambda model: _train(model, fused=True),
    "numpy": lambda model: weight_of(model).detach().numpy().reshape(-1).__setitem__(unsampled(weight_of(model)), 7),
}  # fmt: skip


@pytest.mark.parametrize("change", MISSED)
def test_a_few_elements_written_behind_torch_are_missed_until_all_weights_are_hashed(change):
    """What the docstring says: if this is seen one day, it may say less."""
    model = build("gpt2")
    before = model_fingerprint(model)
    MISSED[change](model)
    assert model_fingerprint(model) == before
    after = model_fingerprint(model, full=True)
    assert after != before
    assert model_fingerprint(model) == after


def test_a_store_on_disk_is_of_the_weights_as_they_are(tmp_path):
    model = build("gpt2")
    before = model_fingerprint(model)
    MISSED[".data"](model)
    store = wb.capture(model, [[1, 2, 3]], sites=["z"], path=tmp_path / "store", progress=False)
    assert store.model == model_fingerprint(model, full=True) != before


def test_within_one_call_a_full_hash_is_made_once_and_replaces_the_cheap_one(monkeypatch):
    model, hashed = build("gpt2"), []
    one_by_one = fingerprint._hashes
    monkeypatch.setattr(
        fingerprint, "_hashes", lambda weights: hashed.append(len(weights)) or one_by_one(weights)
    )
    first = model_fingerprint(model)
    with one_fingerprint():
        assert {model_fingerprint(model), model_fingerprint(model)} == {first}
        assert len(hashed) == 1
        assert {model_fingerprint(model, full=True), model_fingerprint(model, full=True)} == {first}
        assert len(hashed) == 2
    wb.capture_pairs(model, make_pairs(), progress=False)
    assert len(hashed) == 2


def test_weights_without_a_counter_are_hashed_in_full():
    with torch.inference_mode():
        model = build("gpt2")
        before = model_fingerprint(model)
        _write(model).add_(1)
        assert model_fingerprint(model) != before


def test_the_fingerprint_is_the_same_in_inference_mode_and_on_another_default_device():
    model = build("llama")
    before = model_fingerprint(model)
    with torch.inference_mode(), torch.device("meta"):
        assert model_fingerprint(model) == before
        with torch.no_grad():
            _write(model).add_(1)
        assert model_fingerprint(model) != before


def test_old_weights_are_not_kept_alive_and_their_memory_is_not_mistaken_for_others():
    model = build("gpt2")
    prints = {model_fingerprint(model)}
    for _ in range(3):
        weight = weight_of(model)
        old = fingerprint.StorageWeakRef(weight.untyped_storage())
        weight.data = _other(weight)
        gc.collect(1)  # of what was made just now; all objects of a long session take a second
        assert old.expired()
        prints.add(model_fingerprint(model))
    assert len(prints) == 4


def test_sampled_elements_are_spread_over_a_matrix():
    for rows, columns in ((64, 64), (576, 1536), (50_000, 768)):
        places = fingerprint._sampled(rows * columns)
        assert len(places) == len(set(places.tolist())) == 64
        for axis in (places // columns, places % columns):
            assert len(axis.unique()) > 32
    assert fingerprint._sampled(3).tolist() == [0, 1, 2]


def test_stores_and_results_keep_the_fingerprint_of_all_weights():
    """The cheap check decides only whether the hash of all weights still holds: what is kept is that hash."""
    model = model_of("gpt2")
    expected = model_fingerprint(model, full=True)
    clean, _ = wb.capture_pairs(model, make_pairs(), progress=False)
    scores = wb.score_edges(model, make_pairs(), value=wb.zero(), progress=False)
    assert clean.model == scores.attrs["model_fingerprint"] == expected
    assert model_fingerprint(model) == expected


def test_every_module_is_found_once():
    model = model_of("llama")
    found = list(every_module(model))
    assert len(found) == len({id(module) for module in found})
    assert {id(module) for module in found} == {id(module) for module in model.modules()}
