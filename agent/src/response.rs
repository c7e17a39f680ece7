//! Secret → answer: the JSON shapes, the bare value, and the headers of every answer.

mod pointer;
mod unescape;

use crate::backend::Secret;
use crate::cache::Read;
use crate::error::RequestError;
use crate::request::{Route, SecretAsk, Shape};
use crate::secret::{self, SecretName, SecretValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use latchkey_client::protocol::{BatchError, Code, Encoding, ErrorBody, SecretRef, in_a_tag};
use serde::Serialize;
use std::fmt::Write as _;
use zeroize::Zeroizing;

/// An answer, complete before it is sent.
pub(crate) type Answer = Response<Full<Bytes>>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BINARY: HeaderValue = HeaderValue::from_static("application/octet-stream");

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest wait that an answer asks for, in seconds, whatever the cloud asks: programs may wait as long as they are
/// told, or fail to count that far.
const LONGEST_WAIT: u64 = 3600;

/// Room for the headers of any answer, so that their table is allocated once.
const HEADERS: usize = 12;

/// The maximum number of steps of a pointer: each one uses some of the stack.
const POINTER_STEPS: usize = 32;

/// A secret in AWS's shape (Secrets Manager API Reference, `GetSecretValue`).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AwsBody<'a> {
    #[serde(rename = "ARN", skip_serializing_if = "Option::is_none")]
    arn: Option<&'a str>,
    name: &'a str,
    version_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_string: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_binary: Option<&'a str>,
    version_stages: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    created_date: Option<f64>,
}

/// An error in AWS's shape, with our own code and request id added.
#[derive(Serialize)]
struct AwsError<'a> {
    #[serde(rename = "__type")]
    kind: &'a str,
    message: &'a str,
    code: Code,
    request_id: &'a str,
}

/// Returns the answer to an ask for one secret: 200, or 304 if the caller already has that version.
///
/// # Errors
///
/// `key_not_found` or `not_json` if the caller asked for a member.
pub(crate) fn secret(
    read: &Read,
    ask: &SecretAsk,
    backend: &str,
    request_id: &str,
) -> Result<Answer, RequestError> {
    let secret = &read.secret;
    let etag = etag(&secret.version, ask)?;
    let mut answer = if ask.if_none_match.iter().any(|seen| matches(seen, &etag)) {
        // A missing member is an error, not unchanged, whatever the caller has.
        if let Some(key) = &ask.key {
            member(text(secret)?, key)?;
        }
        let mut answer = whole(Bytes::new(), request_id);
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer
    } else {
        let (kind, body) = body(secret, ask, backend)?;
        let mut answer = whole(body, request_id);
        answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        answer
    };
    let headers = answer.headers_mut();
    headers.insert(header::ETAG, etag);
    if let Some(age) = read.age {
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
    Ok(answer)
}

/// Returns the secret as the contract's JSON object.
pub(crate) fn secret_json(secret: &Secret, name: &str, backend: &str) -> Bytes {
    // Requests that share this secret have the same name and backend, so the JSON of one is right for all.
    if let Some(body) = secret.json.get() {
        return body.clone();
    }
    let encoded;
    let (value, encoding) = match secret.value.expose_str() {
        Some(text) if secret.is_text => (text, None),
        _ => {
            encoded = base64(secret.value.expose());
            (encoded.as_str(), Some(Encoding::Base64))
        }
    };
    let body = SecretRef {
        name,
        value,
        encoding,
        version: &secret.version,
        backend,
    };
    secret.json.get_or_init(|| sealed_json(&body)).clone()
}

/// Returns the bare value of the secret, or of its member `key`.
///
/// # Errors
///
/// `key_not_found` or `not_json` if the caller asked for a member.
pub(crate) fn bare(secret: &Secret, key: Option<&str>) -> Result<Bytes, RequestError> {
    Ok(match key {
        None => copy(secret.value.expose()),
        Some(key) => copy(member(text(secret)?, key)?.as_bytes()),
    })
}

/// Returns the error for one name of a batch, as JSON.
pub(crate) fn batch_error(name: &str, error: &RequestError) -> Vec<u8> {
    let body = serde_json::to_vec(&BatchError {
        name: name.to_owned(),
        error: error.message.to_string(),
        code: error.code,
        status: error.code.status(),
        step: error.step,
    });
    // Writing strings and numbers into memory cannot fail.
    body.unwrap_or_default()
}

/// Returns the body of a batch's answer: secrets as [`secret_json`] wrote them, and errors as [`batch_error`] did.
pub(crate) fn batch(secrets: &[Bytes], errors: &[Vec<u8>]) -> Bytes {
    const PARTS: [&[u8]; 3] = [b"{\"secrets\":[", b"],\"errors\":[", b"]}"];
    let sizes = secrets
        .iter()
        .map(Bytes::len)
        .chain(errors.iter().map(Vec::len));
    let size = sizes.map(|size| size + 1).sum::<usize>();
    let mut body = Zeroizing::new(Vec::with_capacity(
        size + PARTS.iter().map(|part| part.len()).sum::<usize>(),
    ));
    body.extend_from_slice(PARTS[0]);
    join(&mut body, secrets);
    body.extend_from_slice(PARTS[1]);
    join(&mut body, errors);
    body.extend_from_slice(PARTS[2]);
    SecretValue::from(body).into_bytes()
}

fn join(body: &mut Vec<u8>, items: &[impl AsRef<[u8]>]) {
    for (number, item) in items.iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        body.extend_from_slice(item.as_ref());
    }
}

/// Returns a successful answer in JSON that holds no secret.
///
/// # Errors
///
/// `internal` if the value cannot be serialized.
pub(crate) fn json(value: &impl Serialize, request_id: &str) -> Result<Answer, RequestError> {
    let body = serde_json::to_vec(value).map_err(|e| RequestError::internal(&e))?;
    Ok(json_bytes(body.into(), request_id))
}

/// Returns an answer whose JSON is already written.
pub(crate) fn json_bytes(body: Bytes, request_id: &str) -> Answer {
    let mut answer = whole(body, request_id);
    answer.headers_mut().insert(header::CONTENT_TYPE, JSON);
    answer
}

/// Returns the answer to a failed request.
pub(crate) fn error(error: &RequestError, route: Route, request_id: &str) -> Answer {
    let body = if route == Route::Compatible {
        serde_json::to_vec(&AwsError {
            kind: error.code.aws_type(),
            message: &error.message,
            code: error.code,
            request_id,
        })
    } else {
        serde_json::to_vec(&ErrorBody {
            error: error.message.to_string(),
            code: error.code,
            request_id: request_id.to_owned(),
            step: error.step,
        })
    };
    let mut answer = json_bytes(body.unwrap_or_default().into(), request_id);
    *answer.status_mut() =
        StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    if let Some(wait) = error.retry_after {
        headers.insert(
            header::RETRY_AFTER,
            HeaderValue::from(wait.as_secs().clamp(1, LONGEST_WAIT)),
        );
    }
    if error.code == Code::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static(route.allowed()));
    }
    answer
}

/// Returns the same answer with a body that holds `room` until it has been sent.
pub(crate) fn held<T: Send + 'static>(mut answer: Answer, room: T) -> Answer {
    struct Held<T> {
        body: Bytes,
        _room: T,
    }
    impl<T> AsRef<[u8]> for Held<T> {
        fn as_ref(&self) -> &[u8] {
            &self.body
        }
    }
    if let Some(body) = std::mem::take(answer.body_mut()).into_inner() {
        *answer.body_mut() = Full::new(Bytes::from_owner(Held { body, _room: room }));
    }
    answer
}

fn whole(body: Bytes, request_id: &str) -> Answer {
    let mut answer = Response::new(Full::new(body));
    let headers = answer.headers_mut();
    headers.reserve(HEADERS);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    answer
}

fn body(
    secret: &Secret,
    ask: &SecretAsk,
    backend: &str,
) -> Result<(HeaderValue, Bytes), RequestError> {
    let name = ask.name.as_str();
    let Some(key) = &ask.key else {
        return match ask.shape {
            Shape::Json => Ok((JSON, secret_json(secret, name, backend))),
            Shape::Raw => {
                let kind = if secret.is_text { TEXT } else { BINARY };
                Ok((kind, bare(secret, None)?))
            }
            Shape::Aws => Ok((JSON, aws(secret, &ask.name))),
        };
    };
    if ask.shape == Shape::Raw {
        return Ok((TEXT, bare(secret, Some(key))?));
    }
    let member = member(text(secret)?, key)?;
    let body = SecretRef {
        name,
        value: &member,
        encoding: None,
        version: &secret.version,
        backend,
    };
    Ok((JSON, sealed_json(&body)))
}

fn aws(secret: &Secret, asked: &SecretName) -> Bytes {
    // The name as the application wrote it, except for an ARN: then the name that AWS gives for it.
    let name = secret.details.name.as_deref().filter(|_| asked.is_arn());
    let encoded = (!secret.is_text).then(|| base64(secret.value.expose()));
    sealed_json(&AwsBody {
        arn: secret.details.arn.as_deref(),
        name: name.unwrap_or(asked.as_str()),
        version_id: &secret.version,
        secret_string: secret.value.expose_str().filter(|_| secret.is_text),
        secret_binary: encoded.as_ref().map(|text| text.as_str()),
        version_stages: &secret.details.stages,
        created_date: secret.details.created,
    })
}

fn text(secret: &Secret) -> Result<&str, RequestError> {
    let text = secret.value.expose_str().filter(|_| secret.is_text);
    text.ok_or_else(not_json)
}

/// Returns a member of a JSON object: by its name, or by a pointer (RFC 6901) if the key starts with `/`. Only that
/// member is copied.
fn member(text: &str, key: &str) -> Result<Zeroizing<String>, RequestError> {
    let steps: Vec<String> = match key.strip_prefix('/') {
        Some(pointer) => pointer
            .split('/')
            .map(|step| step.replace("~1", "/").replace("~0", "~"))
            .collect(),
        None => vec![key.to_owned()],
    };
    if steps.len() > POINTER_STEPS {
        return Err(RequestError::invalid(format!(
            "a key has at most {POINTER_STEPS} steps"
        )));
    }
    let found = pointer::find(text, &steps).map_err(|_| not_json())?;
    let found = found.ok_or_else(|| {
        RequestError::new(Code::KeyNotFound, "the secret's JSON has no such member")
    })?;
    let text = unescape::text(found.get());
    Ok(text.unwrap_or_else(|| Zeroizing::new(found.get().to_owned())))
}

fn not_json() -> RequestError {
    RequestError::new(
        Code::NotJson,
        "the secret is no JSON object, so it has no members",
    )
}

/// Returns the tag of the representation, not of the secret alone (RFC 9110 section 8.8.3).
fn etag(version: &str, ask: &SecretAsk) -> Result<HeaderValue, RequestError> {
    let mut tag = String::with_capacity(version.len() + 2);
    tag.push('"');
    let _ = write!(tag, "{}", in_a_tag(version));
    if let Some(key) = &ask.key {
        let _ = write!(tag, ";key={}", in_a_tag(key));
    }
    match ask.shape {
        Shape::Json => {}
        Shape::Raw => tag.push_str(";raw"),
        Shape::Aws => tag.push_str(";aws"),
    }
    tag.push('"');
    HeaderValue::try_from(tag).map_err(|e| RequestError::internal(&e))
}

/// Whether `If-None-Match` lists the tag; weak tags match too (RFC 9110 section 13.1.2).
fn matches(seen: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(seen), Ok(etag)) = (seen.to_str(), etag.to_str()) else {
        return false;
    };
    // A tag may contain a comma, so the list cannot simply be split.
    let mut rest = seen.trim();
    if rest == "*" {
        return true;
    }
    while let Some(start) = rest.find('"') {
        let Some(length) = rest[start + 1..].find('"') else {
            return false;
        };
        let end = start + length + 2;
        if &rest[start..end] == etag {
            return true;
        }
        rest = &rest[end..];
    }
    false
}

fn base64(value: &[u8]) -> Zeroizing<String> {
    // Allocated in full, because a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(value.len().div_ceil(3) * 4));
    BASE64.encode_string(value, &mut text);
    text
}

fn copy(value: &[u8]) -> Bytes {
    SecretValue::from(Zeroizing::new(value.to_vec())).into_bytes()
}

/// Returns JSON in memory that is wiped when its last reader drops it.
fn sealed_json(value: &impl Serialize) -> Bytes {
    SecretValue::from(secret::json(value)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheUse;

    #[test]
    fn who_has_the_version_already_is_answered_without_a_copy_of_the_value() {
        let value = SecretValue::from("hunter2".to_owned());
        let read = Read {
            secret: Secret::new(value, true, "1".to_owned()).into(),
            cache: CacheUse::Off,
            age: None,
            shared_with: None,
            instead_of: None,
        };
        let mut ask = SecretAsk::plain(SecretName::parse("a").expect("a name"));
        for (seen, status, is_written) in [("\"1\"", 304, false), ("\"0\"", 200, true)] {
            ask.if_none_match = vec![HeaderValue::from_static(seen)];
            let answer = secret(&read, &ask, "aws", "1").expect("an answer");
            assert_eq!(
                (answer.status().as_u16(), read.secret.json.get().is_some()),
                (status, is_written)
            );
        }
    }

    #[test]
    fn a_cloud_that_asks_for_ages_makes_nobody_wait_for_more_than_an_hour() {
        for (asked, told) in [(0, "1"), (90, "90"), (u64::MAX, "3600")] {
            let failed = RequestError::unavailable("away");
            let failed = failed.retry_after(Some(std::time::Duration::from_secs(asked)));
            let answer = error(&failed, Route::Secret, "1");
            assert_eq!(answer.headers()[header::RETRY_AFTER], told, "{asked}");
        }
    }
}
