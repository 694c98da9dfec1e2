//! Many files of a directory looked at together, by as many threads as there are processors: what a start has to do for each
//! volume. Each thread has the directory as its own working directory, so that a name is all the path there is.

use std::{io, num::NonZero, thread};

use rustix::io::Errno;

use super::{
    file::{Directory, Stat},
    raw,
};

/// Fewer names than this are not worth a thread.
const SHARE: usize = 256;
/// Most threads: beyond these the filesystem is what is waited for.
const THREADS: usize = 8;

/// A directory as one thread of a survey sees it.
pub struct Inside<'a> {
    directory: &'a Directory,
    /// The way to the directory, then the name that was asked for last.
    path: String,
    way: usize,
    value: Vec<u8>,
}

impl<'a> Inside<'a> {
    fn new(directory: &'a Directory, way: String, limit: usize) -> Self {
        Self { directory, way: way.len(), path: way, value: vec![0; limit] }
    }

    /// For a thread that is made for this and ends with it.
    fn of_own_thread(directory: &'a Directory, limit: usize) -> Self {
        let moved = raw::own_working_directory().and_then(|()| Ok(rustix::process::fchdir(directory)?));
        // Whoever forbids it (a filter of system calls) makes it slower, no more.
        let way = moved.map_or_else(|_| directory.way(), |()| String::new());
        Self::new(directory, way, limit)
    }

    /// As [`Directory::attribute`], into a place that the next question reuses.
    ///
    /// # Errors
    /// Those of lgetxattr(2); ERANGE where it is longer than the limit of the survey.
    pub fn attribute(&mut self, name: &str, key: &str) -> io::Result<Option<&[u8]>> {
        self.path.truncate(self.way);
        self.path.push_str(name);
        match rustix::fs::lgetxattr(&self.path, key, &mut self.value[..]) {
            Ok(length) => Ok(self.value.get(..length)),
            Err(Errno::NODATA | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`Directory::stat`].
    ///
    /// # Errors
    /// Those of fstatat(2).
    pub fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        self.directory.stat(name)
    }
}

impl Directory {
    /// Looks at each of these names, and answers in their order. Attributes have at most `limit` bytes. Blocks.
    pub fn survey<T: Send>(
        &self,
        names: &[String],
        limit: usize,
        look: impl Fn(&mut Inside<'_>, &str) -> T + Sync,
    ) -> Vec<T> {
        let all = |mut inside: Inside<'_>, names: &[String]| -> Vec<T> {
            names.iter().map(|name| look(&mut inside, name)).collect()
        };
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
        let share = names.len().div_ceil(threads).max(SHARE);
        if names.len() <= share {
            return all(Inside::new(self, self.way(), limit), names);
        }
        thread::scope(|scope| {
            let part = |names| scope.spawn(move || all(Inside::of_own_thread(self, limit), names));
            let parts: Vec<_> = names.chunks(share).map(part).collect();
            let whole = |part: thread::ScopedJoinHandle<'_, Vec<T>>| match part.join() {
                Ok(answers) => answers,
                Err(panicked) => std::panic::resume_unwind(panicked),
            };
            parts.into_iter().flat_map(whole).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_seen_as_one_by_one() {
        let place = tempfile::tempdir().unwrap();
        let before = std::env::current_dir().unwrap();
        let mut names = Vec::new();
        for number in 0..3 * SHARE {
            let name = format!("f{number}");
            let file = std::fs::File::create(place.path().join(&name)).unwrap();
            file.set_len(number as u64).unwrap();
            if number % 3 > 0 {
                let value = name.repeat(number % 3);
                rustix::fs::fsetxattr(&file, "user.name", value.as_bytes(), rustix::fs::XattrFlags::empty())
                    .unwrap();
            }
            names.push(name);
        }
        names.push("missing".into());
        let directory = Directory::open(place.path()).unwrap();
        for many in [&names[..], &names[..7], &[]] {
            let seen = directory.survey(many, 64, |inside, name| {
                let value = inside.attribute(name, "user.name").unwrap().map(<[u8]>::to_vec);
                (name.to_owned(), value, inside.stat(name).unwrap())
            });
            let one_by_one = many.iter().map(|name| {
                let value = directory.attribute(name, "user.name", 64).unwrap();
                (name.clone(), value, directory.stat(name).unwrap())
            });
            assert_eq!(seen, one_by_one.collect::<Vec<_>>());
        }
        assert_eq!(std::env::current_dir().unwrap(), before, "only threads of its own have moved");
    }
}
