//! Bytes → ask: what a request on the workload socket wants, or why it is refused before its peer is attested.
//!
//! The agent is an origin, never a relay: it forwards nothing that a client sent, and refuses every request that shows
//! signs of having been relayed.

mod id;
mod route;

pub(crate) use id::RequestId;
pub(crate) use route::Route;

use crate::backend::Selector;
use crate::error::RequestError;
use crate::secret::SecretName;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Uri, Version};
use jiff::fmt::friendly::SpanParser;
use latchkey_client::protocol::{Code, LIST_LIMIT, TARGET_LIMIT, WAIT_LIMIT, is_relayed};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The maximum length of `backend`, `version`, `stage` and `key`, in bytes.
const PARAMETER_LIMIT: usize = 1024;

/// How many names a list holds if the request does not say.
const LIST_DEFAULT: usize = 100;

/// How many ranges of an `Accept` header are read. Browsers send six.
const ACCEPTED: usize = 32;

/// What a request wants.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Many secrets by name; the body has not been read yet.
    Batch {
        /// The backend for all of them.
        backend: Option<String>,
        /// Whether to bypass the cache and reads that began earlier.
        fresh: bool,
    },
    /// One secret.
    Secret(SecretAsk),
    /// Who the peer is, as attested.
    Identity,
    /// The names that the role may list.
    List(ListAsk),
}

/// An ask for one secret.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct SecretAsk {
    pub(crate) name: SecretName,
    pub(crate) backend: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) key: Option<String>,
    /// Whether to bypass the cache and reads that began earlier.
    pub(crate) fresh: bool,
    pub(crate) shape: Shape,
    pub(crate) if_none_match: Vec<HeaderValue>,
    /// How long the answer may wait for the tag to change.
    pub(crate) wait: Option<Duration>,
}

/// The form in which a secret is returned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// As AWS's `GetSecretValue` answers.
    Aws,
    /// The contract's own JSON.
    Json,
    /// The bare value.
    Raw,
}

/// An ask for names.
#[derive(Debug)]
pub(crate) struct ListAsk {
    pub(crate) backend: Option<String>,
    pub(crate) limit: usize,
    pub(crate) cursor: Option<String>,
}

/// A valid request, by who gets an answer.
#[derive(Debug)]
pub(crate) enum Target {
    /// Anyone gets an answer.
    Open(Route),
    /// Only workloads get an answer.
    Attested(Ask),
}

// === impl SecretAsk ===

impl SecretAsk {
    /// An ask for the latest version from the default backend, as the contract's JSON.
    pub(crate) fn plain(name: SecretName) -> Self {
        Self {
            name,
            backend: None,
            selector: Selector::default(),
            key: None,
            fresh: false,
            shape: Shape::Json,
            if_none_match: Vec::new(),
            wait: None,
        }
    }
}

/// Refuses requests that must not be answered, whatever they ask for.
///
/// # Errors
///
/// `invalid_request`, or 414 for a long target.
pub(crate) fn admit(
    head: &Parts,
    has_body: bool,
    required: Option<&HeaderName>,
) -> Result<(), RequestError> {
    if is_long(&head.uri) {
        return Err(RequestError::new(
            Code::TooLarge,
            format!("the request's target is longer than {TARGET_LIMIT} bytes"),
        ));
    }
    if head.method == Method::CONNECT
        || head.uri.scheme().is_some()
        || head.uri.authority().is_some()
    {
        return Err(RequestError::invalid(
            "this is no proxy: ask for a path, such as /v1/secrets/NAME",
        ));
    }
    for (name, _) in &head.headers {
        if is_relayed(name.as_str()) {
            return Err(RequestError::invalid(format!(
                "a request with the header {name} was relayed; ask the socket directly"
            )));
        }
    }
    let bodyless = head.method == Method::GET || head.method == Method::HEAD;
    if bodyless && (has_body || head.headers.contains_key(header::TRANSFER_ENCODING)) {
        return Err(RequestError::invalid(format!(
            "a {} request has no body",
            head.method
        )));
    }
    if head.version == Version::HTTP_10 && head.headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(RequestError::invalid("HTTP/1.0 knows no Transfer-Encoding"));
    }
    if let Some(required) = required
        && !head.headers.contains_key(required)
    {
        return Err(RequestError::invalid(format!(
            "every request must carry the header {required}"
        )));
    }
    Ok(())
}

/// Whether a request's target is too long.
pub(crate) fn is_long(target: &Uri) -> bool {
    target
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > TARGET_LIMIT)
}

/// Returns what the request wants, and, for the metrics, its route, even if the ask is invalid.
pub(crate) fn parse(head: &Parts) -> (Route, Result<Target, RequestError>) {
    let path = head.uri.path();
    let reads: &[Method] = &[Method::GET, Method::HEAD];
    let with =
        |route: Route, methods: &[Method], target: &dyn Fn() -> Result<Target, RequestError>| {
            let outcome = if methods.contains(&head.method) {
                target()
            } else {
                Err(RequestError::new(Code::MethodNotAllowed, route.hint()))
            };
            (route, outcome)
        };
    let (route, parsed) = match path {
        "/health" | "/ping" => with(Route::Health, reads, &|| {
            Query::of(head, &[])?;
            Ok(Target::Open(Route::Health))
        }),
        "/ready" => with(Route::Ready, reads, &|| {
            Query::of(head, &[])?;
            Ok(Target::Open(Route::Ready))
        }),
        "/v1/identity" => with(Route::Identity, reads, &|| {
            Query::of(head, &[])?;
            Ok(Target::Attested(Ask::Identity))
        }),
        "/v1/secrets:batchGet" => with(Route::Batch, &[Method::POST], &|| {
            let query = Query::of(head, &["backend"])?;
            let backend = query.owned("backend");
            let fresh = asks_for_fresh(&head.headers);
            Ok(Target::Attested(Ask::Batch { backend, fresh }))
        }),
        "/v1/secrets" => with(Route::List, reads, &|| {
            Ok(Target::Attested(Ask::List(list(head)?)))
        }),
        "/secretsmanager/get" => with(Route::Compatible, reads, &|| {
            Ok(Target::Attested(Ask::Secret(compatible(head)?)))
        }),
        _ => match path.strip_prefix("/v1/secrets/") {
            Some(name) => with(Route::Secret, reads, &|| {
                Ok(Target::Attested(Ask::Secret(secret(head, name)?)))
            }),
            None => (
                Route::Other,
                Err(RequestError::new(
                    Code::NoSuchRoute,
                    "there is no such route; try /v1/secrets/NAME",
                )),
            ),
        },
    };
    match &parsed {
        // A route of its own in the metrics: how long a wait takes says nothing about reads.
        Ok(Target::Attested(Ask::Secret(ask))) if ask.wait.is_some() => (Route::Wait, parsed),
        _ => (route, parsed),
    }
}

fn secret(head: &Parts, name: &str) -> Result<SecretAsk, RequestError> {
    let query = Query::of(head, &["backend", "key", "stage", "version", "wait"])?;
    let wait = wait(head, &query)?;
    Ok(SecretAsk {
        name: SecretName::from_path(name).map_err(|e| RequestError::invalid(e.to_string()))?,
        selector: query.selector("version", "stage"),
        backend: query.owned("backend"),
        key: query.owned("key"),
        // The cache may hold just what the caller already has.
        fresh: wait.is_some() || asks_for_fresh(&head.headers),
        shape: if prefers_raw(&head.headers) {
            Shape::Raw
        } else {
            Shape::Json
        },
        if_none_match: tags(head).cloned().collect(),
        wait,
    })
}

/// Returns how long to wait for a change, if the caller wants to.
fn wait(head: &Parts, query: &Query) -> Result<Option<Duration>, RequestError> {
    let Some(text) = query.owned("wait") else {
        return Ok(None);
    };
    let wait = SpanParser::new()
        .parse_unsigned_duration(&text)
        .ok()
        .filter(|wait| !wait.is_zero() && *wait <= WAIT_LIMIT)
        .ok_or_else(|| {
            RequestError::invalid("wait is a duration of at most a minute, such as 30s")
        })?;
    if query.owned("version").is_some() {
        return Err(RequestError::invalid(
            "a version does not change: wait without version",
        ));
    }
    if !tags(head).any(|tags| tags.as_bytes().contains(&b'"')) {
        return Err(RequestError::invalid(
            "to wait for a change, say in If-None-Match the ETag of what you have",
        ));
    }
    Ok(Some(wait))
}

/// The tags of what the caller says it has.
fn tags(head: &Parts) -> impl Iterator<Item = &HeaderValue> {
    head.headers.get_all(header::IF_NONE_MATCH).iter()
}

fn compatible(head: &Parts) -> Result<SecretAsk, RequestError> {
    let query = Query::of(
        head,
        &["refreshNow", "secretId", "versionId", "versionStage"],
    )?;
    let id = query
        .owned("secretId")
        .ok_or(RequestError::invalid("secretId is missing"))?;
    let refresh = match query.owned("refreshNow").as_deref() {
        None | Some("false" | "0") => false,
        Some("true" | "1") => true,
        Some(_) => return Err(RequestError::invalid("refreshNow is true or false")),
    };
    Ok(SecretAsk {
        name: SecretName::parse(&id).map_err(|e| RequestError::invalid(e.to_string()))?,
        selector: query.selector("versionId", "versionStage"),
        backend: None,
        key: None,
        fresh: refresh || asks_for_fresh(&head.headers),
        shape: Shape::Aws,
        if_none_match: Vec::new(),
        wait: None,
    })
}

fn list(head: &Parts) -> Result<ListAsk, RequestError> {
    let query = Query::of(head, &["backend", "cursor", "limit"])?;
    let limit = match query.owned("limit") {
        None => LIST_DEFAULT,
        Some(limit) => limit
            .parse()
            .ok()
            .filter(|limit| (1..=LIST_LIMIT).contains(limit))
            .ok_or_else(|| RequestError::invalid(format!("limit is 1 to {LIST_LIMIT}")))?,
    };
    Ok(ListAsk {
        backend: query.owned("backend"),
        limit,
        cursor: query.owned("cursor"),
    })
}

/// The query's parameters, each at most once.
struct Query(HashMap<String, String>);

impl Query {
    fn of(head: &Parts, known: &[&str]) -> Result<Self, RequestError> {
        let mut parameters = HashMap::new();
        let Some(query) = head.uri.query() else {
            return Ok(Self(parameters));
        };
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&&*name) {
                return Err(RequestError::invalid(format!(
                    "unknown query parameter {name:?}"
                )));
            }
            if value.len() > PARAMETER_LIMIT && name != "cursor" {
                return Err(RequestError::invalid(format!(
                    "the query parameter {name} is longer than {PARAMETER_LIMIT} bytes"
                )));
            }
            if value.contains(char::is_control) {
                return Err(RequestError::invalid(format!(
                    "the query parameter {name} has control characters"
                )));
            }
            if parameters
                .insert(name.to_string(), value.into_owned())
                .is_some()
            {
                return Err(RequestError::invalid(format!(
                    "the query parameter {name} stands twice"
                )));
            }
        }
        Ok(Self(parameters))
    }

    /// Returns the parameter if it is present and not empty.
    fn owned(&self, name: &str) -> Option<String> {
        self.0.get(name).filter(|value| !value.is_empty()).cloned()
    }

    fn selector(&self, version: &str, stage: &str) -> Selector {
        Selector {
            version: self.owned(version).map(Arc::from),
            stage: self.owned(stage).map(Arc::from),
        }
    }
}

fn asks_for_fresh(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value
                .split(',')
                .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"))
        })
    })
}

/// Whether the bare value is preferred: only when JSON is not acceptable at the same or a higher quality
/// (RFC 9110 section 12.5.1).
fn prefers_raw(headers: &HeaderMap) -> bool {
    if !headers.contains_key(header::ACCEPT) {
        return false;
    }
    let ranges: Vec<(String, u16)> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .take(ACCEPTED)
        .map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts
                .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
                .map_or(1000, thousandths);
            (media, quality)
        })
        .collect();
    // The most specific range that matches decides.
    let quality = |media: &str| {
        let family = format!("{}/*", media.split('/').next().unwrap_or_default());
        [media, &family, "*/*"]
            .iter()
            .find_map(|range| ranges.iter().find(|(other, _)| other == range))
            .map_or(0, |(_, quality)| *quality)
    };
    quality("text/plain").max(quality("application/octet-stream")) > quality("application/json")
}

/// Returns a quality in thousandths; an invalid one is 0.
fn thousandths(quality: &str) -> u16 {
    match quality.parse::<f32>() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 1000"
        )]
        Ok(quality) if (0.0..=1.0).contains(&quality) => (quality * 1000.0) as u16,
        _ => 0,
    }
}
