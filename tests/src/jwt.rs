//! Service account tokens: an issuer that signs them as a cluster does, and the key set to check them as a cloud does.
//!
//! The fake Kubernetes API signs with [`Issuer`], the fake clouds verify with [`KeySet`]. Nothing here judges a claim:
//! expiry, audience and subject are the verifier's business, because each cloud answers them with an error of its own.

use std::collections::HashMap;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, KeyPair, RsaKeyPair, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A token issuer with an RSA key of its own.
pub struct Issuer {
    url: String,
    key_id: String,
    key: RsaKeyPair,
}

/// The claims of a service account token as the API server's `TokenRequest` issues it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Claims {
    /// The issuer's URL, character for character.
    pub iss: String,
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub sub: String,
    /// Who the token is for; Kubernetes always writes a list.
    pub aud: Vec<String>,
    /// Expiry, in seconds of Unix time.
    pub exp: i64,
    /// Issue time, in seconds of Unix time.
    pub iat: i64,
    /// Start of validity, in seconds of Unix time.
    pub nbf: i64,
    /// The token's unique id.
    pub jti: String,
    /// What the token is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Binding,
}

/// The `kubernetes.io` claim: the token lives no longer than these objects.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Binding {
    /// The namespace of the service account and of the pod.
    pub namespace: String,
    /// The pod, when the token is bound to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// The service account.
    pub serviceaccount: Bound,
}

/// One bound object.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Bound {
    /// The object's name.
    pub name: String,
    /// The object's UID.
    pub uid: String,
}

/// The claims of a subject token that tests ask about.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct TokenSeen {
    /// The issuer.
    pub iss: String,
    /// The subject.
    pub sub: String,
    /// The audiences.
    pub aud: Vec<String>,
    /// Expiry, in seconds of Unix time.
    pub exp: i64,
    /// The name and UID of the pod that the token is bound to.
    pub pod: Option<(String, String)>,
}

/// An issuer's public keys, by key id.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: HashMap<String, PublicKey>,
}

#[derive(Clone, Debug)]
struct PublicKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

/// Why a token is not genuine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Forged {
    /// The algorithm is not RS256 but, for example, `none` or one of the HMAC family.
    Algorithm,
    /// No key of the set has the header's `kid`.
    Key,
    /// It is no JWT: not three parts, not base64url, or not JSON.
    Malformed,
    /// The key did not make this signature.
    Signature,
}

impl TokenSeen {
    pub(crate) fn of(claims: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pod = &claims["kubernetes.io"]["pod"];
        Self {
            iss: text(&claims["iss"]),
            sub: text(&claims["sub"]),
            aud: match &claims["aud"] {
                Value::Array(all) => all.iter().map(text).collect(),
                one => vec![text(one)],
            },
            exp: claims["exp"].as_i64().unwrap_or_default(),
            pod: pod
                .is_object()
                .then(|| (text(&pod["name"]), text(&pod["uid"]))),
        }
    }
}

impl Issuer {
    /// Makes an issuer with a fresh RSA-2048 key.
    ///
    /// # Panics
    ///
    /// If the cryptographic library cannot make a key.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("an RSA key can be made");
        Self::with_key(url, key)
    }

    /// Makes an issuer with an existing key.
    pub(crate) fn with_key(url: impl Into<String>, key: RsaKeyPair) -> Self {
        Self {
            url: url.into(),
            key_id: uuid::Uuid::new_v4().simple().to_string(),
            key,
        }
    }

    /// An issuer that claims the same URL and key id but has another key, for forged tokens.
    #[must_use]
    pub fn impostor(&self) -> Self {
        Self {
            key_id: self.key_id.clone(),
            ..Self::new(self.url.clone())
        }
    }

    /// The issuer's URL, the `iss` of its tokens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The id of its key.
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Signs any claims as a compact RS256 JWT.
    ///
    /// # Panics
    ///
    /// If the claims are not JSON (a map whose keys are no strings).
    pub fn sign(&self, claims: &impl Serialize) -> String {
        let header = json!({"alg": "RS256", "kid": self.key_id});
        let claims = serde_json::to_vec(claims).expect("claims are JSON");
        let signed = format!(
            "{}.{}",
            BASE64URL.encode(header.to_string()),
            BASE64URL.encode(claims)
        );
        let mut mark = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &signature::RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut mark,
            )
            .expect("an RSA key signs");
        format!("{signed}.{}", BASE64URL.encode(mark))
    }

    /// The public key as a JWK set (RFC 7517), as `/openid/v1/jwks` shows it.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let public = self.key.public_key();
        json!({"keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.key_id,
            "n": BASE64URL.encode(public.modulus().big_endian_without_leading_zero()),
            "e": BASE64URL.encode(public.exponent().big_endian_without_leading_zero()),
        }]})
    }

    /// The discovery document, as `/.well-known/openid-configuration` shows it.
    #[must_use]
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": format!("{}/openid/v1/jwks", self.url.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        })
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("url", &self.url)
            .field("key_id", &self.key_id)
            .finish()
    }
}

impl Claims {
    /// The claims of a token that starts now and lives `seconds` (negative: one that has expired).
    #[must_use]
    pub fn new(
        issuer: &str,
        namespace: &str,
        service_account: Bound,
        pod: Option<Bound>,
        audience: &str,
        seconds: i64,
    ) -> Self {
        let now = jiff::Timestamp::now().as_second();
        Self {
            iss: issuer.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{}", service_account.name),
            aud: vec![audience.to_owned()],
            exp: now + seconds,
            iat: now.min(now + seconds),
            nbf: now.min(now + seconds),
            jti: uuid::Uuid::new_v4().to_string(),
            kubernetes: Binding {
                namespace: namespace.to_owned(),
                pod,
                serviceaccount: service_account,
            },
        }
    }
}

impl Bound {
    /// Names an object.
    #[must_use]
    pub fn new(name: impl Into<String>, uid: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uid: uid.into(),
        }
    }
}

impl KeySet {
    /// Reads a JWK set; like verifiers, it ignores keys that are not RSA signing keys.
    #[must_use]
    pub fn from_jwks(jwks: &Value) -> Self {
        let keys = jwks["keys"].as_array().into_iter().flatten();
        let keys = keys.filter(|jwk| jwk["kty"] == "RSA" && jwk["use"] != "enc");
        let keys = keys.filter_map(|jwk| {
            let part = |name: &str| BASE64URL.decode(jwk[name].as_str()?).ok();
            let key = PublicKey {
                modulus: part("n")?,
                exponent: part("e")?,
            };
            Some((jwk["kid"].as_str().unwrap_or_default().to_owned(), key))
        });
        Self {
            keys: keys.collect(),
        }
    }

    /// Whether no usable key was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Checks the signature, and returns the claims of exactly the bytes that were signed.
    ///
    /// # Errors
    ///
    /// If the token is malformed, not RS256, of an unknown key, or its signature is wrong.
    pub fn verify(&self, token: &str) -> Result<Value, Forged> {
        let (signed, mark) = token.rsplit_once('.').ok_or(Forged::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Forged::Malformed)?;
        let header = part(header).ok_or(Forged::Malformed)?;
        if header["alg"] != "RS256" {
            return Err(Forged::Algorithm);
        }
        let kid = header["kid"].as_str().unwrap_or_default();
        let key = self.keys.get(kid).ok_or(Forged::Key)?;
        let mark = BASE64URL.decode(mark).map_err(|_| Forged::Malformed)?;
        RsaPublicKeyComponents {
            n: &key.modulus,
            e: &key.exponent,
        }
        .verify(
            &signature::RSA_PKCS1_2048_8192_SHA256,
            signed.as_bytes(),
            &mark,
        )
        .map_err(|_| Forged::Signature)?;
        part(claims).ok_or(Forged::Malformed)
    }
}

/// The claims of a token whose signature nobody has checked, to find its issuer or to log it.
#[must_use]
pub fn unverified(token: &str) -> Option<Value> {
    let mut parts = token.split('.');
    let claims = parts.nth(1)?;
    (parts.count() == 1).then(|| part(claims))?
}

fn part(encoded: &str) -> Option<Value> {
    let value = serde_json::from_slice::<Value>(&BASE64URL.decode(encoded).ok()?).ok()?;
    value.is_object().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(issuer: &Issuer) -> Claims {
        let pod = Some(Bound::new("app-1", "uid-1"));
        Claims::new(
            issuer.url(),
            "test",
            Bound::new("app", "uid-sa"),
            pod,
            "sts.amazonaws.com",
            60,
        )
    }

    #[test]
    fn a_signed_token_verifies_and_carries_its_claims() {
        let issuer = Issuer::new("https://cluster.test");
        let keys = KeySet::from_jwks(&issuer.jwks());
        let claims = keys
            .verify(&issuer.sign(&claims(&issuer)))
            .expect("genuine");
        assert_eq!(claims["sub"], "system:serviceaccount:test:app");
        assert_eq!(claims["kubernetes.io"]["pod"]["name"], "app-1");
    }

    #[test]
    fn another_key_of_the_same_name_does_not_verify() {
        let issuer = Issuer::new("https://cluster.test");
        let keys = KeySet::from_jwks(&issuer.jwks());
        let forged = issuer.impostor().sign(&claims(&issuer));
        assert_eq!(keys.verify(&forged), Err(Forged::Signature));
        let other = Issuer::new("https://cluster.test").sign(&claims(&issuer));
        assert_eq!(keys.verify(&other), Err(Forged::Key));
    }

    #[test]
    fn neither_changed_claims_nor_the_algorithm_none_verify() {
        let issuer = Issuer::new("https://cluster.test");
        let keys = KeySet::from_jwks(&issuer.jwks());
        let token = issuer.sign(&claims(&issuer));
        let parts: Vec<&str> = token.split('.').collect();
        let mut other = claims(&issuer);
        other.sub = "system:serviceaccount:prod:app".into();
        let other = BASE64URL.encode(serde_json::to_vec(&other).expect("JSON"));
        assert_eq!(
            keys.verify(&format!("{}.{other}.{}", parts[0], parts[2])),
            Err(Forged::Signature)
        );
        let none = BASE64URL.encode(r#"{"alg":"none"}"#);
        assert_eq!(
            keys.verify(&format!("{none}.{other}.")),
            Err(Forged::Algorithm)
        );
        assert_eq!(keys.verify("no token"), Err(Forged::Malformed));
    }
}
