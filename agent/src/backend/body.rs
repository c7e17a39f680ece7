//! The body of a cloud's answer, read whole into memory that is overwritten when it is dropped.

use zeroize::Zeroizing;

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The connection broke, or was too slow.
    #[error(transparent)]
    Lost(#[from] reqwest::Error),
    /// It has more bytes than this.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// Returns the whole body of `answer`, if it has at most `limit` bytes.
///
/// # Errors
///
/// If it is longer, or cannot be read to its end.
pub(super) async fn whole(
    answer: &mut reqwest::Response,
    limit: usize,
) -> Result<Zeroizing<Vec<u8>>, BodyError> {
    let expected = answer.content_length().unwrap_or_default();
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(BodyError::TooLong(limit));
    }
    let mut body = Zeroizing::new(Vec::with_capacity(expected));
    while let Some(chunk) = answer.chunk().await? {
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(BodyError::TooLong(limit));
        }
        if body.capacity() < length {
            // A vector that grows by itself leaves a copy of its content behind.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * length));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_read_whole_or_not_at_all() {
        let answer = || reqwest::Response::from(http::Response::new("12345"));
        let read = whole(&mut answer(), 5).await.expect("it fits");
        assert_eq!(&**read, b"12345");
        let error = whole(&mut answer(), 4).await.expect_err("it is longer");
        assert!(matches!(error, BodyError::TooLong(4)), "{error}");
    }
}
