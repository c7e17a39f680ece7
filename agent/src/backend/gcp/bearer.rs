//! The bearer of one caller, and how the SDK's one client gets it.
//!
//! The SDK takes no token with a call: it asks its credentials for headers, in the very task that makes the call. So
//! the headers of a call are kept in a task-local variable, and the client's credentials are whatever is in it. A call
//! without a caller finds nothing there, and fails before anything is sent.

use crate::secret::SecretValue;
use google_cloud_auth::credentials::{CacheableResource, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::http::Extensions;
use serde::Deserialize;
use std::fmt;
use zeroize::Zeroizing;

/// The header whose text appears in Google's audit log as `requestMetadata.requestAttributes.reason`.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-goog-request-reason");

tokio::task_local! {
    /// Authorization and reason of the call that this task makes.
    static HEADERS: HeaderMap;
}

/// The header that names the project whose quota a call counts against. Users' own credentials need one.
pub(super) const QUOTA_PROJECT: HeaderName = HeaderName::from_static("x-goog-user-project");

/// An access token as it is sent: it prints without its content, and is overwritten when its last header is dropped.
pub(super) struct Bearer {
    authorization: HeaderValue,
    quota_project: Option<HeaderValue>,
}

/// An access token as it comes in an answer.
#[derive(Deserialize)]
#[serde(from = "String")]
pub(super) struct AccessToken(Zeroizing<String>);

/// The credentials of the SDK's client: those of the task that calls.
#[derive(Debug)]
pub(super) struct OfTheCaller;

// === impl Bearer ===

impl Bearer {
    /// Returns the token as a bearer, if it can be in a header.
    pub(super) fn of(token: &AccessToken) -> Option<Self> {
        let text = Zeroizing::new([b"Bearer ", token.0.as_bytes()].concat());
        if token.0.is_empty() {
            return None;
        }
        let mut header =
            HeaderValue::from_maybe_shared(SecretValue::from(text).into_bytes()).ok()?;
        header.set_sensitive(true);
        Some(Self {
            authorization: header,
            quota_project: None,
        })
    }

    /// Returns the same, counted against the quota of this project.
    pub(super) fn counted(self, quota_project: Option<HeaderValue>) -> Self {
        Self {
            quota_project,
            ..self
        }
    }

    /// Returns the headers of a call with this bearer, for this reason.
    pub(super) fn headers(&self, reason: HeaderValue) -> HeaderMap {
        let mut headers = HeaderMap::from_iter([
            (AUTHORIZATION, self.authorization.clone()),
            (REASON, reason),
        ]);
        if let Some(project) = &self.quota_project {
            headers.insert(QUOTA_PROJECT, project.clone());
        }
        headers
    }

    /// Makes `call` with this bearer, for this reason.
    pub(super) async fn make<T>(&self, reason: HeaderValue, call: impl Future<Output = T>) -> T {
        HEADERS.scope(self.headers(reason), call).await
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(..)")
    }
}

// === impl AccessToken ===

/// Takes over the text in place; no copy is left behind.
impl From<String> for AccessToken {
    fn from(token: String) -> Self {
        Self(Zeroizing::new(token))
    }
}

// === impl OfTheCaller ===

impl CredentialsProvider for OfTheCaller {
    async fn headers(
        &self,
        _: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let data = HEADERS
            .try_with(HeaderMap::clone)
            .map_err(|error| CredentialsError::from_source(false, error))?;
        let entity_tag = EntityTag::new();
        Ok(CacheableResource::New { entity_tag, data })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(token: &str) -> Bearer {
        Bearer::of(&AccessToken::from(token.to_owned())).expect("a bearer")
    }

    async fn sent() -> Option<HeaderMap> {
        match OfTheCaller.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Some(data),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_call_carries_the_bearer_of_its_own_task_and_no_other() {
        let (one, other) = (bearer("one"), bearer("other"));
        let reason = HeaderValue::from_static;
        let ask = async || {
            tokio::task::yield_now().await;
            sent().await.expect("headers")
        };
        let (first, second) =
            tokio::join!(one.make(reason("1"), ask()), other.make(reason("2"), ask()));
        assert_eq!(
            (&first[AUTHORIZATION], &first[REASON]),
            (&reason("Bearer one"), &reason("1"))
        );
        assert_eq!(
            (&second[AUTHORIZATION], &second[REASON]),
            (&reason("Bearer other"), &reason("2"))
        );
        let elsewhere = one.make(reason("1"), async {
            tokio::spawn(sent()).await.expect("it ends")
        });
        assert_eq!(elsewhere.await, None);
        assert_eq!(sent().await, None);
    }

    #[test]
    fn a_bearer_prints_as_nothing_and_is_none_that_breaks_its_header() {
        let bearer = bearer("canary");
        assert_eq!(format!("{bearer:?}"), "Bearer(..)");
        let headers = bearer.headers(HeaderValue::from_static("1"));
        assert!(!format!("{headers:?}").contains("canary"));
        for wrong in ["", "a\r\nX-Evil: 1", "a\0"] {
            assert!(
                Bearer::of(&AccessToken::from(wrong.to_owned())).is_none(),
                "{wrong:?}"
            );
        }
    }
}
