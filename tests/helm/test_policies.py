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


def holds(expression, request, token):
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    return bool(program.evaluate({"request": celpy.json_to_cel(request), "object": celpy.json_to_cel(token)}))


def refusal(policy, request=REQUEST, token=TOKEN):
    """The message of the first validation that does not hold; None if the request is let through."""
    spec = policy["spec"]
    if not all(holds(condition["expression"], request, token) for condition in spec.get("matchConditions", [])):
        return None
    for validation in spec["validations"]:
        try:
            held = holds(validation["expression"], request, token)
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
        policy = tokens_policy("rbac.tokens=namespace", "config.backends.aws.audiences={one,two}")
        for audience, let in (("one", True), ("two", True), ("sts.amazonaws.com", False)):
            token = changed(TOKEN, ["spec", "audiences"], [audience])
            self.assertEqual(let, refusal(policy, token=token) is None)


if __name__ == "__main__":
    unittest.main()
