//! Subject tokens that the kubelet handed over by CSI, each for a pod on its own node.

use crate::attest::cgroup::PodUid;
use crate::secret::{self, SubjectToken};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// A token this close to its expiry is no longer used.
const MARGIN: SignedDuration = SignedDuration::from_secs(15);

/// A pod's newest token for each audience. They are dropped with the pod, or with its last volume.
#[derive(Debug, Default)]
pub(crate) struct KubeletTokens(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_audience: BTreeMap<String, Held>,
    /// Whether the pod has a volume, through which tokens come.
    expected: bool,
    /// Whether the kubelet has handed tokens to this agent, which then knows their audiences.
    came: bool,
}

#[derive(Debug)]
struct Held {
    token: SubjectToken,
    expires: Timestamp,
}

/// Whether the kubelet has a token for an audience.
#[derive(Debug)]
pub(crate) enum FromKubelet {
    /// This one.
    Token(SubjectToken),
    /// Tokens come from the kubelet, but none for this audience.
    NotThisAudience,
    /// Tokens will come, but have not come yet, or not again: the kubelet calls about once a minute.
    NotYet,
    /// The pod has no volume through which they could come.
    NeverAny,
}

/// Why tokens that were handed over are refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum HandedError {
    #[error(
        "the kubelet handed over tokens that have expired: the clocks of node and API server differ"
    )]
    Expired,
    #[error("the kubelet's token is another pod's or service account's")]
    Foreign,
    #[error("the kubelet's tokens are not in the form of CSI's tokenRequests")]
    Malformed,
}

/// A token as the kubelet writes it (CSIDriver `tokenRequests`).
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    // Borrowed, so that no copy is made that is not wiped. A string with escapes is refused, but no token has any.
    token: &'a str,
    expiration_timestamp: Timestamp,
}

/// The claims with which a token says whose it is.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(borrow)]
    sub: &'a str,
    #[serde(rename = "kubernetes.io", borrow)]
    kubernetes: KubernetesClaims<'a>,
}

#[derive(Deserialize)]
struct KubernetesClaims<'a> {
    #[serde(borrow)]
    pod: PodClaims<'a>,
}

#[derive(Deserialize)]
struct PodClaims<'a> {
    uid: &'a str,
}

// === impl KubeletTokens ===

impl KubeletTokens {
    /// Takes the tokens that the kubelet wrote for the pod `uid` of this account: all of them or none.
    ///
    /// # Errors
    ///
    /// If one is malformed or another pod's or account's, or if all have expired.
    pub(crate) fn take(
        &self,
        json: &[u8],
        uid: PodUid,
        namespace: &str,
        service_account: &str,
    ) -> Result<(), HandedError> {
        self.inherit(json, uid, namespace, service_account)?;
        self.0.lock().came = true;
        Ok(())
    }

    /// Takes the same from another agent, which may have had tokens for fewer audiences than this one will.
    pub(crate) fn inherit(
        &self,
        json: &[u8],
        uid: PodUid,
        namespace: &str,
        service_account: &str,
    ) -> Result<(), HandedError> {
        let written: BTreeMap<String, Written<'_>> =
            serde_json::from_slice(json).map_err(|_| HandedError::Malformed)?;
        let subject = super::subject(namespace, service_account);
        let mut taken = Vec::new();
        for (audience, written) in written {
            let token = SubjectToken::from(written.token.to_owned());
            must_be(&token, &subject, uid)?;
            let expires = written.expiration_timestamp;
            taken.push((audience, Held { token, expires }));
        }
        let now = crate::time::now();
        if !taken.is_empty() && taken.iter().all(|(_, held)| held.expires <= now) {
            return Err(HandedError::Expired);
        }
        let mut state = self.0.lock();
        for (audience, held) in taken {
            let newer = |known: &Held| known.expires > held.expires;
            if !state.by_audience.get(&audience).is_some_and(newer) {
                state.by_audience.insert(audience, held);
            }
        }
        state.tidy();
        state.expected = true;
        Ok(())
    }

    /// Notes that the pod has a volume, through which tokens come.
    pub(crate) fn expect(&self) {
        self.0.lock().expected = true;
    }

    /// Drops everything: the pod no longer has a volume.
    pub(crate) fn drop_all(&self) {
        *self.0.lock() = State::default();
    }

    /// Returns a copy of the newest token for `audience`.
    pub(crate) fn newest(&self, audience: &str) -> FromKubelet {
        let mut state = self.0.lock();
        state.tidy();
        match state.by_audience.get(audience) {
            Some(held) => FromKubelet::Token(SubjectToken::from(held.token.expose().to_owned())),
            None if !state.expected => FromKubelet::NeverAny,
            // None has come, or all have expired: the kubelet will call again.
            None if !state.came || state.by_audience.is_empty() => FromKubelet::NotYet,
            None => FromKubelet::NotThisAudience,
        }
    }

    /// Returns all tokens as the kubelet would write them, for the agent that takes over; nothing if there are none.
    pub(crate) fn written(&self) -> Option<Zeroizing<Vec<u8>>> {
        let mut state = self.0.lock();
        state.tidy();
        if state.by_audience.is_empty() {
            return None;
        }
        let written = state.by_audience.iter().map(|(audience, held)| {
            let written = Written {
                token: held.token.expose(),
                expiration_timestamp: held.expires,
            };
            (audience, written)
        });
        Some(secret::json(&written.collect::<BTreeMap<_, _>>()))
    }
}

impl State {
    fn tidy(&mut self) {
        let now = crate::time::now();
        self.by_audience
            .retain(|_, held| held.expires > now + MARGIN);
    }
}

/// Checks that the token claims to be of this account and bound to this pod. Its signature is not verified: that is up
/// to the cloud it was issued for. This finds tokens that were mixed up, or put there by the pod itself.
fn must_be(token: &SubjectToken, subject: &str, uid: PodUid) -> Result<(), HandedError> {
    let payload = token.payload().ok_or(HandedError::Malformed)?;
    let claims: Claims<'_> = serde_json::from_slice(&payload).map_err(|_| HandedError::Foreign)?;
    if claims.sub == subject && claims.kubernetes.pod.uid.parse() == Ok(uid) {
        Ok(())
    } else {
        Err(HandedError::Foreign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;

    const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

    fn token(name: &str, subject: &str, uid: &str) -> String {
        let claims = format!(
            r#"{{"name":"{name}","sub":"{subject}","kubernetes.io":{{"namespace":"test","pod":{{"name":"web","uid":"{uid}"}}}}}}"#
        );
        format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn own(name: &str) -> String {
        token(name, "system:serviceaccount:test:app", UID)
    }

    fn handed(tokens: &[(&str, &str, i64)]) -> String {
        let entries: Vec<_> = tokens
            .iter()
            .map(|(audience, token, seconds)| {
                let expires = crate::time::now() + SignedDuration::from_secs(*seconds);
                format!(r#""{audience}":{{"token":"{token}","expirationTimestamp":"{expires}"}}"#)
            })
            .collect();
        format!("{{{}}}", entries.join(","))
    }

    fn take(tokens: &KubeletTokens, json: &str) -> Result<(), HandedError> {
        let uid = UID.parse().expect("a UID");
        tokens.take(json.as_bytes(), uid, "test", "app")
    }

    fn newest(tokens: &KubeletTokens, audience: &str) -> Option<String> {
        match tokens.newest(audience) {
            FromKubelet::Token(token) => Some(token.expose().to_owned()),
            _ => None,
        }
    }

    #[test]
    fn the_newest_of_each_audience_is_kept() {
        let tokens = KubeletTokens::default();
        let (old, new, other) = (own("old"), own("new"), own("other"));
        take(
            &tokens,
            &handed(&[("sts", &new, 600), ("vault", &other, 600)]),
        )
        .expect("right");
        // A delayed call brings an older token.
        take(&tokens, &handed(&[("sts", &old, 300)])).expect("right");
        assert_eq!(newest(&tokens, "sts"), Some(new));
        assert_eq!(newest(&tokens, "vault"), Some(other));
        // Of two that end at the same instant, the one that came last.
        let (first, last) = (own("first"), own("last"));
        let json = handed(&[("sts", &first, 900)]);
        take(&tokens, &json).expect("right");
        take(&tokens, &json.replace(&first, &last)).expect("right");
        assert_eq!(newest(&tokens, "sts"), Some(last));
    }

    #[test]
    fn a_token_that_ends_is_not_used_and_the_next_call_is_waited_for() {
        let tokens = KubeletTokens::default();
        assert!(matches!(tokens.newest("sts"), FromKubelet::NeverAny));
        tokens.expect();
        assert!(matches!(tokens.newest("sts"), FromKubelet::NotYet));
        take(&tokens, &handed(&[("sts", &own("a"), 10)])).expect("right");
        assert!(matches!(tokens.newest("sts"), FromKubelet::NotYet));
        take(&tokens, &handed(&[("sts", &own("a"), 600)])).expect("right");
        assert!(matches!(
            tokens.newest("other"),
            FromKubelet::NotThisAudience
        ));
        tokens.drop_all();
        assert!(matches!(tokens.newest("sts"), FromKubelet::NeverAny));
    }

    #[test]
    fn another_pods_or_accounts_token_is_refused_and_nothing_of_it_is_taken() {
        let tokens = KubeletTokens::default();
        let other_pod = token(
            "x",
            "system:serviceaccount:test:app",
            &UID.replace('0', "1"),
        );
        let other_account = token("x", "system:serviceaccount:prod:app", UID);
        for foreign in [other_pod, other_account] {
            let both = handed(&[("a", &own("a"), 600), ("b", &foreign, 600)]);
            assert_eq!(take(&tokens, &both), Err(HandedError::Foreign));
            assert_eq!(newest(&tokens, "a"), None);
        }
        let unbound = format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(r#"{"sub":"x"}"#));
        let json = handed(&[("a", &unbound, 600)]);
        assert_eq!(take(&tokens, &json), Err(HandedError::Foreign));
        let unsigned = own("a").trim_end_matches(".s").to_owned();
        let json = handed(&[("a", &unsigned, 600)]);
        assert_eq!(take(&tokens, &json), Err(HandedError::Malformed));
        for malformed in [
            "",
            "[]",
            "{\"a\":1}",
            "{\"a\":{\"token\":\"x\",\"expirationTimestamp\":\"\"}}",
        ] {
            assert_eq!(take(&tokens, malformed), Err(HandedError::Malformed));
        }
    }

    #[test]
    fn tokens_that_have_expired_when_they_come_are_refused_by_that_reason() {
        let tokens = KubeletTokens::default();
        let (a, b) = (own("a"), own("b"));
        let all = handed(&[("a", &a, -1), ("b", &b, -600)]);
        assert_eq!(take(&tokens, &all), Err(HandedError::Expired));
        take(&tokens, &handed(&[("a", &a, -1), ("b", &b, 600)])).expect("one is right");
        assert_eq!(newest(&tokens, "b"), Some(b));
        take(&tokens, "{}").expect("no audience, no token");
    }

    #[test]
    fn what_one_agent_writes_another_can_take() {
        let (one, other) = (KubeletTokens::default(), KubeletTokens::default());
        assert!(one.written().is_none());
        take(
            &one,
            &handed(&[("a", &own("a"), 600), ("b", &own("b"), 700)]),
        )
        .expect("right");
        let written = one.written().expect("two");
        let copied = "a buffer that grows leaves copies behind";
        assert_eq!(written.capacity(), written.len(), "{copied}");
        let uid = UID.parse().expect("a UID");
        other.inherit(&written, uid, "test", "app").expect("right");
        assert_eq!(newest(&other, "a"), Some(own("a")));
        assert_eq!(newest(&other, "b"), Some(own("b")));
        // The first agent did not know this audience, so the kubelet may yet hand over a token for it.
        assert!(matches!(other.newest("c"), FromKubelet::NotYet));
        take(&other, &handed(&[("a", &own("a"), 600)])).expect("right");
        assert!(matches!(other.newest("c"), FromKubelet::NotThisAudience));
    }

    #[test]
    fn tokens_print_as_nothing() {
        let tokens = KubeletTokens::default();
        take(&tokens, &handed(&[("a", &own("canary"), 600)])).expect("right");
        let printed = format!("{tokens:?}");
        assert!(!printed.contains(&own("canary")), "{printed}");
    }
}
