//! The machine's own credentials, outside a cluster: what gcloud and Google's libraries would use here, by Application
//! Default Credentials (AIP-4110).

use super::bearer::{AccessToken, Bearer, QUOTA_PROJECT};
use super::exchange::{Granted, SCOPE};
use crate::backend::BackendError;
use crate::backend::machine::{self, NoCredentials};
use crate::error::chain;
use google_cloud_auth::credentials::{Builder, CacheableResource};
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::http::Extensions;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// The message to a caller if the machine has none.
const NO_CREDENTIALS: &str = "this machine has no Google Cloud credentials now: sign in with \
     gcloud auth application-default login, or check GOOGLE_APPLICATION_CREDENTIALS";

/// What the default credentials give, as one process passes it to the other.
#[derive(Deserialize, Serialize)]
pub(in crate::backend) struct Found {
    token: String,
    quota_project: Option<String>,
}

/// Returns what the default credentials give now.
///
/// # Errors
///
/// If there are none, or the token service does not accept them.
pub(in crate::backend) async fn find() -> Result<Found, String> {
    let credentials = Builder::default().with_scopes([SCOPE]).build();
    let credentials = credentials.map_err(|error| chain(&error))?;
    let headers = match credentials.headers(Extensions::new()).await {
        Ok(CacheableResource::New { data, .. }) => data,
        Ok(CacheableResource::NotModified) => return Err("there is no token".to_owned()),
        Err(error) => return Err(chain(&error)),
    };
    let text = |name: HeaderName| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let token = text(AUTHORIZATION)
        .and_then(|header| Some(header.strip_prefix("Bearer ")?.to_owned()))
        .ok_or("the default credentials are no bearer's")?;
    Ok(Found {
        token,
        quota_project: text(QUOTA_PROJECT),
    })
}

/// Returns the machine's own bearer.
///
/// # Errors
///
/// `unavailable` if there is none within `limit`.
pub(super) async fn granted(limit: Duration) -> Result<Granted, BackendError> {
    let asked = Instant::now();
    let none = |none: NoCredentials| none.told(NO_CREDENTIALS);
    let found: Found = machine::ask(&["gcp"], limit).await.map_err(none)?;
    let quota_project = found
        .quota_project
        .and_then(|project| HeaderValue::try_from(project).ok());
    let bearer =
        Bearer::of(&AccessToken::from(found.token)).ok_or_else(|| none(NoCredentials::Garbage))?;
    Ok(Granted {
        bearer: bearer.counted(quota_project),
        ends: asked + machine::LOOK_AGAIN,
    })
}
