//! Names in archives: which of them lie in the image, and which are whiteouts of OCI's image
//! specification.

/// Maximum length of a name in bytes (Linux `NAME_MAX`).
const MAX_NAME: usize = 255;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A component is `..`.
    #[error("the path contains \"..\"")]
    Above,
    /// A component is longer than Linux allows.
    #[error("a name is longer than 255 bytes")]
    TooLong,
    /// A component contains a NUL byte.
    #[error("a name contains a NUL byte")]
    Nul,
    /// The path leads through a name that only whiteouts have.
    #[error("a directory has the name of a whiteout")]
    Whiteout,
    /// A whiteout hides nothing, or its own directory.
    #[error("the whiteout names no file")]
    EmptyWhiteout,
}

/// What the last component of a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// The directory itself.
    Root,
    /// A file of this name.
    File(&'a [u8]),
    /// Hides the file of this name in lower layers.
    Whiteout(&'a [u8]),
    /// Hides all files of its directory in lower layers.
    Opaque,
    /// Belongs to a program that wrote the layer, and is not part of the image.
    Ignored,
}

/// Returns the components of a path within the image. A path that begins with `/` begins at the root
/// of the image, like every other one. `..` is refused: no program that writes images needs it.
///
/// # Errors
/// [`NameError::Above`], [`NameError::TooLong`] and [`NameError::Nul`].
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, NameError> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(|name| check(name).map(|()| name)).collect()
}

fn check(name: &[u8]) -> Result<(), NameError> {
    if name == b".." {
        Err(NameError::Above)
    } else if name.len() > MAX_NAME {
        Err(NameError::TooLong)
    } else if name.contains(&0) {
        Err(NameError::Nul)
    } else {
        Ok(())
    }
}

/// Splits a path into the components of its directory, and the meaning of the last one.
///
/// # Errors
/// [`NameError::Whiteout`] and [`NameError::EmptyWhiteout`].
pub fn meaning<'a, 'b>(components: &'b [&'a [u8]]) -> Result<(&'b [&'a [u8]], Meaning<'a>), NameError> {
    const PREFIX: &[u8] = b".wh.";
    const PROGRAMS: &[u8] = b".wh..wh.";
    let Some((last, above)) = components.split_last() else { return Ok((&[], Meaning::Root)) };
    if above.iter().any(|name| name.starts_with(PROGRAMS)) {
        return Ok((above, Meaning::Ignored));
    }
    if above.iter().any(|name| name.starts_with(PREFIX)) {
        return Err(NameError::Whiteout);
    }
    let meaning = match last.strip_prefix(PREFIX) {
        None => Meaning::File(last),
        Some(b".wh..opq") => Meaning::Opaque,
        Some(_) if last.starts_with(PROGRAMS) => Meaning::Ignored,
        Some(b"" | b"." | b"..") => return Err(NameError::EmptyWhiteout),
        Some(hidden) => Meaning::Whiteout(hidden),
    };
    Ok((above, meaning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_the_root_of_the_image() {
        for path in [&b"a/b"[..], b"./a/b/", b"/a//./b", b"//a/b"] {
            assert_eq!(components(path), Ok(vec![&b"a"[..], b"b"]));
        }
        assert_eq!(components(b"/./"), Ok(vec![]));
        assert_eq!(components(b"a/../b"), Err(NameError::Above));
        assert_eq!(components(b"a\0b"), Err(NameError::Nul));
        assert_eq!(components(&[b'x'; 256]), Err(NameError::TooLong));
    }

    #[test]
    fn whiteouts_have_their_meaning_as_the_last_name_only() {
        let of =
            |path: &'static [u8]| meaning(&components(path).unwrap()).map(|(above, meaning)| (above.len(), meaning));
        assert_eq!(of(b"."), Ok((0, Meaning::Root)));
        assert_eq!(of(b"a/.wh.b"), Ok((1, Meaning::Whiteout(b"b"))));
        assert_eq!(of(b"a/.wh..wh..opq"), Ok((1, Meaning::Opaque)));
        assert_eq!(of(b"a/.wh..b"), Ok((1, Meaning::Whiteout(b".b"))));
        assert_eq!(of(b".wh..wh.plnk/7.9"), Ok((1, Meaning::Ignored)));
        assert_eq!(of(b".wh..wh.aufs"), Ok((0, Meaning::Ignored)));
        assert_eq!(of(b"a.wh.b"), Ok((0, Meaning::File(b"a.wh.b"))));
        assert_eq!(of(b".wh.a/b"), Err(NameError::Whiteout));
        for path in [&b".wh."[..], b".wh..", b"a/.wh..."] {
            assert_eq!(of(path), Err(NameError::EmptyWhiteout));
        }
    }
}
