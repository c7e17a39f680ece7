//! What a request asks for.

use crate::error::ClientError;
use crate::transport::not_asked;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use std::fmt::Write as _;
use std::time::Duration;

/// Which secret, and which form of it.
///
/// ```
/// use latchkey_client::Ask;
///
/// let previous = Ask { stage: Some("AWSPREVIOUS"), ..Ask::latest("prod/database-password") };
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// The secret's name.
    pub name: &'a str,
    /// The backend that holds it; the agent's default one if `None`.
    pub backend: Option<&'a str>,
    /// The backend's id of a version; the latest if both this and `stage` are `None`.
    pub version: Option<&'a str>,
    /// A stage or label of AWS', such as `AWSPREVIOUS`.
    pub stage: Option<&'a str>,
    /// The member of a secret that is a JSON object; a pointer (RFC 6901) if it begins with `/`.
    pub key: Option<&'a str>,
    /// Whether to bypass the agent's cache and every read that is already in progress.
    pub fresh: bool,
}

/// Which names.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListAsk<'a> {
    /// The backend; the agent's default one if `None`.
    pub backend: Option<&'a str>,
    /// The most names to return; the agent decides if `None`.
    pub limit: Option<usize>,
    /// The `next` of the previous page.
    pub cursor: Option<&'a str>,
}

// === impl Ask ===

impl<'a> Ask<'a> {
    /// The latest version of the secret `name`, as the default backend has it.
    #[must_use]
    pub fn latest(name: &'a str) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    pub(crate) fn target(&self, wait: Option<Duration>) -> Result<String, ClientError> {
        let mut query = Query(format!("/v1/secrets/{}", encoded(self.name)), '?');
        query.add("backend", self.backend)?;
        query.add("version", self.version)?;
        query.add("stage", self.stage)?;
        query.add("key", self.key)?;
        // Rounded up, and at least 1 ms: the agent refuses `wait=0ms` with 400.
        let wait = wait.map(|wait| format!("{}ms", wait.as_micros().div_ceil(1000).max(1)));
        query.add("wait", wait.as_deref())?;
        Ok(query.0)
    }
}

// === impl ListAsk ===

impl ListAsk<'_> {
    pub(crate) fn target(&self) -> Result<String, ClientError> {
        let mut query = Query("/v1/secrets".to_owned(), '?');
        query.add("backend", self.backend)?;
        query.add(
            "limit",
            self.limit.map(|limit| limit.to_string()).as_deref(),
        )?;
        query.add("cursor", self.cursor)?;
        Ok(query.0)
    }
}

/// The target of a batch.
pub(crate) fn batch_target(backend: Option<&str>) -> Result<String, ClientError> {
    let mut query = Query("/v1/secrets:batchGet".to_owned(), '?');
    query.add("backend", backend)?;
    Ok(query.0)
}

/// A target, and the separator before its next parameter.
struct Query(String, char);

impl Query {
    /// Adds a parameter, unless it is `None`. The agent would take an empty one for none: the whole secret instead of a
    /// member.
    fn add(&mut self, name: &str, value: Option<&str>) -> Result<(), ClientError> {
        let Some(value) = value else {
            return Ok(());
        };
        if value.is_empty() {
            return Err(not_asked(format!("the {name} is empty")));
        }
        // Writing to a string does not fail.
        let _ = write!(self.0, "{}{name}={}", self.1, encoded(value));
        self.1 = '&';
        Ok(())
    }
}

/// Encodes a text for a target: everything but unreserved characters and slashes.
fn encoded(text: &str) -> PercentEncode<'_> {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'/')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_name_or_cursor_holds_the_target_says_that_and_no_more() {
        assert_eq!(encoded("prod/db_1.x-y~z").to_string(), "prod/db_1.x-y~z");
        assert_eq!(
            encoded("a b?version=1#c%2F+=").to_string(),
            "a%20b%3Fversion%3D1%23c%252F%2B%3D"
        );
        // An unencoded one would make this panic.
        let target = Ask::latest("a b\u{e9}\n").target(None).expect("a target");
        let _ = hyperlocal::Uri::new("/run/x.sock", &target);
    }

    #[test]
    fn a_target_has_the_parameters_that_were_said() {
        let ask = Ask {
            backend: Some("aws"),
            stage: Some("A B"),
            key: Some("/a/b"),
            ..Ask::latest("x")
        };
        assert_eq!(
            ask.target(Some(Duration::from_secs(30))).expect("a target"),
            "/v1/secrets/x?backend=aws&stage=A%20B&key=/a/b&wait=30000ms"
        );
        let latest = Ask::latest("x").target(None).expect("a target");
        assert_eq!(latest, "/v1/secrets/x");
        let all = ListAsk::default().target().expect("a target");
        assert_eq!(all, "/v1/secrets");
        let page = ListAsk {
            limit: Some(5),
            cursor: Some("a&b"),
            ..ListAsk::default()
        };
        let page = page.target().expect("a target");
        assert_eq!(page, "/v1/secrets?limit=5&cursor=a%26b");
    }
}
