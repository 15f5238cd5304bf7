"""Push and pull against a Hub on this machine: whole or not at all, nothing but the list, refusals with a way out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session
from typer.testing import CliRunner, Result

from qlmm.artifacts.adapter import UNPROVEN
from qlmm.artifacts.hub import Pushed, pull, push
from qlmm.artifacts.manifest import MANIFEST, read_manifest
from qlmm.artifacts.parcel import CARD, pack
from qlmm.cli.app import app
from qlmm.core.errors import QlmmError
from tests.hub import READER, TOKEN, WRONG, Hub, Repo
from tests.run_facts import PROOF
from tests.sharing import PRIVATE, contents, shared_adapter

REPO = "me/owl"
# What of the invented adapter is rewritten on its way: the card gets its address, papers lose their local paths.
REWRITTEN = {CARD, MANIFEST, "adapter_config.json"}


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited, by the client and by qlmm."""
    waits: list[float] = []
    monkeypatch.setattr("qlmm.artifacts.hub_talk.time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=waits.append))
    return waits


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> Iterator[Hub]:
    """A Hub of its own, that the client knows, with a base whose licence it states."""
    with Hub().running() as one:
        one.repos["some/llava"] = Repo(card={"license": "apache-2.0"})
        settings = {
            "ENDPOINT": one.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": one.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.chdir(tmp_path)
        yield one
        close_session()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return shared_adapter(tmp_path)


def pushed(folder: Path, repo: str = REPO, **options: Any) -> Pushed:
    return push(pack(folder, repo, unproven=False), **options)


def refusal(act: Callable[[], object]) -> tuple[str, str]:
    """Code and whole text of the one refusal that an act ends in; it always says what to do."""
    with pytest.raises(QlmmError) as caught:
        act()
    (problem,) = caught.value.problems
    assert problem.help
    assert TOKEN not in str(caught.value)
    return problem.code, f"{problem.message} | {problem.help}"


def test_what_is_pushed_comes_back_byte_for_byte(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    before = contents(adapter)
    (adapter / "notes.txt").write_text("mine", "utf-8")
    gone = pushed(adapter)
    assert (gone.address, gone.private, gone.changed) == (f"{hub.address}/{REPO}", True, True)
    assert [one["visibility"] for one in hub.created] == ["private"]
    assert set(hub.repos[REPO].files) == {*before, ".gitattributes"}
    assert hub.repos[REPO].messages == ["initial commit", f"Adapter of qlmm {read_manifest(adapter).versions['qlmm']}"]
    assert not [name for name, content in hub.repos[REPO].files.items() if PRIVATE.encode() in content]
    back = pull(f"{REPO}@{gone.commit}")
    assert (back.folder, back.commit, back.proven) == (Path("owl"), gone.commit, True)
    there = contents(tmp_path / "owl")
    assert set(there) == set(before)
    assert {name for name in there if there[name] != before[name]} == REWRITTEN
    (adapter / "notes.txt").unlink()
    assert contents(adapter) == before
    assert "apache-2.0" in there[CARD].decode()
    assert 'PeftModel.from_pretrained(base, "me/owl")' in there[CARD].decode()


def test_what_was_pulled_can_be_pushed_and_nothing_changes(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    gone = pushed(adapter)
    again = pushed(adapter)
    assert (again.commit, again.changed) == (gone.commit, False)
    pull(REPO, tmp_path / "copy")
    sent = hub.sent
    assert not pushed(tmp_path / "copy").changed
    assert hub.sent == sent
    assert len(hub.repos[REPO].commits) == 2


def test_a_later_adapter_takes_the_place_of_all_of_the_earlier_one(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    first = pushed(adapter)
    hub.repos[REPO].files["LICENSE"] = b"mine"
    other = shared_adapter(tmp_path / "other")
    lines = (other / CARD).read_text("utf-8")
    manifest = read_manifest(other)
    (other / "held-out" / "answer-2.png").unlink()
    manifest.files.pop("held-out/answer-2.png")
    (other / MANIFEST).write_text(manifest.model_dump_json(), "utf-8")
    (other / CARD).write_text(lines + "\nA word of mine.\n", "utf-8")
    second = pushed(other, message="better")
    assert second.commit != first.commit
    assert set(hub.repos[REPO].files) == {*contents(other), ".gitattributes", "LICENSE"}
    assert hub.repos[REPO].messages[-1] == "better"
    assert hub.repos[REPO].files[CARD].endswith(b"\nA word of mine.\n")
    assert pull(f"{REPO}@{first.commit}", Path("old")).commit == first.commit
    assert "held-out/answer-2.png" in contents(Path("old"))


def test_a_dry_run_asks_for_nothing(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = CliRunner().invoke(app, ["push", str(adapter), REPO, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert hub.requests == []
    assert all(name in done.stdout for name in contents(adapter))
    assert f"recipe.output.dir: {PRIVATE}/run -> run" in done.stdout
    assert "# Adapter trained with qlmm" in done.stdout


def test_a_push_that_is_cut_off_anywhere_is_completed_by_the_next(hub: Hub, adapter: Path, slept: list[float]) -> None:
    before = contents(adapter)
    pushed(adapter, "me/whole")
    whole = hub.repos["me/whole"].files
    needed = len(hub.requests)
    assert needed > 8
    codes = set()
    for answered in range(needed):
        hub.repos.pop(REPO, None)
        hub.large.clear()
        hub.requests.clear()
        hub.dies_after = answered
        code, said = refusal(lambda: pushed(adapter))
        codes.add(code)
        assert "your adapter is as it was; run the same command again" in said
        arrived = hub.repos[REPO].commits if REPO in hub.repos else {}
        # Only when nothing but the check after the commit was missed is there a second commit, and it is whole.
        assert len(arrived) <= 1 or set(hub.repos[REPO].files) == set(whole)
        hub.dies_after, large, sent = None, set(hub.large), hub.sent
        pushed(adapter)
        assert hub.sent - sent == sum(len(content) for oid, content in hub.large.items() if oid not in large)
        assert {name for name, content in hub.repos[REPO].files.items() if content != whole[name]} == {CARD}
        assert contents(adapter) == before
    assert codes == {"H008"}


def test_a_pull_that_is_cut_off_anywhere_leaves_nothing_and_is_completed_by_the_next(
    hub: Hub, adapter: Path, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(adapter)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "first"))
    expected = contents(pull(REPO, tmp_path / "whole").folder)
    needed = len(hub.requests)
    assert needed > 3
    for answered in range(needed):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache-{answered}"))
        hub.requests.clear()
        hub.dies_after, target = answered, tmp_path / f"pulled-{answered}"
        code, said = refusal(partial(pull, REPO, target))
        assert code == "H008"
        assert "run the same command again" in said
        assert not target.exists()
        assert not list(tmp_path.glob(".*.part"))
        hub.dies_after = None
        assert contents(pull(REPO, target).folder) == expected


def test_a_download_that_breaks_goes_on_where_it_was(
    hub: Hub, adapter: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    pushed(adapter)
    name = "adapter_model.safetensors"
    hub.halves.add(name)
    there = contents(pull(REPO).folder)
    assert there[name] == (adapter / name).read_bytes()
    assert hub.continued == [8000]


def test_a_busy_hub_is_waited_for_within_limits(hub: Hub, adapter: Path, slept: list[float]) -> None:
    told: list[str] = []
    hub.busy = [
        ("whoami", 429, {"Retry-After": "7"}),
        ("/commit/", 503, {}),
        ("/preupload/", 429, {"Retry-After": "9"}),
    ]
    pushed(adapter, tell=told.append)
    assert told == ["the Hub is busy (429): asking again in 7 s", "the Hub is busy (503): asking again in 5 s"]
    assert slept == [7.0, 10.0, 5.0]
    assert len(hub.repos[REPO].commits) == 2


@pytest.mark.parametrize("where", ["whoami", "/preupload/"])
def test_a_hub_that_wants_a_day_is_not_waited_for(hub: Hub, adapter: Path, slept: list[float], where: str) -> None:
    hub.busy = [(where, 429, {"Retry-After": "86400"})]
    code, said = refusal(lambda: pushed(adapter))
    assert (code, slept) == ("H007", [])
    assert "it will answer in 86400 s" in said


def test_a_hub_that_stays_busy_is_given_up(hub: Hub, adapter: Path, slept: list[float]) -> None:
    hub.busy = [("whoami", 429, {"ratelimit": '"api";r=0;t=120'})] * 10
    assert refusal(lambda: pushed(adapter))[0] == "H007"
    assert slept == [120.0, 120.0]


def test_every_refusal_says_what_to_do(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRONG)
    code, said = refusal(lambda: pushed(adapter))
    assert code == "H002"
    assert "hf auth login" in said
    monkeypatch.setenv("HF_TOKEN", READER)
    code, said = refusal(lambda: pushed(adapter))
    assert code == "H003"
    assert "under the namespace me" in said
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.requests)
    code, said = refusal(lambda: pushed(adapter))
    assert code == "H001"
    assert "HF_TOKEN" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert refusal(lambda: pushed(adapter))[0] == "H009"
    assert refusal(lambda: pull(REPO))[0] == "H009"
    assert len(hub.requests) == asked
    assert REPO not in hub.repos


@pytest.mark.parametrize("name", ["owl", "me/owl/x", "me/-owl", "me/o--wl", "me/o wl", "", "me/owl.git", "https://x/y"])
def test_a_bad_name_is_refused_before_anything(hub: Hub, adapter: Path, name: str) -> None:
    assert refusal(lambda: pushed(adapter, name))[0] == "H004"
    assert refusal(lambda: pull(name))[0] == "H004"
    assert hub.requests == []


def test_a_repository_of_something_else_is_left_alone(hub: Hub, adapter: Path) -> None:
    hub.repos["me/model"] = Repo(private=True)
    hub.repos["me/model"].add("main", {"config.json": b"{}", "model.safetensors": b"x"}, "a whole model")
    code, said = refusal(lambda: pushed(adapter, "me/model"))
    assert code == "H005"
    assert "config.json, model.safetensors" in said
    pushed(adapter)
    repo = hub.repos[REPO]
    repo.add(
        "main", repo.files | {MANIFEST: repo.files[MANIFEST].replace(b"some/llava", b"other/base")}, "another base"
    )
    commits = len(repo.commits)
    code, said = refusal(lambda: pushed(adapter))
    assert code == "H006"
    assert "other/base" in said
    repo.add("main", repo.files | {MANIFEST: b"[]"}, "no manifest at all")
    assert refusal(lambda: pushed(adapter))[0] == "H006"
    assert len(repo.commits) == commits + 1


def test_who_can_read_it_is_never_a_surprise(hub: Hub, adapter: Path) -> None:
    told: list[str] = []
    assert not pushed(adapter, "me/open", public=True).private
    assert hub.created[-1]["visibility"] == "public"
    code, said = refusal(lambda: pushed(adapter, "me/open"))
    assert code == "H012"
    assert "--public" in said
    pushed(adapter)
    assert pushed(adapter, public=True, tell=told.append).private
    assert told == ["me/owl stays private: make it public on its settings page"]


def test_a_branch_is_made_and_main_stays_as_it_is(hub: Hub, adapter: Path) -> None:
    pushed(adapter, branch="trial")
    assert set(hub.repos[REPO].files) == {".gitattributes"}
    pushed(adapter, branch="trial")
    assert set(contents(pull(f"{REPO}@trial", Path("x")).folder)) == set(contents(adapter))
    assert refusal(lambda: pull(f"{REPO}@nowhere", Path("y")))[0] == "H020"


def test_two_who_push_at_once_do_not_overwrite_each_other(
    hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(adapter)
    (adapter / CARD).write_text((adapter / CARD).read_text("utf-8") + "\nmine\n", "utf-8")
    honest = huggingface_hub.HfApi.create_commit

    def late(self: Any, *args: Any, **options: Any) -> Any:
        hub.repos[REPO].add("main", hub.repos[REPO].files | {"LICENSE": b"theirs"}, "theirs")
        return honest(self, *args, **options)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", late)
    assert refusal(lambda: pushed(adapter))[0] == "H014"
    assert hub.repos[REPO].messages[-1] == "theirs"


def test_files_that_the_repository_keeps_out_are_missed(hub: Hub, adapter: Path) -> None:
    hub.ignored.add("chat_template.jinja")
    code, said = refusal(lambda: pushed(adapter))
    assert code == "H013"
    assert "chat_template.jinja" in said


def test_an_unproven_adapter_says_so_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = shared_adapter(tmp_path, name=UNPROVEN)
    push(pack(folder, REPO, unproven=True))
    text = hub.repos[REPO].files[CARD].decode()
    assert text.index("**Unproven.**") < text.index("# Adapter")
    assert PROOF.holds


def test_only_an_adapter_of_qlmm_is_pulled(hub: Hub, adapter: Path) -> None:
    assert refusal(lambda: pull("me/nothing"))[0] == "H020"
    hub.repos["me/plain"] = Repo()
    hub.repos["me/plain"].add("main", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, "peft")
    code, said = refusal(lambda: pull("me/plain"))
    assert code == "H021"
    assert "PeftModel.from_pretrained" in said
    hub.repos["me/plain"].add("main", {"config.json": b"{}"}, "model")
    assert refusal(lambda: pull("me/plain"))[0] == "H021"
    assert not list(Path().glob("*plain*"))


def test_a_damaged_or_strange_adapter_is_not_kept(hub: Hub, adapter: Path) -> None:
    pushed(adapter)
    repo, whole = hub.repos[REPO], hub.repos[REPO].files
    repo.add("main", whole | {"chat_template.jinja": b"{{ other }}"}, "changed by hand")
    code, said = refusal(lambda: pull(REPO))
    assert code == "H021"
    assert "chat_template.jinja" in said
    strange = whole[MANIFEST].replace(b'"chat_template.jinja"', b'"../../evil.bin"')
    repo.add("main", whole | {MANIFEST: strange}, "strange")
    code, said = refusal(lambda: pull(REPO))
    assert code == "H021"
    assert "../../evil.bin" in said
    repo.add("main", whole | {"held-out/../../x.png": b"x"}, "a way out of the folder")
    assert "held-out/../../x.png" in refusal(lambda: pull(REPO))[1]
    repo.add("main", whole | {"training_args.bin": b"\x80", "held-out/x.py.png/y.png": b"x"}, "more than an adapter")
    assert set(contents(pull(REPO).folder)) == set(contents(adapter))


def test_nothing_is_overwritten(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    pushed(adapter)
    (tmp_path / "owl").mkdir()
    assert pull(REPO).folder == Path("owl")
    hub.requests.clear()
    assert refusal(lambda: pull(REPO))[0] == "A033"
    assert refusal(lambda: pull(REPO, adapter / CARD))[0] == "A033"
    assert hub.requests == []


def test_the_disk_has_the_last_word(hub: Hub, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(adapter)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(shutil, "copyfile", full)
    code, said = refusal(lambda: pull(REPO))
    assert code == "H023"
    assert "No space left on device" in said
    assert not (tmp_path / "owl").exists()
    assert not (tmp_path / ".owl.part").exists()


def test_the_command_line_pushes_and_pulls(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, [*words], catch_exceptions=False)

    sent = run("push", str(adapter), REPO, "--message", "from a shell", "--revision", "trial")
    commit = hub.repos[REPO].branches["trial"]
    assert (sent.exit_code, sent.stdout.splitlines()) == (0, [f"{hub.address}/{REPO}", f"commit {commit}, private"])
    assert f"qlmm pull {REPO}@{commit}" in sent.stderr
    fetched = run("pull", f"{REPO}@{commit}", "here")
    assert (fetched.exit_code, fetched.stdout) == (0, "here\n")
    assert set(contents(tmp_path / "here")) == set(contents(adapter))
    assert hub.repos[REPO].messages[-1] == "from a shell"
