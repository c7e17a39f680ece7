//! The configuration as an operator meets it: a file, an environment, flags, and the result.

mod azure;
mod gcp;
mod principals;
mod stores;
mod values;
mod variables;
mod wrong;

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::{reader::Reader, settings::Settings, *};

/// The shipped file.
const SAMPLE: &str = include_str!("../../../deploy/config.toml");

/// The documentation page for it.
const PAGE: &str = include_str!("../../../docs/configuration.md");

/// Everything that an agent is started with.
struct Start {
    directory: TempDir,
    env: Vec<(String, String)>,
    flags: Vec<(String, String)>,
}

/// A start with this file, on a node with a name.
fn with_file(text: &str) -> Start {
    let directory = TempDir::new().expect("a directory");
    let start = Start {
        directory,
        env: Vec::new(),
        flags: Vec::new(),
    };
    fs::write(start.file(), text).expect("a file");
    start.and_env("NODE_NAME", "node-a")
}

impl Start {
    fn file(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn and_env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn and_flag(mut self, key: &str, value: &str) -> Self {
        self.flags.push((key.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Result<Config, Faults> {
        Config::load(
            Some(&self.file()),
            self.env.clone().into_iter(),
            self.flags.clone(),
        )
    }

    fn config(&self) -> Config {
        self.load().expect("a right configuration")
    }

    /// What is wrong, without the directory.
    fn faults(&self) -> Vec<String> {
        let faults = self.load().expect_err("a wrong configuration").to_string();
        let directory = format!("{}/", self.directory.path().display());
        faults
            .lines()
            .map(|line| line.replace(&directory, ""))
            .collect()
    }

    fn aws(&self) -> AwsConfig {
        match self.config().backends["aws"].clone() {
            BackendConfig::Aws(aws) => aws,
            other => panic!("{other:?}"),
        }
    }
}

/// Every key that is read, with the backend `aws`.
fn keys() -> Vec<String> {
    known("")
}

/// Every key that is read with this file.
fn known(text: &str) -> Vec<String> {
    let start = with_file(text);
    let settings = Settings::collect(Some(&start.file()), std::iter::empty(), Vec::new());
    let mut reader = Reader::over(settings.expect("an empty file"));
    let config = Config::read(&mut reader);
    config.check(&mut reader);
    reader.known().map(str::to_owned).collect()
}

/// The environment variable that sets `key`.
fn variable(key: &str) -> String {
    format!(
        "LATCHKEY_AGENT__{}",
        key.replace('.', "__").to_ascii_uppercase()
    )
}

/// The values in the shipped file as they are written there, by key.
fn sample_values() -> BTreeMap<String, String> {
    let mut section = String::new();
    let mut values = BTreeMap::new();
    for line in SAMPLE.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = format!("{name}.");
        } else if !line.starts_with('#')
            && let Some((key, value)) = line.split_once(" = ")
        {
            values.insert(format!("{section}{key}"), value.to_owned());
        }
    }
    values
}

/// What the shipped file has for backends that are not used by default, where each line begins with `#`.
fn commented() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections = BTreeMap::<_, BTreeMap<_, _>>::new();
    let mut section = String::new();
    for line in SAMPLE.lines().filter_map(|line| line.strip_prefix('#')) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.to_owned();
        } else if !line.starts_with(' ')
            && let Some((key, value)) = line.split_once(" = ")
        {
            let key = format!("{section}.{key}");
            let keys = sections.entry(section.clone()).or_default();
            keys.insert(key, value.to_owned());
        }
    }
    sections
}

/// The keys that each type of backend requires.
const NEEDED: &[(&str, &str)] = &[
    ("backends.file.path", "/srv/secrets"),
    ("backends.gcp.project", "acme-prod"),
    ("backends.gcp.provider", "acme-prod.svc.id.goog"),
    ("backends.pass.store", "/srv/store"),
];

#[test]
fn a_section_that_is_commented_out_says_what_it_means_without_its_keys() {
    let sections = commented();
    assert!(!sections.is_empty());
    for (section, keys) in sections {
        let name = section.rsplit('.').next().unwrap_or_default();
        let start = |text: &str| {
            NEEDED
                .iter()
                .filter(|(key, _)| key.starts_with(&format!("{section}.")))
                .fold(with_file(text), |start, (key, value)| {
                    start.and_flag(key, value)
                })
                .and_flag("default_backend", name)
        };
        let config = |text: &str| {
            let read = start(text).load();
            read.unwrap_or_else(|wrong| panic!("does NEEDED lack a key of {section}? {wrong}"))
        };
        let empty = format!("[{section}]\n");
        let whole = keys
            .iter()
            .map(|(key, value)| {
                format!("{} = {value}\n", key.rsplit('.').next().unwrap_or_default())
            })
            .fold(empty.clone(), |text, line| text + &line);
        assert_eq!(config(&whole), config(&empty), "{section}");
        let within = |key: &String| key.starts_with(&format!("{section}."));
        let known: Vec<_> = known(&empty).into_iter().filter(within).collect();
        assert_eq!(keys.into_keys().collect::<Vec<_>>(), known, "{section}");
    }
}

#[test]
fn the_shipped_file_says_what_an_empty_one_means() {
    assert_eq!(with_file(SAMPLE).config(), with_file("").config());
}

#[test]
fn the_shipped_file_has_every_key_and_a_word_about_it() {
    assert_eq!(sample_values().into_keys().collect::<Vec<_>>(), keys());
    let lines: Vec<&str> = SAMPLE.lines().collect();
    for pair in lines.windows(2) {
        assert!(
            !pair[1].contains(" = ") || pair[0].starts_with('#') || pair[1].starts_with('#'),
            "without a comment: {}",
            pair[1]
        );
    }
}

#[test]
fn the_page_has_every_key_with_its_default_and_its_variable() {
    let mut values = sample_values();
    values.extend(commented().into_values().flatten());
    for key in values.keys() {
        let row = PAGE
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")))
            .unwrap_or_else(|| panic!("no row about {key}"));
        assert!(
            row.contains(&format!("| `{}` |", values[key])),
            "default of {key}: {row}"
        );
        let variable = variable(key);
        assert!(
            row.contains(&format!("`{variable}`")),
            "{variable} in: {row}"
        );
    }
    let rows = PAGE
        .lines()
        .filter(|line| line.contains("`LATCHKEY_AGENT__") && line.starts_with("| `"));
    assert_eq!(
        rows.count(),
        values.len(),
        "a row about a key that does not exist"
    );
}

#[test]
fn without_a_word_the_defaults_of_the_contract_stand() {
    let config = with_file("").config();
    assert_eq!(config.default_backend, "aws");
    assert_eq!(config.listen, Listen::default());
    assert_eq!(
        config.listen.socket,
        PathBuf::from("/run/latchkey/agent.sock")
    );
    assert_eq!(
        config.kubernetes,
        Kubernetes {
            impersonate_node: false,
            node: "node-a".to_owned(),
            pod_uid: None,
            startup_taint: None
        }
    );
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.session_duration, Duration::from_secs(3600));
    assert_eq!(config.cache.ttl, Duration::ZERO);
    assert_eq!(config.cache.max_bytes, 16 * 1024 * 1024);
    let aws = BackendConfig::Aws(AwsConfig::default());
    assert_eq!(config.backends, BTreeMap::from([("aws".to_owned(), aws)]));
}

#[test]
fn every_key_can_be_set_by_file_environment_and_flag() {
    for (key, value) in values::RIGHT {
        let from_file = with_file(&format!("{key} = {value}")).config();
        assert_ne!(
            from_file,
            with_file("").config(),
            "{key} = {value} changes nothing"
        );
        let bare = value.trim_matches('"');
        let from_env = with_file("").and_env(&variable(key), bare).config();
        assert_eq!(from_env, from_file, "{key} by environment");
        let from_flag = with_file("").and_flag(key, bare).config();
        assert_eq!(from_flag, from_file, "{key} by flag");
    }
}

#[test]
fn a_flag_goes_over_the_environment_and_that_over_the_file() {
    let start = with_file("limits.drain = \"1s\"");
    assert_eq!(start.config().limits.drain, Duration::from_secs(1));
    let start = start.and_env("LATCHKEY_AGENT__LIMITS__DRAIN", "2s");
    assert_eq!(start.config().limits.drain, Duration::from_secs(2));
    let start = start
        .and_flag("limits.drain", "3s")
        .and_flag("limits.drain", "4s");
    assert_eq!(start.config().limits.drain, Duration::from_secs(4));
}

#[test]
fn a_right_value_above_a_wrong_one_makes_it_right() {
    let start = with_file("limits.drain = \"soon\"").and_env("LATCHKEY_AGENT__LIMITS__DRAIN", "2s");
    assert_eq!(start.config().limits.drain, Duration::from_secs(2));
}

#[test]
fn lists_in_the_environment_are_written_with_commas_or_as_toml() {
    let only = |text| {
        with_file("")
            .and_env("LATCHKEY_AGENT__CACHE__ONLY", text)
            .config()
            .cache
            .only
    };
    assert_eq!(only("a/, b/"), ["a/", "b/"]);
    assert_eq!(only("[\"a/\", \"b,c\"]"), ["a/", "b,c"]);
    assert_eq!(only(""), Vec::<String>::new());
    assert_eq!(only("[]"), Vec::<String>::new());
}

#[test]
fn the_variables_that_kubernetes_sets_for_a_service_mean_nothing() {
    let start = with_file("")
        .and_env("LATCHKEY_AGENT_SERVICE_HOST", "10.96.0.7")
        .and_env("LATCHKEY_AGENT_PORT_9642_TCP", "tcp://10.96.0.7:9642");
    assert_eq!(start.config(), with_file("").config());
}

#[test]
fn the_variables_of_the_sdk_count_where_the_file_says_nothing() {
    let environment = |text| {
        with_file(text)
            .and_env("AWS_REGION", "eu-west-1")
            .and_env("AWS_ENDPOINT_URL", "https://aws.example.com")
            .and_env("AWS_ENDPOINT_URL_STS", "https://sts.example.com")
    };
    let aws = environment("[backends.aws]\nregion = \"\"").aws();
    assert_eq!(aws.region.as_deref(), Some("eu-west-1"));
    assert_eq!(aws.endpoint.as_deref(), Some("https://aws.example.com"));
    assert_eq!(aws.sts_endpoint.as_deref(), Some("https://sts.example.com"));
    let particular = (
        "AWS_ENDPOINT_URL_SECRETS_MANAGER",
        "https://vault.example.com",
    );
    let aws = environment("").and_env(particular.0, particular.1).aws();
    assert_eq!(aws.endpoint.as_deref(), Some(particular.1));
    assert_eq!(aws.sts_endpoint.as_deref(), Some("https://sts.example.com"));
    let aws = environment(
        "[backends.aws]\nregion = \"us-east-1\"\nendpoint = \"https://other.example.com\"",
    )
    .aws();
    assert_eq!(aws.region.as_deref(), Some("us-east-1"));
    assert_eq!(aws.endpoint.as_deref(), Some("https://other.example.com"));
}

#[test]
fn an_empty_variable_of_the_sdk_is_none() {
    let start = with_file("")
        .and_env("AWS_REGION", "")
        .and_env("AWS_ENDPOINT_URL", "");
    assert_eq!(start.aws(), AwsConfig::default());
}

#[test]
fn rust_log_goes_over_the_file_and_under_the_agents_own_variable() {
    let start = with_file("log.level = \"warn\"").and_env("RUST_LOG", "debug");
    assert_eq!(start.config().log_level, "debug");
    let start = start.and_env("LATCHKEY_AGENT__LOG__LEVEL", "error");
    assert_eq!(start.config().log_level, "error");
    assert_eq!(
        with_file("log.level = \"warn\"")
            .and_env("RUST_LOG", "")
            .config()
            .log_level,
        "warn"
    );
}

#[test]
fn the_node_comes_from_the_file_or_from_the_downward_api() {
    let start = with_file("kubernetes.node = \"node-b\"").and_env("POD_UID", UID);
    let Kubernetes { node, pod_uid, .. } = start.config().kubernetes;
    let pod_uid = pod_uid.map(|uid| uid.to_string());
    assert_eq!((node.as_str(), pod_uid.as_deref()), ("node-b", Some(UID)));
}

const UID: &str = "0b1a7c0e-6a5d-4c3e-9a43-0123456789ab";

#[test]
fn a_backend_may_have_any_name() {
    let text = "default_backend = \"main\"\n[backends.main]\ntype = \"aws\"\n[backends.aws]";
    let config = with_file(text).config();
    assert_eq!(config.backends.keys().collect::<Vec<_>>(), ["aws", "main"]);
    let start = with_file("").and_env("LATCHKEY_AGENT__BACKENDS__AWS__PREFIX", "a/");
    assert_eq!(start.aws().prefix, "a/");
}

#[test]
fn durations_and_sizes_are_written_with_their_units() {
    let text = "[limits]\ndrain = \"1m 30s\"\n[cache]\nttl = \"1.5h\"\nmax_bytes = \"1 MiB\"";
    let config = with_file(text).config();
    assert_eq!(config.limits.drain, Duration::from_secs(90));
    assert_eq!(config.cache.ttl, Duration::from_secs(5400));
    assert_eq!(config.cache.max_bytes, 1 << 20);
}

#[test]
fn the_socket_may_have_99_bytes_and_its_name_48_and_not_one_more() {
    let of_lengths = |directory: usize, name: usize| {
        let (directory, name) = ("d".repeat(directory - 1), "s".repeat(name));
        with_file(&format!("listen.socket = \"/{directory}/{name}\"")).load()
    };
    assert!(of_lengths(50, 48).is_ok());
    assert!(of_lengths(51, 48).is_err());
    assert!(of_lengths(49, 49).is_err());
}
