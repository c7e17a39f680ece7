"""The rendered objects: always the same, the same as deploy/manifests, and as confined as they say."""

import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import helm_python as helm

import chart

HERE = pathlib.Path(__file__).resolve().parent
MANIFESTS = chart.ROOT / "deploy" / "manifests"

EVERYTHING = {
    "metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "priorityQuota": {"create": True},
    "namespace": {"create": True},
    "caBundle": {"configMap": "roots"},
}


class Same(unittest.TestCase):
    def test_the_chart_is_without_fault_to_helm_lint(self):
        for values in (None, EVERYTHING, {"metrics": {"serviceMonitor": {"enabled": True}}}):
            report = helm.lint(chart.CHART, values, strict=True, namespace="latchkey")
            self.assertEqual([], [message for message in report["messages"] if message["severity"] > 1])
            self.assertEqual([], report["errors"])

    def test_two_renders_of_two_processes_are_byte_identical(self):
        def run():
            return subprocess.run(
                [HERE / "helm", "template", "latchkey", chart.CHART, "--namespace", "latchkey",
                 "--set", "metrics.prometheusRule.enabled=true", "--set", "config.backends.b.type=aws",
                 "--set", "config.backends.a.type=aws", "--set", "config.default_backend=a"],
                check=True, capture_output=True,
            ).stdout

        first = run()
        self.assertGreater(len(first), 5000)
        self.assertEqual(first, run())

    def test_no_template_asks_the_cluster_but_for_its_version_the_clock_or_chance(self):
        forbidden = re.compile(
            r"\b(lookup|now|date\w*|rand\w+|uuidv4|gen[A-Z]\w+|htpasswd|env|getHostByName)\b|Capabilities(?!\.KubeVersion)"
            r"|helm\.sh/hook|\.Release\.(Revision|IsInstall|IsUpgrade)"
        )
        for template in (chart.CHART / "templates").iterdir():
            for line in template.read_text().splitlines():
                for action in re.findall(r"{{.*?}}", line) + re.findall(r"helm\.sh/hook", line):
                    self.assertIsNone(forbidden.search(action), f"{template.name}: {line}")

    def test_by_the_clusters_version_something_is_refused_and_nothing_is_rendered_otherwise(self):
        self.assertEqual(chart.text(EVERYTHING, "kubeVersion=1.30.0"), chart.text(EVERYTHING, "kubeVersion=1.36.0"))

    def test_the_plain_manifests_are_the_rendered_chart(self):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([chart.CHART.parent / "render", out], check=True, env={**os.environ, "HELM": str(HERE / "helm")})
            fresh = {file.name: file.read_text() for file in pathlib.Path(out).iterdir()}
        there = {file.name: file.read_text() for file in MANIFESTS.iterdir()}
        self.assertEqual(sorted(fresh), sorted(there))
        for name, content in fresh.items():
            self.assertEqual(content, there[name], f"{name} is behind the chart: run deploy/helm/render")

    def test_the_plain_manifests_are_all_that_is_rendered(self):
        whole = chart.objects({"namespace": {"create": True}})
        parts = [found for file in sorted(MANIFESTS.iterdir()) for found in chart.documents(file.read_text())]
        names = sorted((found["kind"], found["metadata"]["name"]) for found in whole)
        self.assertEqual(names, sorted((found["kind"], found["metadata"]["name"]) for found in parts))


class Confined(unittest.TestCase):
    """Pod Security's level restricted, rule by rule; what breaks it is listed here and explained in the manifest."""

    AGENT = {"hostPID: true", "volume socket: hostPath /run/latchkey", "agent: root"}
    MOUNTER = {
        "mounter: privileged", "mounter: allowPrivilegeEscalation", "mounter: capabilities", "mounter: root",
        "volume plugin: hostPath /var/lib/kubelet/plugins/csi.latchkey.dev",
        "volume kubelet-pods: hostPath /var/lib/kubelet/pods",
        "volume kubelet-registry: hostPath /var/lib/kubelet/plugins_registry",
    }

    def test_the_agent_keeps_to_restricted_but_for_three_documented_lines(self):
        self.assertEqual(self.AGENT, chart.violations(chart.pod({**EVERYTHING, "delivery": "hostPath", "rbac": {"tokens": "namespace"}})))

    def test_with_csi_only_the_mounter_is_privileged(self):
        self.assertEqual(self.AGENT | self.MOUNTER, chart.violations(chart.pod({**EVERYTHING, "delivery": "csi"})))

    def test_each_line_that_restricted_forbids_has_its_reason_beside_it(self):
        lines = (MANIFESTS / "40-daemonset.yaml").read_text().splitlines()
        seen = 0
        for number, line in enumerate(lines):
            if not re.match(r"\s*(hostPID: true|runAsUser: 0|privileged: true|hostPath:)$", line):
                continue
            seen += 1
            before = number - 1
            while re.match(r"\s*(- name:|runAs|securityContext:|privileged: true)", lines[before]):
                before -= 1
            self.assertRegex(lines[before], r"^\s*# \S", f"nothing explains line {number + 1}: {line}")
        self.assertGreaterEqual(seen, 8)

    def test_only_the_agents_container_has_its_token(self):
        pod = chart.pod()
        self.assertFalse(pod["spec"]["automountServiceAccountToken"])
        self.assertFalse(chart.one("ServiceAccount")["automountServiceAccountToken"])
        with_token = [
            container["name"] for container in pod["spec"]["containers"]
            if any(mount["name"] == "token" for mount in container["volumeMounts"])
        ]
        self.assertEqual(["agent"], with_token)
        token = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "token")
        lives = [source["serviceAccountToken"]["expirationSeconds"] for source in token["projected"]["sources"] if "serviceAccountToken" in source]
        self.assertEqual([3600], lives)


class Placed(unittest.TestCase):
    def test_the_agent_does_not_hang_on_the_cluster_it_serves(self):
        pod = chart.pod()["spec"]
        self.assertEqual("Default", pod["dnsPolicy"])
        self.assertEqual("system-node-critical", pod["priorityClassName"])
        self.assertEqual([{"operator": "Exists"}], pod["tolerations"])
        self.assertNotIn("hostNetwork", pod)
        update = chart.one("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"]
        self.assertEqual({"maxSurge": 1, "maxUnavailable": 0}, update)

    def test_the_agent_tolerates_the_taint_that_only_it_takes_off(self):
        own, taint = {"key": "dedicated", "operator": "Exists"}, {"key": "example.com/wait", "operator": "Exists"}
        enabled = ("startupTaint.enabled=true", "startupTaint.key=example.com/wait")

        def tolerations(values, *expressions):
            return chart.pod(values, *expressions)["spec"].get("tolerations")

        self.assertEqual([own, taint], tolerations({"tolerations": [own]}, *enabled))
        self.assertEqual([taint], tolerations({"tolerations": []}, *enabled))
        self.assertEqual([taint], tolerations({"tolerations": None}, *enabled))
        self.assertEqual([{"operator": "Exists"}], tolerations(None, *enabled))
        self.assertEqual([own], tolerations({"tolerations": [own]}))
        self.assertIsNone(tolerations({"tolerations": []}))

    def test_it_is_outside_of_every_mesh(self):
        template = chart.pod()["metadata"]
        marks = {**template["labels"], **template["annotations"]}
        for key, value in {
            "sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none", "linkerd.io/inject": "disabled",
            "kuma.io/sidecar-injection": "disabled", "consul.hashicorp.com/connect-inject": "false",
        }.items():
            self.assertEqual(value, marks[key])

    def test_the_probes_ask_for_what_the_agent_itself_knows(self):
        agent = chart.pod()["spec"]["containers"][0]
        self.assertEqual("/readyz", agent["readinessProbe"]["httpGet"]["path"])
        self.assertEqual("/livez", agent["livenessProbe"]["httpGet"]["path"])

    def test_a_probe_without_timing_is_the_probe_still(self):
        for probe in ("readinessProbe", "livenessProbe"):
            for timing in (None, {}):
                agent = chart.pod({probe: timing})["spec"]["containers"][0]
                self.assertEqual("admin", agent[probe]["httpGet"]["port"])

    def test_the_limit_of_memory_is_its_request_and_cpu_has_none(self):
        resources = chart.pod()["spec"]["containers"][0]["resources"]
        self.assertEqual(resources["requests"]["memory"], resources["limits"]["memory"])
        self.assertNotIn("cpu", resources["limits"])


class Watched(unittest.TestCase):
    def test_every_alert_is_about_a_metric_that_is_there_and_explained_in_the_guide(self):
        rules = chart.one("PrometheusRule", EVERYTHING)["spec"]["groups"][0]["rules"]
        rules += chart.one("PrometheusRule", EVERYTHING, "delivery=hostPath", "rbac.tokens=namespace")["spec"]["groups"][0]["rules"]
        source = (chart.ROOT / "agent" / "src" / "metrics.rs").read_text()
        guide = (chart.ROOT / "docs" / "operations.md").read_text()
        self.assertGreater(len(rules), 8)
        for rule in rules:
            metrics = re.findall(r"latchkey_[a-z_]+", rule["expr"])
            for metric in metrics:
                self.assertIn(f'"{re.sub("_(bucket|count)$", "", metric)}"', source, rule["alert"])
            # Of Prometheus itself, of every process, and of kube-state-metrics.
            others = ("up{", "absent(up{", "process_start_time_seconds", "kube_daemonset_status_number_unavailable")
            self.assertTrue(metrics or rule["expr"].startswith(others) or others[2] in rule["expr"], rule["alert"])
            # With an anchor, which a row does not have by itself: `runbookUrl` may lead to this page.
            row = f"| <a id=\"{rule['alert']}\"></a>`{rule['alert']}` |"
            self.assertEqual(1, guide.count(row), f"docs/operations.md does not say what to do at {rule['alert']}")

    def test_the_limits_in_alerts_are_those_that_are_configured(self):
        def rule(*expressions):
            hostpath = ("delivery=hostPath", "rbac.tokens=namespace")
            rules = chart.one("PrometheusRule", EVERYTHING, *hostpath, *expressions)["spec"]["groups"][0]["rules"]
            return next(rule["expr"] for rule in rules if rule["alert"] == "LatchkeyConnectionsHigh")

        self.assertRegex(rule(), r"^latchkey_connections\{.*\} > 3276$")
        self.assertRegex(rule("config.limits.connections=10000"), r"^latchkey_connections\{.*\} > 8000$")


if __name__ == "__main__":
    unittest.main()
