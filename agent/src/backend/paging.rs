//! One page of names as the application asks for it, gathered from as many of a cloud's own pages as it takes.

use super::{BackendError, Page};

/// The most calls that one page of ours may take. If a cloud returns little that can be shown, the cursor leads on.
const CALLS: usize = 10;

/// Gathers up to `limit` names from `cursor` on. `ask` gets the number of names wanted, never more than the `most` that
/// the cloud returns at once, and the cursor to start from; it returns one page of the cloud's own.
///
/// # Errors
///
/// The error of the first call that fails.
pub(super) async fn collect<F>(
    limit: usize,
    most: usize,
    cursor: Option<String>,
    mut ask: impl FnMut(usize, Option<String>) -> F,
) -> Result<Page, BackendError>
where
    F: Future<Output = Result<Page, BackendError>>,
{
    let mut page = Page {
        names: Vec::new(),
        next: cursor,
        more_calls: 0,
    };
    for call in 0..CALLS {
        let wanted = (limit - page.names.len()).min(most);
        let more = ask(wanted, page.next.take()).await?;
        page.names.extend(more.names);
        page.next = more.next;
        page.more_calls = call;
        if page.next.is_none() || page.names.len() >= limit {
            break;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::ready;

    /// A cloud whose cursors are the numbers of its pages, every second of which has nothing to show.
    fn page(asked: &mut Vec<usize>, wanted: usize, from: Option<String>) -> Page {
        asked.push(wanted);
        let number: usize = from.map_or(0, |from| from.parse().expect("a number"));
        let shown = if number.is_multiple_of(2) { wanted } else { 0 };
        Page {
            names: vec![number.to_string(); shown],
            next: Some((number + 1).to_string()),
            more_calls: 0,
        }
    }

    /// Returns how many names the cloud was asked for each time, and the resulting page.
    async fn collected(limit: usize) -> (Vec<usize>, Page) {
        let mut asked = Vec::new();
        let found = collect(limit, 3, None, |wanted, from| {
            ready(Ok(page(&mut asked, wanted, from)))
        });
        let found = found.await.expect("a page");
        (asked, found)
    }

    #[tokio::test]
    async fn no_more_is_asked_for_than_is_wanted_nor_than_the_cloud_gives_at_once() {
        let (asked, found) = collected(5).await;
        assert_eq!(asked, [3, 2, 2]);
        assert_eq!(found.names, ["0", "0", "0", "2", "2"]);
        assert_eq!(found.next.as_deref(), Some("3"));
    }

    #[tokio::test]
    async fn a_page_ends_after_so_many_calls_and_leads_on() {
        let (asked, found) = collected(1000).await;
        assert_eq!((asked.len(), found.names.len()), (CALLS, 3 * CALLS / 2));
        assert_eq!(found.more_calls, CALLS - 1);
        assert_eq!(found.next, Some(CALLS.to_string()));
    }
}
