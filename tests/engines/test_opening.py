from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from engines import opening
from engines.engine import EngineSettings
from engines.errors import SelfTestError
from engines.opening import installed_backends, open_engine
from engines.ort import OnnxRuntimeEngine
from tests.support.bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("opening") / "toy", 16)


@pytest.fixture(autouse=True)
def _onnxruntime_alone(monkeypatch):
    """As on a machine with no other back end; the others' tests have the other cases."""
    monkeypatch.setattr(opening, "BACKENDS", {"onnxruntime": opening.BACKENDS["onnxruntime"]})


@pytest.mark.parametrize(
    ("backend", "why"), [("auto", "fastest back end here"), ("onnxruntime", "engine.backend in the settings")]
)
def test_the_log_says_what_was_chosen_and_why(bundle, backend, why):
    with capture_logs() as logs:
        engine = open_engine(bundle, EngineSettings(backend=backend, threads=1))
    assert isinstance(engine, OnnxRuntimeEngine)
    (entry,) = logs
    assert entry["event"] == "engine opened"
    assert entry["backend"] == "onnxruntime"
    assert entry["why"] == why
    assert entry["bundle"] == "toy"
    assert entry["bundle_sha256"] == bundle.digest
    assert entry["selftest_error"] < entry["selftest_allowed"]


def test_an_engine_that_fails_the_self_test_is_closed_and_does_not_serve(bundle, tmp_path, monkeypatch):
    # A bundle whose stored outputs belong to another grey level than its graph's.
    other = make_bundle(tmp_path / "other", 16, grey=90)
    broken = replace(bundle, selftest=other.selftest)
    closed = []

    class Watched(OnnxRuntimeEngine):
        def close(self):
            closed.append(True)
            super().close()

    (backend,) = installed_backends()
    monkeypatch.setattr(
        opening,
        "installed_backends",
        lambda: (backend._replace(open=lambda bundle, settings, _: Watched(bundle, settings)),),
    )
    with pytest.raises(SelfTestError, match="must not serve"):
        open_engine(broken, EngineSettings())
    assert closed == [True]


def test_auto_takes_the_first(bundle, monkeypatch):
    (backend,) = installed_backends()

    class Faster(OnnxRuntimeEngine):
        pass

    first = backend._replace(name="faster", open=lambda bundle, settings, _: Faster(bundle, settings))
    monkeypatch.setattr(opening, "installed_backends", lambda: (first, backend))
    assert isinstance(open_engine(bundle, EngineSettings()), Faster)
    assert type(open_engine(bundle, EngineSettings(backend="onnxruntime"))) is OnnxRuntimeEngine
