"""Values: what is refused, what is documented, and what becomes of them."""

import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
import unittest

import helm as cli
import helm_python as helm

import chart

VALUES = (chart.CHART / "values.yaml").read_text()


def refusal(*expressions):
    """What is said to values, a map or --set expressions, that are not taken."""
    values = expressions[0] if isinstance(expressions[0], dict) else None
    try:
        chart.text(values, *expressions[0 if values is None else 1:])
    except helm.HelmError as error:
        return str(error)
    raise AssertionError(f"{expressions} were taken")


def config(values=None, *expressions):
    return tomllib.loads(chart.one("ConfigMap", values, *expressions)["data"]["config.toml"])


class Refused(unittest.TestCase):
    def test_a_key_that_does_not_exist_is_refused_by_its_name(self):
        for expression, where, key in (
            ("foo=1", "''", "foo"),
            ("image.tagg=1", "'/image'", "tagg"),
            ("rbac.token=namespace", "'/rbac'", "token"),
            ("config.limit.drain=1s", "'/config'", "limit"),
            ("config.limits.drian=1s", "'/config/limits'", "drian"),
            ("config.backends.aws.regin=x", "'/config/backends/aws'", "regin"),
            ("metrics.podMonitor.on=true", "'/metrics/podMonitor'", "on"),
        ):
            self.assertIn(f"at {where}: additional properties '{key}' not allowed", refusal(expression))

    def test_a_value_of_the_wrong_kind_is_refused_with_its_key(self):
        for expression, where in (
            ("delivery=socket", "/delivery"),
            ("kubeletRootDir=/var/snap/microk8s/common/var/lib/kubelet", "/kubeletRootDir"),
            ("rbac.tokens=cluster", "/rbac/tokens"),
            ("startupTaint.key=not-ready", "/startupTaint/key"),
            ("image.digest=latest", "/image/digest"),
            ("image.registry=https://registry.example.com", "/image/registry"),
            ("image.registry=registry.example.com/", "/image/registry"),
            ("image.repository=", "/image/repository"),
            ("image.repository=latchkey-agent:1.0", "/image/repository"),
            ("image.repository=registry.example.com:5000/latchkey-agent:1.0", "/image/repository"),
            (f"image.repository=latchkey-agent@sha256:{'a' * 64}", "/image/repository"),
            ("image.tag=:1.0", "/image/tag"),
            ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
            ("admin.port=70000", "/admin/port"),
            ("admin.address=127.0.0.1", "/admin/address"),
            ("admin.address=[::1]", "/admin/address"),
            ("admin.address=::", "/admin/address"),
            ("admin.address=localhost", "/admin/address"),
            ("metrics.prometheusRule.disabled={LatchkeyStail}", "/metrics/prometheusRule/disabled/0"),
            ("config.cache.ttl=30", "/config/cache/ttl"),
            ({"config": {"limits": {"drain": "1"}}}, "/config/limits/drain"),
            ({"config": {"cache": {"max_bytes": "16."}}}, "/config/cache/max_bytes"),
            ("config.limits.connections=many", "/config/limits/connections"),
            ("config.backends.aws.type=no-such-type", "/config/backends/aws/type"),
            ("extraEnv=none", "/extraEnv"),
            ("extraEnv[0].value=x", "/extraEnv/0"),
            ("updateStrategy.rollingUpdate.maxSurge=some", "/updateStrategy/rollingUpdate/maxSurge"),
        ):
            self.assertIn(f"at '{where}'", refusal(expression))

    def test_a_section_that_was_left_empty_is_refused_by_its_name(self):
        defaults = helm.values_from_yaml(VALUES)
        sections = {key for key, default in defaults.items() if isinstance(default, dict)}
        # What has no default but emptiness, or none that the templates look into, may be left out like that.
        may_be_empty = {
            "affinity", "appArmorProfile", "commonAnnotations", "commonLabels", "dnsConfig", "livenessProbe",
            "nodeSelector", "podAnnotations", "podLabels", "readinessProbe", "resources", "seLinuxOptions", "startupProbe",
        }
        for key in may_be_empty:
            chart.text({key: None})
        for key in {*sections - may_be_empty, "delivery", "kubeletRootDir"}:
            self.assertIn(f"at '': missing property '{key}'", refusal({key: None}))
        needed = {
            "metrics": defaults["metrics"], "admin": ("address", "port"), "image": ("repository",), "rbac": ("tokens",),
            "startupTaint": ("key",), "priorityQuota": ("pods",), "caBundle": ("key",),
        }
        for section, keys in needed.items():
            for key in keys:
                self.assertIn(f"at '/{section}': missing property '{key}'", refusal({section: {key: None}}))

    def test_sizes_that_the_agent_takes_are_taken(self):
        for size in ("16777216", "16MiB", "1.5 GiB"):
            self.assertIn(f'max_bytes = "{size}"', chart.text({"config": {"cache": {"max_bytes": size}}}))

    def test_names_of_images_that_a_runtime_takes_are_taken(self):
        for expressions, name in (
            (("image.registry=registry.example.com", "image.tag=v1.0_a"), "registry.example.com/latchkey-agent:v1.0_a"),
            (("image.registry=localhost:5000/a_b/c--d",), "localhost:5000/a_b/c--d/latchkey-agent:"),
            (("image.repository=Registry.example.com:5000/a/b__c",), "Registry.example.com:5000/a/b__c:"),
        ):
            image = chart.pod(None, *expressions)["spec"]["containers"][0]["image"]
            self.assertTrue(image.startswith(name), image)

    def test_what_the_chart_sets_itself_is_not_for_config_to_set(self):
        keys = ("listen.socket=/tmp/s", "listen.admin=1", "identity.mode=local", "kubernetes.node=n", "sidecar.pod=p")
        for key in keys:
            self.assertIn("not allowed", refusal(f"config.{key}"))

    def test_no_table_of_the_schema_is_open_but_those_of_kubernetes(self):
        schema = helm.values_from_yaml((chart.CHART / "values.schema.json").read_text())
        self.assertFalse(schema["additionalProperties"])
        is_open = set()

        def walk(path, part):
            if part.get("type") == "object" and "additionalProperties" not in part:
                is_open.add(path)
            for name, inner in part.get("properties", {}).items():
                walk(f"{path}.{name}".lstrip("."), inner)
            for inner in (part.get("items"), part.get("additionalProperties")):
                if isinstance(inner, dict):
                    walk(path, inner)

        walk("", schema)
        self.assertEqual(
            {
                "global", "affinity.nodeAffinity", "affinity.podAffinity", "affinity.podAntiAffinity", "extraEnv.valueFrom",
                "extraContainers", "extraVolumes", "initContainers",
                "metrics.podMonitor.metricRelabelings", "metrics.podMonitor.relabelings",
                "metrics.serviceMonitor.metricRelabelings", "metrics.serviceMonitor.relabelings",
                "networkPolicy.egress", "networkPolicy.metricsFrom",
            },
            is_open,
        )

    def test_the_schema_of_config_follows_the_agents_own_file(self):
        subprocess.run([chart.CHART.parent / "schema", "--check"], check=True)

    def test_a_hostpath_install_without_tokens_is_refused_with_what_to_do(self):
        said = refusal("delivery=hostPath", "rbac.tokens=none")
        self.assertIn("set rbac.tokens to namespace", said)

    def test_backends_that_the_agent_would_not_start_with_are_refused_with_what_to_set(self):
        gcp = "config.backends.gcp.provider=//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/a/providers/b"
        for expressions, advice in (
            ((gcp, "config.backends.azure.tenant=t"), "set config.default_backend to one of azure, gcp"),
            ((gcp, "config.default_backend=aws"), "config.default_backend is aws, and config.backends has gcp alone"),
            (("config.backends.vault1.region=eu-central-1",), "set config.backends.vault1.type"),
            (("config.backends.gcp.project=p",), "set config.backends.gcp.provider"),
            (("config.backends.g.type=gcp", "delivery=hostPath", "rbac.tokens=namespace"), "set config.backends.g.provider"),
        ):
            self.assertIn(advice, refusal(*expressions))
        chart.text(None, gcp, "config.backends.azure.tenant=t", "config.default_backend=azure")
        # What is said to the agent past its file.
        for aside in ({"extraEnv": [{"name": "LATCHKEY_AGENT__DEFAULT_BACKEND", "value": "azure"}]},
                      {"extraArgs": ["--set", "default_backend=azure"]}):
            chart.text(aside, gcp, "config.backends.azure.tenant=t")
        provider = {"extraEnv": [{"name": "LATCHKEY_AGENT__BACKENDS__GCP__PROVIDER", "value": "p"}], "config": {"backends": {"gcp": {}}}}
        # The chart reads it, too: tokens are made out to it.
        for expressions in ((), ("delivery=hostPath", "rbac.tokens=namespace")):
            with self.assertRaisesRegex(Exception, "set config.backends.gcp.provider"):
                chart.text(provider, *expressions)

    def test_an_update_strategy_that_the_api_server_refuses_is_refused_here(self):
        for expressions, advice in (
            (("updateStrategy.rollingUpdate.maxUnavailable=1",), "maxSurge: 0"),
            (("updateStrategy.rollingUpdate.maxUnavailable=10%",), "maxSurge: 0"),
            (("updateStrategy.rollingUpdate.maxUnavailable=null",), "maxSurge: 0"),
            (("updateStrategy.rollingUpdate.maxSurge=0",), "maxUnavailable: 1"),
            (("updateStrategy.rollingUpdate.maxSurge=0%",), "maxUnavailable: 1"),
        ):
            self.assertIn(advice, refusal(*expressions))
        chart.text(None, "updateStrategy.rollingUpdate.maxUnavailable=1", "updateStrategy.rollingUpdate.maxSurge=0")
        chart.text(None, "updateStrategy.rollingUpdate.maxSurge=10%")
        chart.text(None, "updateStrategy.type=OnDelete", "updateStrategy.rollingUpdate.maxUnavailable=1")

    def test_a_network_policy_that_keeps_the_scraper_out_is_refused_where_there_is_one(self):
        for kind in ("podMonitor", "serviceMonitor"):
            self.assertIn("set networkPolicy.metricsFrom", refusal("networkPolicy.enabled=true", f"metrics.{kind}.enabled=true"))

    def test_scrapes_that_the_alerts_would_miss_or_that_overlap_or_count_twice_are_refused(self):
        rule = "metrics.prometheusRule.enabled=true"
        for kind in ("podMonitor", "serviceMonitor"):
            enabled, interval = f"metrics.{kind}.enabled=true", f"metrics.{kind}.interval"
            for long in ("2m", "61s", "90000ms"):
                self.assertIn(f"set {interval} to 1m or less", refusal(rule, enabled, f"{interval}={long}"))
                chart.text(None, enabled, f"{interval}={long}")
                chart.text(None, rule, f"{interval}={long}")
            for interval_of, timeout in (("30s", "31s"), ("30s", "1m"), ("1s", "1500ms")):
                expressions = (enabled, f"{interval}={interval_of}", f"metrics.{kind}.scrapeTimeout={timeout}")
                self.assertIn(f"set metrics.{kind}.scrapeTimeout to at most", refusal(*expressions))
            chart.text(None, rule, enabled, f"{interval}=1m", f"metrics.{kind}.scrapeTimeout=60s")
        self.assertIn("enable one", refusal("metrics.podMonitor.enabled=true", "metrics.serviceMonitor.enabled=true"))

    def test_resolvers_and_profiles_that_the_api_server_misses_are_refused_here(self):
        self.assertIn("set dnsConfig.nameservers", refusal("dnsPolicy=None", "dnsConfig.searches={example.com}"))
        chart.text(None, "dnsPolicy=None", "dnsConfig.nameservers={192.0.2.53}")
        localhost, profile = "appArmorProfile.type=Localhost", "appArmorProfile.localhostProfile=latchkey"
        for expressions in ((localhost,), (profile,), ("appArmorProfile.type=RuntimeDefault", profile)):
            self.assertIn("set both or neither", refusal(*expressions))
        chart.text(None, localhost, profile)
        chart.text(None, "appArmorProfile.type=Unconfined")

    def test_what_the_clusters_version_does_not_have_yet_is_refused_with_what_to_set_in_its_place(self):
        by_hostpath = ("delivery=hostPath", "rbac.tokens=namespace", "admissionPolicy.create=false")
        without_surge = ("updateStrategy.rollingUpdate.maxSurge=0", "updateStrategy.rollingUpdate.maxUnavailable=1")
        for version, advice, expressions in (
            ("1.24.17", "set delivery: hostPath", ()),
            ("1.24.17", "set admissionPolicy.create: false", by_hostpath[:2]),
            ("v1.27.3-gke.100", "set admissionPolicy.create: false", ()),
            ("v1.29.9+k3s1", "set admissionPolicy.create: false", ()),
            ("1.29.0", "leave appArmorProfile out", ("admissionPolicy.create=false", "appArmorProfile.type=RuntimeDefault")),
            ("1.20.4", "set updateStrategy.rollingUpdate.maxSurge: 0 and maxUnavailable: 1", by_hostpath),
            ("1.34.0", "set rbac.tokens: none, or namespace with delivery: hostPath", ("rbac.tokens=node",)),
            ("1.34.0", "set csi.tokensInSecrets: false", ("csi.tokensInSecrets=true",)),
        ):
            said = refusal(f"kubeVersion={version}", *expressions)
            self.assertIn(advice, said)
            self.assertIn(f"this cluster is {version}", said)
        for version, expressions in (
            ("1.20.4", (*by_hostpath, *without_surge)), ("1.20.4", (*by_hostpath, "updateStrategy.type=OnDelete")), ("1.24.17", by_hostpath), ("v1.27.3-gke.100", ("admissionPolicy.create=false",)),
            ("v1.30.0-eks-1", ()), ("1.35.0", ("rbac.tokens=node", "csi.tokensInSecrets=true")),
        ):
            chart.text(None, f"kubeVersion={version}", *expressions)

    def test_a_drain_that_the_kubelet_would_cut_off_is_refused(self):
        for expression in ("config.limits.drain=1m", "config.limits.drain=29s", "terminationGracePeriodSeconds=20"):
            self.assertIn("set terminationGracePeriodSeconds to at least", refusal(expression))
        chart.text(None, "config.limits.drain=1m", "terminationGracePeriodSeconds=62")
        chart.text(None, "config.limits.drain=500ms", "terminationGracePeriodSeconds=3")


class Documented(unittest.TestCase):
    def test_every_value_has_a_comment_before_it_and_a_place_in_the_schema(self):
        schema = helm.values_from_yaml((chart.CHART / "values.schema.json").read_text())
        leaves = {}
        path = []
        comment = False
        for line in VALUES.splitlines():
            if re.match(r"\s*#", line):
                comment = comment or "# --" in line
                continue
            if found := re.match(r"(\s*)([A-Za-z]+):(.*)", line):
                depth = len(found[1]) // 2
                path = [*path[:depth], found[2]]
                if comment or found[3].strip() and depth <= 2:
                    leaves[".".join(path)] = comment
            comment = False
        kubernetes = ("resources.", "csi.resources.", "nodeSelector.", "affinity.", "updateStrategy.")
        bare = [key for key, has in leaves.items() if not has and not key.startswith(kubernetes)]
        self.assertEqual([], bare)
        self.assertGreater(len(leaves), 40)
        for key in leaves:
            part = schema
            for name in key.split("."):
                part = part.get("properties", {}).get(name) or part.get("additionalProperties")
                self.assertTrue(part, f"{key} is not in the schema")


class Configuration(unittest.TestCase):
    def test_every_key_of_the_agents_file_can_be_set_and_arrives_as_it_was(self):
        whole = tomllib.loads((chart.ROOT / "deploy" / "config.toml").read_text())
        for key in ("socket", "admin"):
            del whole["listen"][key]
        del whole["identity"]["mode"], whole["kubernetes"]
        for table in ("local", "sidecar", "csi"):
            whole.pop(table, None)
        seen = config({"config": whole})
        seen.pop("csi", None)
        self.assertEqual("[::]:9642", seen["listen"].pop("admin"))
        self.assertEqual(whole, {key: value for key, value in seen.items() if key in whole})

    def test_text_that_toml_would_read_otherwise_arrives_as_it_was(self):
        odd = ['a"b', "c\\d", "e\nf", "<&>", "${x}"]
        self.assertEqual(odd, config({"config": {"cache": {"only": odd}}})["cache"]["only"])

    def test_what_other_values_ask_of_the_agent_is_in_its_configuration(self):
        self.assertEqual("0.0.0.0:9000", config(None, "admin.address=0.0.0.0", "admin.port=9000")["listen"]["admin"])
        self.assertNotIn("kubernetes", config())
        seen = config(None, "rbac.tokens=node", "startupTaint.enabled=true")["kubernetes"]
        self.assertEqual({"impersonate_node": True, "startup_taint": "latchkey.dev/agent-not-ready"}, seen)
        mounter = chart.pod(None, "config.log.level=debug")["spec"]["containers"][1]
        self.assertEqual(("mounter", ["--log", "debug"]), (mounter["name"], mounter["args"]))
        self.assertNotIn("csi", config(None, "delivery=hostPath", "rbac.tokens=namespace"))
        directory = "/var/lib/k0s/kubelet/plugins/csi.latchkey.dev"
        self.assertEqual(
            {"enabled": True, "directory": directory}, config(None, "delivery=csi", "kubeletRootDir=/var/lib/k0s/kubelet")["csi"]
        )

    def test_without_backends_there_is_one_for_aws_and_the_only_backend_is_the_default(self):
        self.assertEqual("aws", config()["default_backend"])
        self.assertEqual({"aws": {"type": "aws"}}, config()["backends"])
        self.assertEqual("eu", config(None, "config.backends.eu.type=aws")["default_backend"])

    def test_a_change_of_the_configuration_rolls_the_pods_and_nothing_else_does(self):
        def checksum(*expressions):
            return chart.pod(None, *expressions)["metadata"]["annotations"]["checksum/config"]

        self.assertEqual(checksum(), checksum("podLabels.a=b"))
        self.assertNotEqual(checksum(), checksum("config.cache.ttl=1s"))

    def test_a_label_or_annotation_that_two_values_name_is_there_once_and_one_of_the_charts_own_is_refused(self):
        def twice(rendered):
            """The keys that are there twice in one map."""
            found, open_maps = [], []
            for line in rendered.splitlines():
                key = re.match(r"( *)((?:- )?)([A-Za-z0-9./_-]+):( |$)", line)
                if not key:
                    continue
                depth = len(key[1])
                open_maps = [(at, keys) for at, keys in open_maps if at < depth or at == depth and not key[2]]
                depth += len(key[2])
                if not open_maps or open_maps[-1][0] < depth:
                    open_maps.append((depth, set()))
                if key[3] in open_maps[-1][1]:
                    found.append(key[3])
                open_maps[-1][1].add(key[3])
            return found

        self.assertEqual(["b"], twice("a:\n  - b: 1\n    c: 1\n  - b: 2\n    c:\n      b: 3\n    b: 4\n"))
        rendered = chart.text({
            "namespace": {"create": True}, "podLabels": {"team": "pods", "sidecar.istio.io/inject": "true"},
            "commonLabels": {
                "team": "all", "pod-security.kubernetes.io/warn": "baseline",
                "security.openshift.io/csi-ephemeral-volume-profile": "baseline",
            },
            "podAnnotations": {"linkerd.io/inject": "enabled", "kubectl.kubernetes.io/default-container": "mounter"},
            "metrics": {
                "podMonitor": {"enabled": True, "labels": {"team": "monitoring"}},
                "prometheusRule": {"enabled": True, "labels": {"team": "monitoring"}},
            },
        })
        self.assertEqual([], [key for part in re.split("^---$", rendered, flags=re.MULTILINE) for key in twice(part)])
        objects = {found["kind"]: found for found in chart.documents(rendered)}
        pod = objects["DaemonSet"]["spec"]["template"]["metadata"]
        self.assertEqual(("pods", "true"), (pod["labels"]["team"], pod["labels"]["sidecar.istio.io/inject"]))
        self.assertEqual("enabled", pod["annotations"]["linkerd.io/inject"])
        self.assertEqual("mounter", pod["annotations"]["kubectl.kubernetes.io/default-container"])
        labels = {kind: found["metadata"]["labels"] for kind, found in objects.items()}
        self.assertEqual("monitoring", labels["PodMonitor"]["team"])
        self.assertEqual("monitoring", labels["PrometheusRule"]["team"])
        self.assertEqual("baseline", labels["Namespace"]["pod-security.kubernetes.io/warn"])
        self.assertEqual("privileged", labels["Namespace"]["pod-security.kubernetes.io/enforce"])
        self.assertEqual("baseline", labels["CSIDriver"]["security.openshift.io/csi-ephemeral-volume-profile"])
        of_metrics = [f"metrics.{kind}.labels" for kind in ("podMonitor", "serviceMonitor", "prometheusRule")]
        for key in ("commonLabels", "podLabels", *of_metrics):
            self.assertIn("app.kubernetes.io/part-of", refusal(f"{key}.app\\.kubernetes\\.io/part-of=platform"))
        self.assertIn("checksum/config", refusal("podAnnotations.checksum/config=mine"))

    def test_labels_and_annotations_that_are_only_commented_out_are_none(self):
        for values in (
            {"commonLabels": None}, {"commonAnnotations": None}, {"podLabels": None}, {"podAnnotations": None},
            {"serviceAccount": {"annotations": None}}, {"metrics": {"podMonitor": {"enabled": True, "labels": None}}},
        ):
            self.assertTrue(chart.pod(values), values)

    def test_a_chart_that_has_this_one_as_a_part_can_leave_it_out_by_its_condition(self):
        """Helm hands the condition's value down to the part."""
        with tempfile.TemporaryDirectory() as folder:
            parent = pathlib.Path(folder)
            (parent / "charts").mkdir()
            shutil.copytree(chart.CHART, parent / "charts" / "latchkey")
            part = "{name: latchkey, version: 0.1.0, condition: latchkey.enabled}"
            (parent / "Chart.yaml").write_text(f"apiVersion: v2\nname: parent\nversion: 0.1.0\ndependencies: [{part}]\n")
            (parent / "values.yaml").write_text("latchkey: {enabled: true}\n")
            self.assertIn("kind: DaemonSet", cli.rendered(parent, "parent", "parent", {}))
            without = cli.rendered(parent, "parent", "parent", {"latchkey": {"enabled": False}})
            self.assertNotIn("kind: DaemonSet", without)

    def test_an_older_cluster_can_do_without_surge(self):
        strategy = chart.one("DaemonSet", {"updateStrategy": {"rollingUpdate": {"maxSurge": None, "maxUnavailable": 1}}})
        self.assertEqual({"maxUnavailable": 1}, strategy["spec"]["updateStrategy"]["rollingUpdate"])

    def test_nodes_without_room_for_a_second_agent_can_do_without_surge_as_the_guide_says(self):
        rolling = "rollingUpdate: {maxSurge: 0, maxUnavailable: 1}"
        self.assertIn(rolling, (chart.ROOT / "docs" / "operations.md").read_text())
        strategy = chart.one("DaemonSet", {"updateStrategy": helm.values_from_yaml(rolling)})["spec"]["updateStrategy"]
        self.assertEqual({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}, strategy)

    def test_the_notes_have_the_agent_checked_with_the_arguments_that_it_serves_with(self):
        def check(*arguments):
            with helm.Chart.load(chart.CHART) as loaded:
                notes = loaded.render({"extraArgs": list(arguments)}, name="latchkey", namespace="latchkey")["latchkey/templates/NOTES.txt"]
            return next(line for line in notes.splitlines() if " check " in line).split(" check ")[1]

        self.assertEqual("--config /etc/latchkey/config.toml", check())
        arguments = ["--set", 'cache.only=["a b"]', "--set", "cache.only=['c/']"]
        self.assertEqual(["--config", "/etc/latchkey/config.toml", *arguments], shlex.split(check(*arguments)))

    def test_an_image_can_come_from_a_mirror_and_be_pinned_and_is_never_another_than_the_tag_says(self):
        def images(*expressions):
            return {container["image"] for container in chart.pod(None, *expressions)["spec"]["containers"]}

        digest = "sha256:" + "0" * 64
        mirror = "image.registry=mirror.example.com"
        self.assertEqual({"latchkey-agent:0.1.0"}, images())
        self.assertEqual({"mirror.example.com/latchkey-agent:v1"}, images(mirror, "image.tag=v1"))
        self.assertEqual({f"mirror.example.com/latchkey-agent@{digest}"}, images(mirror, f"image.digest={digest}"))
        self.assertIn('set image.digest: ""', refusal("image.tag=v1", f"image.digest={digest}"))

    def test_another_namespace_is_every_objects_and_that_of_every_name_of_the_account(self):
        everything = {
            "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]}, "priorityQuota": {"create": True}, "namespace": {"create": True},
            "metrics": {"prometheusRule": {"enabled": True}},
            "rbac": {"tokens": "node"}, "startupTaint": {"enabled": True},
        }
        monitors = ("metrics.podMonitor.enabled=true", "metrics.serviceMonitor.enabled=true")
        usual, moved = (
            "---\n".join(chart.text({**everything, "namespaceOverride": name}, monitor) for monitor in monitors)
            for name in ("", "vault")
        )
        self.assertIn("system:serviceaccount:vault:latchkey-agent", moved)
        places = [found["metadata"].get("namespace") for found in chart.documents(moved)]
        self.assertEqual({"vault", None}, set(places))
        self.assertEqual(
            places, [{"latchkey": "vault"}.get(found["metadata"].get("namespace")) for found in chart.documents(usual)]
        )

    def test_a_network_policy_lets_only_the_scraper_in_and_nobody_where_none_is_named(self):
        scraper = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        named = chart.one("NetworkPolicy", {"networkPolicy": {"enabled": True, "metricsFrom": [scraper]}})["spec"]
        self.assertEqual([{"ports": [{"port": "admin"}], "from": [scraper]}], named["ingress"])
        nobody = chart.one("NetworkPolicy", None, "networkPolicy.enabled=true")["spec"]
        self.assertEqual((["Ingress"], []), (nobody["policyTypes"], nobody["ingress"]))

    def test_annotations_for_all_objects_are_on_all_of_them_and_on_no_pod(self):
        everything = {
            "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]}, "priorityQuota": {"create": True},
            "namespace": {"create": True}, "rbac": {"tokens": "node"}, "startupTaint": {"enabled": True},
            "metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
            "serviceAccount": {"annotations": {"own": "too"}},
        }
        found = chart.objects({**everything, "commonAnnotations": {"owner": "platform"}})
        by_service = {"metrics": {"serviceMonitor": {"enabled": True}}, "commonAnnotations": {"owner": "platform"}}
        found += [object for object in chart.objects(by_service) if object["kind"] in ("Service", "ServiceMonitor")]
        self.assertGreater(len(found), 20)
        for object in found:
            self.assertEqual("platform", object["metadata"].get("annotations", {}).get("owner"), object["kind"])
        account = next(object for object in found if object["kind"] == "ServiceAccount")
        self.assertEqual({"owner": "platform", "own": "too"}, account["metadata"]["annotations"])
        daemonset = next(object for object in found if object["kind"] == "DaemonSet")
        self.assertNotIn("owner", daemonset["spec"]["template"]["metadata"]["annotations"])
        for object in chart.objects({**everything, "serviceAccount": {}}):
            self.assertNotIn("annotations", object["metadata"], object["kind"])

    def test_the_pace_of_a_roll_out_and_of_the_probes_can_be_set_but_not_what_the_probes_ask(self):
        daemonset = chart.one("DaemonSet", None, "minReadySeconds=20", "revisionHistoryLimit=3")["spec"]
        self.assertEqual((20, 3), (daemonset["minReadySeconds"], daemonset["revisionHistoryLimit"]))
        live = {"httpGet": {"path": "/livez", "port": "admin"}}
        agent = chart.pod({"livenessProbe": {"timeoutSeconds": 9}, "startupProbe": {"failureThreshold": 30}})["spec"]["containers"][0]
        self.assertEqual({**live, "periodSeconds": 10, "timeoutSeconds": 9, "failureThreshold": 3}, agent["livenessProbe"])
        self.assertEqual({**live, "failureThreshold": 30}, agent["startupProbe"])
        self.assertNotIn("startupProbe", chart.pod()["spec"]["containers"][0])
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            self.assertIn("additional properties 'httpGet' not allowed", refusal(f"{probe}.httpGet.path=/"))

    def test_every_name_that_has_to_be_a_label_fits_however_long_the_releases_is(self):
        cut_at_a_dash = f"{'f' * 48}-{'f' * 14}"
        for key, name in (("fullnameOverride", "f" * 63), ("nameOverride", "n" * 63), ("fullnameOverride", cut_at_a_dash)):
            found = chart.objects({key: name, "metrics": {"serviceMonitor": {"enabled": True}}})
            names = [object["metadata"]["name"] for object in found if object["kind"] in ("DaemonSet", "Service")]
            self.assertEqual(2, len(names))
            for each in names:
                self.assertRegex(each, r"^[a-z][a-z-]{1,61}[a-z]$")
                self.assertNotIn("--", each)

    def test_a_runbook_is_where_the_operators_is(self):
        def alerts(*expressions):
            rule = chart.one("PrometheusRule", None, "metrics.prometheusRule.enabled=true", *expressions)
            return rule["spec"]["groups"][0]["rules"]

        for rule in alerts("metrics.prometheusRule.runbookUrl=https://wiki.example.com/alerts/"):
            self.assertEqual(f"https://wiki.example.com/alerts/{rule['alert']}", rule["annotations"]["runbook_url"])
        for rule in alerts():
            self.assertNotIn("runbook_url", rule["annotations"])

    def test_a_scrape_has_the_timeout_that_is_set(self):
        for kind, endpoints in (("PodMonitor", "podMetricsEndpoints"), ("ServiceMonitor", "endpoints")):
            key = kind[0].lower() + kind[1:]
            seen = chart.one(kind, None, f"metrics.{key}.enabled=true", f"metrics.{key}.scrapeTimeout=5s")["spec"][endpoints][0]
            self.assertEqual("5s", seen["scrapeTimeout"])
            self.assertNotIn("scrapeTimeout", chart.one(kind, None, f"metrics.{key}.enabled=true")["spec"][endpoints][0])

    def test_an_alert_that_is_not_wanted_is_left_out_and_no_other(self):
        def alerts(*expressions):
            rule = chart.one("PrometheusRule", None, "metrics.prometheusRule.enabled=true", *expressions)
            return {rule["alert"]: rule for rule in rule["spec"]["groups"][0]["rules"]}

        usual, fewer = alerts(), alerts("metrics.prometheusRule.disabled={LatchkeyStale,LatchkeyMissing}")
        self.assertEqual({"LatchkeyStale", "LatchkeyMissing"}, usual.keys() - fewer.keys())
        # The schema has the names of all, also of those that another way of delivery has.
        for alert in {*usual, *alerts("delivery=hostPath", "rbac.tokens=namespace")}:
            self.assertNotIn(alert, alerts(f"metrics.prometheusRule.disabled={{{alert}}}"))
        schema = helm.values_from_yaml((chart.CHART / "values.schema.json").read_text())
        of_rule = schema["properties"]["metrics"]["properties"]["prometheusRule"]["properties"]
        every = {*usual, *alerts("delivery=hostPath", "rbac.tokens=namespace")}
        self.assertEqual(every, set(of_rule["disabled"]["items"]["enum"]))
        self.assertEqual({alert: usual[alert] for alert in fewer}, fewer)

    def test_containers_of_the_operators_own_are_added_to_the_pod(self):
        own = {"name": "own", "image": "own:1"}
        spec = chart.pod({"initContainers": [own], "extraContainers": [own]})["spec"]
        self.assertEqual([own], spec["initContainers"])
        self.assertEqual(["agent", "mounter", "own"], [container["name"] for container in spec["containers"]])


if __name__ == "__main__":
    unittest.main()
