import json
import multiprocessing
import os
import stat
import time
from datetime import datetime, timezone

import pytest

from engines import cache as cache_module
from engines.cache import (
    Broken,
    DeviceFacts,
    Entry,
    Inspection,
    PlanCache,
    PlanFacts,
    PlanLayer,
    PlanManifest,
    PlanTensor,
    Verdict,
    default_folder,
)
from engines.errors import BackendError, PlanError

DEVICE = DeviceFacts(library="TensorRT", version="10.3.0", name="Orin", capability="8.7")
FACTS = PlanFacts(scorer_sha256="0" * 64, device=DEVICE, precision="fp16", max_patches=8, workspace_mib=64)
PLAN = bytes(range(256)) * 40
root_reads_all = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")


def make_manifest(facts=FACTS, **changes):
    return PlanManifest(
        facts=facts,
        bundle_name="toy",
        bundle_sha256="1" * 64,
        built_at=datetime(2024, 1, 1, 12, 30, 0, 123456, tzinfo=timezone.utc),
        build_seconds=0.1,
        inspection=Inspection(
            tensors=(PlanTensor(name="patches", direction="in", dtype="uint8", shape=(-1, 16, 16, 3)),),
            patches=(1, 8, 8),
            layers=(PlanLayer(name="all", kind="kgen", dtypes=("float32",)),),
        ),
        **changes,
    )


@pytest.fixture
def plans(tmp_path):
    return PlanCache(tmp_path / "engines")


@pytest.fixture
def entry(plans):
    return plans.store(PLAN, make_manifest())


def test_nothing_there(plans):
    assert plans.load(FACTS) is None
    assert plans.entries() == []


def test_what_was_stored_comes_back(plans, entry):
    plan, found = plans.load(FACTS)
    assert plan == PLAN
    assert found == entry
    assert found.manifest.model_copy(update={"mac": ""}) == make_manifest(plan_bytes=len(PLAN))
    assert [found.path for found in plans.entries()] == [entry.path]


def test_another_process_of_the_same_device_can_read_it(plans, entry):
    assert PlanCache(plans.folder).load(FACTS)[0] == PLAN


def test_a_verdict_replaces_the_manifest(plans, entry):
    verdict = Verdict(accepted=True, selftest_error=1e-3, rank_correlation=0.9999, words="good")
    plans.store(PLAN, entry.manifest.model_copy(update={"verdict": verdict}))
    plan, found = plans.load(FACTS)
    assert plan == PLAN
    assert found.manifest.verdict == verdict


def test_only_the_owner_can_read_or_write_what_is_stored(plans, entry):
    old = os.umask(0)
    try:
        other = PlanCache(plans.folder.with_name("other"))
        other.store(PLAN, make_manifest())
    finally:
        os.umask(old)
    for folder in (plans.folder, other.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change",
    [
        {"scorer_sha256": "2" * 64},
        {"precision": "int8"},
        {"max_patches": 9},
        {"workspace_mib": 65},
        {"device": DEVICE.model_copy(update={"version": "10.7.0"})},
        {"device": DEVICE.model_copy(update={"library": "TensorRT-RTX"})},
        {"device": DEVICE.model_copy(update={"name": "Xavier"})},
        {"device": DEVICE.model_copy(update={"capability": "7.2"})},
    ],
)
def test_whatever_a_plan_depends_on_asks_for_another_plan(plans, entry, change):
    assert plans.load(FACTS.model_copy(update=change)) is None


@pytest.mark.parametrize("place", [0, 100, len(PLAN) - 1])
def test_one_changed_byte_of_the_plan(plans, entry, place):
    data = bytearray(PLAN)
    data[place] ^= 1
    entry.path.write_bytes(data)
    with pytest.raises(PlanError, match=r"\.plan: was altered"):
        plans.load(FACTS)
    (found,) = plans.entries()
    assert isinstance(found, Broken)
    assert "was altered" in found.reason


@pytest.mark.parametrize("size", [0, 1, len(PLAN) - 1])
def test_a_plan_cut_off(plans, entry, size):
    os.truncate(entry.path, size)
    with pytest.raises(PlanError, match=f"has {size:,} bytes"):
        plans.load(FACTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bundle_name", "another"),
        ("build_seconds", 0.2),
        ("verdict", {"accepted": True, "selftest_error": 0, "rank_correlation": 1, "words": ""}),
        ("mac", "0" * 64),
        ("mac", "é"),
    ],
)
def test_a_changed_manifest(plans, entry, key, value):
    path = entry.path.with_suffix(".json")
    fields = json.loads(path.read_text())
    fields[key] = value
    path.write_text(json.dumps(fields))
    with pytest.raises(PlanError, match="was altered"):
        plans.load(FACTS)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "[" * 100_000, "\x00"])
def test_a_manifest_that_is_none(plans, entry, text):
    entry.path.with_suffix(".json").write_text(text)
    with pytest.raises(PlanError, match="was altered, or is another version's"):
        plans.load(FACTS)


def test_a_newer_manifest(plans, entry):
    path = entry.path.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 3}))
    with pytest.raises(PlanError, match="another version's"):
        plans.load(FACTS)


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_half_of_a_pair(plans, entry, suffix):
    entry.path.with_suffix(suffix).unlink()
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        plans.load(FACTS)
    assert isinstance(plans.entries()[0], Broken)


def test_a_plan_of_another_device_is_foreign(plans, entry, tmp_path):
    there = PlanCache(tmp_path / "there")
    there.store(PLAN, make_manifest())
    for suffix in (".plan", ".json"):
        (there.folder / entry.path.with_suffix(suffix).name).rename(entry.path.with_suffix(suffix))
    with pytest.raises(PlanError, match="was built by another device or user"):
        plans.load(FACTS)


def test_a_renamed_plan(plans, entry):
    other = FACTS.model_copy(update={"max_patches": 9})
    for suffix in (".plan", ".json"):
        entry.path.with_suffix(suffix).rename(plans.folder / f"{other.key}{suffix}")
    with pytest.raises(PlanError, match="was renamed"):
        plans.load(other)
    assert "was renamed" in plans.entries()[0].reason


@pytest.mark.parametrize("suffix", [".plan", ".json"])
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write(plans, entry, suffix, mode):
    entry.path.with_suffix(suffix).chmod(mode)
    with pytest.raises(PlanError, match=f"has mode 0{mode:o}: somebody else could have changed it"):
        plans.load(FACTS)


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_a_link_is_not_followed(plans, entry, suffix, tmp_path):
    path = entry.path.with_suffix(suffix)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="cannot be read"):
        plans.load(FACTS)


def test_a_pipe_is_not_waited_for(plans, entry):
    entry.path.unlink()
    os.mkfifo(entry.path)
    with pytest.raises(PlanError, match="not a regular file"):
        plans.load(FACTS)


def test_another_users_file(plans, entry, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(BackendError, match=f"belongs to user {os.getuid()}, not to {os.getuid() + 1}"):
        plans.load(FACTS)


def test_a_plan_larger_than_any(plans, entry, monkeypatch):
    monkeypatch.setattr(cache_module, "MAX_PLAN_BYTES", len(PLAN) - 1)
    with pytest.raises(PlanError, match="larger than"):
        plans.load(FACTS)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write(plans, entry, mode):
    plans.folder.chmod(mode)
    for use in (lambda: plans.load(FACTS), plans.entries, lambda: plans.store(PLAN, make_manifest())):
        with pytest.raises(BackendError, match=rf"has mode 0{mode:o}, so somebody else could put plans there"):
            use()


def test_a_secret_that_others_may_read(plans, entry):
    (plans.folder / "secret").chmod(0o640)
    with pytest.raises(BackendError, match=r"secret: has mode 0640.*delete it"):
        plans.load(FACTS)


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 33])
def test_a_damaged_secret(plans, entry, secret):
    (plans.folder / "secret").write_bytes(secret)
    with pytest.raises(BackendError, match=r"secret: .*delete it, and all plans are built anew"):
        plans.load(FACTS)


def test_without_the_secret_nothing_is_ours(plans, entry):
    (plans.folder / "secret").unlink()
    with pytest.raises(PlanError, match="another device"):
        plans.load(FACTS)
    plans.store(PLAN, make_manifest())
    assert plans.load(FACTS)[0] == PLAN


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"file/engines: the engine cache cannot be used: .* set engine\.cache"):
        PlanCache(tmp_path / "file" / "engines").load(FACTS)


@root_reads_all
def test_a_folder_that_cannot_be_written(plans, entry):
    plans.folder.chmod(0o500)
    with pytest.raises(BackendError, match=r"cannot be written: Permission denied; set engine\.cache"):
        plans.store(PLAN, make_manifest())
    plans.folder.chmod(0o700)


def test_a_failed_write_leaves_what_was_there(plans, entry, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match="No space left"):
        plans.store(b"another plan", make_manifest())
    monkeypatch.undo()
    assert plans.load(FACTS)[0] == PLAN
    assert not list(plans.folder.glob(".*"))


def _killed_while_writing(folder):
    def die(_descriptor):
        os._exit(9)

    os.fsync = die  # in this process only
    PlanCache(folder).store(b"another plan", make_manifest())


def test_a_writer_that_is_killed_leaves_what_was_there(plans, entry):
    process = multiprocessing.get_context("spawn").Process(target=_killed_while_writing, args=(plans.folder,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert plans.load(FACTS)[0] == PLAN
    assert [found.path for found in plans.entries()] == [entry.path]
    (part,) = plans.folder.glob(".*.part")
    with plans.locked(lambda: None):
        assert part.exists()  # it might still be written
    os.utime(part, (time.time() - 7200,) * 2)
    with plans.locked(lambda: None):
        assert not part.exists()


def test_removing(plans, entry):
    plans.remove(entry)
    assert plans.load(FACTS) is None
    plans.remove(entry)
    assert plans.entries() == []


class EnoughError(Exception):
    pass


def test_only_one_builds_at_a_time(plans):
    waited = []

    def on_wait():
        waited.append(True)
        raise EnoughError

    with plans.locked(lambda: None), pytest.raises(EnoughError), PlanCache(plans.folder).locked(on_wait):
        pass
    assert waited == [True]
    with plans.locked(on_wait):
        pass
    assert waited == [True]


def test_timings(plans):
    assert plans.load_timings(DEVICE) == b""
    plans.store_timings(DEVICE, b"measured")
    assert plans.load_timings(DEVICE) == b"measured"
    assert plans.load_timings(DEVICE.model_copy(update={"name": "Xavier"})) == b""


def test_altered_timings_are_left_alone(plans):
    plans.store_timings(DEVICE, b"measured")
    (path,) = plans.folder.glob("*.timings")
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert plans.load_timings(DEVICE) == b""
    path.chmod(0o666)
    assert plans.load_timings(DEVICE) == b""


def test_timings_of_one_device_do_not_pass_for_anothers(plans):
    plans.store_timings(DEVICE, b"measured")
    other = DEVICE.model_copy(update={"name": "Xavier"})
    plans.store_timings(other, b"others")
    mine, its = (plans._timings(device) for device in (DEVICE, other))
    its.rename(mine)
    assert plans.load_timings(DEVICE) == b""


def test_what_differs_between_devices_in_words():
    assert DEVICE.difference(DEVICE) is None
    here = DeviceFacts(library="TensorRT", version="10.7.0", name="Orin", capability="8.7")
    assert DEVICE.difference(here) == "library TensorRT 10.3.0, here TensorRT 10.7.0"
    assert "device Orin (8.7), here Xavier (7.2)" in DEVICE.difference(
        here.model_copy(update={"name": "Xavier", "capability": "7.2"})
    )


def test_entries_are_told_from_broken_ones(plans, entry):
    other = plans.store(PLAN, make_manifest(FACTS.model_copy(update={"max_patches": 2})))
    other.path.write_bytes(b"")
    kinds = {found.path: type(found) for found in plans.entries()}
    assert kinds == {entry.path: Entry, other.path: Broken}


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/station:/var/cache/more"}, "/var/cache/station/engines"),
        ({"XDG_CACHE_HOME": "/home/me/.c"}, "/home/me/.c/cbigan-station/engines"),
        ({"HOME": "/home/me"}, "/home/me/.cache/cbigan-station/engines"),
    ],
)
def test_where_plans_are_kept(monkeypatch, environment, folder):
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(default_folder()) == folder
