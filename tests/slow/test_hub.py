"""Push against a Hub on this machine: whole or not at all, nothing but the list, refusals with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result

from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.hub.package import pack
from qlmm.artifacts.hub.transfer import pull, push
from qlmm.cli.app import app
from qlmm.core.filenames import CARD, MANIFEST, UNPROVEN
from tests.hub import READER, TOKEN, WRONG, Hub, Repo
from tests.run_facts import PROOF
from tests.sharing import COMMIT, PRIVATE, REPO, contents, pushed, refusal, sendable, shared_adapter
from tests.unit.artifacts.adapters import learned

# The Hub's address and licences are filled in; everything else is sent as it lies there.
REWRITTEN = {CARD}


def test_what_is_pushed_comes_back_byte_for_byte(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    before = sendable(adapter)
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
    assert sendable(adapter) == before
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
    write_manifest(other, manifest)
    (other / CARD).write_text(lines + "\nA word of mine.\n", "utf-8")
    second = pushed(other, message="better")
    assert second.commit != first.commit
    assert set(hub.repos[REPO].files) == {*sendable(other), ".gitattributes", "LICENSE"}
    assert hub.repos[REPO].messages[-1] == "better"
    assert hub.repos[REPO].files[CARD].endswith(b"\nA word of mine.\n")
    assert pull(f"{REPO}@{first.commit}", Path("old")).commit == first.commit
    assert "held-out/answer-2.png" in contents(Path("old"))


def test_a_dry_run_asks_for_nothing(hub: Hub, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = CliRunner().invoke(app, ["push", str(adapter), REPO, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert hub.requests == []
    assert all(name in done.stdout for name in sendable(adapter))
    assert PRIVATE not in done.stdout
    assert "whoever gets the adapter can read the rows" in done.stdout
    assert "# Adapter trained with qlmm" in done.stdout


def test_a_push_that_is_cut_off_anywhere_is_completed_by_the_next(hub: Hub, adapter: Path, slept: list[float]) -> None:
    before = sendable(adapter)
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
        assert sendable(adapter) == before
    assert codes == {"H008"}


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
    hub.repos["other/open"] = Repo()
    code, said = refusal(lambda: pushed(adapter, "other/open"))
    assert code == "H003"
    assert "other/open belongs to other" in said
    assert "--public" not in said


def test_a_branch_is_made_and_main_stays_as_it_is(hub: Hub, adapter: Path) -> None:
    pushed(adapter, branch="trial")
    assert set(hub.repos[REPO].files) == {".gitattributes"}
    pushed(adapter, branch="trial")
    assert set(contents(pull(f"{REPO}@trial", Path("x")).folder)) == set(sendable(adapter))
    assert refusal(lambda: pull(f"{REPO}@nowhere", Path("y")))[0] == "H020"


def test_no_branch_is_made_where_nothing_is_pushed(hub: Hub, adapter: Path) -> None:
    hub.repos["me/model"] = Repo(private=True)
    hub.repos["me/model"].add("main", {"config.json": b"{}"}, "a whole model")
    assert refusal(lambda: pushed(adapter, "me/model", branch="trial"))[0] == "H005"
    assert set(hub.repos["me/model"].branches) == {"main"}


def test_a_card_that_the_hub_refuses_is_to_be_mended(hub: Hub, adapter: Path) -> None:
    text = (adapter / CARD).read_text("utf-8")
    (adapter / CARD).write_text(text.replace("---\n", "---\nlicense: mine\n", 1), "utf-8")
    code, said = refusal(lambda: pushed(adapter))
    assert code == "H016"
    assert '"license" must be one of [apache-2.0, mit, ...]' in said
    assert "mend the lines between the two `---`" in said
    assert set(hub.repos[REPO].files) == {".gitattributes"}


def test_a_second_name_is_told_throughout(hub: Hub, adapter: Path) -> None:
    pushed(adapter)
    copy = pull(REPO).folder
    card = (copy / CARD).read_text("utf-8")
    (copy / CARD).write_text(f"{card}\nBetter than me/owl.\n", "utf-8")
    pushed(copy, "me/other")
    text = hub.repos["me/other"].files[CARD].decode()
    assert 'PeftModel.from_pretrained(base, "me/other")' in text
    assert "qlmm pull me/other" in text
    assert text.count("me/owl") == 1
    assert text.endswith("\nBetter than me/owl.\n")
    assert f"| {COMMIT} | apache-2.0 |" in text


def test_a_source_that_is_no_name_of_the_hub_is_not_asked_for(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "rows--v2").mkdir()
    folder = shared_adapter(tmp_path)
    made = read_manifest(folder)
    for path in ("/data/mine/squad", "rows--v2", "gone--rows"):
        data = learned(path, kept=3)
        write_manifest(folder, made.model_copy(update={"data": data}))
        (folder / CARD).unlink(missing_ok=True)
        pushed(folder)
    assert hub.asked("datasets") == []


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


def test_the_command_line_pushes_and_pulls(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, [*words], catch_exceptions=False)

    sent = run("push", str(adapter), REPO, "--message", "from a shell", "--revision", "trial")
    commit = hub.repos[REPO].branches["trial"]
    assert (sent.exit_code, sent.stdout.splitlines()) == (0, [f"{hub.address}/{REPO}", f"commit {commit}, private"])
    assert f"qlmm pull {REPO}@{commit}" in sent.stderr
    fetched = run("pull", f"{REPO}@{commit}", "here")
    assert (fetched.exit_code, fetched.stdout) == (0, "here\n")
    assert set(contents(tmp_path / "here")) == set(sendable(adapter))
    assert hub.repos[REPO].messages[-1] == "from a shell"
