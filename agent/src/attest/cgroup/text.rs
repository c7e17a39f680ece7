//! The outer form of a cgroup file: lines, and the segments of their paths.
//!
//! Paths are bytes: in a name the kernel allows anything but `/`, NUL and newline, even `:` and what is not UTF-8.
//! Since it refuses a newline, nobody can forge a line (cgroups(7)).

use super::CgroupDenial;

/// A well-formed path: `..` repeated `up` times, then only ordinary names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path<'a> {
    /// How many `..` the path begins with: how far above the reader's cgroup namespace it begins.
    pub(super) up: usize,
    /// What follows them: empty, or names that are each preceded by `/`.
    pub(super) below: &'a [u8],
}

/// One line of a cgroup file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    /// Whether it belongs to cgroup v2, which has a single hierarchy.
    pub(super) unified: bool,
    pub(super) path: &'a [u8],
}

/// The lines of a cgroup file, in order.
///
/// An empty file or an empty line yields a malformed line.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = Result<Line<'_>, CgroupDenial>> {
    text.strip_suffix(b"\n")
        .unwrap_or(text)
        .split(|&byte| byte == b'\n')
        .map(Line::parse)
}

impl<'a> Line<'a> {
    /// Parses `hierarchy-ID:controller-list:cgroup-path`; the path may contain colons.
    fn parse(line: &'a [u8]) -> Result<Self, CgroupDenial> {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        match (fields.next(), fields.next(), fields.next()) {
            (Some(id), Some(controllers), Some(path))
                if !id.is_empty()
                    && id.iter().all(u8::is_ascii_digit)
                    && path.starts_with(b"/") =>
            {
                Ok(Self {
                    unified: id == b"0" && controllers.is_empty(),
                    path,
                })
            }
            _ => Err(CgroupDenial::Malformed),
        }
    }
}

impl<'a> Path<'a> {
    /// Parses a path; `..` is valid only at its beginning, and a name is never empty.
    ///
    /// The suffix by which the kernel marks a removed cgroup is also valid in a name, so a path that ends in it proves
    /// nothing.
    pub(super) fn parse(path: &'a [u8]) -> Result<Self, CgroupDenial> {
        if path.ends_with(b" (deleted)") {
            return Err(CgroupDenial::Deleted);
        }
        let mut up = 0;
        let mut below = if path == b"/" { &[] } else { path };
        while let Some(rest) = below.strip_prefix(b"/..")
            && (rest.is_empty() || rest.starts_with(b"/"))
        {
            up += 1;
            below = rest;
        }
        let path = Self { up, below };
        if path.names().any(|name| matches!(name, b"" | b"." | b"..")) {
            return Err(CgroupDenial::Malformed);
        }
        Ok(path)
    }

    /// The names that follow the leading `..`, from the outside in.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        names(self.below)
    }
}

/// The names in `path`, which is empty or has a `/` before every name.
pub(super) fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    // What precedes the first slash is empty, not a name.
    path.split(|&byte| byte == b'/').skip(1)
}

/// What is left of `path` below `root`: empty, or names that are each preceded by `/`.
pub(super) fn below<'a>(path: &'a [u8], root: &[u8]) -> Option<&'a [u8]> {
    path.strip_prefix(root)
        .filter(|rest| rest.is_empty() || rest.starts_with(b"/"))
}
