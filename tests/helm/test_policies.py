"""The admission policies, by evaluating their CEL on requests as the API server would show them."""

import copy
import unittest

import celpy

import chart

AGENT = "system:serviceaccount:latchkey:latchkey-agent"

REQUEST = {
    "userInfo": {
        "username": AGENT,
        "extra": {
            "authentication.kubernetes.io/node-name": ["node-1"],
            "authentication.kubernetes.io/pod-name": ["latchkey-agent-x"],
            "authentication.kubernetes.io/pod-uid": ["0f6c2f5e-c1f5-4b0e-9a31-a4f0c2f8d6b7"],
        },
    },
}

TOKEN = {
    "spec": {
        "audiences": ["sts.amazonaws.com"],
        "expirationSeconds": 600,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "b2b3f6f8-3a4e-4f36-8f0e-0b7f4a2c9b11"},
    },
}


def evaluate(expression, names):
    environment = celpy.Environment()
    return environment.program(environment.compile(expression)).evaluate(names)


def refusal(policy, request=REQUEST, token=TOKEN, before=None):
    """The message of the first validation that does not hold; None if the request is let through."""
    spec = policy["spec"]
    names = {"request": celpy.json_to_cel(request), "object": celpy.json_to_cel(token), "oldObject": celpy.json_to_cel(before)}
    if not all(evaluate(condition["expression"], names) for condition in spec.get("matchConditions", [])):
        return None
    variables = celpy.celtypes.MapType()
    for variable in spec.get("variables", []):
        variables[celpy.celtypes.StringType(variable["name"])] = evaluate(variable["expression"], {**names, "variables": variables})
    names["variables"] = variables
    for validation in spec["validations"]:
        try:
            held = bool(evaluate(validation["expression"], names))
        except celpy.CELEvalError:
            held = False  # failurePolicy: Fail
        if not held:
            return validation["message"]
    return None


def changed(value, path, new):
    value = copy.deepcopy(value)
    part = value
    for name in path[:-1]:
        part = part[name]
    if new is None:
        del part[path[-1]]
    else:
        part[path[-1]] = new
    return value


def tokens_policy(*expressions):
    return chart.one("ValidatingAdmissionPolicy", None, *expressions, name="latchkey-agent-tokens")


class Tokens(unittest.TestCase):
    def setUp(self):
        self.policy = tokens_policy("delivery=hostPath", "rbac.tokens=namespace")

    def test_it_applies_to_token_requests_and_fails_closed(self):
        self.assertEqual("Fail", self.policy["spec"]["failurePolicy"])
        rule = self.policy["spec"]["matchConstraints"]["resourceRules"][0]
        self.assertEqual((["CREATE"], ["serviceaccounts/token"]), (rule["operations"], rule["resources"]))
        binding = chart.one("ValidatingAdmissionPolicyBinding", name="latchkey-agent-tokens")
        self.assertEqual(["Deny"], binding["spec"]["validationActions"])

    def test_what_the_agent_asks_for_is_let_through(self):
        self.assertIsNone(refusal(self.policy))

    def test_other_accounts_are_none_of_its_business(self):
        other = changed(REQUEST, ["userInfo", "username"], "system:serviceaccount:kube-system:other")
        self.assertIsNone(refusal(self.policy, other, {"spec": {"audiences": []}}))

    def test_another_audience_is_refused(self):
        for audiences in (["https://kubernetes.default.svc"], ["sts.amazonaws.com", "vault"], [], None):
            token = changed(TOKEN, ["spec", "audiences"], audiences)
            self.assertIn("audiences", refusal(self.policy, token=token))

    def test_a_token_that_is_bound_to_no_pod_is_refused(self):
        for path, new in (
            (["spec", "boundObjectRef"], None),
            (["spec", "boundObjectRef", "uid"], ""),
            (["spec", "boundObjectRef", "uid"], None),
            (["spec", "boundObjectRef", "kind"], "Secret"),
        ):
            self.assertIn("bound to a pod", refusal(self.policy, token=changed(TOKEN, path, new)))

    def test_a_long_life_is_refused(self):
        for seconds in (3601, None):
            self.assertIn("an hour", refusal(self.policy, token=changed(TOKEN, ["spec", "expirationSeconds"], seconds)))

    def test_a_token_of_the_agents_account_that_was_made_by_hand_is_refused(self):
        for path in (["userInfo", "extra"], ["userInfo", "extra", "authentication.kubernetes.io/node-name"]):
            self.assertIn("its own pod", refusal(self.policy, request=changed(REQUEST, path, None)))

    def test_the_audiences_are_those_of_the_backends(self):
        policy = tokens_policy("delivery=hostPath", "rbac.tokens=namespace", "config.backends.aws.audiences={one,two}")
        for audience, let in (("one", True), ("two", True), ("sts.amazonaws.com", False)):
            token = changed(TOKEN, ["spec", "audiences"], [audience])
            self.assertEqual(let, refusal(policy, token=token) is None)

    def test_by_default_it_lets_no_token_request_of_the_agent_through(self):
        self.assertIn("rbac.tokens=none", refusal(tokens_policy()))

    def test_where_the_agent_asks_as_its_node_it_may_not_ask_as_itself(self):
        self.assertIn("rbac.tokens=node", refusal(tokens_policy("rbac.tokens=node")))


TAINT = {"key": "latchkey.dev/agent-not-ready", "effect": "NoSchedule"}
OTHER = {"key": "dedicated", "value": "db", "effect": "NoExecute"}


def node(name="node-1", taints=(), **metadata):
    return {"metadata": {"name": name, "labels": {"zone": "a"}, **metadata}, "spec": {"taints": list(taints)}}


class Taint(unittest.TestCase):
    def setUp(self):
        self.policy = chart.one("ValidatingAdmissionPolicy", None, "startupTaint.enabled=true", name="latchkey-agent-taint")

    def refusal(self, before, after, request=REQUEST):
        return refusal(self.policy, request, after, before)

    def test_the_agent_may_take_its_taint_off_its_own_node(self):
        self.assertIsNone(self.refusal(node(taints=[TAINT, OTHER]), node(taints=[OTHER])))

    def test_it_may_not_touch_another_node(self):
        self.assertIn("only its own", self.refusal(node("node-2", [TAINT]), node("node-2", [])))
        by_hand = changed(REQUEST, ["userInfo", "extra"], None)
        self.assertIn("only its own", self.refusal(node(taints=[TAINT]), node(), by_hand))

    def test_it_may_not_take_another_taint_off_or_put_one_on(self):
        self.assertIn("no taint", self.refusal(node(taints=[TAINT, OTHER]), node(taints=[TAINT])))
        self.assertIn("no taint", self.refusal(node(taints=[OTHER]), node(taints=[OTHER, TAINT])))
        self.assertIn("no taint", self.refusal(node(taints=[OTHER]), node(taints=[{**OTHER, "effect": "NoSchedule"}])))

    def test_it_may_change_nothing_else_of_a_node(self):
        for metadata in ({"labels": {"zone": "b"}}, {"annotations": {"a": "b"}}, {"finalizers": ["x"]}):
            self.assertIn("nothing of a node", self.refusal(node(taints=[TAINT]), node(**metadata)))
        drained = node()
        drained["spec"]["unschedulable"] = True
        self.assertIn("nothing of a node", self.refusal(node(taints=[TAINT]), drained))

    def test_the_right_comes_only_with_the_option(self):
        def nodes(*expressions):
            rules = chart.one("ClusterRole", None, *expressions)["rules"]
            return [rule["verbs"] for rule in rules if rule["resources"] == ["nodes"]]

        self.assertEqual([], nodes())
        self.assertEqual([["get", "patch"]], nodes("startupTaint.enabled=true"))


def volumes(*list_of_volumes):
    return {"kind": "Pod", "spec": {"volumes": list(list_of_volumes)}}


class Driver(unittest.TestCase):
    """The driver's name is this driver's alone, and its volumes ask for nothing but what they may."""

    ANYBODY = {"userInfo": {"username": "somebody"}}

    def refusal(self, name, thing):
        policy = chart.one("ValidatingAdmissionPolicy", {"delivery": "csi"}, name=f"latchkey-csi-{name}")
        return refusal(policy, self.ANYBODY, thing)

    def test_volumes_of_the_driver_have_no_attributes_but_their_own(self):
        plain = {"name": "latchkey", "csi": {"driver": "csi.latchkey.dev", "readOnly": True}}
        self.assertIsNone(self.refusal("volumes", volumes(plain, {"name": "x", "emptyDir": {}})))
        with_files = {"name": "latchkey", "csi": {**plain["csi"], "volumeAttributes": {"secrets": "- name: a"}}}
        self.assertIsNone(self.refusal("volumes", volumes(with_files)))
        liar = {"name": "l", "csi": {"driver": "csi.latchkey.dev", "volumeAttributes": {"csi.storage.k8s.io/pod.uid": "x"}}}
        self.assertIn("no such attribute", self.refusal("volumes", volumes(plain, liar)))
        self.assertIn("nodePublishSecretRef", self.refusal("volumes", volumes({"name": "l", "csi": {"driver": "csi.latchkey.dev", "nodePublishSecretRef": {"name": "x"}}})))
        other = {"name": "o", "csi": {"driver": "other.example.com", "volumeAttributes": {"a": "b"}}}
        self.assertIsNone(self.refusal("volumes", volumes(other)))

    def test_a_volume_that_the_mounter_refuses_since_it_can_be_written_to_makes_no_pod(self):
        for read_only in ({}, {"readOnly": False}):
            said = self.refusal("volumes", volumes({"name": "w", "csi": {"driver": "csi.latchkey.dev", **read_only}}))
            self.assertIn("must have readOnly: true", said)
        self.assertIsNone(self.refusal("volumes", volumes({"name": "w", "csi": {"driver": "other.example.com"}})))

    def test_nobody_makes_persistent_volumes_or_another_driver_of_that_name(self):
        driver = chart.one("CSIDriver", {"delivery": "csi"})
        self.assertIsNone(self.refusal("name", driver))
        self.assertIn("podInfoOnMount", self.refusal("name", changed(driver, ["spec", "podInfoOnMount"], False)))
        self.assertIn("ephemeral", self.refusal("name", changed(driver, ["spec", "volumeLifecycleModes"], ["Persistent"])))
        volume = {"kind": "PersistentVolume", "spec": {"csi": {"driver": "csi.latchkey.dev"}}}
        self.assertIn("no persistent volumes", self.refusal("name", volume))
        storage_class = {"kind": "StorageClass", "provisioner": "csi.latchkey.dev"}
        self.assertIn("provisions nothing", self.refusal("name", storage_class))

    def test_the_kubelet_makes_a_token_for_each_audience_of_the_backends(self):
        driver = chart.one("CSIDriver", None, "delivery=csi", "config.backends.aws.audiences={two,one}")
        self.assertEqual(
            [{"audience": "one", "expirationSeconds": 600}, {"audience": "two", "expirationSeconds": 600}], driver["spec"]["tokenRequests"]
        )
        self.assertTrue(driver["spec"]["requiresRepublish"])
        driver = chart.one("CSIDriver", None, "config.backends.azure.audience=api://AzureADTokenExchangeUSGov")
        self.assertEqual(["api://AzureADTokenExchangeUSGov"], [token["audience"] for token in driver["spec"]["tokenRequests"]])
        # Where there is none, nothing can be said of where it is: the API server takes that with tokens only.
        in_secrets = ("kubeVersion=1.35.0", "csi.tokensInSecrets=true")
        driver = chart.one("CSIDriver", None, *in_secrets, "config.backends.file.path=/secrets")
        self.assertEqual(set(), {"tokenRequests", "serviceAccountTokenInSecrets"} & driver["spec"].keys())
        self.assertTrue(chart.one("CSIDriver", None, *in_secrets)["spec"]["serviceAccountTokenInSecrets"])
        # Of digits alone, it is a text still.
        driver = chart.one("CSIDriver", {"config": {"backends": {"aws": {"audiences": ["123"]}}}})
        self.assertEqual(["123"], [token["audience"] for token in driver["spec"]["tokenRequests"]])


class Socket(unittest.TestCase):
    """Nobody but the agent can write to the directory of the node's socket."""

    KINDS = ("containers", "initContainers", "ephemeralContainers")

    def refusal(self, path, mount, kind="containers", operation="CREATE"):
        mount = {"name": "l", "mountPath": "/run/latchkey", **mount}
        pod = volumes({"name": "x", "emptyDir": {}}, {"name": "l", "hostPath": {"path": path}})
        pod["spec"]["containers"] = [{"name": "plain"}]
        pod["spec"][kind] = [{"name": "other", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}, {"name": "c", "volumeMounts": [mount]}]
        policy = chart.one("ValidatingAdmissionPolicy", None, "delivery=hostPath", "rbac.tokens=namespace", name="latchkey-socket")
        return refusal(policy, {"namespace": "shop", "operation": operation}, pod)

    def test_a_container_is_added_to_a_pod_whatever_its_others_mounted_before_there_was_a_policy(self):
        for kind in ("containers", "initContainers"):
            self.assertIsNone(self.refusal("/run/latchkey", {}, kind, "UPDATE"))
        self.assertIsNotNone(self.refusal("/run/latchkey", {}, "ephemeralContainers", "UPDATE"))

    def test_each_container_of_each_kind_mounts_it_read_only(self):
        for kind in self.KINDS:
            self.assertIsNone(self.refusal("/run/latchkey", {"readOnly": True}, kind))
            for writable in ({}, {"readOnly": False}):
                said = self.refusal("/run/latchkey", writable, kind)
                self.assertIn(f"{kind}: a volume with the node's directory /run/latchkey must be mounted with readOnly: true", said)

    def test_it_is_the_same_directory_however_it_is_written(self):
        for path in ("/run/latchkey/", "//run/./latchkey", "/./run//latchkey/.", "/var/run/latchkey", "/run/latchkey/agent.sock"):
            self.assertIsNotNone(self.refusal(path, {}), path)
        for path in ("/run/latchkey-other", "/run/other", "/srv/run/latchkey", "/runlatchkey", "/var/latchkey", "/latchkey"):
            self.assertIsNone(self.refusal(path, {}), path)

    def test_the_agent_itself_is_let_through(self):
        agent = {"kind": "Pod", **chart.pod(None)}
        policy = chart.one("ValidatingAdmissionPolicy", name="latchkey-socket")
        self.assertIsNone(refusal(policy, {"namespace": "latchkey", "operation": "CREATE"}, agent))
        self.assertIsNotNone(refusal(policy, {"namespace": "shop", "operation": "CREATE"}, agent))

    def test_pods_without_a_directory_of_the_node_are_none_of_its_business(self):
        policy = chart.one("ValidatingAdmissionPolicy", name="latchkey-socket")
        for pod in ({"kind": "Pod", "spec": {}}, volumes({"name": "x", "emptyDir": {}})):
            self.assertIsNone(refusal(policy, {"namespace": "shop"}, pod))

    def test_it_applies_to_new_pods_and_ephemeral_containers_and_can_be_left_out(self):
        policy = chart.one("ValidatingAdmissionPolicy", name="latchkey-socket")
        rules = policy["spec"]["matchConstraints"]["resourceRules"]
        self.assertEqual(
            [(["CREATE"], ["pods"]), (["UPDATE"], ["pods/ephemeralcontainers"])], [(rule["operations"], rule["resources"]) for rule in rules]
        )
        binding = chart.one("ValidatingAdmissionPolicyBinding", name="latchkey-socket")
        self.assertEqual((["Deny"], "latchkey-socket"), (binding["spec"]["validationActions"], binding["spec"]["policyName"]))
        kinds = {found["kind"] for found in chart.objects(None, "admissionPolicy.create=false")}
        self.assertFalse({kind for kind in kinds if kind.startswith("ValidatingAdmission")})


class Levels(unittest.TestCase):
    """What the chart itself grants, at each level."""

    def rules(self, *expressions):
        role = chart.one("ClusterRole", None, *expressions, name="latchkey-agent")
        return {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]}

    ANNOTATIONS = {("get", "serviceaccounts"), ("get", "namespaces")}

    def test_no_level_grants_tokens_in_the_whole_cluster_or_reads_secrets(self):
        for level in ("none", "namespace", "node"):
            rules = self.rules(f"rbac.tokens={level}")
            self.assertNotIn(("create", "serviceaccounts/token"), rules)
            self.assertFalse([rule for rule in rules if rule[1] == "secrets" or "*" in rule])

    def test_the_levels_none_and_namespace_grant_pods_and_annotations(self):
        pods = {(verb, "pods") for verb in ("get", "list", "watch")}
        for level in ("none", "namespace"):
            self.assertEqual(self.ANNOTATIONS | pods, self.rules(f"rbac.tokens={level}"))

    def test_where_no_namespace_is_annotated_none_may_be_read(self):
        off = "config.identity.namespace_annotations=false"
        for level in ("none", "node"):
            rules = self.rules(f"rbac.tokens={level}")
            self.assertEqual({("get", "namespaces")}, rules - self.rules(f"rbac.tokens={level}", off))
            self.assertEqual(rules, self.rules(f"rbac.tokens={level}", "config.identity.namespace_annotations=true"))

    def test_the_level_node_grants_nothing_about_pods_but_as_the_node(self):
        on = "impersonate-on:associated-node:"
        self.assertEqual(
            self.ANNOTATIONS
            | {("impersonate:associated-node", "nodes"), (f"{on}create", "serviceaccounts/token")}
            | {(f"{on}{verb}", "pods") for verb in ("get", "list", "watch")},
            self.rules("rbac.tokens=node"),
        )

    def test_the_level_node_lets_nodes_ask_for_the_backends_audiences(self):
        role = chart.one("ClusterRole", None, "rbac.tokens=node", "config.backends.aws.audiences={one,two}", name="latchkey-agent-audiences")
        self.assertEqual([["one", "two"]], [rule["resources"] for rule in role["rules"]])
        binding = chart.one("ClusterRoleBinding", None, "rbac.tokens=node", name="latchkey-agent-audiences")
        self.assertEqual(["system:nodes"], [subject["name"] for subject in binding["subjects"]])

    def test_where_no_backend_wants_tokens_no_right_is_made_that_the_api_server_would_refuse(self):
        for role in chart.objects(None, "rbac.tokens=node", "config.backends.file.path=/secrets"):
            if role["kind"] == "ClusterRole":
                self.assertTrue(all(rule["resources"] for rule in role["rules"]), role["metadata"]["name"])


if __name__ == "__main__":
    unittest.main()
