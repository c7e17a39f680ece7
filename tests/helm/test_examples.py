"""The clouds' examples: what the commands and the Terraform files make is one role, identity or principal a namespace."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import hcl2

import chart

EXAMPLES = chart.ROOT / "deploy" / "examples"

# A command that writes down how it was called, and its input, and answers what the real one would.
RECORDER = """#!/bin/bash
# By one write, since two of them may run at once, at the ends of a pipe.
call=$(printf '%s\\x1f' "$(basename "$0")" "$@")
printf '%s\\x1e' "$call" >>"$CALLS"
[[ -n ${ANSWERS:-} ]] && source "$ANSWERS"
case " $* " in
  *' -f - '*) cat >"$APPLIED" ;;
esac
exit 0
"""


def run(cloud, answers, **environment):
    """The calls that `setup` makes where nothing is there yet, and what it hands to kubectl."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for program in ("aws", "az", "gcloud", "kubectl", "openssl"):
            (folder / program).write_text(RECORDER)
            (folder / program).chmod(0o755)
        (folder / "answers").write_text(answers)
        subprocess.run(
            [EXAMPLES / cloud / "setup"], check=True, capture_output=True,
            env={
                "PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "ANSWERS": str(folder / "answers"),
                "APPLIED": str(folder / "applied"), "HOME": str(folder), **environment,
            },
        )
        calls = [call.removesuffix("\x1f").split("\x1f") for call in (folder / "calls").read_text().split("\x1e") if call]
        applied = folder / "applied"
        return calls, applied.read_text() if applied.exists() else ""


def option(call, name):
    for number, word in enumerate(call):
        if word == name:
            return call[number + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def having(calls, *words):
    return [call for call in calls if list(words) == call[: len(words)]]


ISSUER = """
case "$*" in
  *openid-configuration*) echo '{"issuer": "https://issuer.example.com/cluster"}' ;;
esac
"""


class Aws(unittest.TestCase):
    ANSWERS = ISSUER + """
case "$*" in
  *get-caller-identity*) echo arn:aws:sts::444455556666:assumed-role/admin/me ;;
  *'get region'*) echo eu-central-1 ;;
  *get-role*|*describe-secret*|*get-open-id-connect-provider*) exit 254 ;;
esac
"""

    def test_each_namespace_has_a_role_that_only_its_own_account_takes_and_that_reads_only_its_own_secrets(self):
        calls, applied = run("aws", self.ANSWERS)
        roles = having(calls, "aws", "iam", "create-role")
        self.assertEqual(["test-app", "prod-app"], [option(call, "--role-name") for call in roles])
        for namespace, role, policy in zip(("test", "prod"), roles, having(calls, "aws", "iam", "put-role-policy"), strict=True):
            statement = json.loads(option(role, "--assume-role-policy-document"))["Statement"]
            self.assertEqual(1, len(statement))
            self.assertEqual(
                {"StringEquals": {
                    "issuer.example.com/cluster:sub": f"system:serviceaccount:{namespace}:app",
                    "issuer.example.com/cluster:aud": "sts.amazonaws.com",
                }},
                statement[0]["Condition"],
            )
            read = json.loads(option(policy, "--policy-document"))["Statement"]
            self.assertEqual(
                [{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue",
                  "Resource": f"arn:aws:secretsmanager:eu-central-1:444455556666:secret:{namespace}/*"}],
                read,
            )
        self.assertIn("arn:aws:iam::444455556666:role/test-app", applied)
        self.assertNotIn("111122223333", applied)

    def test_in_another_partition_every_arn_is_of_that_one(self):
        calls, applied = run("aws", self.ANSWERS.replace("arn:aws:", "arn:aws-us-gov:"))
        self.assertIn("arn:aws-us-gov:iam::444455556666:role/test-app", applied)
        self.assertEqual([], re.findall(r"arn:aws:\S*", applied + json.dumps(calls)))
        provider = option(next(call for call in calls if "get-open-id-connect-provider" in call), "--open-id-connect-provider-arn")
        self.assertEqual("arn:aws-us-gov:iam::444455556666:oidc-provider/issuer.example.com/cluster", provider)

    def test_terraform_says_the_same(self):
        with open(EXAMPLES / "aws" / "main.tf", encoding="utf-8") as file:
            text = json.dumps(hcl2.load(file)).replace('\\"', "")
        for part in (
            "${local.host}:sub", "${local.host}:aud", "system:serviceaccount:${each.key}:app", "sts:AssumeRoleWithWebIdentity",
            "secretsmanager:GetSecretValue", "secret:${each.key}/*",
        ):
            self.assertIn(part, text)
        self.assertNotIn("StringLike", text)
        self.assertIn("arn:${data.aws_partition.current.partition}:secretsmanager:", text)
        self.assertNotIn("arn:aws", text)


class Gcp(unittest.TestCase):
    ANSWERS = ISSUER + """
case "$*" in
  *'get-value project'*) echo shop-project ;;
  *projectNumber*) echo 987654321 ;;
  *' describe '*) exit 1 ;;
esac
"""

    def members(self, **environment):
        calls, _ = run("gcp", self.ANSWERS, **environment)
        bindings = having(calls, "gcloud", "secrets", "add-iam-policy-binding")
        return calls, [(call[3], option(call, "--member"), option(call, "--role")) for call in bindings]

    def test_each_namespaces_own_principal_reads_its_own_secret(self):
        calls, members = self.members(POOL="east")
        pool = "principal://iam.googleapis.com/projects/987654321/locations/global/workloadIdentityPools/east/subject"
        self.assertEqual(
            [(f"{namespace}--database-password", f"{pool}/system:serviceaccount:{namespace}:app", "roles/secretmanager.secretAccessor")
             for namespace in ("test", "prod")],
            members,
        )
        provider = next(call for call in calls if "create-oidc" in call)
        self.assertEqual("https://issuer.example.com/cluster", option(provider, "--issuer-uri"))

    def test_no_pool_is_taken_for_granted_that_another_cluster_could_have(self):
        with self.assertRaises(subprocess.CalledProcessError):
            self.members()

    def test_on_gke_the_projects_own_pool_is_used(self):
        calls, members = self.members(GKE="1")
        self.assertFalse([call for call in calls if "workload-identity-pools" in call])
        self.assertTrue(members[0][1].endswith("/workloadIdentityPools/shop-project.svc.id.goog/subject/ns/test/sa/app"))


class Azure(unittest.TestCase):
    ANSWERS = ISSUER + """
case "$*" in
  *'group show'*) echo westeurope ;;
  *'account show'*) echo tenant-id ;;
  *'keyvault show'*'--query id'*) echo "/vaults/$4" ;;
  *'keyvault show'*|*'secret show'*) exit 3 ;;
  *'identity show'*clientId*) echo "client-of-$6" ;;
  *'identity show'*principalId*) echo "principal-of-$6" ;;
esac
"""

    def test_each_namespace_has_an_identity_for_its_own_account_and_its_own_vault(self):
        calls, applied = run("azure", self.ANSWERS, GROUP="shop", VAULTS="shop")
        for namespace, credential, grant, secret in zip(
            ("test", "prod"), having(calls, "az", "identity", "federated-credential"), having(calls, "az", "role", "assignment"),
            having(calls, "az", "keyvault", "secret", "set"), strict=True
        ):
            self.assertEqual(f"system:serviceaccount:{namespace}:app", option(credential, "--subject"))
            self.assertEqual("api://AzureADTokenExchange", option(credential, "--audiences"))
            self.assertEqual(f"{namespace}-app", option(credential, "--identity-name"))
            self.assertEqual(f"principal-of-{namespace}-app", option(grant, "--assignee-object-id"))
            self.assertEqual(f"/vaults/shop-{namespace}", option(grant, "--scope"))
            # As the application of the page asks for it: test/database-password.
            self.assertEqual(f"shop-{namespace}", option(secret, "--vault-name"))
            self.assertEqual(f"{namespace}--database-password", option(secret, "--name"))
            self.assertIn(f"azure.workload.identity/client-id: client-of-{namespace}-app", applied)
            self.assertIn(f"latchkey.dev/azure-vault: https://shop-{namespace}.vault.azure.net", applied)
        self.assertNotRegex(applied, r"CLIENT-OF|VAULT-OF|TENANT\b")


class Pods(unittest.TestCase):
    def test_every_pod_without_a_hostpath_is_one_that_the_level_restricted_allows(self):
        seen = 0
        for file in sorted(EXAMPLES.glob("*.yaml")):
            for found in chart.documents(file.read_text()):
                volumes = found["spec"].get("volumes", []) if found["kind"] == "Pod" else []
                if volumes and not any("hostPath" in volume for volume in volumes):
                    seen += 1
                    broken = {line for line in chart.violations(found) if "writable root" not in line}  # not of the level
                    self.assertEqual(set(), broken, file.name)
        self.assertGreaterEqual(seen, 4)


class SeLinux(unittest.TestCase):
    def test_a_type_that_is_proposed_has_a_level_that_every_pod_may_connect_to(self):
        files = [
            file for folder in ("deploy", "docs", "tests/e2e") for file in (chart.ROOT / folder).rglob("*")
            if file.is_file() and file.suffix in (".md", ".yaml", ".json")
        ]
        found = [use for file in files for use in re.findall(r"type: spc_t.*", file.read_text())]
        self.assertGreaterEqual(len(found), 3)
        for use in found:
            self.assertTrue(use.startswith("type: spc_t, level: s0}"), use)


if __name__ == "__main__":
    unittest.main()
