"""The alerts, as Prometheus itself understands them: silent on a node where all is well, and each there when it should."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import chart

HERE = pathlib.Path(__file__).resolve().parent

JOB = 'job="latchkey/latchkey-agent"'
OTHER_JOB = 'job="latchkey/other-latchkey-agent"'

# One event, half an hour after the start.
ONCE = "0x29 1x30"


# A series that rises from zero by that much each minute. A counter that first shows with its first event would be no
# rise to Prometheus: those that alerts wait for are there from the start, which agent/src/metrics.rs tests.
def rises(by):
    return f"0+{by}x60"


# Every series that an alert looks at, on a node where some things fail now and then.
WELL = {
    f"up{{{JOB}}}": "1x60",
    'kube_daemonset_status_number_unavailable{namespace="latchkey",daemonset="latchkey-agent"}': "0x60",
    f"process_start_time_seconds{{{JOB}}}": "100x40 200x20",
    'latchkey_requests_total{route="secret",code="ok"}': rises(1000),
    'latchkey_requests_total{route="secret",code="unavailable"}': rises(1),
    'latchkey_requests_total{route="secret",code="denied"}': rises(1),
    'latchkey_requests_total{route="secret",code="not_found"}': rises(100),
    'latchkey_requests_total{route="secret",code="internal"}': rises(0),
    'latchkey_requests_total{route="batch",code="ok"}': rises(100),
    'latchkey_batch_failures_total{code="unavailable"}': rises(1),
    'latchkey_batch_failures_total{code="denied"}': rises(1),
    'latchkey_batch_failures_total{code="internal"}': rises(0),
    "latchkey_pods": "30x60",
    "latchkey_watch_failures_total": "0x20 15x20 18x20",
    "latchkey_lookup_failures_total": "0x20 15x20 18x20",
    "latchkey_socket_reached": "0x1 1x30 0x8 1x20",
    'latchkey_attestations_total{outcome="ok"}': rises(100),
    'latchkey_attestations_total{outcome="identity_changed"}': rises(0),
    'latchkey_attestations_total{outcome="nested_pod_seen"}': rises(0),
    'latchkey_attestations_total{outcome="outside_root"}': rises(1),
    'latchkey_attestations_total{outcome="not_a_pod"}': rises(5),
    'latchkey_connections_refused_total{reason="peer_gone"}': rises(5),
    'latchkey_connections_refused_total{reason="recycled_pid"}': rises(0),
    'latchkey_connections_refused_total{reason="exhausted"}': "0x30 5x30",
    "latchkey_csi_volumes": "10x60",
    'latchkey_csi_publishes_total{outcome="ok"}': rises(10),
    'latchkey_csi_publishes_total{outcome="unavailable"}': "0x30 1x30",
    'latchkey_csi_fillings_total{outcome="ok"}': rises(10),
    'latchkey_backend_errors_total{backend="aws",code="throttled"}': "0x30 2x30",
    'latchkey_backend_errors_total{backend="aws",code="unavailable"}': rises(1),
    'latchkey_backend_errors_total{backend="vault",code="unavailable"}': "0x30 2x30",
    'latchkey_backend_errors_total{backend="vault",code="timeout"}': rises(0),
    'latchkey_backend_seconds_count{backend="aws",operation="read"}': rises(100),
    'latchkey_backend_seconds_count{backend="vault",operation="read"}': "0x29 1x1 2x30",
    'latchkey_exchanges_total{backend="aws",outcome="ok"}': rises(2),
    'latchkey_exchanges_total{backend="aws",outcome="unavailable"}': "0x20 2x20 3x20",
    'latchkey_backend_seconds_bucket{backend="aws",operation="read",le="1"}': rises(100),
    'latchkey_backend_seconds_bucket{backend="aws",operation="read",le="5"}': rises(100),
    'latchkey_backend_seconds_bucket{backend="aws",operation="read",le="+Inf"}': rises(100),
    'latchkey_cache_total{outcome="hit"}': rises(100),
    'latchkey_cache_total{outcome="stale"}': rises(0),
    "latchkey_connections": "200x60",
    "latchkey_audit_queue": " ".join(["3x6 2x0"] * 8),
}
ASKED = ("latchkey_requests_total", "latchkey_batch_failures_total")
NOTHING_ASKED = {series: rises(0) for series in WELL if series.startswith(ASKED)}

# What is not well, the minute by which the alert is there, and one before it at which it is not yet.
ILL = {
    "LatchkeyDown": ({f"up{{{JOB}}}": "1x29 0x30"}, 31, 35),
    "LatchkeyNotScraped": ({f"up{{{JOB}}}": "1x29 _x31"}, 40, 50),
    "LatchkeyMissing": (
        {'kube_daemonset_status_number_unavailable{namespace="latchkey",daemonset="latchkey-agent"}': "0x29 2x30"}, 40, 50,
    ),
    "LatchkeyUnavailable": ({'latchkey_requests_total{route="secret",code="timeout"}': "0x29 0+30x30"}, 31, 45),
    "LatchkeyBackendAway": (
        {
            'latchkey_backend_errors_total{backend="vault",code="timeout"}': "0x29 0+1x30",
            'latchkey_backend_seconds_count{backend="vault",operation="read"}': rises(1),
        }, 33, 45,
    ),
    "LatchkeyRestarting": ({f"process_start_time_seconds{{{JOB}}}": "100x29 200x2 300x2 400x30"}, 34, 38),
    "LatchkeyKnowsNoPods": ({"latchkey_pods": "30x29 0x30"}, 35, 45),
    "LatchkeyWatchFails": ({"latchkey_watch_failures_total": "0x29 0+6x30"}, 35, 40),
    "LatchkeyLookupsFail": ({"latchkey_lookup_failures_total": "0x19 0+1x40"}, 30, 40),
    "LatchkeyAttestsNobody": (
        {
            'latchkey_attestations_total{outcome="outside_pid_namespace"}': rises(1),
            'latchkey_attestations_total{outcome="ok"}': "0+100x20 2000x40",
            'latchkey_requests_total{route="secret",code="ok"}': "0+1000x20 20000x40",
            'latchkey_requests_total{route="secret",code="unavailable"}': rises(0),
            'latchkey_requests_total{route="secret",code="denied"}': rises(0),
            'latchkey_requests_total{route="secret",code="not_found"}': rises(0),
            'latchkey_requests_total{route="secret",code="not_attested"}': rises(1),
            'latchkey_requests_total{route="batch",code="ok"}': rises(0),
        }, 38, 42,
    ),
    "LatchkeySocketLost": ({"latchkey_socket_reached": "1x29 0x30"}, 35, 45),
    "LatchkeyIdentityChanged": ({'latchkey_attestations_total{outcome="identity_changed"}': ONCE}, 29, 31),
    "LatchkeyPidRecycled": ({'latchkey_connections_refused_total{reason="recycled_pid"}': ONCE}, 29, 31),
    "LatchkeyNestedPod": ({'latchkey_attestations_total{outcome="nested_pod_seen"}': ONCE}, 29, 31),
    "LatchkeyDenied": ({'latchkey_requests_total{route="secret",code="no_role"}': "0x9 0+30x50"}, 20, 50),
    "LatchkeyNotFound": ({'latchkey_requests_total{route="secret",code="not_found"}': "0x19 0+2000x40"}, 30, 45),
    "LatchkeyVolumesFail": ({'latchkey_csi_fillings_total{outcome="denied"}': "0x9 0+1x50"}, 25, 50),
    "LatchkeyTokensStale": ({'latchkey_csi_publishes_total{outcome="ok"}': "0+10x29 290x30"}, 33, 45),
    "LatchkeyThrottled": ({'latchkey_backend_errors_total{backend="aws",code="throttled"}': "0x9 0+10x50"}, 20, 50),
    "LatchkeyBackendSlow": (
        {'latchkey_backend_seconds_bucket{backend="aws",operation="read",le="1"}': "0+90x60"}, 10, 50,
    ),
    "LatchkeyStale": ({'latchkey_cache_total{outcome="stale"}': ONCE}, 29, 31),
    "LatchkeyInternal": ({'latchkey_requests_total{route="secret",code="internal"}': ONCE}, 29, 31),
    "LatchkeyExhausted": (
        {'latchkey_connections_refused_total{reason="exhausted"}': "0x29 0+1200x30"}, 29, 31,
    ),
    "LatchkeyConnectionsHigh": ({"latchkey_connections": "200x29 3500x30"}, 31, 40),
    "LatchkeyAuditSlow": ({"latchkey_audit_queue": "0x29 5000x2 4900x2 5000x2 4900x24"}, 30, 35),
}

# Those that are made with delivery by hostPath alone; with it those of volumes are not.
BY_HOST_PATH = {"LatchkeyConnectionsHigh"}


# The minutes, after it begins, at which the kubelet calls for a volume that it cannot mount: soon, then at last every 122 s.
BACKOFF = [(2**n - 1) / 120 for n in range(8)] + [127.5 / 60 + 122 / 60 * n for n in range(100)]


def calls_of_the_kubelet(begin, last):
    """How often it has called, minute by minute of an hour, from one minute to another; before the first there is no series."""
    counts = [sum(begin + after <= min(minute, last) for after in BACKOFF) for minute in range(61)]
    return " ".join(str(count) if count else "_" for count in counts)


def on_a_node(series, job):
    """The same series with the labels of the agent that they are scraped from, and of its job."""
    name, _, labels = series.partition("{")
    return f'{name}{{instance="a",{job},{labels.replace(JOB, "") or "}"}'


def fires(alert, minute, how_many):
    """The check that so many alerts of that name, or of all, are firing at that minute."""
    chosen = f'alertname="{alert}",' if alert else ""
    samples = [{"labels": "{}", "value": how_many}] if how_many else []
    return {
        "expr": f'count(ALERTS{{{chosen}alertstate="firing"}})', "eval_time": f"{minute}m", "exp_samples": samples,
    }


def case(name, series, checks, well=WELL, job=JOB):
    given = [{"series": on_a_node(which, job), "values": values} for which, values in {**well, **series}.items()]
    return {"name": name, "interval": "1m", "input_series": given, "promql_expr_test": checks}


class Alerts(unittest.TestCase):
    def tried(self, delivery, cases):
        """Has Prometheus' checker try these cases on the rules of that delivery."""
        values = {"delivery": delivery, "metrics": {"prometheusRule": {"enabled": True}}}
        if delivery == "hostPath":
            values["rbac"] = {"tokens": "namespace"}
        rule = chart.one("PrometheusRule", values)
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            # JSON is YAML too.
            (folder / "rules.yaml").write_text(json.dumps(rule["spec"]))
            tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
            (folder / "tests.yaml").write_text(json.dumps(tests))
            for arguments in (["check", "rules", "--lint=all", "rules.yaml"], ["test", "rules", "tests.yaml"]):
                said = subprocess.run([HERE / "promtool", *arguments], cwd=folder, capture_output=True, text=True)
                self.assertEqual(0, said.returncode, said.stdout + said.stderr)
        return {found["alert"] for group in rule["spec"]["groups"] for found in group["rules"]}

    def test_where_all_is_well_nothing_is_said(self):
        checks = [fires(None, minute, 0) for minute in range(60)]
        for delivery in ("csi", "hostPath"):
            self.tried(delivery, [case("well", {}, checks)])

    def test_each_alert_is_there_when_its_cause_lasts_and_not_at_once(self):
        there = set()
        for delivery in ("csi", "hostPath"):
            cases = [
                case(alert, series, [fires(alert, before, 0), fires(alert, by, 1)])
                for alert, (series, before, by) in ILL.items()
                if (alert in BY_HOST_PATH) == (delivery == "hostPath")
            ]
            there |= self.tried(delivery, cases)
        self.assertEqual(there, ILL.keys())

    def test_an_api_server_that_never_answers_is_told_however_scrapes_fall_and_one_that_starts_again_is_not(self):
        def failed(each, begin, last):
            times = [begin + each * n for n in range(1000) if begin + each * n <= last]
            counts = [str(sum(60 * minute >= time for time in times)) for minute in range(61)]
            return {"latchkey_watch_failures_total": " ".join(counts)}

        alert = "LatchkeyWatchFails"
        silent = [fires(alert, minute, 1) for minute in range(21, 60)]
        restart = [fires(alert, minute, 0) for minute in range(60)]
        self.tried("csi", [
            *[case(f"silent, {begin} s", failed(128, 600 + begin, 3600), silent) for begin in range(0, 128, 8)],
            *[case(f"restart, {begin} s", failed(3, 600 + begin, 780 + begin), restart) for begin in range(0, 60, 6)],
        ])

    def test_where_some_are_attested_or_only_one_stranger_asked_nobody_says_that_none_are(self):
        def attested(**by_outcome):
            return {f'latchkey_attestations_total{{outcome="{outcome}"}}': values for outcome, values in by_outcome.items()}

        asked = NOTHING_ASKED | {'latchkey_requests_total{route="secret",code="not_attested"}': rises(1)}
        connected = {'latchkey_requests_total{route="secret",code="ok"}': rises(1)}
        alert = "LatchkeyAttestsNobody"
        never = [fires(alert, minute, 0) for minute in range(60)]
        self.tried("csi", [
            case("all but a few", {**asked, **attested(ok="0+1x60", malformed=rises(10))}, never),
            case("by connections that last", {**asked, **connected, **attested(ok=rises(0), malformed=rises(1))}, never),
            case("one", {**asked, **attested(ok=rises(0), outside_root=ONCE)}, never),
            case("of the node", {**asked, **attested(ok=rises(0), outside_root=rises(0), not_a_pod=rises(10))}, never),
            *[
                case(outcome, {**asked, **attested(**{"ok": rises(0), "outside_root": rises(0), outcome: rises(1)})}, [fires(alert, 25, 1)])
                for outcome in ("outside_root", "outside_pid_namespace", "unreadable_peer", "malformed", "controllers_disagree")
            ],
        ])

    def test_one_pod_whose_volume_is_denied_at_each_call_is_enough(self):
        denied = 'latchkey_csi_publishes_total{outcome="denied"}'
        alert = "LatchkeyVolumesFail"
        self.tried("csi", [
            case("for good", {denied: calls_of_the_kubelet(10, 60)}, [fires(alert, 20, 0), fires(alert, 40, 1), fires(alert, 60, 1)]),
            case("for its first minutes", {denied: calls_of_the_kubelet(10, 14)}, [fires(alert, minute, 0) for minute in range(60)]),
        ])

    def test_a_volume_that_was_denied_once_hides_no_files_that_are_old(self):
        series = {'latchkey_csi_publishes_total{outcome="denied"}': "1x60", 'latchkey_csi_fillings_total{outcome="denied"}': rises(1)}
        self.tried("csi", [case("hidden", series, [fires("LatchkeyVolumesFail", 40, 1)])])

    def test_a_node_whose_pods_ask_seldom_has_its_outage_told_and_one_that_fails_now_and_then_has_not(self):
        def asked(**each_minute):
            codes = {"ok": 0, "unavailable": 0, "denied": 0, **each_minute}
            asked = {f'latchkey_requests_total{{route="secret",code="{code}"}}': rises(by) for code, by in codes.items()}
            return NOTHING_ASKED | asked

        alert = "LatchkeyUnavailable"
        never = [fires(alert, minute, 0) for minute in range(60)]
        once = {'latchkey_requests_total{route="secret",code="unavailable"}': ONCE}
        self.tried("csi", [
            case("5 pods, a read each five minutes", asked(unavailable=1), [fires(alert, 30, 1)]),
            case("25 pods, a read each five minutes", asked(unavailable=5), [fires(alert, 30, 1)]),
            case("one in a hundred fails", asked(unavailable=5, ok=495), never),
            case("one fails, and no other is asked", {**asked(), **once}, never),
            case("a busy node's outage of two minutes", {'latchkey_requests_total{route="secret",code="timeout"}': "0x29 0+300x2 600x28"}, never),
        ])

    def test_refusals_where_pods_ask_seldom_are_told_by_their_share(self):
        def asked(**each_minute):
            codes = {"ok": 0, "denied": 0, "not_found": 0, "unavailable": 0, **each_minute}
            return NOTHING_ASKED | {f'latchkey_requests_total{{route="secret",code="{code}"}}': rises(by) for code, by in codes.items()}

        alert = "LatchkeyDenied"
        never = [fires(alert, minute, 0) for minute in range(60)]
        batches = {
            'latchkey_requests_total{route="batch",code="ok"}': rises(1),
            'latchkey_batch_failures_total{code="no_role"}': rises(1),
        }
        self.tried("csi", [
            case("all, once a minute", asked(denied=1), [fires(alert, 10, 0), fires(alert, 30, 1)]),
            case("all batches", {**asked(), **batches}, [fires(alert, 30, 1)]),
            case("a third", asked(denied=1, ok=2), never),
            case("two", {**asked(), 'latchkey_requests_total{route="secret",code="denied"}': "0x29 2x30"}, never),
        ])

    def test_where_most_reads_find_nothing_that_is_told_but_not_of_a_few_names_that_need_not_be_there(self):
        def asked(ok, not_found):
            return NOTHING_ASKED | {
                'latchkey_requests_total{route="secret",code="ok"}': ok,
                'latchkey_requests_total{route="secret",code="not_found"}': not_found,
            }

        alert = "LatchkeyNotFound"
        never = [fires(alert, minute, 0) for minute in range(60)]
        batches = {
            'latchkey_requests_total{route="batch",code="ok"}': rises(10),
            'latchkey_batch_failures_total{code="not_found"}': rises(10),
        }
        self.tried("csi", [
            case("all, ten a second", asked(rises(0), rises(600)), [fires(alert, 14, 0), fires(alert, 30, 1)]),
            case("all, once a minute", asked(rises(0), rises(1)), [fires(alert, 40, 1)]),
            case("as many as are found", asked(rises(10), rises(10)), never),
            case("eight, as some pods start", asked("0x29 4x30", "0x29 8x30"), never),
            case("one name of each batch", {**asked(rises(1), rises(0)), **batches}, never),
        ])

    def test_exchanges_that_fail_are_told_while_reads_go_on_with_the_sessions_at_hand(self):
        def exchanges(ok, failed):
            return {
                'latchkey_exchanges_total{backend="aws",outcome="ok"}': ok,
                'latchkey_exchanges_total{backend="aws",outcome="unavailable"}': failed,
            }

        alert = "LatchkeyBackendAway"
        never = [fires(alert, minute, 0) for minute in range(60)]
        self.tried("csi", [
            case("all", exchanges(rises(0), rises(6)), [fires(alert, 4, 0), fires(alert, 20, 1), fires("LatchkeyUnavailable", 20, 0)]),
            case("a third", exchanges(rises(2), rises(1)), never),
            case("two", exchanges(rises(0), "0x29 2x30"), never),
        ])

    def test_lookups_that_fail_are_told_however_seldom_pods_ask_and_those_of_a_short_outage_are_not(self):
        alert = "LatchkeyLookupsFail"
        seldom = " ".join(f"{count}x4" for count in range(12))
        self.tried("csi", [
            case("each five minutes", {"latchkey_lookup_failures_total": seldom}, [fires(alert, 30, 1), fires(alert, 50, 1)]),
            case("for three minutes", {"latchkey_lookup_failures_total": "0x19 0+12x3 36x40"}, [fires(alert, minute, 0) for minute in range(60)]),
            case("two, eight minutes apart", {"latchkey_lookup_failures_total": "0x19 1x7 2x40"}, [fires(alert, minute, 0) for minute in range(60)]),
        ])

    def test_lines_that_nobody_reads_are_told_on_a_quiet_node_too_and_not_those_that_a_busy_one_is_about_to_write(self):
        alert = "LatchkeyAuditSlow"
        never = [fires(alert, minute, 0) for minute in range(60)]
        self.tried("csi", [
            case("a line each minute", {"latchkey_audit_queue": "0x19 0+1x40"}, [fires(alert, 25, 0), fires(alert, 35, 1)]),
            case("no more are asked for", {"latchkey_audit_queue": "0x19 5x40"}, [fires(alert, 35, 1)]),
            case("many, and others each time", {"latchkey_audit_queue": " ".join(["40x3 30x0"] * 12)}, never),
            case("a new agent's first", {"latchkey_audit_queue": "_x29 5x8 0x20"}, never),
        ])

    def test_what_fails_within_batches_is_told_though_each_is_answered(self):
        name = "latchkey_batch_failures_total"
        batches = {'latchkey_requests_total{route="batch",code="ok"}': rises(1)}
        never = [fires("LatchkeyUnavailable", minute, 0) for minute in range(60)]

        def asked(by):
            return {'latchkey_requests_total{route="batch",code="ok"}': f"0x29 {by}x30"}

        def failed(by):
            return {f'{name}{{code="{code}"}}': f"0x29 {by}x30" for code in ("unavailable", "timeout")}

        self.tried("csi", [
            case("often", {f'{name}{{code="timeout"}}': rises(30)}, [fires("LatchkeyUnavailable", 30, 1)]),
            case("seldom", {**NOTHING_ASKED, **batches, f'{name}{{code="unavailable"}}': rises(1)}, [fires("LatchkeyUnavailable", 30, 1)]),
            case("one, in two ways", {**NOTHING_ASKED, **asked(1), **failed(1)}, never),
            case("two, in two ways", {**NOTHING_ASKED, **asked(2), **failed(2)}, never),
            case("three", {**NOTHING_ASKED, **asked(3), **failed(3)}, [fires("LatchkeyUnavailable", 36, 1)]),
            case("no role", {f'{name}{{code="no_role"}}': rises(30)}, [fires("LatchkeyDenied", 40, 1)]),
            case("a bug", {f'{name}{{code="internal"}}': ONCE}, [fires("LatchkeyInternal", 31, 1)]),
        ])

    def test_where_nothing_is_scraped_one_alert_says_so(self):
        self.tried("csi", [case("empty", {}, [fires(None, 5, 0), fires(None, 15, 1), fires("LatchkeyNotScraped", 15, 1)], well={})])

    def test_an_alert_is_about_the_agents_of_its_own_release_however_they_are_scraped(self):
        cases = []
        for name in ("latchkey-agent", "latchkey-agent-metrics", "any/where/latchkey-agent"):
            for alert in ("LatchkeyDown", "LatchkeyRestarting", "LatchkeyKnowsNoPods", "LatchkeyUnavailable"):
                series, _, by = ILL[alert]
                cases.append(case(f"{alert} by {name}", series, [fires(alert, by, 1)], job=f'job="{name}"'))
        for alert, (series, _, by) in ILL.items():
            # By kube-state-metrics, which has a job of its own.
            if alert not in BY_HOST_PATH | {"LatchkeyMissing"}:
                checks = [fires(None, by, 1), fires("LatchkeyNotScraped", by, 1)]
                cases.append(case(f"{alert} of another release", series, checks, job=OTHER_JOB))
        self.tried("csi", cases)

    def test_a_backend_that_is_away_is_told_though_another_answers_and_one_that_fails_now_and_then_is_not(self):
        alert = "LatchkeyBackendAway"

        def vault(calls, failed):
            return {
                'latchkey_backend_errors_total{backend="vault",code="unavailable"}': failed,
                'latchkey_backend_seconds_count{backend="vault",operation="read"}': calls,
            }

        never = [fires(alert, minute, 0) for minute in range(60)]
        self.tried("csi", [
            case("all", vault(rises(3), rises(3)), [fires(alert, 30, 1), fires("LatchkeyUnavailable", 30, 0)]),
            case("a third", vault(rises(3), rises(1)), never),
            case("two", vault("0x29 2x30", "0x29 2x30"), never),
            case("on a busy node", vault(rises(600), "0x29 0+600x30"), [fires(alert, 34, 0), fires(alert, 38, 1)]),
            case("for four minutes of it", vault(rises(600), "0x29 0+600x4 2400x26"), never),
            case("a CronJob's", vault("0x9 5x10 10x10 15x10 20x20", "0x9 5x10 10x10 15x10 20x20"), [fires(alert, 38, 1)]),
        ])

    def test_each_alert_about_one_agent_says_on_which_node_it_is(self):
        monitors = {"metrics": {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}}}
        by_service = {"metrics": {"serviceMonitor": {"enabled": True}}}
        for kind, endpoints, values in (
            ("PodMonitor", "podMetricsEndpoints", monitors), ("ServiceMonitor", "endpoints", by_service),
        ):
            relabeled = chart.one(kind, values)["spec"][endpoints][0]["relabelings"]
            self.assertEqual([{"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"}], relabeled)
        unavailable = {'latchkey_requests_total{node="worker-1",pod="agent-1",route="secret",code="unavailable"}': rises(30)}
        labels = {"severity": "critical", "instance": "a", "node": "worker-1", "pod": "agent-1"}
        told = {"exp_labels": labels, "exp_annotations": {"summary": "Pods get no secrets from worker-1"}}
        by_address = {"exp_labels": {"severity": "critical", "instance": "a"}, "exp_annotations": {"summary": "Pods get no secrets from a"}}
        bare = {'latchkey_requests_total{route="secret",code="unavailable"}': rises(30)}
        cases = [(case("with a node", unavailable, []), told), (case("by another scraper", bare, []), by_address)]
        for tried, said in cases:
            tried["alert_rule_test"] = [{"eval_time": "50m", "alertname": "LatchkeyUnavailable", "exp_alerts": [said]}]
        self.tried("csi", [tried for tried, _ in cases])
        # All others are by a label of every agent's, or of none.
        for rule in chart.one("PrometheusRule", monitors)["spec"]["groups"][0]["rules"]:
            for labels in re.findall(r"sum by \(([^)]*)\)", rule["expr"]):
                if "instance" in labels and rule["alert"] != "LatchkeyTokensStale":
                    self.assertIn("instance, node, pod", labels, rule["alert"])
