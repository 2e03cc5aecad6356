"""The stand-in for the Hub has the habits of the Hub that the client and the tests of the package count on."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, constants
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture
def api(hub, monkeypatch) -> HfApi:
    """The owner's client, in a process that may have started offline or with Xet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    api = HfApi(endpoint=hub.url, token="hf_owner")
    api.create_repo("owner/model")
    return api


def commit(api: HfApi, **files: bytes) -> str:
    """The number of a commit that adds these files, `a_txt` for `a.txt`."""
    operations = [CommitOperationAdd(name.replace("_", "."), content) for name, content in files.items()]
    return api.create_commit("owner/model", operations, commit_message="test").oid


def test_a_repository_is_created_once(api, hub):
    assert api.whoami()["name"] == "owner"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("owner/model")
    assert api.create_repo("owner/model", exist_ok=True).repo_id == "owner/model"
    assert [exchange.status for exchange in hub.requests("POST", "repos/create")] == [200, 409, 409]
    api.delete_repo("owner/model")
    assert not api.repo_exists("owner/model")


def test_small_files_travel_in_the_commit_and_large_ones_before_it(api, hub, tmp_path):
    commit(api, a_txt=b"text", model_safetensors=WEIGHTS)
    assert hub.files("owner/model") == {"a.txt": b"text", "model.safetensors": WEIGHTS}
    checksum = hashlib.sha256(WEIGHTS).hexdigest()
    (upload,) = hub.requests("PUT", "/large-files/")
    assert upload.path.endswith(checksum)
    entries = {entry.path: entry for entry in api.list_repo_tree("owner/model")}
    assert entries["model.safetensors"].lfs.sha256 == checksum and entries["a.txt"].lfs is None
    assert entries["a.txt"].blob_id == "f3a34851d44d6b97c90fbb99dd3d18c261b9a237"  # as git hash-object has it
    for name, content in hub.files("owner/model").items():
        path = api.hf_hub_download("owner/model", name, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content


def test_what_has_not_changed_is_no_commit(api, hub):
    first = commit(api, a_txt=b"text", model_safetensors=WEIGHTS)
    assert commit(api, a_txt=b"text", model_safetensors=WEIGHTS) == first
    assert len(hub.requests("PUT", "/large-files/")) == 1
    assert commit(api, a_txt=b"other text") != first


def test_files_are_deleted_and_folders_listed(api, hub):
    operations = [CommitOperationAdd(path, b"x") for path in ("a.txt", "b/c.txt", "b/d.txt", "e/f/g.txt")]
    api.create_commit("owner/model", operations, commit_message="add")
    assert sorted(entry.path for entry in api.list_repo_tree("owner/model")) == ["a.txt", "b", "e"]
    assert [entry.path for entry in api.list_repo_tree("owner/model", "b")] == ["b/c.txt", "b/d.txt"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("owner/model", "additional_chat_templates"))
    deletions = [CommitOperationDelete("a.txt"), CommitOperationDelete("b/")]
    api.create_commit("owner/model", deletions, commit_message="delete")
    assert api.list_repo_files("owner/model") == ["e/f/g.txt"]
    assert [line.title for line in api.list_repo_commits("owner/model")] == ["delete", "add", "initial commit"]
    assert [entry.path for entry in api.get_paths_info("owner/model", ["e/f/g.txt", "a.txt"])] == ["e/f/g.txt"]


def test_tags_branches_and_numbers_name_a_state(api, hub, tmp_path):
    first = commit(api, a_txt=b"first")
    api.create_tag("owner/model", tag="v1")
    api.create_branch("owner/model", branch="try/this")
    second = commit(api, a_txt=b"second")
    for revision, content in (("v1", b"first"), ("try/this", b"first"), (first, b"first"), ("main", b"second")):
        path = api.hf_hub_download("owner/model", "a.txt", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content
    assert api.model_info("owner/model").sha == second
    refs = api.list_repo_refs("owner/model")
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": first}
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": second, "try/this": first}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("owner/model", tag="v1")
    api.delete_tag("owner/model", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("owner/model", "a.txt", revision="v1", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("owner/model", "b.txt", cache_dir=tmp_path)


def test_a_commit_onto_something_old_is_refused(api):
    first = commit(api, a_txt=b"first")
    commit(api, a_txt=b"second")
    operations = [CommitOperationAdd("a.txt", b"third")]
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("owner/model", operations, commit_message="late", parent_commit=first)
    proposal = api.create_commit("owner/model", operations, commit_message="proposal", create_pr=True)
    assert proposal.pr_num == 1 and api.model_info("owner/model", revision="refs/pr/1").sha == proposal.oid
    assert api.model_info("owner/model").sha != proposal.oid


def test_what_is_private_is_the_owners(api, hub, tmp_path):
    commit(api, a_txt=b"secret")
    visitor, anonymous = HfApi(endpoint=hub.url, token="hf_visitor"), HfApi(endpoint=hub.url, token=False)
    with pytest.raises(HfHubHTTPError, match="403"):
        commit(visitor, a_txt=b"mine")
    with pytest.raises(HfHubHTTPError, match="403"):
        visitor.create_repo("owner/other")
    assert anonymous.model_info("owner/model").private is False
    api.update_repo_settings("owner/model", visibility="private")
    for stranger in (visitor, anonymous):
        with pytest.raises(RepositoryNotFoundError):
            stranger.model_info("owner/model")
        with pytest.raises(RepositoryNotFoundError):
            stranger.hf_hub_download("owner/model", "a.txt", cache_dir=tmp_path)
    assert api.hf_hub_download("owner/model", "a.txt", cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.url, token="hf_forged").whoami()


def test_a_part_of_a_file_can_be_had(api, hub):
    commit(api, model_safetensors=WEIGHTS, a_txt=b"0123456789")
    files = HfFileSystem(endpoint=hub.url, token="hf_owner")
    assert files.cat_file("owner/model/model.safetensors", start=250, end=260) == WEIGHTS[250:260]
    assert files.cat_file("owner/model/a.txt", start=8, end=10) == b"89"
    assert 206 in [exchange.status for exchange in hub.requests("GET", "large-files|a.txt")]


def test_requests_fail_as_often_as_they_are_told_to(api, hub):
    hub.fail("PUT", "/large-files/", 500, times=2)
    commit(api, model_safetensors=WEIGHTS)
    assert [exchange.status for exchange in hub.requests("PUT", "/large-files/")] == [500, 500, 200]
    hub.fail("POST", "/commit/main", 503)
    with pytest.raises(HfHubHTTPError, match="503"):  # the client does not repeat a commit of its own accord
        commit(api, a_txt=b"text")
    assert "a.txt" not in hub.files("owner/model")
    commit(api, a_txt=b"text")
    assert hub.files("owner/model")["a.txt"] == b"text"


def test_what_did_not_arrive_cannot_be_committed(api, hub):
    operation = CommitOperationAdd("model.safetensors", WEIGHTS)
    api.preupload_lfs_files("owner/model", [operation])
    hub.large_files.clear()
    with pytest.raises(BadRequestError, match="not uploaded"):
        api.create_commit("owner/model", [operation], commit_message="pretend")


def test_the_metadata_of_a_card_must_be_yaml(api, hub):
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        commit(api, README_md=b"---\nlicense: [mit\n---\n")
    commit(api, README_md=b"---\nlicense: mit\n---\n")
    assert "README.md" in hub.files("owner/model")


TRANSFER = """
import json, sys
from huggingface_hub import HfApi, constants, snapshot_download
api = HfApi()
api.create_repo("owner/model")
api.upload_folder(repo_id="owner/model", folder_path=sys.argv[1])
entries = {entry.path: entry.xet_hash for entry in api.list_repo_tree("owner/model") if entry.lfs}
print(json.dumps({"folder": snapshot_download("owner/model"), "hashes": entries}))
"""


def test_large_files_may_take_the_way_of_xet(tmp_path):
    pytest.importorskip("hf_xet")
    folder, store = tmp_path / "folder", tmp_path / "store"
    folder.mkdir()
    store.mkdir()
    contents = {"a.safetensors": os.urandom(300_000), "b.safetensors": os.urandom(100_000), "c.txt": b"small"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with HubServer(store) as hub:
        environment = hub.environment(tmp_path / "home")
        command = [sys.executable, "-c", TRANSFER, str(folder)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    for name, content in contents.items():
        assert Path(result["folder"], name).read_bytes() == content
    assert set(result["hashes"]) == {"a.safetensors", "b.safetensors"} and all(result["hashes"].values())
    assert not hub.requests("PUT", "") and hub.requests("GET", "xet-write-token") and hub.requests("GET", "xet-read-t")
