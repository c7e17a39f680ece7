//! Signature Version 4 as the receiving side checks it ("Create a signed AWS API request", IAM user guide).
//!
//! Written from the specification, not with the signer that the SDK uses, so that the two check each other.

use aws_lc_rs::{digest, hmac};
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};

use super::reply::Refusal;

/// How far the signer's clock may be from ours, in either direction.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// The `Authorization` header of a signed request.
#[derive(Debug)]
pub(super) struct Authorization<'a> {
    pub(super) access_key: &'a str,
    date: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    scope: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    /// Parses the header; does not check the signature yet.
    pub(super) fn of(parts: &'a Parts) -> Result<Self, Refusal> {
        let Some(header) = parts.headers.get(http::header::AUTHORIZATION) else {
            return Err(Refusal::new(
                400,
                "MissingAuthenticationTokenException",
                "Missing Authentication Token",
            ));
        };
        let incomplete =
            |what: &str| Refusal::new(400, "IncompleteSignatureException", what.to_owned());
        let header = header
            .to_str()
            .map_err(|_| incomplete("Authorization is not text"))?;
        let Some(rest) = header.strip_prefix("AWS4-HMAC-SHA256 ") else {
            return Err(incomplete("Unsupported AWS 'algorithm'"));
        };
        let part = |name: &str| {
            rest.split(',')
                .find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(|| {
                    incomplete(&format!(
                        "Authorization header requires '{name}' parameter."
                    ))
                })
        };
        let (signed_headers, signature) = (part("SignedHeaders")?, part("Signature")?);
        let credential = part("Credential")?;
        let malformed = || {
            incomplete(
                "Credential must have exactly 5 slash-delimited elements, \
                 e.g. keyid/date/region/service/term",
            )
        };
        let (access_key, scope) = credential.split_once('/').ok_or_else(malformed)?;
        let scope_parts: Vec<&str> = scope.split('/').collect();
        let &[date, region, service, "aws4_request"] = scope_parts.as_slice() else {
            return Err(malformed());
        };
        Ok(Self {
            access_key,
            date,
            region,
            service,
            scope,
            signed_headers,
            signature,
        })
    }

    /// Recomputes the signature over the request as it arrived.
    pub(super) fn verify(
        &self,
        secret_key: &str,
        parts: &Parts,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let invalid = |text: &str| Refusal::new(400, "InvalidSignatureException", text.to_owned());
        let date = header(parts, "x-amz-date").unwrap_or_default();
        self.check_time(&date, now)?;
        self.check_signed_headers(parts)?;

        let mut canonical = format!("{}\n{}\n\n", parts.method, parts.uri.path());
        for name in self.signed_headers.split(';') {
            let Some(value) = header(parts, name) else {
                return Err(invalid("a signed header is missing from the request"));
            };
            canonical.push_str(name);
            canonical.push(':');
            canonical.push_str(&value);
            canonical.push('\n');
        }
        canonical.push('\n');
        canonical.push_str(self.signed_headers);
        canonical.push('\n');
        canonical.push_str(&sha256(body));

        let text = format!(
            "AWS4-HMAC-SHA256\n{date}\n{}\n{}",
            self.scope,
            sha256(canonical.as_bytes())
        );
        let key = [self.date, self.region, self.service, "aws4_request"]
            .into_iter()
            .fold(
                sign_key(format!("AWS4{secret_key}").as_bytes()),
                |key, part| sign_key(hmac::sign(&key, part.as_bytes()).as_ref()),
            );
        let signature = unhex(self.signature).unwrap_or_default();
        hmac::verify(&key, text.as_bytes(), &signature).map_err(|_| {
            // The real one does repeat what it has read, including the session's token.
            invalid(&format!(
                "The request signature we calculated does not match the signature you provided. \
                 Check your AWS Secret Access Key and signing method. Consult the service \
                 documentation for details.\n\nThe Canonical String for this request should have been\n'{canonical}'\n\n\
                 The String-to-Sign should have been\n'{text}'\n"
            ))
        })
    }

    fn check_time(&self, date: &str, now: Timestamp) -> Result<(), Refusal> {
        let invalid = |text: String| Refusal::new(400, "InvalidSignatureException", text);
        let signed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date)
            .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC))
            .map_err(|_| {
                Refusal::new(
                    400,
                    "IncompleteSignatureException",
                    "Date must be in ISO-8601 'basic format'.",
                )
            })?
            .timestamp();
        if !date.starts_with(self.date) {
            return Err(invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date \
                 from HTTP: '{}' != '{date}'.",
                self.date
            )));
        }
        let basic = |at: Timestamp| at.strftime("%Y%m%dT%H%M%SZ").to_string();
        if now.duration_since(signed) > SKEW {
            return Err(invalid(format!(
                "Signature expired: {date} is now earlier than {} ({} - 5 min.)",
                basic(now - SKEW),
                basic(now)
            )));
        }
        if signed.duration_since(now) > SKEW {
            return Err(invalid(format!(
                "Signature not yet current: {date} is still later than {} ({} + 5 min.)",
                basic(now + SKEW),
                basic(now)
            )));
        }
        Ok(())
    }

    /// The host and everything that AWS itself reads must be signed, or it could be replaced.
    fn check_signed_headers(&self, parts: &Parts) -> Result<(), Refusal> {
        let names: Vec<&str> = self.signed_headers.split(';').collect();
        let refuse = |text: String| Err(Refusal::new(400, "InvalidSignatureException", text));
        if !names.is_sorted() || names.iter().any(|name| *name != name.to_ascii_lowercase()) {
            return refuse("SignedHeaders must be lower-case and sorted".to_owned());
        }
        if !names.contains(&"host") {
            return refuse("'Host' must be a 'SignedHeader' in the AWS Authorization.".to_owned());
        }
        for name in parts.headers.keys().map(http::HeaderName::as_str) {
            if name.starts_with("x-amz-") && !names.contains(&name) {
                return refuse(format!(
                    "'{name}' must be a 'SignedHeader' in the Authorization."
                ));
            }
        }
        Ok(())
    }
}

/// A header's canonical value: trimmed, runs of spaces as one, several lines joined by commas.
fn header(parts: &Parts, name: &str) -> Option<String> {
    let mut joined: Option<String> = None;
    for value in parts.headers.get_all(name) {
        let value = value.to_str().ok()?;
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        match &mut joined {
            Some(joined) => {
                joined.push(',');
                joined.push_str(&value);
            }
            None => joined = Some(value),
        }
    }
    joined
}

fn sign_key(bytes: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for &byte in digest::digest(&digest::SHA256, bytes).as_ref() {
        for nibble in [byte >> 4, byte & 15] {
            hex.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    hex
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| u8::try_from(char::from(byte).to_digit(16)?).ok();
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect()
}
