"""Values by name: every spelling, what each name makes, and what is refused before anything is captured."""

import pytest
from families import make_pairs, model_of

from workbench.engine.capture import capture_pairs
from workbench.engine.named_values import NAMES, canonical_name, key_name, make_value
from workbench.engine.store_values import FromStore, Mean, Resample
from workbench.engine.values import Constant, Scale, Zero, zero
from workbench.errors import EditError, UnknownName
from workbench.names import SIDES, VALUES

NEED_NO_STORE = ("zero", "optimal", "constant:2", "scale:-0.5")


def no_stores(side):
    raise AssertionError("this value needs no activations, so none may be captured")


@pytest.mark.parametrize(("base", "other"), [("clean", "corrupt"), ("corrupt", "clean")])
def test_the_side_that_is_not_the_base_has_four_spellings_and_one_name(base, other):
    for spelling in (None, "other", "from_store", other):
        assert canonical_name(spelling, base=base) == other, spelling
        assert key_name(spelling, base=base) == "other", spelling


def test_all_other_names_are_their_own_canonical_name_and_key():
    for name in ("mean", "resample", *NEED_NO_STORE):
        assert canonical_name(name) == key_name(name) == canonical_name(name, base="corrupt") == name


def test_every_name_has_a_meaning():
    assert tuple(VALUES) == NAMES


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_each_name_makes_its_value_of_the_right_run(base):
    stores = capture_pairs(model_of("gpt2"), make_pairs((4, 4)), progress=False)
    own, other = stores if base == "clean" else stores[::-1]

    def made(name):
        return make_value(
            name, base=base, store_of=lambda side: stores[SIDES.index(side)], seed=7, optimal=zero
        )

    assert isinstance(made(None), FromStore)
    assert made(None).store is other
    assert made("other").store is other
    assert made("corrupt" if base == "clean" else "clean").store is other
    assert isinstance(made("mean"), Mean)
    assert (made("mean").store, made("mean").per) == (own, "dataset")
    assert isinstance(made("resample"), Resample)
    assert (made("resample").store, made("resample").seed) == (own, 7)


def test_stores_are_captured_only_for_values_that_need_them():
    made = {name: make_value(name, store_of=no_stores, optimal=zero) for name in NEED_NO_STORE}
    assert isinstance(made["zero"], Zero)
    assert isinstance(made["optimal"], Zero)
    assert isinstance(made["constant:2"], Constant)
    assert made["constant:2"].content == 2.0
    assert isinstance(made["scale:-0.5"], Scale)
    assert made["scale:-0.5"].factor == -0.5


def test_the_base_is_not_its_own_value():
    with pytest.raises(EditError) as error:
        canonical_name("clean", choices=("clean", "corrupt", "zero", "mean"))
    assert str(error.value) == (
        "value='clean' is the run that is edited (base='clean'), so writing it would change nothing. "
        "Choices: corrupt, zero, mean."
    )
    with pytest.raises(EditError, match=r"^values='corrupt' is the run .* Choices: clean, zero, mean, "):
        canonical_name("corrupt", base="corrupt", argument="values")


def test_unknown_names_are_told_what_is_near_and_what_exists():
    cases = [
        (
            {"name": "corupt", "choices": ("clean", "corrupt", "zero")},
            "value='corupt' is not known. Did you mean 'corrupt'? Choices: corrupt, zero.",
        ),
        (
            {"name": "optimal", "choices": ("corrupt", "zero"), "argument": "--value"},
            "--value='optimal' is not known. Choices: corrupt, zero.",
        ),
        (
            {"name": "zero:2"},
            "value='zero:2' is not known. Did you mean 'zero'? Choices: constant:X, corrupt, mean, optimal, resample, "
            "scale:X, zero.",
        ),
        (
            {"name": "zero", "base": "cleen"},
            "base='cleen' is not known. Did you mean 'clean'? Choices: clean, corrupt.",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(UnknownName) as error:
            canonical_name(**arguments)
        assert str(error.value) == message, arguments


def test_numbers_are_finite_and_optimal_needs_a_fit():
    for name, stem in (("constant:nan", "constant"), ("scale:", "scale"), ("constant:two", "constant")):
        with pytest.raises(EditError) as error:
            canonical_name(name, argument="values")
        message = f"values={name!r}: after the colon comes a finite number, as in {stem}:0.5."
        assert str(error.value) == message, name
    with pytest.raises(EditError) as error:
        make_value("optimal", store_of=no_stores)
    assert str(error.value) == (
        "value='optimal' is a constant fitted to each site, which effects(..., value='optimal') and sweeps "
        "of effects do. Values that need no fit: clean, corrupt, zero, mean, resample, constant:X, scale:X."
    )
