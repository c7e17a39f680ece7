//! What a single value must look like.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use bytesize::ByteSize;
use hyper::{Uri, header::HeaderName};
use jiff::{SignedDuration, fmt::friendly::SpanParser};
use latchkey_client::protocol::is_relayed;
use reqwest::Url;
use toml::de::DeValue;
use tracing_subscriber::EnvFilter;

use super::{IdentityMode, settings::Value};
use crate::attest::cgroup::{self, PodUid};

/// A Unix socket's path has at most 107 bytes (unix(7)).
const MAX_SOCKET_PATH: usize = 99;

/// An agent listens on a temporary name of 34 bytes more first, below `/proc/self/fd` ([`crate::handover`]).
const MAX_SOCKET_NAME: usize = 48;

/// The default timeout of one call to a cloud.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest prefix, in bytes: half of what AWS allows for a whole name.
pub(super) const MAX_PREFIX: usize = 256;

/// How much of a wrong value is quoted, in characters.
const MAX_ECHO: usize = 80;

/// Headers that every request carries, or that concern its connection: none of them can be required.
const CARRIED: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What is wrong with a value, and what would be right.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) wrong: String,
    pub(super) remedy: String,
}

impl Wrong {
    pub(super) fn new(wrong: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            wrong: wrong.into(),
            remedy: remedy.into(),
        }
    }

    /// Says that `text` is `wrong`.
    pub(super) fn text(text: &str, wrong: &str, remedy: impl Into<String>) -> Self {
        Self::new(format!("is {}, {wrong}", echo(text)), remedy)
    }

    /// Says that `text` is `wrong`, unless it is right.
    pub(super) fn unless(
        is_right: bool,
        text: &str,
        wrong: &str,
        remedy: &str,
    ) -> Result<(), Self> {
        if is_right {
            Ok(())
        } else {
            Err(Self::text(text, wrong, remedy))
        }
    }

    fn kind(value: &Value, remedy: impl Into<String>) -> Self {
        Self::new(format!("is {}", value.kind()), remedy)
    }
}

// --- of every kind ---

pub(super) fn string(value: &Value) -> Result<String, Wrong> {
    text(value, "write a string in quotes").map(str::to_owned)
}

pub(super) fn boolean(value: &Value) -> Result<bool, Wrong> {
    let remedy = "write true or false";
    match value {
        Value::Boolean(value) => Ok(*value),
        Value::Untyped(text) => text
            .parse()
            .map_err(|_| Wrong::text(text, "neither true nor false", remedy)),
        other => Err(Wrong::kind(other, remedy)),
    }
}

/// An integer in `range`.
pub(super) fn count<T>(range: RangeInclusive<u32>) -> impl Fn(&Value) -> Result<T, Wrong>
where
    T: TryFrom<u32>,
{
    move |value| {
        let remedy = format!("write an integer from {} to {}", range.start(), range.end());
        let number = match value {
            Value::Integer(number) => *number,
            Value::Untyped(text)
                if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) =>
            {
                text.parse().ok()
            }
            Value::Untyped(text) => return Err(Wrong::text(text, "no integer", remedy)),
            other => return Err(Wrong::kind(other, remedy)),
        };
        number
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| match number {
                Some(number) => Wrong::new(format!("is {number}, out of range"), &remedy),
                None => Wrong::new("is an integer out of range", &remedy),
            })
    }
}

/// A duration in `range`, with its units.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&Value) -> Result<Duration, Wrong> {
    move |value| {
        let (least, most) = (spell(*range.start()), spell(*range.end()));
        let remedy = format!("write a duration from {least} to {most}, such as \"{most}\"");
        let text = text(value, &remedy)?;
        let duration = SpanParser::new()
            .parse_unsigned_duration(text)
            .map_err(|_| Wrong::text(text, "no duration with a unit", &remedy))?;
        Wrong::unless(range.contains(&duration), text, "out of range", &remedy)?;
        Ok(duration)
    }
}

/// A duration as an operator would write it.
pub(super) fn spell(duration: Duration) -> String {
    SignedDuration::try_from(duration)
        .map_or_else(|_| format!("{duration:?}"), |d| format!("{d:#}"))
}

/// A number of bytes in `range`, with its unit.
pub(super) fn bytes(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<u64, Wrong> {
    move |value| {
        let [least, most] = [range.start(), range.end()].map(|bytes| ByteSize(*bytes).to_string());
        let remedy = format!("write a size from {least} to {most}, such as \"16MiB\"");
        let text = text(value, &remedy)?;
        let ByteSize(bytes) = text
            .parse()
            .map_err(|_| Wrong::text(text, "no size in bytes", &remedy))?;
        Wrong::unless(range.contains(&bytes), text, "out of range", &remedy)?;
        Ok(bytes)
    }
}

/// A value from outside the file, for one of the agent's own parsers.
pub(super) fn untyped(text: &str) -> Value {
    Value::Untyped(text.to_owned())
}

/// A string, or a value from outside the file.
pub(super) fn text<'a>(value: &'a Value, remedy: &str) -> Result<&'a str, Wrong> {
    match value {
        Value::String(text) | Value::Untyped(text) => Ok(text),
        other => Err(Wrong::kind(other, remedy)),
    }
}

/// A text that `is_right`.
pub(super) fn text_that(
    is_right: impl FnOnce(&str) -> bool,
    value: &Value,
    wrong: &str,
    remedy: &str,
) -> Result<String, Wrong> {
    let text = text(value, remedy)?;
    Wrong::unless(is_right(text), text, wrong, remedy)?;
    Ok(text.to_owned())
}

/// A list of strings without repetition, each accepted by `check`.
pub(super) fn list(
    value: &Value,
    remedy: &str,
    check: impl Fn(&str) -> Result<(), Wrong>,
) -> Result<Vec<String>, Wrong> {
    let items = match value {
        Value::List(items) => items
            .iter()
            .map(|item| text(item, remedy))
            .collect::<Result<Vec<_>, _>>()?,
        Value::Untyped(text) if text.trim_start().starts_with('[') => {
            let parsed = DeValue::parse(text.trim());
            let parsed = parsed.map_err(|_| Wrong::text(text, "no list of TOML", remedy))?;
            return list(&Value::of(parsed.get_ref()), remedy, check);
        }
        Value::Untyped(text) if text.trim().is_empty() => Vec::new(),
        Value::Untyped(text) => text.split(',').map(str::trim).collect(),
        other => return Err(Wrong::kind(other, remedy)),
    };
    for (index, item) in items.iter().enumerate() {
        if items[..index].contains(item) {
            return Err(Wrong::new(
                format!("holds {} twice", echo(item)),
                "write it once",
            ));
        }
        check(item).map_err(|Wrong { wrong, remedy }| {
            Wrong::new(format!("holds an item that {wrong}"), remedy)
        })?;
    }
    Ok(items.into_iter().map(str::to_owned).collect())
}

/// `text` in quotes on one line, shortened if it is long.
fn echo(text: &str) -> String {
    match text.char_indices().nth(MAX_ECHO) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

// --- of one key each ---

/// The name of a backend: requests and keys can carry it without quotes.
pub(super) fn name(value: &Value) -> Result<String, Wrong> {
    let remedy = "write up to 32 of a-z, 0-9, '-' and '_', a letter first";
    let name = text(value, remedy)?;
    let right = name.len() <= 32
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
        && !name.contains("__");
    Wrong::unless(right, name, "no name of a backend", remedy)?;
    Ok(name.to_owned())
}

pub(super) fn socket_path(value: &Value) -> Result<PathBuf, Wrong> {
    let remedy = "write an absolute path such as \"/run/latchkey/agent.sock\"";
    let path = text(value, remedy)?;
    let too_long = format!("longer than {MAX_SOCKET_PATH} bytes");
    let long_name = format!("a file name longer than {MAX_SOCKET_NAME} bytes");
    // An abstract socket belongs to a network namespace: anybody in the node's could reach it.
    let wrong = if path.starts_with(['@', '\0']) {
        "an abstract socket"
    } else if !path.starts_with('/') {
        "no absolute path"
    } else if path.len() > MAX_SOCKET_PATH {
        &too_long
    } else if Path::new(path)
        .file_name()
        .is_some_and(|name| name.len() > MAX_SOCKET_NAME)
    {
        &long_name
    } else if path.chars().any(char::is_control) {
        "a path with control characters"
    } else if !has_plain_parts(path) {
        "a path with empty parts, \".\" or \"..\""
    } else {
        return Ok(PathBuf::from(path));
    };
    Err(Wrong::text(path, wrong, remedy))
}

pub(super) fn address(value: &Value) -> Result<SocketAddr, Wrong> {
    let remedy = "write an IP address and a port, such as \"127.0.0.1:9642\" or \"[::]:9642\"";
    let text = text(value, remedy)?;
    text.parse()
        .map_err(|_| Wrong::text(text, "no socket address", remedy))
}

pub(super) fn header(value: &Value) -> Result<HeaderName, Wrong> {
    let remedy = "write the name of a header that clients can set, such as \"X-Latchkey\"";
    let text = text(value, remedy)?;
    let name: HeaderName = text
        .parse()
        .map_err(|_| Wrong::text(text, "no name of a header", remedy))?;
    // Headers that only relays send are refused.
    if is_relayed(name.as_str()) || CARRIED.contains(&name.as_str()) {
        let wrong = "which every request has or none may have";
        return Err(Wrong::text(text, wrong, remedy));
    }
    Ok(name)
}

pub(super) fn log_level(value: &Value) -> Result<String, Wrong> {
    let remedy = "write off, error, warn, info, debug or trace, or directives such as \
                  \"info,latchkey_agent=debug\"";
    let text = text(value, remedy)?;
    let wrong = |wrong| Err(Wrong::text(text, wrong, remedy));
    if text.trim().is_empty() {
        return wrong("without any level");
    }
    // A misspelt level would count as a target, and all events of that target would be logged.
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| word.eq_ignore_ascii_case(level))
    };
    let bare = |directive: &&str| !directive.contains(['=', '[']);
    if text
        .split(',')
        .map(str::trim)
        .filter(bare)
        .any(|word| !is_level(word))
    {
        return wrong("which names no level");
    }
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => wrong("no directives of a log filter"),
    }
}

pub(super) fn identity_mode(value: &Value) -> Result<IdentityMode, Wrong> {
    let remedy = "write \"kubernetes\", \"local\" or \"sidecar\"";
    let text = text(value, remedy)?;
    match text {
        "kubernetes" => Ok(IdentityMode::Kubernetes),
        "local" => Ok(IdentityMode::Local),
        "sidecar" => Ok(IdentityMode::Sidecar),
        _ => Err(Wrong::text(text, "no mode", remedy)),
    }
}

/// The absolute cgroup path of the root of all pods, as `/proc/<pid>/cgroup` shows it on the host.
pub(super) fn cgroup_root(value: &Value) -> Result<String, Wrong> {
    let remedy = "write an absolute cgroup path that ends in kubepods, kubepods.slice or <prefix>-kubepods.slice, or \
                  nothing to learn it";
    let is_right = |path: &str| {
        path.len() <= 4096 && cgroup::is_root(path) && !path.chars().any(char::is_control)
    };
    text_that(is_right, value, "no kubepods root", remedy)
}

/// Whether `path` is absolute and in normal form.
pub(super) fn has_plain_parts(path: &str) -> bool {
    path.strip_prefix('/')
        .is_some_and(|path| !path.split('/').any(|part| matches!(part, "" | "." | "..")))
}

/// The name of a node: a DNS subdomain.
pub(super) fn node(value: &Value) -> Result<String, Wrong> {
    let remedy = "write the node's name as \"kubectl get nodes\" shows it";
    text_that(is_subdomain, value, "no name of a node", remedy)
}

/// The key of a taint: a qualified name and, since the agent removes it, one with a domain before the slash.
pub(super) fn taint(value: &Value) -> Result<String, Wrong> {
    let remedy = "write the key of a taint, such as \"latchkey.dev/agent-not-ready\"";
    let key = text(value, remedy)?;
    let is_domain = |domain: &str| domain.contains('.') && is_subdomain(domain);
    let is_name = |name: &str| {
        let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        name.len() <= 63
            && name.bytes().all(inner)
            && ends(name.bytes().next())
            && ends(name.bytes().last())
    };
    match key.split_once('/') {
        Some((domain, name)) if is_domain(domain) && is_name(name) => Ok(key.to_owned()),
        _ => Err(Wrong::text(key, "no key of a taint with a domain", remedy)),
    }
}

/// Whether Kubernetes would accept `text` as most names: a DNS subdomain (RFC 1123) in lower case.
pub(super) fn is_subdomain(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// The UID of a pod: a UUID with dashes.
pub(super) fn pod_uid(value: &Value) -> Result<PodUid, Wrong> {
    let remedy = "give the pod POD_UID from metadata.uid by the downward API, or leave it empty";
    let uid = text(value, remedy)?;
    uid.to_ascii_lowercase()
        .parse()
        .map_err(|_| Wrong::text(uid, "no UID of a pod", remedy))
}

/// Prefixes of secret names.
pub(super) fn name_prefixes(value: &Value) -> Result<Vec<String>, Wrong> {
    let remedy = "write a list of beginnings of names, such as [\"config/\"]";
    list(value, remedy, |prefix| {
        let right = (1..=512).contains(&prefix.len())
            && !prefix.starts_with('/')
            && !prefix.contains("//")
            && !prefix.contains('\\')
            && !prefix.chars().any(char::is_control);
        Wrong::unless(right, prefix, "which no name begins with", remedy)
    })
}

/// The audiences that a subject token may have, at least one.
pub(super) fn audiences(value: &Value) -> Result<Vec<String>, Wrong> {
    let remedy = "write a list of the cloud's audiences, such as [\"sts.amazonaws.com\"]";
    let audiences = list(value, remedy, |audience| check_audience(audience, remedy))?;
    if audiences.is_empty() {
        // The API server takes an empty list for its own audience.
        return Err(Wrong::new("is empty", remedy));
    }
    Ok(audiences)
}

/// The single audience of subject tokens.
pub(super) fn audience(value: &Value) -> Result<String, Wrong> {
    let remedy = "write the audience that the cloud expects of tokens";
    let audience = text(value, remedy)?;
    check_audience(audience, remedy).map(|()| audience.to_owned())
}

fn check_audience(audience: &str, remedy: &str) -> Result<(), Wrong> {
    if !(1..=255).contains(&audience.len()) || !audience.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Wrong::text(audience, "no audience", remedy));
    }
    // Such a token would give a cloud all that the pod may do at the API server.
    let host = audience.strip_prefix("https://").unwrap_or(audience);
    if host.starts_with("kubernetes.default") || host == "kubernetes" {
        return Err(Wrong::text(
            audience,
            "which means the API server itself",
            remedy,
        ));
    }
    Ok(())
}

/// The timeout of one call to a cloud.
pub(super) fn call_timeout(value: &Value) -> Result<Duration, Wrong> {
    duration(Duration::from_millis(10)..=Duration::from_secs(60))(value)
}

/// A URL without a path.
pub(super) fn endpoint(value: &Value) -> Result<String, Wrong> {
    let remedy = "write a URL without a path, such as \"https://vpce-1a2b.example.com\"";
    let text = text(value, remedy)?;
    // What precedes '@' is usually a password, so it is not quoted.
    if text.contains('@') {
        return Err(Wrong::new(
            "names a user",
            "write the URL without user and password",
        ));
    }
    let uri = text.parse::<Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.path() == "/"
            && uri.query().is_none()
            && !text.contains('#')
    });
    if uri.is_none() {
        return Err(Wrong::text(text, "no URL of an endpoint", remedy));
    }
    // Calls are sent by another parser, which knows better what a host and a port are.
    let sent = Url::parse(text).ok().filter(|url| url.port() != Some(0));
    match sent {
        Some(_) => Ok(text.to_owned()),
        None => Err(Wrong::text(
            text,
            "whose host or port cannot be called",
            "write a host's name or address, and a port from 1 to 65535, if any",
        )),
    }
}
