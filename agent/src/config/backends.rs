//! The sections `backends.<name>`.

use std::collections::BTreeMap;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;

use super::{
    AwsConfig, AzureConfig, BackendConfig, Config, FileConfig, GcpConfig, IdentityMode, PassConfig,
    aws,
    reader::Reader,
    value::{self, Wrong},
};

/// Reads the section of a backend of one type.
type Read = fn(&mut Reader, &str, IdentityMode) -> BackendConfig;

/// The possible types of a backend.
const TYPES: [(&str, Read); 5] = [
    ("aws", |reader, section, _| {
        BackendConfig::Aws(AwsConfig::read(reader, section))
    }),
    ("azure", |reader, section, _| {
        BackendConfig::Azure(AzureConfig::read(reader, section))
    }),
    ("file", |reader, section, _| {
        BackendConfig::File(FileConfig::read(reader, section))
    }),
    ("gcp", |reader, section, mode| {
        BackendConfig::Gcp(GcpConfig::read(reader, section, mode))
    }),
    ("pass", |reader, section, _| {
        BackendConfig::Pass(PassConfig::read(reader, section))
    }),
];

/// The variables that name the proxy on the way to a cloud, and the hosts without one. The first of a pair hides the
/// second, even where it is empty.
const PROXIES: [[&str; 2]; 2] = [["HTTPS_PROXY", "https_proxy"], ["ALL_PROXY", "all_proxy"]];
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Reads every section; if there is none, the backend `aws` with all its defaults is in use.
pub(super) fn read(reader: &mut Reader, mode: IdentityMode) -> BTreeMap<String, BackendConfig> {
    let mut names = reader.names_in("backends");
    if names.is_empty() {
        names.insert("aws".to_owned(), super::Origin::Default);
    }
    let mut backends = BTreeMap::new();
    for (name, origin) in names {
        let section = format!("backends.{name}");
        if let Err(wrong) = value::name(&value::untyped(&name)) {
            reader.reject(origin, &section, wrong);
            continue;
        }
        let key = format!("{section}.type");
        let written = reader.read(&key, |value| value::string(value).map(Some), None);
        let kind = match &written {
            Some(kind) => kind,
            // A backend named like a type has that type.
            None if of_type(&name).is_some() => &name,
            None => {
                if !reader.has_fault(&key) {
                    let wrong = Wrong::new("is missing", remedy());
                    reader.reject(origin, &key, wrong);
                }
                reader.close(&section);
                continue;
            }
        };
        if reader.has_fault(&key) {
            reader.close(&section);
            continue;
        }
        if let Some(read) = of_type(kind) {
            backends.insert(name, read(reader, &section, mode));
        } else {
            let what = format!("is {kind:?}, which is no type of backend");
            let wrong = Wrong::new(what, remedy());
            reader.reject(written.map_or(origin, |_| reader.origin(&key)), &key, wrong);
            reader.close(&section);
        }
    }
    backends
}

/// Checks keys against each other.
pub(super) fn check(config: &Config, reader: &mut Reader) {
    let names = &config.backends;
    if !names.contains_key(&config.default_backend) && !reader.has_fault("backends") {
        let known = names
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ");
        reader.blame(
            "default_backend",
            Wrong::new(
                format!(
                    "is {:?}, and no such backend is configured",
                    config.default_backend
                ),
                format!("name one of those that are: {known}"),
            ),
        );
    }
    if names.values().any(BackendConfig::is_cloud) {
        check_proxies(reader);
    }
    let is_aws = |backend: &BackendConfig| matches!(backend, BackendConfig::Aws(_));
    if names.values().any(is_aws) {
        aws::check_variables(reader);
    }
    let deadline = config.limits.request_deadline;
    for (name, backend) in names {
        let section = format!("backends.{name}");
        if backend.timeout() > deadline {
            let key = format!("{section}.timeout");
            reader.contradict(&key, "limits.request_deadline", || {
                format!("must not be longer than that ({})", value::spell(deadline))
            });
        }
        match backend {
            BackendConfig::Aws(aws) => aws.check(reader, &section, deadline),
            BackendConfig::Azure(azure) => azure.check(reader, &section),
            BackendConfig::File(_) | BackendConfig::Gcp(_) | BackendConfig::Pass(_) => {}
        }
    }
}

/// Checks the variables that name a proxy. The clouds' clients pass over one that they do not understand, and would then
/// connect directly; so it is put to what they use themselves. Its value is not shown: it may hold a password.
fn check_proxies(reader: &mut Reader) {
    let cloud = Uri::from_static("https://cloud.example");
    for [first, second] in PROXIES.into_iter().chain([NO_PROXIES]) {
        if reader.is_blank(first) && reader.variable(second).is_some() {
            let wrong = Wrong::new(format!("is empty, and hides {second}"), "unset it");
            reader.blame_variable(first, wrong);
        }
    }
    for name in PROXIES.as_flattened() {
        let Some(value) = reader.variable(name) else {
            continue;
        };
        let proxy = Matcher::builder().all(value).build().intercept(&cloud);
        let scheme = proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str());
        if !matches!(scheme, Some("http" | "https")) {
            let wrong = Wrong::new(
                "is no proxy that the agent could use",
                "write http://HOST:PORT or https://HOST:PORT, without blanks or a line break, or unset it",
            );
            reader.blame_variable(name, wrong);
        }
    }
}

/// How a section of this type is read, if there is such a type.
fn of_type(kind: &str) -> Option<Read> {
    let mut types = TYPES.into_iter();
    types.find_map(|(name, read)| (name == kind).then_some(read))
}

/// What to write if the type is missing or unknown.
fn remedy() -> String {
    let types = TYPES.map(|(kind, _)| format!("{kind:?}")).join(" or ");
    format!("write type = {types}")
}
