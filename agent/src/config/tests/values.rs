//! Values to try, key by key.

/// A right value for every key, none of them the default, and no two at odds.
pub(super) const RIGHT: &[(&str, &str)] = &[
    ("audit.queue", "100"),
    ("backends.aws.allow_arns", "true"),
    (
        "backends.aws.audiences",
        "[\"sts.amazonaws.com\", \"vault\"]",
    ),
    (
        "backends.aws.endpoint",
        "\"https://vpce-1a2b.example.com:8443\"",
    ),
    ("backends.aws.prefix", "\"team-a/\""),
    ("backends.aws.region", "\"us-gov-west-1\""),
    ("backends.aws.sts_endpoint", "\"http://127.0.0.1:4566/\""),
    ("backends.aws.timeout", "\"2s\""),
    ("cache.max_bytes", "\"1MiB\""),
    ("cache.only", "[\"config/\", \"flags\"]"),
    ("cache.stale_if_error", "\"1m\""),
    ("cache.ttl", "\"30s\""),
    (
        "identity.kubepods_root",
        "\"/kubelet.slice/kubelet-kubepods.slice\"",
    ),
    ("identity.namespace_annotations", "false"),
    (
        "kubernetes.node",
        "\"ip-10-0-0-1.eu-central-1.compute.internal\"",
    ),
    (
        "kubernetes.pod_uid",
        "\"0b1a7c0e-6a5d-4c3e-9a43-0123456789ab\"",
    ),
    ("limits.attest_wait", "\"1s\""),
    ("limits.connections", "1000"),
    ("limits.connections_per_pod", "10"),
    ("limits.drain", "\"1m\""),
    ("limits.in_flight_per_pod", "5"),
    ("limits.request_deadline", "\"30s\""),
    ("limits.requests_per_second_per_pod", "50"),
    ("limits.unattested", "16"),
    ("listen.admin", "\"[::]:9642\""),
    ("listen.require_header", "\"X-Latchkey\""),
    ("listen.socket", "\"/run/other/agent.sock\""),
    ("log.level", "\"warn,latchkey_agent::attest=trace\""),
    ("sessions.duration", "\"15m\""),
];

/// Values that each key must refuse.
pub(super) const WRONG: &[(&str, &[&str])] = &[
    (
        "audit.queue",
        &[
            "0",
            "-1",
            "1048577",
            "\"8192\"",
            "1.5",
            "99999999999999999999",
            "[]",
        ],
    ),
    ("backends.aws.allow_arns", &["\"yes\"", "1"]),
    (
        "backends.aws.audiences",
        &[
            "[]",
            "\"\"",
            "[\"\"]",
            "[\"a b\"]",
            "[1]",
            "[\"a\", \"a\"]",
            "[\"https://kubernetes.default.svc\"]",
            "[\"kubernetes.default.svc.cluster.local\"]",
        ],
    ),
    (
        "backends.aws.endpoint",
        &[
            "\"vpce.example.com\"",
            "\"ftp://example.com\"",
            "\"https://\"",
            "\"https://example.com/path\"",
            "\"https://example.com/?q\"",
            "\"https://example.com/#f\"",
            "\"https://user:hunter2@example.com\"",
            "\"https://exa mple.com\"",
            "443",
        ],
    ),
    (
        "backends.aws.fallback_regions",
        &[
            "\"eu-west-1\"",
            "[\"Eu-West-1\"]",
            "[\"eu-west-1\", \"eu-west-1\"]",
            "[\"\"]",
        ],
    ),
    (
        "backends.aws.prefix",
        &[
            "\"a b\"",
            "\"a:b\"",
            "\"../\"",
            "\"a/./\"",
            "\"a//\"",
            "\"a\\\\b\"",
            "\"\u{fc}\"",
            "1",
        ],
    ),
    (
        "backends.aws.region",
        &[
            "\"eu\"",
            "\"eu-central\"",
            "\"eu-central-1.evil.example.com\"",
            "\"EU-CENTRAL-1\"",
            "\"eu-central-1-fips\"",
            "\"eu--central-1\"",
            "\" eu-central-1\"",
            "1",
        ],
    ),
    (
        "backends.aws.sts_endpoint",
        &["\"sts.example.com\"", "true"],
    ),
    (
        "backends.aws.timeout",
        &["\"0s\"", "\"5ms\"", "\"61s\"", "3", "\"3\""],
    ),
    (
        "backends.aws.type",
        &["\"AWS\"", "\"azure\"", "\"pass\"", "\"file\"", "\"\"", "1"],
    ),
    (
        "cache.max_bytes",
        &["\"1KiB\"", "\"2GiB\"", "\"lots\"", "16777216", "\"-1MiB\""],
    ),
    (
        "cache.only",
        &[
            "\"config/\"",
            "[\"\"]",
            "[\"/a\"]",
            "[\"a//b\"]",
            "[\"a\", \"a\"]",
            "[{}]",
        ],
    ),
    ("cache.stale_if_error", &["\"25h\"", "0", "\"1 month\""]),
    (
        "cache.ttl",
        &["\"25h\"", "\"-1s\"", "\"soon\"", "\"\"", "0", "2026-11-24"],
    ),
    (
        "default_backend",
        &["\"gcp\"", "\"AWS\"", "\"\"", "1", "\"a.b\""],
    ),
    (
        "identity.kubepods_root",
        &[
            "\"kubepods\"",
            "\"/\"",
            "\"/kubepods/\"",
            "\"/../kubepods\"",
            "\"/a\\n\"",
            "1",
        ],
    ),
    (
        "identity.mode",
        &["\"local\"", "\"sidecar\"", "\"Kubernetes\"", "\"\"", "1"],
    ),
    ("identity.namespace_annotations", &["\"true\"", "0"]),
    (
        "kubernetes.node",
        &["\"Node\"", "\"a_b\"", "\"a..b\"", "\"-a\"", "\"a/b\"", "1"],
    ),
    (
        "kubernetes.pod_uid",
        &[
            "\"1\"",
            "\"0b1a7c0e6a5d4c3e9a430123456789ab\"",
            "\"../0b1a7c0e\"",
            "1",
        ],
    ),
    ("limits.attest_wait", &["\"61s\"", "5", "\"five seconds\""]),
    ("limits.connections", &["0", "65537", "\"many\""]),
    ("limits.connections_per_pod", &["0", "65537", "true"]),
    ("limits.drain", &["\"11m\"", "20", "\"-20s\""]),
    ("limits.in_flight_per_pod", &["0", "65537"]),
    ("limits.request_deadline", &["\"0s\"", "\"6m\"", "10"]),
    (
        "limits.requests_per_second_per_pod",
        &["0", "1000001", "0.5"],
    ),
    ("limits.unattested", &["0", "65537"]),
    (
        "listen.admin",
        &["\"localhost:9642\"", "\"127.0.0.1\"", "\":9642\"", "9642"],
    ),
    (
        "listen.require_header",
        &[
            "\"X Y\"",
            "\"Host\"",
            "\"X-Forwarded-For\"",
            "\"Via\"",
            "\"X:\"",
            "true",
        ],
    ),
    (
        "listen.socket",
        &[
            "\"agent.sock\"",
            "\"@latchkey\"",
            "\"\\u0000latchkey\"",
            "\"\"",
            "\"/\"",
            "\"/run/../etc/agent.sock\"",
            "\"/run/latchkey/\"",
            "\"/run/a\\nb\"",
            "1",
        ],
    ),
    (
        "log.level",
        &["\"inof\"", "\"\"", "\"info,latchkey_agent=lots\"", "3"],
    ),
    ("sessions.duration", &["\"14m\"", "\"13h\"", "3600"]),
];
