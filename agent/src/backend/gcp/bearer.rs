//! The bearer of one session.

use crate::secret::SecretValue;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use std::fmt;
use zeroize::Zeroizing;

/// The header whose text appears in Google's audit log as `requestMetadata.requestAttributes.reason`.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-goog-request-reason");

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

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(token: &str) -> Bearer {
        Bearer::of(&AccessToken::from(token.to_owned())).expect("a bearer")
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
