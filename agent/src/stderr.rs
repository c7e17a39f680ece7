//! stderr, which the trail and the log share.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Write};
use std::os::fd::AsFd;

/// Writes all it is given before anybody else's text, however slow the reader is.
///
/// The reader may be slow and stderr non-blocking: that is a property of the open file (open(2)), and whoever shares a
/// terminal or a pipe with the agent may set it.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        write_whole(&mut io::stderr().lock(), text)?;
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Writes all of `text`, and waits where there is no room.
fn write_whole(out: &mut (impl Write + AsFd), mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match out.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                // If this is interrupted, the next write says whether there is room.
                let _ = poll(&mut room, PollTimeout::NONE);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn to_a_slow_reader_of_a_non_blocking_pipe_everything_is_written() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe");
        let text: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let expected = text.clone();
        let writing = std::thread::spawn(move || write_whole(&mut File::from(writer), &text));
        let mut read = Vec::new();
        File::from(reader)
            .read_to_end(&mut read)
            .expect("it is closed at its end");
        writing.join().expect("it ends").expect("it is written");
        assert!(read == expected);
    }

    #[test]
    fn a_pipe_that_nobody_reads_any_more_is_an_error() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK).expect("a pipe");
        drop(reader);
        let error = write_whole(&mut File::from(writer), b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
