//! What a person sees: colours and progress, on a terminal only.

use crate::error::ClientError;
use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal as _, Write as _};

/// From how many secrets on progress is worth showing.
const MANY: usize = 20;

const RED: Style = AnsiColor::Red.on_default().bold();

/// The colours of a report.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = RED;
pub(crate) const DIM: Style = Style::new().dimmed();

/// Prints a line about a failure on stderr.
pub(crate) fn error(text: &str) {
    let text = in_one_line(text);
    // anstream omits the colours if there is no terminal, or if NO_COLOR says so. A closed stderr cannot be reported.
    let _ = writeln!(anstream::stderr(), "{RED}latchkey:{RED:#} {text}");
}

/// Prints a line on stderr that is not about a failure.
pub(crate) fn note(text: &str) {
    let text = in_one_line(text);
    let _ = writeln!(anstream::stderr(), "latchkey: {text}");
}

/// The text with its control characters escaped: it may quote what others have written, such as a name with a line
/// break, which would look like a second line, or with what a terminal obeys.
pub(crate) fn in_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Says what a request is waiting for, if stderr is a terminal: a person there sees nothing else happen.
pub(crate) fn waiting(why: &ClientError) {
    if io::stderr().is_terminal() {
        note(&format!("{why}: trying again"));
    }
}

/// Whether stdout is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Shows how many of `count` secrets have been read, if stderr is a terminal and they are many.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stays_on_one_line_and_commands_no_terminal() {
        assert_eq!(
            in_one_line("a\nb\u{1b}[2J: \u{fc}"),
            "a\\nb\\u{1b}[2J: \u{fc}"
        );
    }
}
