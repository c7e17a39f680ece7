"""The dashboard: every query means something to Prometheus, and every metric of the agent is on it."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import chart

HERE = pathlib.Path(__file__).resolve().parent
METRICS = chart.ROOT / "agent" / "src" / "metrics.rs"

# What Grafana puts in for the dashboard's variables.
VARIABLES = {"$__rate_interval": "5m", "$job": ".*", "$node": ".*"}


def shown(values=None):
    dashboard = {"dashboard": {"enabled": True, **(values or {})}}
    return chart.one("ConfigMap", {"metrics": dashboard}, name="latchkey-agent-dashboard")


def panels():
    return [panel for panel in json.loads(shown()["data"]["latchkey.json"])["panels"] if panel["type"] != "row"]


def queries():
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for variable, value in VARIABLES.items():
                query = query.replace(variable, value)
            yield panel["title"], query, target["legendFormat"]


def of_the_agent():
    """The agent's metrics, by name, each with its labels."""
    source = METRICS.read_text().split("#[cfg(test)]")[0]
    names = re.findall(r'"(latchkey_[a-z_]+)"', source)
    # Up to the end of the call that makes it, a text of one word is a label.
    calls = [rest.split(")?")[0] for rest in re.split(r'"latchkey_[a-z_]+"', source)[1:]]
    return {name: set(re.findall(r'"(\w+)"', call)) for name, call in zip(names, calls, strict=True)}


class Dashboard(unittest.TestCase):
    def test_it_is_there_only_for_those_who_ask_and_is_found_by_its_label(self):
        names = [found["metadata"]["name"] for found in chart.objects() if found["kind"] == "ConfigMap"]
        self.assertEqual(["latchkey-agent"], names)
        found = shown({"annotations": {"grafana_folder": "Secrets"}, "labels": {"team": "monitoring"}})["metadata"]
        self.assertEqual("1", found["labels"]["grafana_dashboard"])
        self.assertEqual("monitoring", found["labels"]["team"])
        self.assertEqual({"grafana_folder": "Secrets"}, found["annotations"])

    def test_what_grafana_imports_by_hand_is_what_the_chart_makes(self):
        by_hand = (chart.CHART / "dashboard.json").read_text()
        self.assertEqual(by_hand.strip(), shown()["data"]["latchkey.json"].strip())

    def test_every_metric_of_the_agent_is_on_it_and_no_other(self):
        known = of_the_agent()
        self.assertGreater(len(known), 15)
        on_it = {
            re.sub(r"_(bucket|count|sum)$", "", name)
            for _, query, _ in queries()
            for name in re.findall(r"\blatchkey_\w+", query)
        }
        self.assertEqual(known.keys(), on_it)

    def test_it_asks_for_labels_that_the_metric_has(self):
        known = of_the_agent()
        for title, query, legend in queries():
            (name,) = set(re.findall(r"\b(?:latchkey|process)_\w+", query))
            labels = known.get(re.sub(r"_(bucket|count|sum)$", "", name), set()) | {"job", "node", "pod", "le"}
            asked = set(re.findall(r"(\w+)!?=~?\"", query)) | set(re.findall(r"{{(\w+)}}", legend))
            asked |= {label for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(", ")}
            self.assertLessEqual(asked, labels, title)

    def test_prometheus_understands_every_query(self):
        rules = [{"record": f"query:{number}", "expr": query} for number, (_, query, _) in enumerate(queries())]
        self.assertGreater(len(rules), 20)
        with tempfile.TemporaryDirectory() as folder:
            # JSON is YAML too.
            file = pathlib.Path(folder) / "rules.yaml"
            file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
            said = subprocess.run([HERE / "promtool", "check", "rules", file], capture_output=True, text=True)
        self.assertEqual(0, said.returncode, said.stdout + said.stderr)

    def test_no_panel_hides_another_and_all_ask_the_chosen_source(self):
        taken, numbers = set(), set()
        for panel in json.loads(shown()["data"]["latchkey.json"])["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            self.assertLessEqual(place["x"] + place["w"], 24, panel["title"])
            self.assertFalse(cells & taken, panel["title"])
            self.assertNotIn(panel["id"], numbers)
            taken |= cells
            numbers.add(panel["id"])
            for target in panel.get("targets", []):
                self.assertEqual("${datasource}", target["datasource"]["uid"])


if __name__ == "__main__":
    unittest.main()
