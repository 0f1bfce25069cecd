"""Circuits on the Hub: what is uploaded comes back the same, the card says what was measured, and nothing is replaced unasked."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import errors

import workbench as wb
from workbench.errors import CannotWrite, CircuitError, OutputExists


class FolderApi:
    """The part of HfApi that is used, on folders."""

    root: Path
    failure: Exception | None = None

    def create_repo(self, repo_id, *, private, exist_ok):
        if self.failure is not None:
            raise self.failure
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def list_repo_files(self, repo_id, *, revision):
        return [path.name for path in (self.root / repo_id).iterdir()]

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1 {commit_message}"

    def hf_hub_download(self, repo_id, filename, *, revision):
        if self.failure is not None:
            raise self.failure
        return str(self.root / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderApi, "root", tmp_path, raising=False)
    monkeypatch.setattr(FolderApi, "failure", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", FolderApi)
    return FolderApi


@pytest.fixture(scope="module")
def known():
    return wb.planted("induction", n=8)


@pytest.fixture(scope="module")
def found(known):
    pairs = wb.planted_pairs(known)
    scores = wb.score_edges(known.model, pairs, value="corrupt", progress=False)
    circuit = wb.find_circuit(scores, n_edges=6)
    evaluation = wb.evaluate(
        circuit, known.model, pairs, value={"corrupt": "corrupt", "zero": "zero"}, checks=("complement",)
    )
    return circuit, scores, evaluation


def test_a_circuit_comes_back_with_a_card_that_says_what_was_measured(hub, known, found):
    circuit, scores, evaluation = found
    address = circuit.push_to_hub("me/induction", evaluation=evaluation, license="mit", all_scores=True)
    assert address == "https://hub/me/induction/commit/1 Upload a circuit"
    folder = hub.root / "me" / "induction"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "circuit.json"]
    for place in ("me/induction", folder):
        loaded = wb.Circuit.from_hub(place, model=known.model)
        assert loaded == circuit
        assert loaded.attrs == circuit.attrs
        # A newcomer's way back to the scores of all edges.
        again = wb.find_circuit(loaded.to_scores(), n_edges=3)
        assert again == wb.find_circuit(scores, n_edges=3)
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "interp-workbench"
    assert header["license"] == "mit"
    assert "base_model" not in header  # this model is not on the Hub
    faithfulness = evaluation.isel(circuit=0).sel(ablation="zero")
    number, low, high = (float(faithfulness[name]) for name in ("faithfulness", "low", "high"))
    assert f"{number:.2f} [{low:.2f}, {high:.2f}] |" in card
    assert "Measured on 8 prompts (100% of them had part in finding it), with 95% intervals" in card
    assert 'wb.Circuit.from_hub("me/induction")' in card
    assert f"`{circuit.edge_list[0]}`" in card


def test_what_is_there_is_replaced_only_where_that_is_asked_for(hub, found):
    circuit = found[0]
    circuit.push_to_hub("me/twice")
    with pytest.raises(
        OutputExists, match=r"'me/twice' on the Hub has README.md and circuit.json: pass overwrite=True"
    ):
        circuit.push_to_hub("me/twice")
    circuit.push_to_hub("me/twice", overwrite=True, description="Copies what came before.")
    assert "Copies what came before." in (hub.root / "me" / "twice" / "README.md").read_text()


def test_text_of_files_is_no_markup_on_the_card(hub, found):
    circuit = found[0]
    hostile = wb.Circuit(
        circuit.graph, circuit.edges, attrs={"task": "<script>|a", "model": "[x](javascript:1)\n# b"}
    )
    hostile.push_to_hub("me/hostile")
    card = (hub.root / "me" / "hostile" / "README.md").read_text()
    assert r"# A circuit of \<script\>\|a in \[x\](javascript:1)\\n\# b" in card
    assert "<script>" not in card


def response(status: int):
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (errors.RepositoryNotFoundError("404", response=response(404)), r"There is no repository 'me/x' on the Hub, or it is private\. Log in"),
        (errors.GatedRepoError("403", response=response(403)), "asks for consent"),
        (errors.RevisionNotFoundError("404", response=response(404)), "has no revision 'v2'"),
        (errors.EntryNotFoundError("404"), r"at 'v2' has no circuit.json: it holds no circuit that push_to_hub wrote"),
        (errors.LocalEntryNotFoundError("offline"), "the Hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be read from the Hub: offline."),
        (errors.HFValidationError("bad"), "is neither a folder nor the id of a repository"),
    ],
)  # fmt: skip
def test_a_circuit_that_cannot_be_read_is_a_typed_error(hub, monkeypatch, failure, message):
    monkeypatch.setattr(hub, "failure", failure)
    with pytest.raises(CircuitError, match=message):
        wb.Circuit.from_hub("me/x", revision="v2")


def test_other_models_other_evaluations_and_no_login_are_refused(hub, monkeypatch, known, found, tmp_path):
    circuit, _, evaluation = found
    circuit.push_to_hub("me/mine")
    with pytest.raises(CircuitError, match="This circuit is for another graph"):
        wb.Circuit.from_hub("me/mine", model=wb.load_model("tiny", device="cpu"))
    same_shape = wb.planted("induction", n=4, seed=1).model
    with pytest.raises(CircuitError, match=r"is of the model .*, not of .*Leave model= out"):
        wb.Circuit.from_hub("me/mine", model=same_shape)
    with pytest.raises(CircuitError, match=r"evaluation= is of another circuit or model"):
        (circuit - circuit).push_to_hub("me/other", evaluation=evaluation)
    with pytest.raises(CircuitError, match=r"is the result of wb.evaluate"):
        circuit.push_to_hub("me/other", evaluation=evaluation.drop_attrs())
    assert not (tmp_path / "me" / "other").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CircuitError, match=r"has no circuit.json: it is none of push_to_hub"):
        wb.Circuit.from_hub(tmp_path / "empty")
    monkeypatch.setattr(hub, "failure", errors.LocalTokenNotFoundError("Token is required."))
    with pytest.raises(
        CannotWrite, match=r"not uploaded to 'me/late': Token is required\. Log in with `hf auth login`"
    ):
        circuit.push_to_hub("me/late")
