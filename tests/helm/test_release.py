"""The workflow of releases: what its steps write and sign, and that they end where there is nothing to do it with."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import helm_python as helm

import chart

HERE = pathlib.Path(__file__).resolve().parent
WORKFLOW = helm.values_from_yaml((chart.ROOT / ".github" / "workflows" / "release.yml").read_text())
STEPS = {step.get("name"): step for step in WORKFLOW["jobs"]["publish"]["steps"]}
IMAGE = "ghcr.io/owner/latchkey-agent"
DIGEST = "sha256:" + "a" * 64


class Release(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.chart = self.folder / "deploy" / "helm" / "latchkey"
        shutil.copytree(chart.CHART, self.chart)
        (self.folder / "bin").mkdir()
        (self.folder / "digests").mkdir()

    def command(self, name, script):
        """Puts a command in place of the one of that name."""
        command = self.folder / "bin" / name
        command.write_text(f"#!/bin/bash\n{script}\n")
        command.chmod(0o755)

    def succeeds(self, step, **variables):
        """Runs a step of the workflow as GitHub does."""
        self.assertEqual("bash", WORKFLOW["defaults"]["run"]["shell"])
        environment = {
            **os.environ, "PATH": f"{self.folder / 'bin'}:{HERE}:{os.environ['PATH']}", "IMAGE": IMAGE,
            "CHARTS": "ghcr.io/owner/charts", "GITHUB_REF_NAME": "v1.2.3", "GITHUB_OUTPUT": "output", **variables,
        }
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[step]["run"]]
        return subprocess.run(shell, cwd=self.folder, env=environment, capture_output=True).returncode == 0

    def test_the_chart_names_the_image_by_its_digest_also_for_who_has_a_mirror(self):
        self.assertTrue(self.succeeds("the chart names that image", DIGEST=DIGEST))
        values = helm.values_from_yaml((self.chart / "values.yaml").read_text())["image"]
        self.assertEqual(
            ("ghcr.io", "owner/latchkey-agent", "", DIGEST),
            tuple(values[key] for key in ("registry", "repository", "tag", "digest")),
        )

    def test_a_chart_that_would_not_name_it_is_not_released(self):
        whole = (self.chart / "values.yaml").read_text()
        for line in ('  registry: ""\n', "  repository: latchkey-agent\n", '  digest: ""\n'):
            self.assertIn(line, whole)
            (self.chart / "values.yaml").write_text(whole.replace(line, line.replace("\n", " # as it was\n")))
            self.assertFalse(self.succeeds("the chart names that image", DIGEST=DIGEST), line)
        (self.chart / "values.yaml").write_text(whole)
        self.assertFalse(self.succeeds("the chart names that image", DIGEST=""))

    def test_nothing_is_signed_without_a_digest(self):
        self.command("cosign", "echo \"$*\" >signed")
        for printed, signed in (("Pushed: x", False), (f"Pushed: x\\nDigest: {DIGEST}", True)):
            self.command("helm", f"[[ $1 == package ]] || printf '{printed}\\n' >&2")
            self.assertEqual(signed, self.succeeds("the chart is pushed and signed"), printed)
            self.assertEqual(signed, (self.folder / "signed").exists())
        self.assertEqual(f"sign --yes ghcr.io/owner/charts/latchkey@{DIGEST}\n", (self.folder / "signed").read_text())
        (self.folder / "digests" / "b").touch()
        for printed, passed in (("{}", False), ("", False), (f'{{"digest":"{DIGEST}"}}', True)):
            # jq, for the one thing that is asked of it.
            self.command("jq", "sed -E 's/.*\"digest\":\"([^\"]*)\".*/\\1/; s/^\\{\\}$/null/'")
            self.command("docker", f"[[ $3 != inspect ]] || printf '%s' '{printed}'")
            self.assertEqual(passed, self.succeeds("one image of both architectures"), printed)
        self.assertEqual(f"digest={DIGEST}\n", (self.folder / "output").read_text())


if __name__ == "__main__":
    unittest.main()
