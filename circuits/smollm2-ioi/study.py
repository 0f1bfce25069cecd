"""Indirect objects in a real language model: which name is not repeated.

`python circuits/smollm2-ioi/study.py [--model smollm2-135m-instruct-q4] [--out DIR] [--check]`

Rules, account and predictions were written from training prompts, before a held-out prompt was run.
"""

from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from workbench.discovery.criteria import Criteria
from workbench.experiment import PairsInModel
from workbench.lenses.head_scores import attention_to
from workbench.studies.circuit_experiment import CircuitExperiment, outputs
from workbench.studies.command import main
from workbench.studies.prediction import Prediction, Role
from workbench.studies.study import Study

MODEL = "smollm2-135m-instruct-q4"
S2_TO_S1 = "from S2 to S1"


def columns(pairs: PairsInModel) -> Mapping[str, xr.DataArray]:
    """What the rule of duplicate token heads reads."""
    table = attention_to(pairs.clean, ["S1"], query="S2").sel(key_pos="S1")
    return {S2_TO_S1: CircuitExperiment.by_head(table)}


def tests(experiment: CircuitExperiment) -> list[Prediction]:
    training = experiment.training
    suppressors, movers = training.of_role("suppressor"), training.of_role("name mover")
    inhibiting = training.of_role("S-inhibition")
    suppressed = float(training.swapped(outputs(suppressors)).mean())
    moved = float(training.swapped(outputs(movers)).mean())
    inhibited = float(training.swapped(outputs(inhibiting)).mean())
    in_corrupt = training.by_head(attention_to(training.corrupt, ["IO"]).sel(key_pos="IO"))
    attention = float(in_corrupt.sel(component=movers).mean())
    return [
        Prediction(
            "suppressor to IO",
            "The suppressor lowers the logit of whichever name it attends to. Made to attend from END to "
            "IO instead of S2, it changes the metric as much as the corrupt run's output does, which was "
            "computed with that name at S2.",
            predicted=suppressed,
            edit=lambda: experiment.change(experiment.attending(suppressors, to="IO", instead_of="S2")),
        ),
        Prediction(
            "only the values at S2",
            "The suppressor attends to S2 in both runs: they differ in the value that it reads there.",
            predicted=suppressed,
            edit=lambda: experiment.swapped(experiment.values_at(suppressors, "S2")),
        ),
        Prediction(
            "name movers to S1",
            "Name movers copy the name that they attend to. Made to attend to S1 instead of IO, they "
            "change the metric as much as their outputs of the corrupt run do, in which the name at S1 is "
            "not repeated.",
            predicted=moved,
            edit=lambda: experiment.change(experiment.attending(movers, to="S1", instead_of="IO")),
        ),
        Prediction(
            "name movers follow S-inhibition",
            "S-inhibition heads tell the name movers which name is repeated: with their outputs of the "
            "corrupt run, the name movers attend to IO as little as in the corrupt run (a share of "
            "attention, not logits).",
            predicted=attention,
            edit=lambda: experiment.attention(movers, "IO", experiment.corrupted(inhibiting)),
        ),
        Prediction(
            "S2 a third name",
            "With a third name at S2 neither name is repeated, so the outputs of the S-inhibition heads "
            "lose half of what they lose with the other name.",
            predicted=inhibited / 2,
            edit=lambda: experiment.swapped(outputs(inhibiting), pairs=experiment.pairs.against("abc")),
        ),
    ]


STUDY = Study(
    task="ioi",
    title="Indirect objects",
    account="IO is the name that comes once; S1 and S2 are the two places of the other name, and END is the "
    "last token. The repeated name is noticed at S2: induction heads attend from there to the token after "
    "S1, and duplicate token heads to S1 itself. S-inhibition heads bring this to END. There a suppressor "
    "attends to S2 and lowers that name, name movers attend to IO and raise it, and a negative name mover "
    "attends to IO and lowers it.",
    roles=[
        Role("name mover", at_least={"IO": 0.3, "copying": 0.1, "direct": 0.1}),
        Role("negative name mover", at_least={"IO": 0.3}, at_most={"copying": -0.1, "direct": -0.1}),
        Role("suppressor", at_least={"S2": 0.3, "direct": 0.1}, at_most={"copying": -0.1}),
        Role(
            "S-inhibition", at_least={"S2": 0.25, "copying": -0.1}, at_most={"direct": 0.1, "swapped": -0.5}
        ),
        Role("induction", at_least={"induction": 0.3}),
        Role("duplicate token", at_least={S2_TO_S1: 0.3}, at_most={"swapped abc": -0.1}),
        Role("previous token", at_least={"previous": 0.4}),
    ],
    tests=tests,
    traced_role="name mover",
    limits=[
        "Why one suppressor makes more of the difference than the name movers together, where the published "
        "circuit of GPT-2 small has no such head.",
        "What the induction head reads: heads that attend to the token before (a11.1, a16.0) change the "
        "metric too little, one by one, to be among those above.",
        "What the MLPs do: the circuit has nearly all of them, and no rule here says anything about one.",
        "Heads without a role that change the metric much: a29.0 and a29.1, which attend from END to no "
        "named position, a24.5 and a24.7.",
        "What duplicate token heads do together: each alone changes the metric little. Against *swap* they "
        "could hardly show, because there a name is still repeated at S2; *abc* is what shows them.",
        "Backup name movers, of which the published circuit has eight: whether heads take over where name "
        "movers are knocked out was not tested.",
        "Why these two names and no other word: both prompts share this, so no edge carries it.",
    ],
    n=64,
    reference="ioi",
    model=MODEL,
    bos=False,
    criteria=Criteria(),
    columns=columns,
)

if __name__ == "__main__":
    main(STUDY, Path(__file__).parent)
