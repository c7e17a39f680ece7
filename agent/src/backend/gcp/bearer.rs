//! The bearer of one caller, and how the SDK's one client comes by it.
//!
//! The SDK takes no token with a call: it asks its credentials for headers, in the very task that calls. So the
//! headers of a call are put at that task's side, and the client's credentials are whatever is there. A call without
//! a caller has none and fails before anything is sent.

use crate::secret::SecretBytes;
use google_cloud_auth::credentials::{CacheableResource, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::http::Extensions;
use serde::Deserialize;
use std::fmt;
use zeroize::Zeroizing;

/// The header whose text stands in Google's audit log as `requestMetadata.requestAttributes.reason`.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-goog-request-reason");

tokio::task_local! {
    /// Authorization and reason of the call that this task makes.
    static HEADERS: HeaderMap;
}

/// An access token as it is sent: it prints as nothing, and the last of its headers to go overwrites it.
pub(super) struct Bearer(HeaderValue);

/// An access token as an answer holds it.
#[derive(Deserialize)]
#[serde(from = "String")]
pub(super) struct AccessToken(Zeroizing<String>);

/// The credentials of the SDK's client: those of the task that calls.
#[derive(Debug)]
pub(super) struct OfTheCaller;

// === impl Bearer ===

impl Bearer {
    /// The token, if it can stand in a header.
    pub(super) fn of(token: &AccessToken) -> Option<Self> {
        let text = Zeroizing::new([b"Bearer ", token.0.as_bytes()].concat());
        if token.0.is_empty() {
            return None;
        }
        let mut header =
            HeaderValue::from_maybe_shared(SecretBytes::from(text).into_bytes()).ok()?;
        header.set_sensitive(true);
        Some(Self(header))
    }

    /// The value of `Authorization`.
    pub(super) fn expose(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Makes `call` with this bearer, for that reason.
    pub(super) async fn make<T>(&self, reason: HeaderValue, call: impl Future<Output = T>) -> T {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, self.expose()), (REASON, reason)]);
        HEADERS.scope(headers, call).await
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(..)")
    }
}

// === impl AccessToken ===

/// Takes the text over where it lies; no copy stays behind.
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
        assert!(!format!("{:?}", bearer.expose()).contains("canary"));
        for wrong in ["", "a\r\nX-Evil: 1", "a\0"] {
            assert!(
                Bearer::of(&AccessToken::from(wrong.to_owned())).is_none(),
                "{wrong:?}"
            );
        }
    }
}
