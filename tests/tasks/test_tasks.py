"""Tasks and prompt pairs on `tiny` and on a BPE vocabulary: minimal corruptions, named positions, honest splits."""

import json
import random
import re

import pandas as pd
import pytest
import torch
from closeness import close
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import workbench as wb
from workbench.errors import MetricError, PromptError, UnknownName, UnsuitableTask
from workbench.models.load import load_model
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.tasks import grammar, measure, registry
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS
from workbench.tasks.vocabularies import SubwordVocabulary


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


def bpe_model(folder, words, vocab_size: int):
    """A GPT-2 of random weights whose byte-level BPE was trained on these words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        words * 20,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=len(fast), n_positions=96, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Its vocabulary holds the grammar's names, pronouns and places, and splits most other words."""
    lexicon = grammar.Lexicon()
    words = [
        " " + word
        for word in (*lexicon.names, *lexicon.pronouns, *lexicon.places, "went", "to", "the", "because")
    ]
    return bpe_model(tmp_path_factory.mktemp("bpe"), words, 400)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Its vocabulary holds the grammar's words, two digits at a time, and some whole years, as that of GPT-2 does."""
    words = [" " + word for word in grammar.vocabulary()[2:] if word.isalpha()]
    words += (
        [*grammar.YEARS] * 2
        + [" " + century for century in grammar.CENTURIES] * 10
        + [" 1776", " 1800", " 1666"] * 30
    )
    return bpe_model(tmp_path_factory.mktemp("large"), words, 1500)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Its vocabulary has no merges at all: a token is a byte."""
    return bpe_model(tmp_path_factory.mktemp("letters"), [" a"], 257)


@pytest.mark.types
@pytest.mark.parametrize(
    ("name", "variant"), [(task.name, variant) for task in TASKS.values() for variant in task.variants]
)
def test_pairs_are_minimal_aligned_and_reproducible(tiny, name: str, variant: str):
    pairs = load_task(name, tiny, n=40, variant=variant)
    again = load_task(name, tiny, n=40, variant=variant)
    assert pairs.fingerprint == again.fingerprint
    assert len(set(pairs.clean.ids)) == 40
    assert pairs.equal_lengths
    assert pairs.bos
    changed = (pairs.clean.tokens != pairs.corrupt.tokens).sum(1)
    assert set(changed.tolist()) == {2 if (name, variant) == ("binding", "swap") else 1}
    rows = torch.arange(40)
    assert torch.equal(pairs.clean.at("END"), pairs.clean.lengths - 1)
    for where in pairs.clean.positions.values():
        assert bool(((where >= 1) & (where < pairs.clean.lengths)).all())
    assert not bool(
        (pairs.answers[:, :, 0, None] == pairs.wrong[:, :, 0][:, None])
        .logical_and(pairs.answers[:, :, 0, None] >= 0)
        .any()
    )
    if name == "ioi":
        assert torch.equal(pairs.clean.tokens[rows, pairs.clean.at("IO")], pairs.answers[:, 0, 0])
        assert torch.equal(pairs.clean.tokens[rows, pairs.clean.at("S2")], pairs.wrong[:, 0, 0])


# As many as the documents promise take seconds; two hundred of them already repeat one another if draws do.
@pytest.mark.parametrize("n", [200, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_held_out_prompts_are_distinct_and_none_is_in_the_training_split(tiny, name: str, n: int):
    train, heldout = (
        load_task(name, tiny, n=n, split=split) for n, split in ((n // 2, "train"), (n, "heldout"))
    )
    assert len(set(heldout.clean.ids)) == n
    assert not {*train.clean.ids, *train.corrupt.ids} & {*heldout.clean.ids, *heldout.corrupt.ids}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_training_text_never_holds_a_reserved_combination(name: str):
    rng, task, seen = random.Random(1), TASKS[name].module, 0
    for _ in range(300):
        sentence = task.training_sentence(rng, grammar.Lexicon())
        assert set(sentence.words + sentence.rest) <= set(grammar.vocabulary())
        seen += grammar.is_reserved(name, sentence.key)
    assert 0 < seen < 120


def test_induction_gaps_vary_so_that_positional_copying_cannot_work(tiny):
    pairs = load_task("induction", tiny, n=200)
    gaps = pairs.clean.at("END") - pairs.clean.at("PREVIOUS")
    assert len(set(gaps.tolist())) >= 6


def test_a_bpe_model_gets_ioi_and_pronoun_with_single_token_answers(bpe):
    for name in ("ioi", "pronoun"):
        pairs = load_task(name, bpe, n=20, split="heldout")
        assert pairs.equal_lengths
        assert pairs.answers.shape == (20, 1, 1)
        assert isinstance(pairs.provenance["dropped"], str)
    decoded = bpe.tokenizer.decode(load_task("ioi", bpe, n=1).clean.tokens[0].tolist())
    assert " ," not in decoded
    assert "  " not in decoded


def test_named_positions_of_a_bpe_model_point_at_the_words(bpe):
    pairs = load_task("ioi", bpe, n=20)
    rows = torch.arange(20)
    assert torch.equal(pairs.clean.tokens[rows, pairs.clean.at("S2")], pairs.wrong[:, 0, 0])
    named = [
        strings[at].strip() for strings, at in zip(pairs.clean.strings, pairs.clean.at("S2"), strict=True)
    ]
    assert set(named) <= set(grammar.Lexicon().names)


ANY = [task.name for task in TASKS.values() if task.any_model]


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("name", ANY)
def test_a_large_vocabulary_gets_every_task_for_any_model_with_answers_of_one_token(
    large, name: str, split: str
):
    pairs = load_task(name, large, n=30, split=split)
    assert pairs.equal_lengths
    assert pairs.answers.shape[2] == pairs.wrong.shape[2] == 1
    assert pairs.metric == pairs.provenance["metric"] == TASKS[name].metric
    # A name that begins the sentence has no space before it, which this vocabulary splits.
    assert set((pairs.clean.tokens != pairs.corrupt.tokens).sum(1).tolist()) <= (
        {1, 2, 3} if name == "pronoun" else {1}
    )
    assert len({*pairs.clean.ids}) == 30
    wb.metric(pairs.metric).check(pairs)
    for where in pairs.clean.positions.values():
        assert bool(((where >= 1) & (where < pairs.clean.lengths)).all())


def test_years_of_a_large_vocabulary_are_split_behind_their_century(large):
    pairs = load_task("greater_than", large, n=60)
    dropped = pairs.provenance["dropped"].split()
    assert {"1776", "1800", "1666"} <= set(dropped)
    assert len(dropped) < 20
    for i in range(60):
        century, year = (
            large.tokenizer.decode([int(pairs.clean.tokens[i, pairs.clean.at(n)[i]])])
            for n in ("CENTURY", "YEAR")
        )
        right, wrong = (
            {large.tokenizer.decode([int(t)]) for t in table[i, :, 0] if t >= 0}
            for table in (pairs.answers, pairs.wrong)
        )
        assert (
            pairs.clean.tokens[i, pairs.clean.at("CENTURY")[i]]
            == pairs.clean.tokens[i, pairs.clean.at("END")[i]]
        )
        assert {len(y) for y in right | wrong} == {2}
        assert min(right) > year == max(wrong)
        assert not {century.strip() + y for y in right | wrong} & set(dropped)
        assert large.tokenizer.decode([int(pairs.corrupt.tokens[i, pairs.corrupt.at("YEAR")[i]])]) == "01"


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("vocabulary", ["bpe", "letters"])
def test_a_small_vocabulary_gets_answers_of_several_tokens_and_their_metric(
    vocabulary: str, name: str, request
):
    model = request.getfixturevalue(vocabulary)
    pairs = load_task(name, model, n=20)
    several = max(pairs.answers.shape[2], pairs.wrong.shape[2]) > 1
    assert pairs.equal_lengths
    assert pairs.metric == ("sequence_logprob_diff" if several else TASKS[name].metric)
    assert several or vocabulary == "bpe" or TASKS[name].by_first_token
    effects = wb.effects(
        model, pairs, sites=wb.grid("z", model), value=wb.zero(), metric=pairs.metric, progress=False
    )
    assert effects.shape == (20, 1, 2)
    assert bool(effects.notnull().all())


def test_years_of_single_digits_are_asked_for_by_the_digit_that_decides(letters):
    pairs = load_task("greater_than", letters, n=30)
    for text, right, wrong in zip(_text(pairs.clean), pairs.answers, pairs.wrong, strict=True):
        year = int(re.search(r"year \d\d(\d\d) to", text)[1])
        # Only then the next digit decides: after 1652 a 5 may go on to a later year or to an earlier one.
        assert year % 10 == 9
        digits = [
            {letters.tokenizer.decode([int(t)]) for t in table[:, 0] if t >= 0} for table in (right, wrong)
        ]
        later = {str(digit) for digit in range(year // 10 + 1, 10)}
        assert digits == [later, set("0123456789") - later]
    assert pairs.metric == "prob_diff"


def test_nouns_whose_plural_is_longer_are_paired_with_another_noun(letters):
    pairs = load_task("agreement", letters, n=40)
    for clean, corrupt, right, wrong in zip(
        *(map(_text, [pairs.clean, pairs.corrupt])), pairs.answers, pairs.wrong, strict=True
    ):
        subjects = [re.search(r"[Tt]he (\w+) ", text)[1] for text in (clean, corrupt)]
        assert len(subjects[0]) == len(subjects[1])
        assert {subject in grammar.NOUNS for subject in subjects} == {True, False}
        verbs = [letters.tokenizer.decode([int(t) for t in table[0] if t >= 0]) for table in (right, wrong)]
        assert (verbs[0] in (" is", " was")) == (subjects[0] in grammar.NOUNS)
        assert set(verbs) in ({" is", " are"}, {" was", " were"})


def _text(prompts: Prompts) -> list[str]:
    return ["".join(strings[int(prompts.bos) :]) for strings in prompts.strings]


def test_what_a_model_can_do_is_measured_with_answers_of_several_tokens(letters, tiny):
    scores = {score.behaviour: score for score in wb.measure(letters, n=8, progress=False)}
    assert {name for name, score in scores.items() if not score.skipped} == set(ANY)
    assert all(-1 <= scores[name].score <= 1 for name in ANY)
    # A model of one-token answers scores the same in both ways.
    for name in ("ioi", "greater_than"):
        pairs = load_task(name, tiny, n=20, split="heldout")
        one, several = measure.clean_run(tiny, pairs), measure._run_of_several_tokens(tiny, pairs)
        assert close(one.is_first, several.is_first, scale=1)
        assert close(one.probability, several.probability, scale=1)


def test_a_vocabulary_that_cannot_pair_nouns_is_said_to(letters, monkeypatch):
    monkeypatch.setattr(
        SubwordVocabulary, "size", lambda self, word: sum(map(ord, word)) if word.isalpha() else 1
    )
    with pytest.raises(UnsuitableTask) as caught:
        load_task("agreement", letters)
    assert str(caught.value) == (
        "The task 'agreement' needs words of equal token count (nouns), and this vocabulary has too few (dropped dog dogs cat cats boy boys girl girls "
        "teacher teachers doctor doctors and 36 more). Bring your own prompts with PromptPairs.from_csv."
    )


def test_other_tasks_refuse_a_bpe_model_and_say_what_works(bpe):
    with pytest.raises(PromptError) as caught:
        load_task("binding", bpe)
    usable = "ioi, induction, greater_than, agreement, pronoun, capitals"
    assert f"Tasks for any model: {usable}; or bring your own with PromptPairs.from_csv." in str(caught.value)


def test_unknown_names_say_what_there_is(tiny, monkeypatch):
    with pytest.raises(UnknownName) as caught:
        load_task("ioii", tiny)
    known = "agreement, binding, capitals, greater_than, induction, ioi, pronoun"
    assert str(caught.value) == f"task='ioii' is not known. Did you mean 'ioi'? Choices: {known}."
    with pytest.raises(UnknownName) as caught:
        load_task("ioi", tiny, variant="swop")
    assert str(caught.value) == "variant='swop' is not known. Did you mean 'swap'? Choices: abc, swap, three."
    with pytest.raises(UnknownName) as caught:
        load_task("ioi", tiny, split="test")
    assert str(caught.value) == "split='test' is not known. Choices: heldout, train."
    # With less patience the prompts seem to run out after some dozens.
    monkeypatch.setattr(registry, "_PATIENCE", 20)
    message = r"^The task 'greater_than' has only [0-9]+ distinct heldout prompts for this model; n=5000 were asked for.$"
    with pytest.raises(PromptError, match=message):
        load_task("greater_than", tiny, n=5000, split="heldout")


# --- prompts of your own -------------------------------------------------------------------------------------------

ROW = {"clean": "The dog near the cats", "corrupt": "The dogs near the cats", "answer": "is", "wrong": "are"}


@pytest.mark.types
def test_a_csv_a_jsonl_and_a_frame_give_the_same_pairs(tiny, tmp_path):
    frame = pd.DataFrame([ROW, ROW | {"clean": "The boy near the cats", "corrupt": "The boys near the cats"}])
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    made = [
        PromptPairs.from_dataframe(tiny, frame),
        PromptPairs.from_csv(tiny, tmp_path / "p.csv"),
        PromptPairs.from_jsonl(tiny, tmp_path / "p.jsonl"),
    ]
    assert len({pairs.fingerprint for pairs in made}) == 1
    assert made[0].clean.strings[0] == ("<bos>", "The", "dog", "near", "the", "cats")


@pytest.mark.types
def test_alternatives_are_separated_by_bars(tiny):
    pairs = PromptPairs.from_dataframe(
        tiny, pd.DataFrame([ROW | {"answer": "is|was"}, ROW | {"clean": "The boy near the cats"}])
    )
    assert pairs.answers.shape == (2, 2, 1)
    assert int(pairs.answers[1, 1, 0]) == -1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, "table, row 1: the column 'answer' is empty. Fill it, or leave the row out."),
        ({"clean": "  "}, "table, row 1: the column 'clean' is empty. Fill it, or leave the row out."),
        (
            {"clean": "The wug near the cats"},
            "table, row 1, clean: the vocabulary has no 'wug'. Use words that the model knows (model.tokenizer.get_vocab()).",
        ),
        (
            {"wrong": "arr"},
            "table, row 1, wrong: the vocabulary has no 'arr'. Use words that the model knows (model.tokenizer.get_vocab()).",
        ),
        (
            {"clean": "the " * 64 + "dog"},
            "table, row 1, clean: the prompt has 66 tokens; the model's context holds 64.",
        ),
    ],
)
def test_a_bad_row_is_named(tiny, change: dict, message: str):
    with pytest.raises(PromptError, match="^" + re.escape(message) + "$"):
        PromptPairs.from_dataframe(tiny, pd.DataFrame([ROW | change]))


def test_a_missing_column_is_named(tiny, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clean,corrupt,answer\na,b,c\n")
    message = (
        "p.csv has no column wrong. Needed: clean, corrupt, answer, wrong; it has: clean, corrupt, answer."
    )
    with pytest.raises(PromptError, match="^" + re.escape(message) + "$"):
        PromptPairs.from_csv(tiny, path)


def test_cells_with_bare_commas_are_refused(tiny, tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clean,corrupt,answer,wrong\nWhen Anna and Tom went , Tom gave,b,c,d\n")
    message = "p.csv, row 1: 5 fields where the header has 4. Put cells that hold commas in double quotes."
    with pytest.raises(PromptError, match="^" + re.escape(message) + "$"):
        PromptPairs.from_csv(tiny, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"corrupt": ROW["clean"]},
            "table, row 1: clean and corrupt are the same, so nothing could make a difference.",
        ),
        ({"wrong": "are|is"}, "table, row 1: 'is' is both an answer and wrong."),
        ({"answer": "|"}, "table, row 1: the column 'answer' is empty. Fill it, or leave the row out."),
        (
            {"answer": 5},
            "table, row 1: the column 'answer' is int, not text. Put it in quotes, or read the table with dtype=str.",
        ),
    ],
)
def test_pairs_that_could_show_nothing_are_refused(tiny, change: dict, message: str):
    with pytest.raises(PromptError, match="^" + re.escape(message) + "$"):
        PromptPairs.from_dataframe(tiny, pd.DataFrame([ROW | change], dtype=object))


def test_impossible_prompts_are_refused():
    with pytest.raises(
        PromptError, match=re.escape("Prompt 0 has 2 tokens, and its position X=2 lies outside.")
    ):
        Prompts.of([[1, 2]], positions=[{"X": 2}])
    with pytest.raises(PromptError, match="There are 1 strings for 2 prompts"):
        Prompts.of([[1], [2]], strings=[["a"]])
    one, two = Prompts.of([[1]]), Prompts.of([[1], [2]])
    with pytest.raises(PromptError, match="Pairs need one of each: there are 1 clean, 2 corrupt"):
        PromptPairs(one, two, torch.zeros(1, 1, 1, dtype=torch.long), torch.zeros(1, 1, 1, dtype=torch.long))
    with pytest.raises(PromptError, match="Nothing is selected"):
        two.select([])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", "[1,2]\n3\n", "cannot be read as jsonl: row 1 is a list, not an object"),
        ("p.jsonl", "[" * 100_000, "cannot be read as jsonl: row 1: it is nested more than 64 deep"),
        (
            "p.csv",
            "clean,clean,corrupt,answer,wrong\na,b,c,d,e\n",
            "p.csv has the column 'clean' 2 times. Give each column its own name.",
        ),
    ],
)
def test_files_that_are_no_tables_are_refused(tiny, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=re.escape(message)):
        (PromptPairs.from_jsonl if name.endswith("jsonl") else PromptPairs.from_csv)(tiny, tmp_path / name)


def test_a_line_separator_within_a_string_ends_no_row(tiny, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        json.dumps(ROW | {"note": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert len(PromptPairs.from_jsonl(tiny, tmp_path / "p.jsonl")) == 1


def test_an_empty_row_of_a_csv_is_named_and_a_blank_line_is_none(tiny, tmp_path):
    path, row = tmp_path / "p.csv", "The dog near the cats,The dogs near the cats,is,are\n"
    path.write_text(f"clean,corrupt,answer,wrong\n{row}\n,,,\n")
    with pytest.raises(
        PromptError,
        match=re.escape("p.csv, row 2: the column 'clean' is empty. Fill it, or leave the row out."),
    ):
        PromptPairs.from_csv(tiny, path)
    path.write_text(f"clean,corrupt,answer,wrong\n{row}\n")
    assert len(PromptPairs.from_csv(tiny, path)) == 1
    path.write_text("clean,corrupt,answer,wrong\n")
    with pytest.raises(PromptError, match=re.escape("p.csv has no rows.")):
        PromptPairs.from_csv(tiny, path)
    with pytest.raises(PromptError, match="There is no file"):
        PromptPairs.from_csv(tiny, tmp_path / "none.csv")


def test_a_place_of_several_tokens_is_the_last_of_them(letters):
    """A token of this vocabulary is a byte, and two of them make the last letter of the name."""
    row = {"clean": "May met Zo\u00eb.", "corrupt": "Mae met Zo\u00eb.", "answer": "A", "wrong": "B"}
    frame = pd.DataFrame([row | {"pos_NAME": "Zo\u00eb", "pos_MET": "met"}])
    for bos in (False, True):
        pairs = PromptPairs.from_dataframe(frame, letters, bos=bos)
        assert (pairs.clean.at("MET") - int(bos)).tolist() == [len("May met") - 1]
        assert (pairs.corrupt.at("NAME") - int(bos)).tolist() == [len("May met Zo\u00eb".encode()) - 1]


def test_an_answer_of_two_tokens_needs_another_metric(tiny):
    pairs = PromptPairs.from_dataframe(tiny, pd.DataFrame([ROW | {"answer": "is happy"}]))
    assert pairs.metric == "sequence_logprob_diff"
    first, second = (int(t) for t in pairs.answers[0, 0])
    message = (
        f"The metric 'logit_diff' reads one token, and the answer of example 0 has 2 (ids [{first}, {second}]). "
        "Choose words that are one token in this vocabulary, or metric='sequence_logprob_diff'."
    )
    for call in (
        lambda: wb.effects(
            tiny, pairs, sites=wb.grid("resid_pre", tiny, pos=["END"]), value=wb.zero(), metric="logit_diff"
        ),
        lambda: wb.score_edges(tiny, pairs, value=wb.zero(), metric="logit_diff"),
    ):
        with pytest.raises(MetricError, match="^" + re.escape(message) + "$"):
            call()


def test_pairs_of_unequal_length_need_named_positions(tiny):
    pairs = PromptPairs.from_dataframe(
        tiny, pd.DataFrame([ROW | {"corrupt": "Yesterday the dogs near the cats"}])
    )
    message = (
        "Pair 0 has clean and corrupt prompts of 6 and 7 tokens. Whole-sequence edits need equal lengths; "
        "edit named positions instead (pos=['END'])."
    )
    with pytest.raises(PromptError, match="^" + re.escape(message) + " The prompts: "):
        wb.effects(tiny, pairs, sites=wb.grid("z", tiny), value=wb.zero())
    with pytest.raises(PromptError, match=re.escape("Edges and circuits need equal lengths within a pair.")):
        wb.score_edges(tiny, pairs, value=wb.zero())
    _, corrupt = wb.capture_pairs(tiny, pairs)
    last = wb.effects(
        tiny,
        pairs,
        sites=wb.grid("resid_post", tiny, layer=3, pos=["END"]),
        value=wb.from_store(corrupt),
        progress=False,
    )
    expected = wb.run(tiny, pairs.corrupt).logits[0, -1] - wb.run(tiny, pairs.clean).logits[0, -1]
    right, wrong = int(pairs.answers[0, 0, 0]), int(pairs.wrong[0, 0, 0])
    size = float(expected.abs().max())
    assert close(float(last[0, 0, 0]), float(expected[right] - expected[wrong]), tolerance=1e-5, scale=size)


def test_a_split_of_own_pairs_shares_no_prompt(tiny):
    shared = [
        ROW | {"clean": f"The {noun} near the cats", "corrupt": "The dogs near the cats"}
        for noun in ("dog", "boy")
    ]
    others = [
        ROW | {"clean": f"The {noun} near the {m}", "corrupt": f"The {noun}s near the {m}"}
        for noun in ("boy", "girl")
        for m in ("doors", "cars")
    ]
    pairs = PromptPairs.from_dataframe(tiny, pd.DataFrame(shared + others))
    first, second = pairs.split()
    assert len(first) + len(second) == 6
    assert not {*first.clean.ids, *first.corrupt.ids} & {*second.clean.ids, *second.corrupt.ids}
    with pytest.raises(PromptError, match="cannot be split: shared prompts connect all of them"):
        PromptPairs.from_dataframe(tiny, pd.DataFrame(shared)).split()


def test_prompt_ids_ignore_padding():
    assert Prompts.of([[1, 2], [3, 4, 5]]).ids[0] == Prompts.of([[1, 2]]).ids[0]
    with pytest.raises(PromptError, match="Prompt 1 is empty"):
        Prompts.of([[1], []])
    with pytest.raises(PromptError, match="There are no prompts"):
        Prompts.of([])


# --- metrics -------------------------------------------------------------------------------------------------------


def hand_made() -> tuple[torch.Tensor, PromptPairs]:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1]]))
    prompts = Prompts.of([[0, 1]])
    return logits, PromptPairs(prompts, prompts, torch.tensor([[[0], [3]]]), torch.tensor([[[1], [-1]]]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_diff", (torch.log(torch.tensor([0.5, 0.1])).mean() - torch.log(torch.tensor(0.2))).item()),
        ("prob_diff", 0.6 - 0.2),
        ("nll", -torch.log(torch.tensor(0.6)).item()),
        ("rank", 0.0),
        ("accuracy", 1.0),
    ],
)
def test_metrics_on_numbers_worked_out_by_hand(name: str, value: float):
    logits, pairs = hand_made()
    assert close(float(wb.metric(name)(logits, pairs)), value, tolerance=1e-6, scale=1)


def test_kl_is_zero_for_the_reference_and_positive_elsewhere():
    logits, pairs = hand_made()
    assert close(float(wb.metric("kl")(logits, pairs, logits)), 0, tolerance=1e-6, scale=1)
    assert float(wb.metric("kl")(logits.flip(1), pairs, logits)) > 0.1
    with pytest.raises(
        MetricError,
        match=re.escape("The metric 'kl' compares with the clean run: give its logits as reference."),
    ):
        wb.metric("kl")(logits, pairs)


def test_metrics_refuse_what_they_cannot_measure():
    logits, pairs = hand_made()
    with pytest.raises(
        UnknownName, match=re.escape("metric='logit_dif' is not known. Did you mean 'logit_diff'")
    ):
        wb.metric("logit_dif")
    with pytest.raises(MetricError, match="The logits of example 0 are not finite"):
        wb.metric("logit_diff")(logits * float("nan"), pairs)
    with pytest.raises(
        MetricError, match=re.escape("returned () for 1 examples. It must return one number per example")
    ):
        wb.metric(lambda logits: logits.mean(), positions="END")(logits, pairs)


def test_a_metric_says_which_vocabulary_rows_it_reads():
    _, pairs = hand_made()
    rows = wb.metric("logit_diff").rows(pairs)
    assert rows is not None
    assert rows.tolist() == [0, 1, 3]
    assert wb.metric("nll").rows(pairs) is None


def test_positions_do_not_count_from_the_end():
    with pytest.raises(PromptError) as error:
        Prompts.of([[0, 1, 2]]).at(-1)
    assert (
        str(error.value)
        == "Position -1: positions count from 0. The last token of every prompt is 'END' where it is named."
    )
