"""A probe that decodes and is used, told apart from one that decodes and is not: on a planted model, where both are known."""

import numpy as np
import pytest
import torch
from closeness import close
from families import untyped

import workbench as wb
from workbench.errors import ProbeError, StoreError, UnknownName


@pytest.fixture(scope="module")
def planted():
    """The planted induction model: a decoy holds what the true head holds, and nothing reads it."""
    made = wb.planted("induction", n=120)
    pairs = wb.planted_pairs(made)
    return made, pairs, wb.capture_pairs(made.model, pairs)


def probed(planted, layer, head):
    """Probes on one head for which word is the answer (several classes) and whether it is one of the first five."""
    made, pairs, (clean, _) = planted
    answers = pairs.answers[:, 0, 0].tolist()
    labels = wb.Labels.per_prompt(
        clean, {"answer": [f"w{a}" for a in answers], "low": [a < 6 for a in answers]}
    )
    width = wb.Shape.of(made.model).d_head
    given = {("z", layer): list(range(head * width, (head + 1) * width))}
    how = {"k": [width], "selectors": ["given"], "given": given, "controls": []}
    return wb.fit_probes(clean, labels, sites=["z"], layers=[layer], **how)


def test_the_true_head_is_used_and_the_decoy_that_decodes_as_well_is_not(planted):
    made, pairs, stores = planted
    (true,) = [str(edge).split("->")[0] for edge in made.edges["corrupt"] if str(edge).endswith("logits")]
    layer, head = map(int, true[1:].split("."))
    verdicts = {}
    for other in range(wb.Shape.of(made.model).n_heads):
        probes = probed(planted, layer, other)
        checked = wb.causal_check(probes, made.model, pairs, concept="answer", kind="z", stores=stores).isel(
            layer=0
        )
        verdicts[other] = checked
    decoding = [h for h, checked in verdicts.items() if float(checked["accuracy"]) > 0.99]
    assert head in decoding
    assert len(decoding) == 2, "a decoy decodes as well as the true head"
    for h, checked in verdicts.items():
        assert checked["used"].values.tolist() == ([1.0, 1.0] if h == head else [0.0, 0.0]), h
    true_one, decoy = verdicts[head], verdicts[next(h for h in decoding if h != head)]
    total = true_one.attrs["total"]
    assert float(true_one["effect"].sel(edit="swap")) == pytest.approx(total, rel=0.02)
    assert float(true_one["whole"]) == pytest.approx(total, rel=0.01)
    assert abs(float(decoy["whole"])) < 1e-4
    assert abs(decoy["effect"].values).max() < 1e-4


def test_an_edit_is_the_projection_done_by_hand(planted):
    made, pairs, (clean, corrupt) = planted
    probes = probed(planted, 1, 2)
    checked = wb.causal_check(probes, made.model, pairs, concept="low", kind="z", stores=(clean, corrupt))
    direction = probes.direction("low", layer=1)[2]
    for edit, value in (("erase", wb.mean(clean, per="pos")), ("swap", wb.from_store(corrupt))):
        effect = wb.effects(made.model, pairs, sites=["z[1.2]@END"], value=wb.project(direction, value))
        scale = abs(float(checked.attrs["total"]))
        ours = float(checked["effect"].sel(layer=1, edit=edit))
        assert close(ours, float(effect.mean()), tolerance=1e-5, scale=scale)
    # the picture says what changes, and in what
    assert wb.plot(checked).axes[0].get_ylabel() == "change of logit_diff (logits)"


def test_in_these_prompts_number_decodes_in_both_layers_and_is_used_in_the_last():
    model = wb.load_model("tiny")
    pairs = wb.load_task("agreement", model, n=32)
    stores = wb.capture_pairs(model, pairs, sites=["resid_post"])
    words = [model.tokenizer.decode([int(a)]).strip() for a in pairs.answers[:, 0, 0]]
    labels = wb.Labels.per_prompt(stores[0], {"plural": [word in ("are", "were") for word in words]})
    probes = wb.fit_probes(
        stores[0], labels, k=[8], layers=[1, 3], controls=[], baselines=["mass-mean"], resampled=20
    )
    checked = wb.causal_check(
        probes,
        model,
        pairs,
        concept="plural",
        kind="resid_post",
        stores=stores,
        baseline="mass-mean",
        n_random=19,
        layers=[1, 3],
    )
    assert (checked["accuracy"] > 0.9).all()
    assert checked["used"].sel(edit="swap").values.tolist() == [0, 1]
    assert float(checked["p"].sel(layer=3, edit="swap")) == pytest.approx(1 / 20)


def test_what_cannot_be_checked_is_refused(planted):
    made, pairs, stores = planted
    probes = probed(planted, 1, 2)
    how = {"concept": "low", "kind": "z", "stores": stores}
    wrong = [
        ({"concept": "lower"}, UnknownName, "concept='lower' is not known"),
        ({"kind": "resid_post"}, ProbeError, "causal_check: the probes are of z, not of resid_post"),
        ({"n_random": 3}, ProbeError, "3 random directions cannot show p <= 0.05: n_random=19 or more can"),
        ({"k": 3}, UnknownName, "k=3 is not known"),
    ]
    for given, kind, message in wrong:
        with pytest.raises(kind, match=message):
            untyped(wb.causal_check)(probes, made.model, pairs, **(how | given))
    labels = wb.Labels.per_prompt(stores[0], {"low": [a < 6 for a in pairs.answers[:, 0, 0].tolist()]})
    several = wb.fit_probes(stores[0], labels, sites=["z"], layers=[1], k=[40], controls=[])
    with pytest.raises(ProbeError, match=r"reads heads \[0, 1, 2\]"):
        wb.causal_check(several, made.model, pairs, **how)
    streams = wb.fit_probes(stores[0], labels, sites=["resid_post"], layers=[1], k=[4], controls=[])
    bare = wb.capture_pairs(made.model, pairs, sites=["z"])
    with pytest.raises(StoreError, match="does not hold resid_post"):
        wb.causal_check(streams, made.model, pairs, concept="low", kind="resid_post", stores=bare)


def test_activations_that_are_the_same_everywhere_hold_nothing(planted):
    made, pairs, (clean, corrupt) = planted
    flat = wb.ActivationStore.of(
        clean.prompts, {("resid_post", 0): torch.ones_like(clean["resid_post", 0].packed)},
        model=clean.model, model_name=clean.model_name, tokenizer=clean.tokenizer,
    )  # fmt: skip
    labels = wb.Labels.per_prompt(clean, {"low": [a < 6 for a in pairs.answers[:, 0, 0].tolist()]})
    probes = wb.fit_probes(clean, labels, sites=["resid_post"], layers=[0], k=[4], controls=[])
    with pytest.raises(ProbeError, match="the same in every prompt"):
        wb.causal_check(probes, made.model, pairs, concept="low", kind="resid_post", stores=(flat, corrupt))
    assert np.isfinite(probes.results["accuracy"].values).all()


@pytest.mark.slow
def test_labels_that_mean_nothing_are_seldom_called_used():
    """Permuted labels: a direction of noise passes no more often than the level says."""
    model = wb.load_model("tiny")
    pairs = wb.load_task("agreement", model, n=24)
    stores = wb.capture_pairs(model, pairs, sites=["resid_post"])
    used = []
    for seed in range(10):
        noise = np.random.default_rng(seed).permutation(np.arange(24) % 2 == 0)
        labels = wb.Labels.per_prompt(stores[0], {"noise": noise.tolist()})
        probes = wb.fit_probes(
            stores[0], labels, k=[8], layers=[3], controls=[], baselines=["mass-mean"], resampled=0, seed=seed
        )
        checked = wb.causal_check(
            probes,
            model,
            pairs,
            concept="noise",
            kind="resid_post",
            stores=stores,
            baseline="mass-mean",
            n_random=19,
            seed=seed,
        )
        used += checked["used"].values.ravel().tolist()
    assert np.mean(used) <= 0.2
