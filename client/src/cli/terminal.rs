//! What a person sees: colours and progress, on a terminal only.

use crate::error::ClientError;
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal as _, Write as _};

/// From how many secrets on it is worth showing how many are there.
const MANY: usize = 20;

const RED: Style = AnsiColor::Red.on_default().bold();

/// The colours of a report.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = RED;
pub(crate) const DIM: Style = Style::new().dimmed();

/// One line of trouble on stderr.
pub(crate) fn error(text: &str) {
    // anstream leaves the colours out where there is no terminal, and where NO_COLOR says so. Nobody can be told of a
    // stderr that is closed.
    let _ = writeln!(anstream::stderr(), "{RED}latchkey:{RED:#} {text}");
}

/// One line on stderr that is no trouble.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "latchkey: {text}");
}

/// What a request is waited for: on stderr, if that is a terminal, since whoever sits there sees nothing else happen.
pub(crate) fn waiting(why: &ClientError) {
    if io::stderr().is_terminal() {
        note(&format!("{why}: trying again"));
    }
}

/// Whether stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// How many of `count` secrets have been read: on stderr, if that is a terminal and they are many.
pub(crate) fn progress(count: usize) -> ProgressBar {
    if count < MANY || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(count as u64), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{pos}/{len} secrets {wide_bar}") {
        bar.set_style(style);
    }
    bar
}
