//! What Key Vault's answer about a secret contains, and whether the secret may be used.

use super::errors;
use crate::backend::{BackendError, Secret};
use crate::error::RequestError;
use crate::secret::SecretValue;
use azure_core::http::Url;
use azure_core::http::response::ResponseBody;
use azure_core::time::OffsetDateTime;
use azure_security_keyvault_secrets::models::{self, SecretAttributes, SecretProperties};
use azure_security_keyvault_secrets::{ResourceExt as _, ResourceId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use latchkey_client::protocol::Code;
use zeroize::Zeroize as _;

/// The content types whose value is bytes in base64: any bytes, and a certificate with its key (Key Vault's own).
const BINARY_TYPES: [&str; 2] = ["application/octet-stream", "application/x-pkcs12"];

/// The tag with which `az keyvault secret set --encoding base64` marks a value as bytes in base64.
const ENCODING_TAG: &str = "file-encoding";

/// Returns the name of a listed secret, if it is one of `vault` that may be used now.
pub(super) fn listed(secret: &SecretProperties, vault: &Url) -> Option<String> {
    let id = secret.resource_id().ok()?;
    let right = is_in(&id, vault) && usable(secret.attributes.as_ref()).is_ok();
    right.then_some(id.name)
}

/// Whether this is the id of something in `vault`.
fn is_in(id: &ResourceId, vault: &Url) -> bool {
    Url::parse(&id.vault_url).is_ok_and(|url| url.host_str() == vault.host_str())
}

/// Returns the secret in the answer of `vault` to a request for `name`.
///
/// # Errors
///
/// `not_found` if it may not be used now, `unavailable` if the answer is about something else or cannot be read.
pub(super) fn secret(
    body: ResponseBody,
    vault: &Url,
    name: &str,
    version: Option<&str>,
) -> Result<Secret, BackendError> {
    let body = Bytes::from(body);
    let answer = serde_json::from_slice::<models::Secret>(&body);
    // The SDK has copied the answer; this is the one copy that can be reached.
    if let Ok(mut body) = body.try_into_mut() {
        body.zeroize();
    }
    // The parser's error is not repeated: it would contain pieces of the answer.
    let mut answer = answer.map_err(|_| errors::garbage())?;
    let value = answer.value.take().map(SecretValue::from);
    let value = value.ok_or_else(errors::garbage)?;
    let id = answer.resource_id().map_err(|_| errors::garbage())?;
    if !id.name.eq_ignore_ascii_case(name) || !is_in(&id, vault) {
        return Err(errors::garbage());
    }
    let told = id.version.ok_or_else(errors::garbage)?;
    if version.is_some_and(|version| !version.eq_ignore_ascii_case(&told)) {
        return Err(errors::garbage());
    }
    usable(answer.attributes.as_ref())?;
    let created = answer
        .attributes
        .as_ref()
        .and_then(|attributes| attributes.created)
        .and_then(|created| u32::try_from(created.unix_timestamp()).ok());
    let (value, is_text) = match bytes_of(&answer, &value) {
        Some(bytes) => (bytes, false),
        None => (value, true),
    };
    let mut secret = Secret::new(value, is_text, told);
    secret.details.created = created.map(f64::from);
    Ok(secret)
}

/// Returns the bytes that a value stands for, if the answer marks it so. A marked value that is not valid base64 stays
/// text.
fn bytes_of(answer: &models::Secret, value: &SecretValue) -> Option<SecretValue> {
    let kind = answer.content_type.as_deref().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let is_binary = BINARY_TYPES
        .iter()
        .any(|binary| kind.eq_ignore_ascii_case(binary));
    let tag = answer.tags.as_ref().and_then(|tags| tags.get(ENCODING_TAG));
    let is_tagged = tag.is_some_and(|encoding| encoding.eq_ignore_ascii_case("base64"));
    if !is_binary && !is_tagged {
        return None;
    }
    BASE64.decode(value.expose()).ok().map(SecretValue::from)
}

/// Checks that a secret with these attributes may be used now.
///
/// Key Vault itself refuses a disabled one, but gives out one that has expired or is not valid yet.
///
/// # Errors
///
/// `not_found` if it may not.
fn usable(attributes: Option<&SecretAttributes>) -> Result<(), BackendError> {
    let Some(attributes) = attributes else {
        return Ok(());
    };
    let now = OffsetDateTime::from(crate::time::system_now());
    let text = if attributes.enabled == Some(false) {
        "the secret is disabled"
    } else if attributes.expires.is_some_and(|end| end <= now) {
        "the secret has expired"
    } else if attributes.not_before.is_some_and(|begin| begin > now) {
        "the secret is not valid yet"
    } else {
        return Ok(());
    };
    Err(RequestError::new(Code::NotFound, text).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn of(answer: &Value) -> Result<Secret, BackendError> {
        let vault = Url::parse("https://v1.vault.azure.net").expect("a URL");
        let body = ResponseBody::from_bytes(answer.to_string());
        secret(body, &vault, "db", None)
    }

    fn answer(value: &str, more: Value) -> Value {
        let mut answer = json!({
            "value": value,
            "id": format!("https://v1.vault.azure.net/secrets/DB/{VERSION}"),
            "attributes": {"enabled": true, "created": 1_700_000_000},
        });
        let fields = answer.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        answer
    }

    #[test]
    fn a_version_other_than_the_one_asked_for_is_no_answer() {
        let vault = Url::parse("https://v1.vault.azure.net").expect("a URL");
        let read = |version: &str| {
            let body = ResponseBody::from_bytes(answer("hunter2", json!({})).to_string());
            secret(body, &vault, "db", Some(version))
        };
        assert!(read(VERSION).is_ok());
        assert!(read(&VERSION.to_uppercase()).is_ok());
        let error = read(&VERSION.replace('0', "9")).expect_err("another version");
        assert_eq!(error.error.code, Code::Unavailable);
    }

    #[test]
    fn a_secret_has_its_value_its_version_and_its_date() {
        let secret = of(&answer("hunter2", json!({}))).expect("a secret");
        assert_eq!(secret.value.expose(), b"hunter2");
        assert!(secret.is_text);
        assert_eq!(&*secret.version, VERSION);
        assert_eq!(secret.details.created, Some(1_700_000_000.0));
        assert!(
            of(&answer("", json!({})))
                .expect("a secret")
                .value
                .expose()
                .is_empty()
        );
    }

    #[test]
    fn what_says_that_it_is_bytes_in_base64_is_given_as_those_bytes() {
        for more in [
            json!({"contentType": "application/octet-stream"}),
            json!({"contentType": "Application/Octet-Stream; charset=x"}),
            json!({"contentType": "application/x-pkcs12"}),
            json!({"tags": {"file-encoding": "base64"}}),
        ] {
            let secret = of(&answer("AP8=", more.clone())).expect("a secret");
            assert_eq!(
                (secret.value.expose(), secret.is_text),
                (&[0, 255][..], false),
                "{more}"
            );
        }
        for (value, more) in [
            ("AP8=", json!({"contentType": "text/plain"})),
            ("AP8=", json!({"tags": {"file-encoding": "utf-8"}})),
            (
                "no base64",
                json!({"contentType": "application/octet-stream"}),
            ),
        ] {
            let secret = of(&answer(value, more.clone())).expect("a secret");
            assert_eq!(
                (secret.value.expose(), secret.is_text),
                (value.as_bytes(), true),
                "{more}"
            );
        }
    }

    #[test]
    fn what_is_disabled_expired_or_not_valid_yet_is_not_found() {
        let now = crate::time::now().as_second();
        for (attributes, right) in [
            (json!({"enabled": false}), false),
            (json!({"enabled": true, "exp": now - 1}), false),
            (json!({"enabled": true, "exp": now + 600}), true),
            (json!({"enabled": true, "nbf": now + 600}), false),
            (json!({"enabled": true, "nbf": now - 1}), true),
            (json!({}), true),
        ] {
            let outcome = of(&answer("x", json!({"attributes": attributes})));
            match outcome {
                Ok(_) => assert!(right, "{attributes}"),
                Err(error) => assert_eq!(
                    (right, error.error.code),
                    (false, Code::NotFound),
                    "{attributes}"
                ),
            }
        }
    }

    #[test]
    fn an_answer_about_another_secret_or_none_is_no_answer() {
        let with_id = |id: &str| answer("x", json!({"id": id}));
        for wrong in [
            with_id(&format!(
                "https://v1.vault.azure.net/secrets/other/{VERSION}"
            )),
            with_id(&format!("https://v2.vault.azure.net/secrets/db/{VERSION}")),
            with_id(&format!("https://v1.vault.azure.net/keys/db/{VERSION}")),
            with_id("https://v1.vault.azure.net/secrets/db"),
            with_id("db"),
            json!({"id": format!("https://v1.vault.azure.net/secrets/db/{VERSION}")}),
            json!({"value": 5}),
            json!([]),
        ] {
            let error = of(&wrong).err().map(|error| error.error);
            let error = error.unwrap_or_else(|| panic!("{wrong}"));
            assert_eq!(
                (error.code, error.cause),
                (Code::Unavailable, None),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_was_listed_for_another_vault_is_not_shown() {
        let vault = Url::parse("https://v1.vault.azure.net").expect("a URL");
        let shown = |host: &str| {
            let secret = json!({"id": format!("https://{host}/secrets/db")});
            let secret = serde_json::from_value(secret).expect("a secret");
            listed(&secret, &vault)
        };
        assert_eq!(shown("v1.vault.azure.net").as_deref(), Some("db"));
        assert_eq!(shown("v2.vault.azure.net"), None);
    }
}
