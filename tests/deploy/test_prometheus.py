"""deploy/prometheus and deploy/grafana: complete, and as Grafana would read them.

promtool's own word on configuration and rules is asked for by tests/e2e/test_integration.py, by the commands of
docs/integration.md.
"""

import itertools
import json
import re
import subprocess

import yaml

from tests.support.mosquitto import need
from tests.support.station_process import REPOSITORY

PROMETHEUS = REPOSITORY / "deploy/prometheus"
GRAFANA = REPOSITORY / "deploy/grafana"
RULES = yaml.safe_load((PROMETHEUS / "station.rules.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((GRAFANA / "dashboards/station.json").read_text())


def test_the_rules_tests_can_fail(tmp_path):
    (tmp_path / "station.rules.yml").write_text((PROMETHEUS / "station.rules.yml").read_text().replace("> 85", "> 99"))
    (tmp_path / "test.yml").write_text((PROMETHEUS / "station.rules.test.yml").read_text())
    command = [need("promtool"), "test", "rules", tmp_path / "test.yml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "StationHot" in done.stdout + done.stderr


def test_every_rule_is_seen_to_fire_and_to_keep_quiet():
    tests = yaml.safe_load((PROMETHEUS / "station.rules.test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]
    fire = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fire == {rule["alert"] for rule in RULES}
    assert any("ALERTS" in case["expr"] for test in tests for case in test.get("promql_expr_test", ()))


def test_rules_say_how_bad_it_is_and_what_to_do():
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"{{ \$labels.instance }}.+", rule["annotations"]["summary"])
        assert rule["annotations"]["description"].endswith((".", ")."))


def test_rules_name_pages_that_exist():
    named = re.findall(r"docs/[\w./-]+\.md", (PROMETHEUS / "station.rules.yml").read_text())
    assert named
    assert [page for page in named if not (REPOSITORY / page).is_file()] == []


def test_the_dashboards_panels_do_not_overlap_and_fill_their_rows():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    height = max(y for _, y in cells) + 1
    assert set(cells) == set(itertools.product(range(24), range(height)))


def test_the_dashboard_asks_only_the_chosen_source_for_the_chosen_stations():
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "station"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert 'instance=~"$station"' in target["expr"]


def test_grafana_is_told_where_all_of_it_is():
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/station.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"
