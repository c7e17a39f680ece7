//! Wrong configurations: every fault is reported once, where it was written.

use proptest::{prelude::*, sample};

use super::{
    values::{RIGHT, WRONG},
    *,
};

fn file_of(values: &[(&str, &str)]) -> String {
    values
        .iter()
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect()
}

/// The key in the only fault of this start.
fn blamed(start: &Start) -> String {
    let faults = start.load().expect_err("a wrong configuration");
    let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys.len(), 1, "{faults}");
    assert_eq!(faults.to_string().lines().count(), 1, "{faults}");
    keys[0].to_owned()
}

#[test]
fn every_key_has_values_that_it_refuses() {
    assert_eq!(
        WRONG
            .iter()
            .map(|(key, _)| (*key).to_owned())
            .collect::<Vec<_>>(),
        keys()
    );
    for (key, values) in WRONG {
        for value in *values {
            let start = with_file(&format!("{key} = {value}"));
            assert_eq!(blamed(&start), *key, "{value}");
            let line = &start.faults()[0];
            assert!(
                line.starts_with(&format!("config.toml:1:1: {key} ")) || key.contains('.'),
                "{line}"
            );
            assert!(line.starts_with("config.toml:1:"), "{line}");
        }
    }
}

/// Whether the value is still wrong where everything is text: there, 1 may be a name and "true" a boolean.
fn stays_wrong_as_text(key: &str, value: &str) -> bool {
    const RIGHT_AS_TEXT: [(&str, &str); 8] = [
        ("audit.queue", "\"8192\""),
        ("backends.aws.prefix", "1"),
        ("cache.max_bytes", "16777216"),
        ("identity.namespace_annotations", "\"true\""),
        ("kubernetes.node", "1"),
        ("listen.require_header", "true"),
        ("sidecar.aws_role_arn", "1"),
        ("sidecar.tokens", "\"/token\""),
    ];
    let is_list = WRONG
        .iter()
        .any(|(other, values)| *other == key && values.contains(&"[\"\"]"));
    // TOML's escapes do not apply elsewhere, and a list needs no brackets there.
    !RIGHT_AS_TEXT.contains(&(key, value))
        && !value.contains('\\')
        && (!is_list || value.starts_with('['))
}

#[test]
fn the_environment_and_flags_are_checked_like_the_file() {
    for (key, values) in WRONG {
        for value in values
            .iter()
            .filter(|value| stays_wrong_as_text(key, value))
        {
            let bare = value.trim_matches('"');
            let variable = variable(key);
            let start = with_file("").and_env(&variable, bare);
            assert_eq!(blamed(&start), *key, "{value}");
            let origin = format!("environment variable {variable}: {key} ");
            assert!(
                start.faults()[0].starts_with(&origin),
                "{:?}",
                start.faults()
            );
            let start = with_file("").and_flag(key, bare);
            assert_eq!(blamed(&start), *key, "{value}");
            let origin = format!("flag --set {key}: {key} ");
            assert!(
                start.faults()[0].starts_with(&origin),
                "{:?}",
                start.faults()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn one_wrong_key_among_right_ones_gives_one_fault_that_names_it(
        right in sample::subsequence(RIGHT, 0..=RIGHT.len()),
        (key, values) in sample::select(WRONG),
        index in any::<sample::Index>(),
    ) {
        let mut lines: Vec<_> = right.into_iter().filter(|(other, _)| *other != key).collect();
        lines.push((key, values[index.index(values.len())]));
        prop_assert_eq!(blamed(&with_file(&file_of(&lines))), key);
    }

    #[test]
    fn one_unknown_key_anywhere_gives_one_fault_that_names_it(
        right in sample::subsequence(RIGHT, 0..=RIGHT.len()),
        section in sample::select(vec!["", "listen.", "limits.", "backends.aws.", "log.", "zoo."]),
        name in "x[a-z_]{0,8}",
        value in sample::select(vec!["1", "\"a\"", "[]", "true"]),
    ) {
        let key = format!("{section}{name}");
        let start = with_file(&format!("{}{key} = {value}", file_of(&right)));
        let blamed = blamed(&start);
        // An unknown section is reported as such.
        prop_assert!(blamed == key || (section == "zoo." && blamed == "zoo"), "{}", blamed);
    }

    #[test]
    fn no_text_at_all_makes_it_panic(text in "\\PC{0,60}|([a-z.=\"\\[\\]{}#\n ]|aws|backends){0,40}") {
        if let Err(faults) = with_file(&text).load() {
            prop_assert!(faults.iter().next().is_some());
        }
    }
}

#[test]
fn everything_that_is_wrong_is_named_at_once_in_the_order_of_the_file() {
    let text = "[limits]\ndrain = 20\nconections = 3\n\n[listen]\nsocket = \"agent.sock\"\n";
    let start = with_file(text)
        .and_env("LATCHKEY_AGENT__AUDIT__QUEUE", "0")
        .and_env("NODE_NAME", "")
        .and_flag("cache.tll", "1s");
    assert_eq!(
        start.faults(),
        [
            "config.toml:2:1: limits.drain is an integer; write a duration from 0s to 10m, such as \"10m\"",
            "config.toml:3:1: limits.conections is an unknown key; did you mean limits.connections?",
            "config.toml:6:1: listen.socket is \"agent.sock\", no absolute path; write an absolute path \
             such as \"/run/latchkey/agent.sock\"",
            "environment variable LATCHKEY_AGENT__AUDIT__QUEUE: audit.queue is 0, out of range; write an \
             integer from 1 to 1048576",
            "flag --set cache.tll: cache.tll is an unknown key; did you mean cache.ttl?",
            "default: kubernetes.node is empty and NODE_NAME is not set; give the pod NODE_NAME from \
             spec.nodeName by the downward API; outside of a cluster set identity.mode = \"local\" \
             (deploy/local.toml)",
        ]
    );
}

#[test]
fn whoever_names_no_node_is_told_of_machines_without_a_cluster() {
    let faults = with_file("").and_env("NODE_NAME", "").faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(
        faults[0].contains("set identity.mode = \"local\"") && !faults[0].contains(DEFAULT_FILE),
        "{faults:?}"
    );
    if !Path::new(DEFAULT_FILE).exists() {
        let faults = Config::load(None, std::iter::empty(), Vec::new());
        let faults = faults.expect_err("nothing is written").to_string();
        assert!(
            faults.contains("/etc/latchkey/config.toml is not there"),
            "{faults}"
        );
    }
    // With an invalid mode, it is unknown whether a node is needed.
    let start = with_file("identity.mode = \"locl\"").and_env("NODE_NAME", "");
    assert_eq!(blamed(&start), "identity.mode");
}

#[test]
fn a_misspelt_section_of_backends_is_one_of_backends() {
    for text in ["[backend.file]\npath = \"/srv\"", "[backend]\nfile = 1"] {
        assert_eq!(
            with_file(text).faults(),
            ["config.toml:1:2: backend is an unknown section; did you mean backends?"]
        );
    }
    let start = with_file("").and_env("LATCHKEY_AGENT__BACKEND__FILE__PATH", "/srv");
    let faults = start.faults();
    assert!(
        faults[0].ends_with("did you mean backends.file.path?"),
        "{faults:?}"
    );
    let faults = with_file("backends.aws.regon = \"eu-west-1\"").faults();
    assert!(
        faults[0].ends_with("did you mean backends.aws.region?"),
        "{faults:?}"
    );
}

#[test]
fn a_file_that_is_no_toml_is_named_with_line_and_column() {
    let faults = with_file("[listen]\nsocket = /run/agent.sock\n").faults();
    assert!(
        faults[0].starts_with("config.toml:2:10: is no TOML here: "),
        "{faults:?}"
    );
    let faults = with_file("[log]\nlevel = \"info\"\nlevel = \"warn\"\n").faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(
        faults[0].starts_with("config.toml:3:1: is no TOML here: duplicate key"),
        "{faults:?}"
    );
    let faults = with_file("a = \n\nb = [1,\n").faults();
    assert!(faults[0].starts_with("config.toml:1:"), "{faults:?}");
}

#[test]
fn a_named_file_must_be_there_and_be_a_text_file() {
    let start = with_file("");
    let load = |path: PathBuf| {
        let faults = Config::load(Some(&path), std::iter::empty(), Vec::new());
        faults.expect_err("a wrong file").to_string()
    };
    let missing = load(start.directory.path().join("none.toml"));
    assert!(
        missing.contains("none.toml: cannot be read: No such file"),
        "{missing}"
    );
    let directory = load(start.directory.path().to_owned());
    assert!(
        directory.contains("it is not a regular file"),
        "{directory}"
    );
    fs::write(start.file(), b"# \xff").expect("a file");
    assert!(
        load(start.file()).contains("UTF-8"),
        "{}",
        load(start.file())
    );
    fs::write(start.file(), "#".repeat((1 << 20) + 1)).expect("a file");
    assert!(
        load(start.file()).contains("larger than 1 MiB"),
        "{}",
        load(start.file())
    );
}

#[test]
fn a_backend_of_another_name_must_say_its_type() {
    let faults =
        with_file("default_backend = \"main\"\n[backends.main]\nregion = \"eu-west-1\"").faults();
    assert_eq!(
        faults,
        [
            "config.toml:2:11: backends.main.type is missing; write type = \"aws\" or \"azure\" or \"file\" or \
             \"gcp\" or \"pass\""
        ]
    );
}

#[test]
fn a_backend_must_have_a_name_that_keys_and_requests_can_carry() {
    for name in ["AWS", "\"a.b\"", "\"\"", "a__b", "\"a b\"", "-a"] {
        let start = with_file(&format!("[backends.{name}]\ntype = \"aws\""));
        assert!(blamed(&start).starts_with("backends."), "{name}");
    }
}

#[test]
fn the_default_backend_must_be_configured() {
    let two = "[backends.main]\ntype = \"aws\"\n[backends.other]\ntype = \"aws\"";
    let faults = with_file(two).faults();
    assert_eq!(
        faults,
        [
            "default: default_backend is \"aws\", and no such backend is configured; name one of those \
          that are: main, other"
        ]
    );
    // With only one there is no choice.
    let one = with_file("[backends.main]\ntype = \"aws\"").config();
    assert_eq!(one.default_backend, "main");
}

#[test]
fn keys_at_odds_are_named_together() {
    let at_odds = [
        (
            "limits.attest_wait = \"11s\"",
            "limits.attest_wait",
            "limits.request_deadline",
        ),
        (
            "limits.connections = 32",
            "limits.connections_per_pod",
            "limits.connections",
        ),
        (
            "backends.aws.timeout = \"11s\"",
            "backends.aws.timeout",
            "limits.request_deadline",
        ),
        (
            "backends.aws.fallback_regions = [\"eu-west-1\"]\nbackends.aws.region = \"eu-central-1\"\nbackends.aws.timeout = \"6s\"",
            "backends.aws.timeout",
            "limits.request_deadline",
        ),
        (
            "backends.aws.fallback_regions = [\"eu-west-1\"]\nbackends.aws.region = \"eu-west-1\"",
            "backends.aws.fallback_regions",
            "backends.aws.region",
        ),
    ];
    for (text, key, other) in at_odds {
        let start = with_file(text);
        assert_eq!(blamed(&start), key, "{text}");
        let line = &start.faults()[0];
        assert!(line.contains(&format!("contradicts {other}")), "{line}");
    }
}

#[test]
fn endpoints_of_ones_own_and_the_sdks_choice_of_them_are_refused_together() {
    for key in ["backends.aws.endpoint", "backends.aws.sts_endpoint"] {
        for variable in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
            let start = with_file(&format!("{key} = \"https://vpce.example.com\""));
            let start = start.and_env(variable, "TRUE");
            assert_eq!(blamed(&start), key);
            assert!(start.faults()[0].contains(variable));
            start.and_env(variable, "false").config();
            with_file("").and_env(variable, "true").config();
        }
    }
}

#[test]
fn a_region_to_fall_back_from_need_not_be_in_the_configuration() {
    let text = "backends.aws.fallback_regions = [\"eu-west-1\"]";
    let aws = with_file(text).aws();
    assert_eq!(
        (aws.region, aws.fallback_regions),
        (None, vec!["eu-west-1".to_owned()])
    );
}

#[test]
fn a_wrong_variable_of_the_sdk_is_named_by_its_name() {
    for (name, key) in [
        ("AWS_REGION", "backends.aws.region"),
        ("AWS_ENDPOINT_URL_STS", "backends.aws.sts_endpoint"),
        ("AWS_ENDPOINT_URL_SECRETS_MANAGER", "backends.aws.endpoint"),
        ("RUST_LOG", "log.level"),
        ("POD_UID", "kubernetes.pod_uid"),
        ("NODE_NAME", "kubernetes.node"),
    ] {
        let start = with_file("").and_env(name, "No Such Thing");
        assert_eq!(blamed(&start), key);
        let line = &start.faults()[0];
        assert!(
            line.starts_with(&format!("environment variable {name}: {key} is ")),
            "{line}"
        );
    }
}

#[test]
fn an_unknown_variable_of_the_agent_is_named() {
    let start = with_file("").and_env("LATCHKEY_AGENT__LISTEN__SOKET", "/s");
    assert_eq!(
        start.faults(),
        [
            "environment variable LATCHKEY_AGENT__LISTEN__SOKET: listen.soket is an unknown key; did you \
          mean listen.socket?"
        ]
    );
    for name in [
        "LATCHKEY_AGENT__",
        "LATCHKEY_AGENT__listen__socket",
        "LATCHKEY_AGENT__LISTEN_SOCKET",
    ] {
        let faults = with_file("").and_env(name, "/s").faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(&format!("{name}: ")), "{faults:?}");
    }
}

#[test]
fn sections_and_values_are_not_taken_for_each_other() {
    for (text, key, wrong) in [
        ("listen = 5", "listen", "is a section, not a value"),
        ("backends = 5", "backends", "is a section, not a value"),
        (
            "local = 5",
            "local",
            "is a section, not a value; leave it out",
        ),
        (
            "backends.aws = 5",
            "backends.aws",
            "is a section, not a value",
        ),
        (
            "[[listen]]\nsocket = \"/s\"",
            "listen",
            "is a section, not a value",
        ),
        (
            "[listen.socket]\npath = \"/s\"",
            "listen.socket",
            "listen.socket is a value",
        ),
        (
            "[lisen]\nsocket = \"/s\"\nadmin = 1",
            "lisen",
            "is an unknown section; did you mean listen?",
        ),
        (
            "\"listen.socket\" = \"/s\"",
            "\"listen.socket\"",
            "is an unknown key",
        ),
    ] {
        let start = with_file(text);
        assert_eq!(blamed(&start), key, "{text}");
        assert!(start.faults()[0].contains(wrong), "{:?}", start.faults());
    }
}

#[test]
fn nothing_is_no_integer() {
    let faults = with_file("").and_flag("audit.queue", "").faults();
    assert_eq!(
        faults,
        [
            "flag --set audit.queue: audit.queue is \"\", no integer; write an integer from 1 to 1048576"
        ]
    );
}

#[test]
fn an_endpoint_that_no_call_can_be_sent_to_is_refused() {
    for key in [
        "backends.aws.endpoint",
        "backends.aws.sts_endpoint",
        "backends.gcp.sts_endpoint",
        "backends.azure.authority",
    ] {
        let with = |url: &str| with_file("").and_flag(key, url);
        for wrong in [
            "https://x.example.com:99999",
            "https://x.example.com:0",
            "https://[fe80::1%25eth0]",
        ] {
            let faults = with(wrong).faults();
            let line = faults.iter().find(|line| line.contains(wrong));
            let line = line.unwrap_or_else(|| panic!("{key} {wrong}: {faults:?}"));
            assert!(line.contains("a port from 1 to 65535"), "{line}");
        }
    }
    for right in [
        "https://x.example.com:8443",
        "http://127.0.0.1:1",
        "https://[fd00::1]",
    ] {
        with_file("")
            .and_flag("backends.aws.endpoint", right)
            .config();
    }
}

#[test]
fn a_password_in_a_url_is_not_repeated() {
    let start = with_file("backends.aws.endpoint = \"https://user:hunter2@example.com\"");
    assert!(
        !start.faults()[0].contains("hunter2"),
        "{:?}",
        start.faults()
    );
}

#[test]
fn a_wrong_value_is_repeated_in_part_and_on_one_line() {
    let start = with_file("").and_env("AWS_REGION", &"\u{fc}\n\u{1b}[31m".repeat(1000));
    let faults = start.faults();
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0].len() < 600 && !faults[0].contains('\u{1b}'),
        "{faults:?}"
    );
}
