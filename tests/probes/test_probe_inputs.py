"""What `fit_probes` and `neuron_maps` refuse, message by message."""

import re

import numpy as np
import pytest
from probing import labelled, store_of

from workbench.errors import NotFinite, ProbeError, StoreError, UnknownName
from workbench.probes.fit import fit_probes
from workbench.probes.fits import ProbeSettings
from workbench.probes.neurons import neuron_maps

X = np.random.default_rng(0).normal(size=(60, 5))
Y = (X[:, 0] > 0).tolist()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"k": [8]}, ProbeError, "k=8 is more than the 5 features of mlp_post[0]: ask for fewer."),
        (
            {"k": [2, 1]},
            ProbeError,
            "k=[2, 1]: give increasing numbers of features from 1 up, as in [1, 2, 4, 8].",
        ),
        (
            {"selectors": ["welsh"]},
            UnknownName,
            "selectors='welsh' is not known. Did you mean 'welch'? "
            "Choices: add-prune, forward, l1, mean-difference, mutual-information, welch.",
        ),
        (
            {"controls": ["noise"]},
            UnknownName,
            "controls='noise' is not known. Choices: control-task, random-features, shuffle.",
        ),
        (
            {"baselines": ["mass"]},
            UnknownName,
            "baselines='mass' is not known. Did you mean 'mass-mean'? Choices: erased, logistic, mass-mean.",
        ),
        (
            {"sites": ["pattern"]},
            ProbeError,
            "pattern has no layer and token rows to probe: choose among resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, mlp_pre, mlp_post.",
        ),
        (
            {"sites": ["z"]},
            StoreError,
            "The store does not hold z[0]; it has mlp_post. Capture it with sites=[..., 'z'].",
        ),
        (
            {"selectors": ["given"], "given": {}, "k": [2]},
            ProbeError,
            "given has 0 features for mlp_post[0]; k=2 needs as many.",
        ),
        (
            {"selectors": ["given"], "given": {("mlp_post", 0): [9]}, "k": [1]},
            ProbeError,
            "given names feature 9; those of <SiteView mlp_post[0]: 60 prompts, (60, 5) torch.float64> are 0 to 4.",
        ),
        ({"pos": [3]}, ProbeError, "No labelled row lies at position 3. Label it, or leave it out of pos."),
        ({"pos": ["S2"]}, UnknownName, "position='S2' is not known. Choices: END."),
        ({"draws": 0}, ProbeError, "draws=0: a control needs at least one."),
        ({"resampled": -1}, ProbeError, "resampled=-1: how many bootstrap draws, 0 for none."),
        ({"settings": {"l2": 0.0}}, ProbeError, "l2=0.0: a positive penalty is needed, as in 0.01."),
        (
            {"settings": {"multiclass": "ovr"}},
            UnknownName,
            "multiclass='ovr' is not known. Choices: one-vs-rest, softmax.",
        ),
        ({"settings": {"max_iter": 0}}, ProbeError, "max_iter=0: at least one step is needed."),
    ],
)
def test_fit_probes_refuses(given, error, message):
    store, labels = labelled([X], {"c": Y})

    def call():
        options = given if "settings" not in given else {"settings": ProbeSettings(**given["settings"])}
        fit_probes(store, labels, **{"k": [1]} | options)

    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_labels_of_other_prompts_and_numbers_that_are_not_finite_are_refused():
    store, labels = labelled([X], {"c": Y})
    other = store_of([X[:50]])
    for function in (fit_probes, neuron_maps):
        with pytest.raises(
            ProbeError,
            match=r"^The labels are of other prompts than the store's: make them with this store\.$",
        ):
            function(other, labels)
    store, labels = labelled([np.where(X > 2, np.nan, X)], {"c": Y})
    message = r"holds numbers that are not finite \([\d,]+ are NaN\)\. No probe can be fitted to them\.$"
    with pytest.raises(NotFinite, match=message):
        fit_probes(store, labels, k=[1])


def test_a_budget_that_cannot_hold_one_probe_is_refused():
    store, labels = labelled([np.zeros((6000, 3))], {"c": [0, 1] * 3000})
    with pytest.raises(
        ProbeError,
        match=r"^A probe of 3 features and 6000 rows takes \d+ MiB, more than budget=262144 leaves\.",
    ):
        fit_probes(store, labels, k=[3], budget=2**18)


def test_a_direction_needs_one_cell():
    store, labels = labelled([X, X], {"c": Y})
    probes = fit_probes(store, labels, k=[1, 2], controls=[])
    with pytest.raises(ProbeError, match=r"^Which layer\? There are 0, 1: give layer=\.$"):
        probes.direction("c", k=1)
    with pytest.raises(UnknownName, match=r"^layer=7 is not known\. Choices: 0, 1\.$"):
        probes.direction("c", k=1, layer=7)
    with pytest.raises(UnknownName, match=r"^concept='d' is not known\. Choices: c\.$"):
        probes.direction("d", k=1, layer=1)
    with pytest.raises(UnknownName, match=r"^axis='head' is not known\. "):
        probes.direction("c", k=1, layer=1, head=2)


def test_neuron_maps_refuse_numbers_and_kinds_that_are_not_there():
    store, labels = labelled([X], {"c": X[:, 0].tolist()})
    message = "Concept 'c' is a number: neuron maps tell classes apart. Use fit_probes, or turn the number into classes."
    with pytest.raises(ProbeError, match=f"^{re.escape(message)}$"):
        neuron_maps(store, labels)
    store, labels = labelled([X], {"c": Y})
    message = "neuron_maps needs z; the store holds mlp_post. Capture it with sites=[..., 'z']."
    with pytest.raises(StoreError, match=f"^{re.escape(message)}$"):
        neuron_maps(store, labels, kind="z")
